"""HTTP/1.1 on a socket: uvicorn with h11, and what it leaves open made tight.

- Headers have a size, a number and a deadline from the first byte; idle connections are closed after `keep_alive_s`.
- A request that two parsers could read in two ways is refused and the connection closed (heads.py).
- An answer that comes before the whole body has been read ends the connection, after a while of reading (linger.py).
- A reader that takes nothing for `stall_timeout_s` is cut off; at most 256 KiB wait for it, with the kernel's share.
- A client that leaves cancels the task that answers it. Whoever sends to it afterwards gets ClientGone.

Requests that end here, before there is an ASGI scope, are told to the app if it has `ended_early` (edge.py), so that
they are logged and counted as all others.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import h11
import msgspec
import uvicorn
from h11._readers import ChunkedReader
from h11._state import MIGHT_SWITCH_PROTOCOL
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from fovea.core.errors import InvalidOptionError, RouteError, SlowClientError
from fovea.core.server_config import ServerConfig
from fovea.server.body import too_large
from fovea.server.errors import ClientGone, error_body
from fovea.server.heads import judge_head, malformed
from fovea.server.linger import LingeringTransport

logger = logging.getLogger("fovea.server")

SEND_BUFFER_BYTES = 64 * 1024  # doubled by Linux
WRITE_BUFFER_BYTES = 64 * 1024
PIECE_BYTES = 64 * 1024
MAX_CHUNK_HEAD_BYTES = 16 * 1024
SHUTDOWN_LINGER_S = 0.5
SHUTDOWN_S = 2.0
HEARD_OUT = (h11.DONE, h11.MUST_CLOSE, MIGHT_SWITCH_PROTOCOL)  # the whole request was read
BACKLOG = 1024
ACCEPTS_PER_TURN = 16  # asyncio tries as often, also while there are no descriptors left
ACCEPT_WARNING_EVERY_S = 60.0


@runtime_checkable
class Edge(Protocol):
    """What an app may have beside being one."""

    def ended_early(self, error: RouteError, client: str) -> str:
        """A request ended with `error` before the app saw it; returns the request id it was given."""
        ...

    async def run(self) -> None:
        """Runs beside the server until cancelled."""
        ...


class EdgeConfig(uvicorn.Config):
    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        super().__init__(
            app,
            http=EdgeProtocol,
            ws="none",
            loop="asyncio",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            backlog=ACCEPTS_PER_TURN,
            timeout_keep_alive=config.keep_alive_s,  # type: ignore[arg-type]  # uvicorn passes it on to call_later
            timeout_graceful_shutdown=int(SHUTDOWN_S),
            h11_max_incomplete_event_size=MAX_CHUNK_HEAD_BYTES,
        )
        self.fovea = config
        self.edge: Edge | None = app if isinstance(app, Edge) else None


class EdgeProtocol(H11Protocol):
    """One connection."""

    config: EdgeConfig
    transport: LingeringTransport

    def __init__(
        self,
        config: EdgeConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.access_log = False
        self._inner_app: ASGIApp = self.app
        self.app = self._answer
        self._head_timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self.broken: RouteError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        with contextlib.suppress(OSError):
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        super().connection_made(LingeringTransport(transport, self.loop, stall_s=self.config.fovea.stall_timeout_s))
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._disarm()
        self._unset_keepalive_if_required()
        self.transport.lost()
        if self._task is not None and not self.cycle.response_complete:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            self.transport.discard(len(data))
        elif self.broken is None:
            super().data_received(data)

    def handle_events(self) -> None:
        if self.conn.their_state is h11.IDLE:
            error = judge_head(self.conn.trailing_data[0])
            if error is not None:
                self._refuse(error)
                return
        super().handle_events()
        self._judge_chunk()
        if self.transport.is_closing():
            return
        if self.conn.their_state is not h11.IDLE:
            self._disarm()
        elif self.conn.trailing_data[0]:
            self._unset_keepalive_if_required()
            self._arm()
        self._read_on()

    def _judge_chunk(self) -> None:
        """A chunk that is longer than any body may be is refused by the size it announces, not once it has come."""
        reader = self.conn._reader
        if isinstance(reader, ChunkedReader) and not self.cycle.response_complete:
            max_bytes = self.config.fovea.max_body_bytes
            if reader._bytes_in_chunk + len(self.cycle.body) > max_bytes:
                self.broken = too_large(max_bytes)
                self.cycle.message_event.set()

    def _read_on(self) -> None:
        """Go on reading while a request is answered, though the next one must wait: or nobody sees the client leave."""
        num_waiting = len(self.cycle.body) if self.cycle is not None else 0
        if num_waiting + len(self.conn.trailing_data[0]) <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """h11 could not make sense of what came: a request of its own, or the body of the running one."""
        if self.cycle is None or self.cycle.response_complete:
            self._refuse(malformed("This is not a request in HTTP/1.1."))
        else:
            self.broken = malformed("The body is not framed as HTTP/1.1 asks for.")
            self.cycle.message_event.set()

    def shutdown(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close_within(SHUTDOWN_LINGER_S)
        else:
            self.cycle.keep_alive = False

    def _unsupported_upgrade_warning(self) -> None:
        """uvicorn would write a line for each request."""

    def _arm(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.config.fovea.header_timeout_s, self._on_slow_head)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_slow_head(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self.conn.trailing_data[0]:
            limit_s = self.config.fovea.header_timeout_s
            self._refuse(SlowClientError(f"The headers were not complete after {limit_s:g} s (header_timeout_s)."))
        else:
            self.transport.close()

    def _refuse(self, error: RouteError) -> None:
        """Answer without the app and close."""
        self._disarm()
        client = self.client[0] if self.client else ""
        request_id = self.config.edge.ended_early(error, client) if self.config.edge is not None else ""
        body = msgspec.json.encode(error_body(error, request_id))
        head = (
            f"HTTP/1.1 {error.status} {STATUS_PHRASES[error.status].decode()}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(self, receive, send)
        self._task = asyncio.current_task()
        try:
            await self._inner_app(scope, exchange.receive, exchange.send)
        except ClientGone:
            pass
        except asyncio.CancelledError:
            if not exchange.cycle.disconnected:
                raise
        finally:
            self._task = None


class Exchange:
    """What the app receives from and sends to."""

    def __init__(self, protocol: EdgeProtocol, receive: Receive, send: Send) -> None:
        self.cycle: RequestResponseCycle = protocol.cycle
        self._protocol = protocol
        self._receive = receive
        self._send = send
        self._stall_s = protocol.config.fovea.stall_timeout_s

    async def receive(self) -> Message:
        message = await self._receive()
        if self._protocol.broken is not None and not self.cycle.response_started:
            raise self._protocol.broken
        return message

    async def send(self, message: Message) -> None:
        if self.cycle.disconnected:
            raise ClientGone("The client left.")
        if message["type"] == "http.response.start":
            if self._protocol.conn.their_state not in HEARD_OUT:
                # Answered before the body was read: what follows on this connection can't be trusted to be a request.
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await self._send(message)
            return
        body = message.get("body", b"")
        while len(body) > PIECE_BYTES:
            await self._write({**message, "body": body[:PIECE_BYTES], "more_body": True})
            body = body[PIECE_BYTES:]
            message = {**message, "body": body}
        await self._write(message)

    async def _write(self, message: Message) -> None:
        while self._protocol.flow.write_paused and not self.cycle.disconnected:
            await self._drain()
        if self.cycle.disconnected:
            raise ClientGone("The client left.")
        await self._send(message)

    async def _drain(self) -> None:
        transport = self._protocol.transport
        num_unsent = transport.get_write_buffer_size()
        try:
            async with asyncio.timeout(self._stall_s):
                await self._protocol.flow.drain()
        except TimeoutError:
            if transport.get_write_buffer_size() >= num_unsent:
                transport.abort()
                self.cycle.disconnected = True
                raise ClientGone(f"The client took nothing for {self._stall_s:g} s (stall_timeout_s).") from None


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the business of whoever runs this."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(BACKLOG)


class Serve:
    """A server for `app` on config.host and config.port. `port` is the one taken, once `serve` listens."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._config = config
        self._uvicorn = EdgeConfig(app, config)
        self._server = _Server(self._uvicorn)
        self.port = config.port

    @property
    def is_listening(self) -> bool:
        return self._server.started

    async def serve(self) -> None:
        """Listen until `stop`. Raises InvalidOptionError if the address can't be taken."""
        sockets = await listen(self._config.host, self._config.port)
        self.port = sockets[0].getsockname()[1]
        edge, loop = self._uvicorn.edge, asyncio.get_running_loop()
        if loop.get_exception_handler() is None:
            loop.set_exception_handler(RareAcceptWarnings())
        beside = loop.create_task(edge.run()) if edge is not None else None
        try:
            await self._server.serve(sockets)
        finally:
            if beside is not None:
                beside.cancel()
            for one in sockets:
                one.close()

    def stop(self) -> None:
        """Take no new connections; running answers have SHUTDOWN_S to end."""
        self._server.should_exit = True


