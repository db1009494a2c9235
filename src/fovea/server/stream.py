"""Server-sent events, and work that ends when its client leaves.

Contract: nothing is sent before there is something to say, so that what goes wrong until then has its own HTTP status;
after that an error is the last event and no [DONE] follows. While nothing is sent, a comment goes out every PING_S.
When the client leaves, or whoever awaits us is cancelled, the source is closed before we return: nothing goes on for
nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fovea.core.errors import FoveaError
from fovea.core.server_config import ServerConfig
from fovea.server.errors import ClientGone, error_body, note_code, request_id_of

logger = logging.getLogger("fovea.server")

PING_S = 15.0
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
MAX_WAITING_EVENTS = 64
HEADERS: Mapping[str, str] = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
T = TypeVar("T")


def event(body: bytes) -> bytes:
    return b"data: " + body + b"\n\n"


def line_safe(encoded: bytes) -> bytes:
    """JSON without characters that some clients take for line ends."""
    if b"\xe2\x80" in encoded or b"\xc2\x85" in encoded:
        encoded = encoded.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
        encoded = encoded.replace(b"\xc2\x85", b"\\u0085")
    return encoded


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Raises ClientGone, with the work cancelled and ended, if the client leaves first."""
    return await guarded(work, _until_gone(receive))


async def guarded(work: Coroutine[Any, Any, T], *guards: Coroutine[Any, Any, NoReturn]) -> T:
    """The result of `work`, or the error of the guard that raises first. Nothing of them runs on afterwards."""
    task = asyncio.ensure_future(work)
    watching = [asyncio.ensure_future(guard) for guard in guards]
    try:
        await asyncio.wait((task, *watching), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return next(guard.result() for guard in watching if guard.done())
    finally:
        for ended in (task, *watching):
            await _end(ended)


async def merged(sources: Sequence[AsyncGenerator[bytes, None]]) -> AsyncGenerator[bytes, None]:
    """What several sources give, as it comes. The first error ends all of them."""
    queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(MAX_WAITING_EVENTS)

    async def pump(source: AsyncGenerator[bytes, None]) -> None:
        try:
            async with contextlib.aclosing(source):
                async for data in source:
                    await queue.put(data)
            await queue.put(None)
        except Exception as error:  # handed on, to be raised where the others' events are awaited
            await queue.put(error)

    tasks = [asyncio.ensure_future(pump(source)) for source in sources]
    num_open = len(tasks)
    try:
        while num_open:
            data = await queue.get()
            if isinstance(data, BaseException):
                raise data
            if data is None:
                num_open -= 1
            else:
                yield data
    finally:
        for task in tasks:
            await _end(task)


class EventStream(Response):
    """An answer that sends the events of `source`.

    Its head goes out with the first event, or after PING_S beyond what fetching and preparing may take, so that their
    errors keep their own status.
    """

    def __init__(
        self,
        source: AsyncGenerator[bytes, None],
        config: ServerConfig,
        headers: Mapping[str, str],
        ping_s: float = PING_S,
    ) -> None:
        super().__init__(None, 200, {**HEADERS, **headers})
        del self.headers["content-length"]
        self._source = source
        self._ping_s = ping_s
        self._before_head_s = ping_s + config.media_fetch_timeout_s + config.prepare_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = _Writer(send, self.raw_headers)
        pinging = writer.keep_alive(self._before_head_s, self._ping_s)
        async with contextlib.aclosing(self._source):
            await guarded(self._pump(writer, scope), _until_gone(receive), pinging)

    async def _pump(self, writer: _Writer, scope: Scope) -> None:
        try:
            async for data in self._source:
                if data:
                    await writer.write(data)
            await writer.write(DONE)
        except ClientGone:
            raise
        except FoveaError as error:
            if writer.withdraw():
                raise
            await self._fail(writer, scope, error)
        except Exception as error:  # a bug of ours, confined to this request; its client must be told
            if writer.withdraw():
                raise
            logger.error("request %s failed", request_id_of(scope), exc_info=error)
            await self._fail(writer, scope, FoveaError())
        await writer.finish()

    async def _fail(self, writer: _Writer, scope: Scope, error: FoveaError) -> None:
        body = error_body(error, request_id_of(scope))
        note_code(scope, body["error"]["code"])
        await writer.write(event(msgspec.json.encode(body)))


class _Writer:
    """Sends one answer; its head goes out with the first data. Two tasks write, so they take turns."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = headers
        self._turn = asyncio.Lock()
        self._now = asyncio.get_running_loop().time
        self._begun = False
        self._ended = False
        self._written_at = self._now()

    async def write(self, data: bytes) -> None:
        async with self._turn:
            if self._ended:
                return
            if not self._begun:
                self._begun = True
                await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            self._written_at = self._now()

    def withdraw(self) -> bool:
        """True if nothing has been sent; then nothing will be, and another answer can take this one's place."""
        self._ended = not self._begun
        return self._ended

    async def finish(self) -> None:
        async with self._turn:
            self._ended = True
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def keep_alive(self, before_head_s: float, ping_s: float) -> NoReturn:
        while True:
            silence_s = ping_s if self._begun else before_head_s
            left_s = self._written_at + silence_s - self._now()
            if left_s <= 0:
                await self.write(PING)
                left_s = ping_s
            await asyncio.sleep(min(left_s, ping_s))


async def _until_gone(receive: Receive) -> NoReturn:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone("The client left.")


async def _end(task: asyncio.Future[Any]) -> None:
    """Cancel and wait. What it raised is looked at by whoever awaits it; here it must not hide what is going on."""
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()
