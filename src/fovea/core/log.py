"""Fovea's logger. Nothing is configured on import; LLM and the command line call `show_logs` once."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("fovea")


def show_logs(level: int = logging.INFO) -> None:
    """Send Fovea's log lines to stderr unless the application has set up logging itself."""
    if logger.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("fovea %(levelname).1s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
