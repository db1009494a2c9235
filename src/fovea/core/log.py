"""Fovea's logger and the form of its lines. Nothing is configured on import; programs call `show_logs` or their own."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger("fovea")

MAX_LINE_BYTES = 4096
MAX_FIELD_CHARS = 200
MAX_ECHO_CHARS = 200
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def show_logs(level: int = logging.INFO) -> None:
    """Send Fovea's log lines to stderr unless the application has set up logging itself."""
    if logger.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("fovea %(levelname).1s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


def wants_json(log_format: str) -> bool:
    """auto: lines for people on a terminal, else JSON."""
    return log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())


def escaped(text: str, limit: int = MAX_ECHO_CHARS) -> str:
    """Text of a client, fit for a message or a log line: cut, and control characters written out."""
    cut = text if len(text) <= limit else text[:limit] + "..."
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"), cut)


class LineFormatter(logging.Formatter):
    """One line of UTF-8 for each record."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        message = escaped(message_of(record), MAX_LINE_BYTES)
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        trace = record.exc_text or (self.formatException(record.exc_info) if record.exc_info else "")
        made = time.gmtime(record.created)
        moment = f"{time.strftime('%Y-%m-%dT%H:%M:%S', made)}.{int(record.msecs):03d}Z"
        if self._as_json:
            line = {"time": moment, "level": record.levelname.lower(), "logger": record.name, "message": message}
            encoded = json.dumps({**line, **fields, **({"trace": trace} if trace else {})}, ensure_ascii=False)
            return encoded if trace else _cut(encoded, MAX_LINE_BYTES)
        values = " ".join(f"{name}={escaped(str(value), MAX_FIELD_CHARS)}" for name, value in fields.items())
        line_text = _cut(f"{moment} {record.levelname:<7} {record.name}: {message} {values}".rstrip(), MAX_LINE_BYTES)
        return line_text + "".join(f"\n    {escaped(row, MAX_LINE_BYTES)}" for row in trace.splitlines())


def message_of(record: logging.LogRecord) -> str:
    """A mistake in a call of a logger must not become an error of the request it stands in."""
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        return str(record.msg)


def _cut(text: str, max_bytes: int) -> str:
    if len(text) * 4 <= max_bytes:
        return text
    data = text.encode("utf-8", "replace")
    return text if len(data) <= max_bytes else data[: max_bytes - 3].decode("utf-8", "ignore") + "..."