class RareAcceptWarnings:
    """asyncio's handler of errors nobody awaits, but for one: out of descriptors is said once a minute, not always."""

    def __init__(self) -> None:
        self._warned_at = -ACCEPT_WARNING_EVERY_S

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not str(context.get("message", "")).startswith("socket.accept() out of system resource"):
            loop.default_exception_handler(context)
        elif loop.time() - self._warned_at >= ACCEPT_WARNING_EVERY_S:
            self._warned_at = loop.time()
            logger.warning("out of file descriptors: new connections wait (ulimit -n)")


async def listen(host: str, port: int) -> list[socket.socket]:
    """A bound socket for each address of `host`, all with the same port."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        raise InvalidOptionError(f"host: {host!r} is not an address of this machine.") from None
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            taken = sockets[0].getsockname()[1] if sockets else port
            one = socket.socket(family, kind, protocol)
            sockets.append(one)
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((address[0], taken, *address[2:]))
    except OSError as error:
        for one in sockets:
            one.close()
        raise InvalidOptionError(f"port: cannot listen on {host}:{port} ({reason(error)}).") from None
    return sockets


def reason(error: OSError) -> str:
    known = {
        errno.EADDRINUSE: "another program does",
        errno.EACCES: "not permitted",
        errno.EADDRNOTAVAIL: "not an address of this machine",
    }
    return known.get(error.errno or 0, f"error {error.errno}")
