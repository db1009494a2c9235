"""Streams: when the head goes out, what follows an error, pings, and that nothing goes on for a client that left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from fovea.core.errors import DeadlineError, UnavailableError
from fovea.core.server_config import ServerConfig
from fovea.server.errors import CANCELLED_STATUS, ClientGone
from fovea.server.stream import PING, EventStream, guarded, line_safe, merged, while_connected
from tests.server.fakes import FakeService, app_of, chat_body, check_refused, post, request

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
JSON = {"content-type": "application/json"}


def text_body(**fields: Any) -> dict[str, Any]:
    return {"model": "fovea-tiny", "prompt": ["a", "b", "c"], **fields}


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_an_error_in_mid_stream_is_the_last_event(path: str) -> None:
    service = FakeService(midway=DeadlineError("It took longer than 300 s."))
    answer = post(service, path, chat_body(stream=True) if path == CHAT else text_body(prompt="a", stream=True))
    assert answer.status == 200
    assert answer.events[-1] == {
        "error": {
            "message": "It took longer than 300 s.",
            "type": "timeout_error",
            "param": None,
            "code": "deadline_exceeded",
        }
    }
    assert len(answer.events) == 3
    assert b"[DONE]" not in answer.body


def test_a_bug_in_mid_stream_is_told_without_its_text() -> None:
    answer = post(FakeService(midway=ZeroDivisionError("secret")), CHAT, chat_body(stream=True))
    assert answer.events[-1]["error"]["code"] == "internal_error"
    assert "req-1" in answer.events[-1]["error"]["message"]
    assert b"secret" not in answer.body
    assert b"[DONE]" not in answer.body


def test_an_error_before_the_first_event_has_its_own_status() -> None:
    answer = post(FakeService(before=UnavailableError("Full.")), CHAT, chat_body(stream=True))
    check_refused(answer, "queue_full", status=503)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("begun", [True, False])
def test_a_client_that_leaves_ends_its_request_at_once(path: str, stream: bool, begun: bool) -> None:
    async def leave() -> FakeService:
        service = FakeService(hang=not begun, words=("x",) * 1_000_000)
        gone = asyncio.Event()
        body = chat_body(stream=stream, n=8) if path == CHAT else text_body(stream=stream)
        before = asyncio.all_tasks()
        running = asyncio.ensure_future(
            request(app_of(service), "POST", path, msgspec.json.encode(body), JSON, gone=gone)
        )
        while service.opened < (1 if path == CHAT else 3):
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        gone.set()
        with contextlib.suppress(ClientGone, RuntimeError):  # a framework may wrap it once the head is out
            assert (await running).status == CANCELLED_STATUS
        assert asyncio.all_tasks() == before
        return service

    service = asyncio.run(leave())
    assert service.opened == service.closed == (1 if path == CHAT else 3)
    assert service.metrics.observed == []


@pytest.mark.parametrize("stream", [True, False])
def test_cancelling_the_server_s_task_ends_the_request(stream: bool) -> None:
    async def cancel() -> FakeService:
        service = FakeService(hang=True)
        body = msgspec.json.encode(chat_body(stream=stream))
        running = asyncio.ensure_future(request(app_of(service), "POST", CHAT, body, JSON))
        while not service.opened:
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert len(asyncio.all_tasks()) == 1
        return service

    service = asyncio.run(cancel())
    assert service.closed == 1


async def play(source: AsyncGenerator[bytes, None], config: ServerConfig, ping_s: float) -> list[Any]:
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await EventStream(source, config, {}, ping_s=ping_s)({"type": "http", "state": {}}, receive, send)
    return sent


def test_silence_is_filled_with_comments() -> None:
    async def source() -> AsyncGenerator[bytes, None]:
        yield b"data: 1\n\n"
        await asyncio.sleep(0.35)
        yield b"data: 2\n\n"

    sent = asyncio.run(play(source(), ServerConfig(), 0.1))
    bodies = [message["body"] for message in sent[1:]]
    assert bodies[0] == b"data: 1\n\n"
    assert 1 <= bodies.count(PING) <= 3
    assert bodies[-3:] == [b"data: 2\n\n", b"data: [DONE]\n\n", b""]


def test_a_busy_stream_has_no_comments() -> None:
    async def source() -> AsyncGenerator[bytes, None]:
        for _ in range(40):
            yield b"data: 1\n\n"
            await asyncio.sleep(0.01)

    sent = asyncio.run(play(source(), ServerConfig(), 0.2))
    assert all(message.get("body") != PING for message in sent)


@pytest.mark.parametrize(("patience_s", "begun"), [(60.0, False), (0.01, True)])
def test_the_head_waits_for_what_may_still_fail_with_a_status(patience_s: float, begun: bool) -> None:
    """Fetching and preparing may take their time and fail; the head goes out after that, with a comment."""

    async def source() -> AsyncGenerator[bytes, None]:
        for error in (UnavailableError("Gone."),):
            await asyncio.sleep(0.4)
            raise error
        yield b""

    config = ServerConfig(prepare_timeout_s=max(0.1, patience_s), media_fetch_timeout_s=0.01)
    if begun:
        sent = asyncio.run(play(source(), config, 0.05))
        assert sent[0]["status"] == 200
        assert sent[1]["body"] == PING
        assert b'"queue_full"' in sent[-2]["body"]
    else:
        with pytest.raises(UnavailableError):
            asyncio.run(play(source(), config, 0.05))


def test_a_reader_that_is_cut_off_during_a_comment_ends_the_stream() -> None:
    closed = []

    async def source() -> AsyncGenerator[bytes, None]:
        try:
            yield b"data: 1\n\n"
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message.get("body") == PING:
            raise ClientGone("Stalled.")

    async def run() -> None:
        await EventStream(source(), ServerConfig(), {}, ping_s=0.05)({"type": "http", "state": {}}, receive, send)

    with pytest.raises(ClientGone):
        asyncio.run(run())
    assert closed == [True]


def test_work_of_a_connected_client_gives_its_result() -> None:
    async def receive() -> Any:
        await asyncio.Event().wait()

    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    assert asyncio.run(while_connected(receive, work())) == 7


def test_work_that_swallows_its_end_is_waited_for() -> None:
    ended = []

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    async def leave() -> Any:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGone):
        asyncio.run(while_connected(leave, stubborn()))
    assert ended == [True]


def test_a_guard_s_error_ends_the_work() -> None:
    async def guard() -> Any:
        raise DeadlineError("Over.")

    async def work() -> None:
        await asyncio.Event().wait()

    with pytest.raises(DeadlineError):
        asyncio.run(guarded(work(), guard()))


def test_merged_sources_all_end_when_one_fails() -> None:
    closed: list[str] = []

    async def source(name: str, step: Callable[[], Awaitable[None]]) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                await step()
                yield name.encode()
        finally:
            closed.append(name)

    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise DeadlineError("Over.")

    async def run() -> None:
        sources = [source("a", lambda: asyncio.sleep(0)), source("b", fail), source("c", asyncio.Event().wait)]  # type: ignore[arg-type]  # True is ignored
        async for _ in merged(sources):
            pass

    with pytest.raises(DeadlineError):
        asyncio.run(run())
    assert sorted(closed) == ["a", "b", "c"]


def test_line_ends_of_unicode_are_escaped() -> None:
    encoded = line_safe(msgspec.json.encode("a\u2028b\u2029c\x85d\u2026"))
    assert len(encoded.decode().splitlines()) == 1
    assert msgspec.json.decode(encoded) == "a\u2028b\u2029c\x85d\u2026"
