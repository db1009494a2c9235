"""What a worker process writes to stderr is lines of our form, whoever warns."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import logging, sys, warnings
from fovea.ipc.process import show_worker_logs
show_worker_logs(as_json=True, level=sys.argv[1])
warnings.warn("of Python")
logging.getLogger("PIL.TiffImagePlugin").warning("of a library")
logging.getLogger("fovea").error("ours")
"""


@pytest.mark.parametrize(
    ("level", "loggers"),
    [("info", ["PIL.TiffImagePlugin", "fovea"]), ("debug", ["py.warnings", "PIL.TiffImagePlugin", "fovea"])],
)
def test_no_line_of_a_worker_is_raw(level: str, loggers: list[str]) -> None:
    command = [sys.executable, "-c", SCRIPT, level]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert [json.loads(line)["logger"] for line in done.stderr.splitlines()] == loggers
