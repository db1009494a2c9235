"""Web servers of these tests, on 127.0.0.1 and in threads: what they answer is written byte by byte."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType

from fovea.media.fetch import FetchPolicy

Script = Callable[[socket.socket, bytes], None]
LOOPBACK = ("127.0.0.0/8",)


def policy(max_bytes: int = 100_000, timeout_s: float = 20.0, domains: tuple[str, ...] | None = None) -> FetchPolicy:
    """A policy under which the servers of these tests may be fetched from."""
    networks = tuple(ipaddress.ip_network(network) for network in LOOPBACK)
    return FetchPolicy(max_bytes, timeout_s, None if domains is None else frozenset(domains), networks)


def answer(body: bytes = b"", *headers: str, status: str = "200 OK", length: int | None = -1) -> bytes:
    """A whole answer; `length` -1 is the true one, None sends no Content-Length."""
    lines = [f"HTTP/1.1 {status}", *headers]
    if length is not None:
        lines.append(f"Content-Length: {len(body) if length < 0 else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def says(data: bytes) -> Script:
    return lambda connection, _: connection.sendall(data)


def redirects(location: str, status: int = 302) -> Script:
    return says(answer(b"", f"Location: {location}", status=f"{status} Moved"))


class Server:
    """Runs `script` for each request, whose bytes are kept in `requests`."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self.num_connections = 0
        self._script = script
        self._tls = tls
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def url(self, path: str = "/a.png", host: str = "127.0.0.1") -> str:
        return f"{'http' if self._tls is None else 'https'}://{host}:{self.port}{path}"

    def __enter__(self) -> Server:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        with socket.socket() as waker:  # the thread that accepts waits without a limit
            waker.connect(("127.0.0.1", self.port))
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def wait(self, seconds: float) -> bool:
        """For slow scripts: False if the server is about to stop."""
        return not self._stopping.wait(seconds)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._stopping.is_set():
                return connection.close()
            self.num_connections += 1
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            stack.callback(connection.close)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                stack.callback(connection.close)
            request = b""
            while b"\r\n\r\n" not in request:
                data = connection.recv(65536)
                if not data:
                    return
                request += data
            self.requests.append(request)
            self._script(connection, request)
