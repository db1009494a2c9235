"""The load client against servers that do what real ones might: its judgement decides what a figure means."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from benchmarks.load.client import Answer, Ask, Client, chat_tail, closed_loop, open_loop

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = (
    b'data: {"choices":[{"delta":{"content":"Two "}}],"usage":null}\n\n',
    b'data: {"choices":[{"delta":{"content":"dogs"}}],"usage":null}\n\n',
    b'data: {"choices":[],"usage":{"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
)
WHOLE = b'{"choices":[{"message":{"content":"Two dogs"}}],"usage":{"completion_tokens":2}}'
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def stream(*events: bytes, end: bool = True) -> bytes:
    return STREAM_HEAD + b"".join(map(chunk, events)) + (b"0\r\n\r\n" if end else b"")


def whole(body: bytes = WHOLE, status: str = "200 OK", *more: str) -> bytes:
    lines = (f"HTTP/1.1 {status}", f"content-length: {len(body)}", *more, "", "")
    return "\r\n".join(lines).encode() + body


def answering(data: bytes, *, piece: int = 0, close: bool = False) -> Handler:
    """A server that reads a request and sends `data`, in pieces if asked for."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await read_request(reader):
            for start in range(0, len(data), piece or len(data)):
                writer.write(data[start : start + (piece or len(data))])
                await writer.drain()
                await asyncio.sleep(0)
            if close:
                break
        writer.close()

    return handle


async def read_request(reader: asyncio.StreamReader) -> bytes:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0)
    return head + await reader.readexactly(length)


def asked(handler: Handler, ask: Ask | None = None, *, deadline_s: float = 5.0) -> Answer:
    async def run() -> Answer:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        client = Client(server.sockets[0].getsockname()[1], deadline_s=deadline_s)
        try:
            return await client.send(ask or Ask((b"{}",), 2))
        finally:
            client.close()
            server.close()

    return asyncio.run(run())


@pytest.mark.parametrize("piece", [0, 1, 7, 64])
def test_a_whole_stream_is_right_however_it_is_cut(piece: int) -> None:
    answer = asked(answering(stream(*EVENTS), piece=piece))
    assert (answer.status, answer.error, answer.is_right) == (200, "", True)
    assert answer.text == "Two dogs"
    assert answer.num_tokens == 2
    assert answer.sent <= answer.head_at <= answer.first_at <= answer.ended


@pytest.mark.parametrize("piece", [0, 5])
def test_a_whole_answer_is_right(piece: int) -> None:
    answer = asked(answering(whole(), piece=piece))
    assert answer.is_right
    assert answer.text == "Two dogs"


def test_a_stream_without_its_last_event_is_wrong() -> None:
    assert not asked(answering(stream(*EVENTS[:-1]))).is_right


def test_an_answer_with_fewer_tokens_than_asked_for_is_wrong() -> None:
    assert not asked(answering(stream(*EVENTS)), Ask((b"{}",), 3)).is_right
    assert not asked(answering(whole()), Ask((b"{}",), 3)).is_right


def test_an_error_in_mid_stream_is_wrong() -> None:
    assert not asked(answering(stream(EVENTS[0], b'data: {"error":{"code":"engine_dead"}}\n\n'))).is_right


def test_a_connection_that_ends_in_the_middle_is_an_error() -> None:
    answer = asked(answering(stream(*EVENTS[:2], end=False), close=True))
    assert answer.error == "closed"
    assert not answer.is_right


def test_a_reset_is_an_error() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.transport.abort()

    assert asked(reset).error in ("reset", "closed")


def test_a_server_that_is_not_there_is_an_error() -> None:
    answer = asyncio.run(Client(1).send(Ask((b"{}",))))
    assert answer.error == "ConnectionRefusedError"
    assert not answer.is_right


def test_silence_ends_at_the_deadline() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    assert asked(silent, deadline_s=0.05).error == "deadline"


def test_a_client_that_leaves_is_not_one_that_waited_in_vain() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    assert asked(silent, Ask((b"{}",), leave_after_s=0.02)).error == "left"


def test_a_refusal_says_when_to_come_back() -> None:
    answer = asked(answering(whole(b"{}", "503 Service Unavailable", "Retry-After: 7")))
    assert (answer.status, answer.retry_after_s, answer.error) == (503, 7, "")
    assert not answer.is_right


def test_a_refusal_without_it_is_seen() -> None:
    assert asked(answering(whole(b"{}", "503 Service Unavailable"))).retry_after_s is None


def test_connections_are_used_again_unless_the_server_closes() -> None:
    async def connections_of(data: bytes) -> int:
        count = 0

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal count
            count += 1
            await answering(data)(reader, writer)

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        client = Client(server.sockets[0].getsockname()[1])
        for _ in range(3):
            assert (await client.send(Ask((b"{}",)))).status == 200
        client.close()
        server.close()
        return count

    assert asyncio.run(connections_of(whole())) == 1
    assert asyncio.run(connections_of(whole(WHOLE, "200 OK", "Connection: close"))) == 3


def test_a_large_body_arrives_whole() -> None:
    received = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await read_request(reader))
        writer.write(whole())
        writer.close()

    assert asked(handle, Ask((memoryview(b"a" * 3_000_000), b"b"), 2)).is_right
    assert received[0].endswith(b"a" * 3_000_000 + b"b")


def test_a_closed_loop_keeps_its_number_of_requests_going() -> None:
    going = most = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal going, most
        while await read_request(reader):
            going += 1
            most = max(most, going)
            await asyncio.sleep(0.005)
            going -= 1
            writer.write(whole())
        writer.close()

    async def run() -> int:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        client = Client(server.sockets[0].getsockname()[1])
        count = sum([answer.is_right async for answer in closed_loop(client, [Ask((b"{}",), 2)] * 40, 4)])
        client.close()
        server.close()
        return count

    assert asyncio.run(run()) == 40
    assert most == 4


def test_an_open_loop_does_not_wait_for_answers() -> None:
    """Twenty requests to a server that answers none until all have come: a closed loop would never end."""
    arrived = asyncio.Event()
    waiting = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting
        if not await read_request(reader):
            return
        waiting += 1
        if waiting == 20:
            arrived.set()
        await arrived.wait()
        writer.write(whole())
        writer.close()

    async def run() -> list[Answer]:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        client = Client(server.sockets[0].getsockname()[1], deadline_s=10.0)
        answers = await open_loop(client, [Ask((b"{}",), 2) for _ in range(20)], [0.001] * 20)
        server.close()
        return answers

    answers = asyncio.run(run())
    assert all(answer.is_right for answer in answers)
    assert [answer.due for answer in answers] == sorted(answer.due for answer in answers)


def test_a_body_is_json_in_two_parts() -> None:
    body = json.loads(b'{"messages":[]' + chat_tail(5, stream=True, salt="s", logprobs=True))
    assert body["max_tokens"] == 5
    assert body["ignore_eos"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["cache_salt"] == "s"
    assert body["logprobs"] is True
    assert "stream_options" not in json.loads(b'{"messages":[]' + chat_tail(5, stream=False))
