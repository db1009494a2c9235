"""Log lines that never hold the server up, and one of them for each request.

`setup_logging` puts a bounded queue between the loggers and a thread that writes: a full disk or a reader that has
stopped costs lines, which are counted, and nothing else. Lines are JSON or for people; either is one line of at most
4 KiB with control characters written out, so that nothing a client sends can forge a second one. Only tracebacks of our
own bugs take several lines in the format for people.

A request's line holds its id, method, path, status and times, and numbers that routes `note`: no query, no prompt, no
address of a picture, no key.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

from starlette.types import Scope

from fovea.core.log import MAX_LINE_BYTES, LineFormatter, escaped, message_of, wants_json
from fovea.core.server_config import ServerConfig

logger = logging.getLogger("fovea.access")

MAX_TRACE_CHARS = 16_000
MAX_PATH_CHARS = 200
MAX_QUEUED_LINES = 10_000
STOP_S = 1.0
GATHER_S = 0.02  # lines of so long are written at once: waking a thread for each would cost requests time
MAX_GATHERED_LINES = 256
STDERR = 2
NOTABLE = frozenset(
    {"prompt_tokens", "cached_tokens", "output_tokens", "pictures", "ttft_s", "queue_s", "media_s", "finish_reason"}
)
PROBES = frozenset({"/health", "/health/live", "/health/ready", "/ready", "/metrics"})
LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def note(scope: Scope, **fields: float | int | str | None) -> None:
    """Add to this request's line; names that are not in NOTABLE are left out, and so is None."""
    noted = scope.setdefault("state", {}).setdefault("log_fields", {})
    noted.update({name: value for name, value in fields.items() if name in NOTABLE and value is not None})


def log_request(
    *, request_id: str, method: str, path: str, status: int, seconds: float, fields: Mapping[str, Any], client: str = ""
) -> None:
    line = {
        "id": request_id,
        "method": escaped(method, 16),
        "path": escaped(path, MAX_PATH_CHARS),
        "status": status,
        "seconds": round(seconds, 6),
        "client": client,
        **{name: round(value, 6) if isinstance(value, float) else value for name, value in fields.items()},
    }
    # Probes come every few seconds from every monitor; one that was answered is no news.
    logger.log(logging.DEBUG if path in PROBES and status == 200 else logging.INFO, "request", extra={"fields": line})


class LogPipe(logging.Handler):
    """A handler that only ever enqueues. A thread of its own formats and writes to a file descriptor.

    The descriptor is written to directly: a buffered stream has a lock that a stuck thread would hold at exit.
    """

    def __init__(self, descriptor: int, formatter: logging.Formatter, *, max_lines: int = MAX_QUEUED_LINES) -> None:
        super().__init__()
        self.num_dropped = 0
        self.setFormatter(formatter)
        self._descriptor = descriptor
        self._lines: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
        self._max_lines = max_lines
        self._thread = threading.Thread(target=self._write_all, name="fovea-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if self._lines.qsize() >= self._max_lines:
            self.num_dropped += 1
            return
        # As texts: a queued record must not keep the frames of an exception or large arguments alive.
        record.msg, record.args = message_of(record)[:MAX_LINE_BYTES], None
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)[-MAX_TRACE_CHARS:]
            record.exc_info = None
        self._lines.put(record)

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Write what is queued, if that works within the time."""
        self._lines.put(None)
        self._thread.join(timeout_s)

    def _write_all(self) -> None:
        is_last = False
        while not is_last:
            records = [self._lines.get()]
            time.sleep(GATHER_S)
            while len(records) < MAX_GATHERED_LINES and self._lines.qsize():
                records.append(self._lines.get())
            is_last = None in records
            self._write([record for record in records if record is not None])

    def _write(self, records: list[logging.LogRecord]) -> None:
        """Lines that can't be formatted or written are lost and counted; the next ones are tried."""
        try:
            data = "".join(self.format(record) + "\n" for record in records).encode("utf-8", "replace")
            while data:
                data = data[os.write(self._descriptor, data) :]
        except Exception:
            self.num_dropped += len(records)


def setup_logging(config: ServerConfig, *, descriptor: int = STDERR) -> LogPipe:
    """Send the log lines of Fovea, uvicorn and asyncio to `descriptor`. Call it once, at the start of a process."""
    pipe = LogPipe(descriptor, LineFormatter(as_json=wants_json(config.log_format)))
    for name, least in (("fovea", LEVELS[config.log_level]), ("uvicorn", logging.ERROR), ("asyncio", logging.WARNING)):
        target = logging.getLogger(name)
        target.handlers = [pipe]
        target.setLevel(least)
        target.propagate = False
    return pipe


def num_dropped_lines() -> int:
    return sum(handler.num_dropped for handler in logging.getLogger("fovea").handlers if isinstance(handler, LogPipe))
