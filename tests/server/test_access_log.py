"""One line for each request, whatever is in it, and a log that never holds the server up."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fovea.core.log import MAX_LINE_BYTES, LineFormatter
from fovea.core.server_config import ServerConfig
from fovea.server.access_log import (
    LogPipe,
    log_request,
    note,
    num_dropped_lines,
    setup_logging,
)

NASTY = 'a\r\nb\x1b[31m\x00\u2028"\\' + "x" * 1024 * 1024
PIPE_BYTES = 1024 * 1024


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    names = ("fovea", "uvicorn", "asyncio")
    before = [(one, one.handlers, one.level, one.propagate) for one in map(logging.getLogger, names)]
    yield
    for one, handlers, level, propagate in before:
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


def written(file: Path, config: ServerConfig) -> tuple[LogPipe, int]:
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY)
    return setup_logging(config, descriptor=descriptor), descriptor


def log_one(path: str = "/v1/chat/completions") -> None:
    log_request(
        request_id="req-1", method="POST", path=path, status=200, seconds=0.25, client="127.0.0.1",
        fields={"prompt_tokens": 12, "ttft_s": 0.123456789},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "status", "level"), [("/health", 200, "DEBUG"), ("/health", 503, "INFO"), ("/x", 200, "INFO")]
)
def test_a_probe_that_was_answered_is_logged_for_debugging_only(
    path: str, status: int, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="fovea.access"):
        log_request(request_id="r", method="GET", path=path, status=status, seconds=0.0, fields={})
    assert [record.levelname for record in caplog.records] == [level]


def test_a_line_in_json_holds_what_happened(tmp_path: Path) -> None:
    pipe, _ = written(tmp_path / "log", ServerConfig(log_format="json"))
    log_one()
    pipe.stop()
    line = json.loads((tmp_path / "log").read_text())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info", "logger": "fovea.access", "message": "request", "id": "req-1", "method": "POST",
        "path": "/v1/chat/completions", "status": 200, "seconds": 0.25, "client": "127.0.0.1", "prompt_tokens": 12,
        "ttft_s": 0.123457,
    }  # fmt: skip


def test_a_line_for_people_holds_the_same(tmp_path: Path) -> None:
    pipe, _ = written(tmp_path / "log", ServerConfig(log_format="human"))
    log_one()
    pipe.stop()
    line = (tmp_path / "log").read_text()
    for part in ("INFO", "fovea.access", "id=req-1", "method=POST", "status=200", "prompt_tokens=12"):
        assert part in line


@pytest.mark.parametrize("format", ["human", "json"])
def test_nothing_a_client_sends_makes_a_second_line(tmp_path: Path, format: str) -> None:
    pipe, _ = written(tmp_path / "log", ServerConfig.from_options({"log_format": format}))
    log_one("/" + NASTY)
    logging.getLogger("fovea.server").warning("odd: %s", NASTY)
    pipe.stop()
    lines = (tmp_path / "log").read_bytes().splitlines()
    assert len(lines) == 2
    for line in lines:
        assert len(line) <= MAX_LINE_BYTES
        assert not any(byte < 32 for byte in line)


def test_only_numbers_that_are_known_are_noted() -> None:
    scope = {"type": "http"}
    note(scope, prompt_tokens=3, ttft_s=None, prompt="secret")
    note(scope, output_tokens=4)
    assert scope["state"] == {"log_fields": {"prompt_tokens": 3, "output_tokens": 4}}  # type: ignore[comparison-overlap]


def test_our_own_bugs_come_with_a_traceback(tmp_path: Path) -> None:
    for format in ("human", "json"):
        pipe, _ = written(tmp_path / format, ServerConfig.from_options({"log_format": format}))
        try:
            raise KeyError("a\nb")
        except KeyError:
            logging.getLogger("fovea.server").exception("failed")
        pipe.stop()
        text = (tmp_path / format).read_text()
        assert "Traceback" in text
        assert "KeyError" in text
    assert len((tmp_path / "json").read_text().splitlines()) == 1


def test_the_level_is_that_of_the_options(tmp_path: Path) -> None:
    pipe, _ = written(tmp_path / "log", ServerConfig(log_level="warning"))
    log_one()
    logging.getLogger("fovea.server").warning("seen")
    logging.getLogger("uvicorn.error").warning("unseen")
    pipe.stop()
    assert "seen" in (tmp_path / "log").read_text()
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_a_blocked_sink_costs_lines_and_never_time() -> None:
    """F30: nobody reads the pipe."""
    reader, writer = os.pipe()
    pipe = LogPipe(writer, LineFormatter(as_json=True), max_lines=100)
    record = logging.LogRecord("fovea", logging.INFO, "", 0, "x" * 3000, None, None)
    began = time.monotonic()
    for _ in range(5000):
        pipe.handle(record)
    assert time.monotonic() - began < 2.0
    assert pipe.num_dropped >= 5000 - 100 - PIPE_BYTES // 3000
    began = time.monotonic()
    pipe.stop(timeout_s=0.1)
    assert time.monotonic() - began < 2.0
    emptied = threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(reader, 65536), b"")], daemon=True)
    emptied.start()
    pipe.stop()
    os.close(writer)
    emptied.join(5.0)
    os.close(reader)


def test_a_sink_that_fails_is_tried_again(tmp_path: Path) -> None:
    """F18: a disk that is full now may have room later."""
    full = os.open("/dev/full", os.O_WRONLY)
    pipe = setup_logging(ServerConfig(), descriptor=full)
    log_one()
    time.sleep(0.1)
    assert num_dropped_lines() == 1
    good = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    os.dup2(good, full)
    log_one()
    pipe.stop()
    assert "req-1" in (tmp_path / "log").read_text()
    assert num_dropped_lines() == 1


def test_a_mistake_in_a_log_call_is_no_error_of_the_caller(tmp_path: Path) -> None:
    pipe, _ = written(tmp_path / "log", ServerConfig())
    logging.getLogger("fovea.server").warning("%d of %s", "one")
    pipe.stop()
    assert "%d of %s" in (tmp_path / "log").read_text()


def test_a_queued_line_keeps_no_objects_alive() -> None:
    reader, writer = os.pipe()
    pipe = LogPipe(writer, LineFormatter(as_json=True))
    try:
        raise KeyError("x")
    except KeyError as error:
        record = logging.LogRecord("fovea", logging.ERROR, "", 0, "%s", ({"big": 1},), (KeyError, error, None))
    pipe.handle(record)
    assert (record.args, record.exc_info) == (None, None)
    pipe.stop()
    os.close(writer)
    os.close(reader)
