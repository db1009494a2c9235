"""An HTTP client that costs little: it shares the cores with the server it measures.

A connection looks into what arrives only as far as it must: the head of an answer, whether it is whole, how many events
it has. An answer's bytes are kept, to be read after the run. `closed_loop` keeps so many requests going; `open_loop`
sends at the times it is given, however the server fares. Nothing here tries again: a repeated request is one more.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

Now = time.monotonic
TAIL_BYTES = 2048
EVENT = b"data: "
LAST_CHUNK = b"0\r\n\r\n"
HEAD_END = b"\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
RETRY = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
COMPLETION_TOKENS = re.compile(rb'"completion_tokens":(\d+)')
CHUNK_FRAME = re.compile(rb"\r\n[0-9a-fA-F]+\r\n")


@dataclass(slots=True)
class Ask:
    """A request: the parts of its body, and what a right answer has."""

    body: Sequence[bytes | memoryview]
    num_tokens: int = 0  # 0: any number
    path: str = "/v1/chat/completions"
    method: str = "POST"
    label: str = ""
    leave_after_s: float | None = None  # the client goes away then


@dataclass(slots=True)
class Answer:
    """Times are of the monotonic clock, 0 where it did not come to that. `error`: why there is no whole answer."""

    ask: Ask
    due: float  # when it should have been sent
    sent: float = 0.0  # its first byte
    head_at: float = 0.0
    first_at: float = 0.0  # the first event or the body's first byte
    ended: float = 0.0
    status: int = 0
    retry_after_s: int | None = None
    is_stream: bool = False
    num_events: int = 0  # as far as they came in one piece
    error: str = ""
    pieces: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        """With the framing of chunks taken away."""
        raw = b"".join(self.pieces)
        if raw.endswith(LAST_CHUNK):
            return CHUNK_FRAME.sub(b"", b"\r\n" + raw.removesuffix(LAST_CHUNK) + b"0\r\n")
        return raw

    @property
    def is_right(self) -> bool:
        """Whole, and with the tokens that were asked for."""
        if self.error or self.status != 200:
            return False
        tail = self._tail()
        found = COMPLETION_TOKENS.findall(tail)
        whole = bool(found) and (self.ask.num_tokens in (0, int(found[-1])))
        return whole and (b"data: [DONE]" in tail or not self.is_stream)

    @property
    def text(self) -> str:
        """The first choice's text, of a stream or a whole answer; empty if there is no answer."""
        if self.error or self.status != 200:
            return ""
        body = self.body
        if not self.is_stream:
            return str(json.loads(body)["choices"][0]["message"]["content"])
        events = (line.removeprefix("data: ") for line in body.decode().split("\n\n") if line.startswith("data: {"))
        choices = [choice for event in events for choice in json.loads(event)["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    def _tail(self) -> bytes:
        """The last pieces, with the events that end a stream."""
        num_bytes, first = 0, len(self.pieces)
        while first and num_bytes < TAIL_BYTES:
            first -= 1
            num_bytes += len(self.pieces[first])
        return b"".join(self.pieces[first:])

    @property
    def num_tokens(self) -> int:
        found = COMPLETION_TOKENS.findall(b"".join(self.pieces))
        return int(found[-1]) if found else 0


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.is_open = True
        self._transport: asyncio.Transport
        self._answer: Answer | None = None
        self._done: asyncio.Future[None] | None = None
        self._head = b""
        self._left: int | None = None  # of a body whose length is known

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def ask(self, answer: Answer, head: bytes) -> None:
        self._answer, self._head, self._left = answer, b"", None
        self._done = asyncio.get_running_loop().create_future()
        answer.sent = Now()
        parts = answer.ask.body
        # One write for what is small: two would be two system calls and two packets.
        if sum(map(len, parts)) < 65536:
            self._transport.write(b"".join((head, *parts)))
        else:
            self._transport.write(head)
            for part in parts:
                self._transport.write(part)
        await self._done

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            return
        if not answer.status or answer.status < 200:
            data = self._read_head(answer, data)
            if not data and self._left != 0:
                return
        if not answer.first_at and data:
            answer.first_at = Now()
        answer.pieces.append(data)
        if self._left is None:
            answer.num_events += data.count(EVENT)
            # An event ends in two line ends, so this can be nothing but the last chunk.
            if data.endswith(LAST_CHUNK) or data in LAST_CHUNK and b"".join(answer.pieces[-6:]).endswith(LAST_CHUNK):
                self._end("")
        else:
            self._left -= len(data)
            if self._left <= 0:
                self._end("")

    def _read_head(self, answer: Answer, data: bytes) -> bytes:
        """What of `data` belongs to the body."""
        if not self._head:
            answer.head_at = Now()
        self._head += data
        head, end, rest = self._head.partition(HEAD_END)
        if not end:
            return b""
        answer.status = int(head[9:12])
        length, retry = LENGTH.search(head), RETRY.search(head)
        self._left = int(length[1]) if length else None
        answer.is_stream = length is None
        answer.retry_after_s = int(retry[1]) if retry else None
        if CLOSES.search(head):
            self.is_open = False
        return rest

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        self._end("reset" if error is not None else "closed")

    def _end(self, error: str) -> None:
        answer, self._answer = self._answer, None
        if answer is None or self._done is None or self._done.done():
            return
        answer.ended, answer.error = Now(), error
        self._done.set_result(None)

    def abort(self) -> None:
        self.is_open, self._answer = False, None
        self._transport.abort()


class Client:
    """Keeps connections for later requests, as SDKs do."""

    def __init__(self, port: int, *, deadline_s: float = 60.0) -> None:
        self.port = port
        self.deadline_s = deadline_s
        self._idle: list[_Connection] = []

    async def send(self, ask: Ask, due: float | None = None) -> Answer:
        """Never raises for what the server does: `Answer.error` says it."""
        answer = Answer(ask, Now() if due is None else due)
        connection: _Connection | None = None
        limit_s = ask.leave_after_s if ask.leave_after_s is not None else self.deadline_s
        try:
            async with asyncio.timeout(limit_s):
                connection = await self._connect()
                await connection.ask(answer, self._head(ask))
        except TimeoutError:
            answer.ended, answer.error = Now(), "deadline" if ask.leave_after_s is None else "left"
            if connection is not None:
                connection.abort()
        except OSError as error:
            answer.ended, answer.error = Now(), type(error).__name__
        if connection is not None and connection.is_open:
            self._idle.append(connection)
        elif connection is not None:
            connection.abort()
        return answer

    async def get(self, path: str) -> Answer:
        return await self.send(Ask((), path=path, method="GET"))

    async def _connect(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(_Connection, "127.0.0.1", self.port)
        return made

    def _head(self, ask: Ask) -> bytes:
        length = sum(map(len, ask.body))
        lines = f"{ask.method} {ask.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
        if ask.method == "POST":
            lines += f"Content-Type: application/json\r\nContent-Length: {length}\r\n"
        return (lines + "\r\n").encode()

    def close(self) -> None:
        for connection in self._idle:
            connection.abort()
        self._idle.clear()


async def closed_loop(
    client: Client, asks: Iterable[Ask], concurrency: int, *, stop: Callable[[], bool] = lambda: False
) -> AsyncIterator[Answer]:
    """Answers as they come, with so many requests going at any time, until `stop()` or there are no more asks."""
    source = iter(asks)
    ended: asyncio.Queue[Answer | None] = asyncio.Queue()

    async def lane() -> None:
        try:
            while not stop():
                ask = next(source, None)
                if ask is None:
                    break
                ended.put_nowait(await client.send(ask))
        finally:
            ended.put_nowait(None)

    lanes = [asyncio.create_task(lane()) for _ in range(concurrency)]
    num_open = concurrency
    try:
        while num_open:
            answer = await ended.get()
            if answer is None:
                num_open -= 1
            else:
                yield answer
    finally:
        for task in lanes:
            task.cancel()
        await asyncio.gather(*lanes, return_exceptions=True)


async def open_loop(client: Client, asks: Sequence[Ask], gaps_s: Sequence[float]) -> list[Answer]:
    """Each ask is sent at its time, whether or not others have been answered. `gaps_s` lie between them."""
    due = Now()
    tasks = []
    for ask, gap_s in zip(asks, gaps_s, strict=True):
        due += gap_s
        delay_s = due - Now()
        if delay_s > 0:
            await asyncio.sleep(delay_s)
        tasks.append(asyncio.create_task(client.send(ask, due)))
        if len(tasks) % 64 == 0:
            await asyncio.sleep(0)
    return list(await asyncio.gather(*tasks))


def chat_tail(num_tokens: int, *, stream: bool, salt: str = "", **more: Any) -> bytes:
    """The end of a body that begins with its messages: so many tokens, greedy, whatever the model would rather say."""
    fields: dict[str, Any] = {
        "model": "fovea-tiny",
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
        **({"cache_salt": salt} if salt else {}),
        **more,
    }
    return b"," + json.dumps(fields, separators=(",", ":")).encode()[1:]
