"""A real server on loopback around a tiny app, and raw sockets to talk to it with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from fovea.core.errors import UnavailableError
from fovea.core.server_config import ServerConfig
from fovea.server.access_log import logger as access_logger
from fovea.server.admission import Admission
from fovea.server.body import decode, read_body
from fovea.server.edge import wrap
from fovea.server.errors import exception_handlers
from fovea.server.http import Serve
from fovea.server.metrics import Metrics

WAIT_S = 20.0  # far above what anything here takes; a hang ends as a failure


class EchoBody(msgspec.Struct):
    text: str = ""
    size: int = 0


@dataclass
class Seen:
    """What the app did, for tests to look at."""

    bodies: list[bytes] = field(default_factory=list)
    cancelled: int = 0
    sent: int = 0
    reads: int = 0


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


@dataclass
class Server:
    port: int
    config: ServerConfig
    metrics: Metrics
    seen: Seen
    serve: Serve
    lines: list[dict[str, Any]]

    async def connect(self, *, receive_buffer_bytes: int = 0) -> Client:
        one = socket.socket()
        one.setblocking(False)
        if receive_buffer_bytes:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", self.port))
        return Client(*await asyncio.open_connection(sock=one, limit=2**16))

    async def ask(self, data: bytes) -> Reply:
        """The one reply to `data` on a connection of its own."""
        client = await self.connect()
        try:
            await client.send(data)
            return await client.reply()
        finally:
            client.close()

    async def line(self, number: int = 1) -> dict[str, Any]:
        """The last log line, once there are `number`."""
        await until(lambda: len(self.lines) >= number)
        return self.lines[-1]


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await asyncio.wait_for(self.writer.drain(), WAIT_S)

    async def reply(self, *, to_head: bool = False) -> Reply:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), WAIT_S)
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        status = int(first.split(" ")[1])
        if to_head or status in (100, 204):
            return Reply(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return Reply(status, headers, await self._chunks())
        body = await asyncio.wait_for(self.reader.readexactly(int(headers.get("content-length", 0))), WAIT_S)
        return Reply(status, headers, body)

    async def _chunks(self) -> bytes:
        body = b""
        while True:
            size = int(await asyncio.wait_for(self.reader.readuntil(b"\r\n"), WAIT_S), 16)
            body += (await asyncio.wait_for(self.reader.readexactly(size + 2), WAIT_S))[:-2]
            if size == 0:
                return body

    async def is_ended(self) -> bool:
        """The server says that nothing more comes; a reset is a failure."""
        return await asyncio.wait_for(self.reader.read(1), WAIT_S) == b""

    def close(self) -> None:
        self.writer.close()

    def abort(self) -> None:
        self.writer.transport.abort()


def get(path: str = "/health", *headers: str, method: str = "GET", host: str = "localhost") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode("latin-1")


def post(body: bytes = b"{}", *headers: str, path: str = "/echo") -> bytes:
    lines = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    return get(path, *lines, *headers, method="POST") + body


class Endless(Response):
    """A stream that ends when nobody takes it any more."""

    def __init__(self, seen: Seen) -> None:
        super().__init__(media_type="text/event-stream")
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                self._seen.sent += 1
                await send({"type": "http.response.body", "body": b"data: " + b"x" * 8000 + b"\n\n", "more_body": True})
                await asyncio.sleep(0)
        finally:
            self._seen.cancelled += 1


def tiny_app(config: ServerConfig, seen: Seen) -> Starlette:
    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def who(request: Request) -> Response:
        return JSONResponse({"tenant": request.scope["state"]["tenant"], "path": request.scope["path"]})

    async def echo(request: Request) -> Response:
        with Admission(config).reading() as reading:
            data = await read_body(request, config, reading)
        seen.bodies.append(data)
        body = decode(data, EchoBody)
        return Response(body.text.encode() + b"x" * body.size)

    async def slow(request: Request) -> Response:
        with Admission(config).reading() as reading:
            await read_body(request, config, reading)
        try:
            await asyncio.sleep(WAIT_S)
        except asyncio.CancelledError:
            seen.cancelled += 1
            raise
        return Response()

    async def stream(request: Request) -> Response:
        return Endless(seen)

    async def full(request: Request) -> Response:
        raise UnavailableError("The server is full.", retry_after_s=7)

    async def broken(request: Request) -> Response:
        raise KeyError("/srv/secret at 0x7f0000000000")

    handlers: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/health": health, "/who": who, "/stream": stream, "/full": full, "/broken": broken,
    }  # fmt: skip
    routes = [Route(path, handler, methods=["GET"]) for path, handler in handlers.items()]
    routes += [Route("/echo", echo, methods=["POST"]), Route("/slow", slow, methods=["POST"])]
    app = Starlette(routes=routes, exception_handlers=exception_handlers())
    app.router.redirect_slashes = False
    return app


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Server]:
    """A server with these options, and every request's log line as it is written."""
    config = ServerConfig(host="127.0.0.1", port=0, **options)
    metrics = Metrics(config, "tiny")
    seen = Seen()
    serve = Serve(wrap(tiny_app(config, seen), config, metrics), config)
    task = asyncio.get_running_loop().create_task(serve.serve())
    await until(lambda: serve.is_listening or task.done())
    with logged() as lines:
        try:
            yield Server(serve.port, config, metrics, seen, serve, lines)
        finally:
            serve.stop()
            await asyncio.wait_for(task, WAIT_S)


@contextlib.contextmanager
def logged() -> Iterator[list[dict[str, Any]]]:
    lines: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.__dict__["fields"])

    handler = Keep()
    before = access_logger.level
    access_logger.addHandler(handler)
    access_logger.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        access_logger.removeHandler(handler)
        access_logger.setLevel(before)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


def run(test: Callable[[Server], Awaitable[None]], **options: Any) -> None:
    """Run `test` against a fresh server."""

    async def whole() -> None:
        async with serving(**options) as server:
            await test(server)

    asyncio.run(whole())
