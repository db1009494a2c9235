"""The web server of the corpus: `/s<number>/<action>/...` answers as the action says, and every request is kept."""

from __future__ import annotations

import contextlib
import gzip
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from urllib.parse import unquote

from tests.corpus import files
from tests.media.web import Server, answer

Action = Callable[["Upstream", socket.socket, str], None]
ENDLESS_BLOCK = bytes(65536)


class Upstream:
    """Actions are looked up by the second segment of the path; the rest of the path is their argument."""

    def __init__(self) -> None:
        self._server = Server(self._serve)
        self._lock = threading.Lock()
        self._paths: list[str] = []

    @property
    def port(self) -> int:
        port: int = self._server.port
        return port

    @property
    def requests(self) -> list[bytes]:
        return list(self._server.requests)

    def num_hits(self, prefix: str) -> int:
        with self._lock:
            return sum(path.startswith(prefix) for path in self._paths)

    def wait(self, seconds: float) -> bool:
        return self._server.wait(seconds)

    def __enter__(self) -> Upstream:
        self._server.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.__exit__(kind, error, traceback)

    def _serve(self, connection: socket.socket, request: bytes) -> None:
        path = request.split(b" ", 2)[1].decode("latin-1")
        with self._lock:
            self._paths.append(path)
        _, scene, name, *rest = (*path.split("/", 3), "", "")
        action = ACTIONS.get(name.partition("?")[0])
        if action is None:
            return connection.sendall(answer(b"no such action", status="404 Not Found"))
        return action(self, connection, f"/{scene}|{unquote(rest[0])}")


def _says(data: bytes) -> Action:
    return lambda _upstream, connection, _argument: connection.sendall(data)


def _redirect(_upstream: Upstream, connection: socket.socket, argument: str) -> None:
    """`redirect/302/<address>`, percent-encoded."""
    status, _, location = argument.partition("|")[2].partition("/")
    connection.sendall(answer(b"", f"Location: {location}", status=f"{status} Moved"))


def _hops(_upstream: Upstream, connection: socket.socket, argument: str) -> None:
    """`hops/3`: so many redirects to itself, then a picture."""
    scene, _, left = argument.partition("|")
    if int(left) == 0:
        return connection.sendall(answer(files.good_png()))
    return connection.sendall(answer(b"", f"Location: {scene}/hops/{int(left) - 1}", status="302 Found"))


def _loop(_upstream: Upstream, connection: socket.socket, argument: str) -> None:
    connection.sendall(answer(b"", f"Location: {argument.partition('|')[0]}/loop", status="302 Found"))


def _silent(upstream: Upstream, _connection: socket.socket, _argument: str) -> None:
    upstream.wait(60)


def _pause(upstream: Upstream, connection: socket.socket, _argument: str) -> None:
    data = answer(files.good_png())
    connection.sendall(data[:-20])
    upstream.wait(60)


def _drip(upstream: Upstream, connection: socket.socket, _argument: str) -> None:
    for byte in answer(files.good_png()):
        connection.sendall(bytes([byte]))
        if not upstream.wait(0.2):
            return


def _endless(upstream: Upstream, connection: socket.socket, _argument: str) -> None:
    connection.sendall(answer(b"", "Content-Type: image/png", length=None) + files.good_png())
    while upstream.wait(0):
        connection.sendall(ENDLESS_BLOCK)


def _reset(_upstream: Upstream, connection: socket.socket, _argument: str) -> None:
    connection.sendall(answer(files.good_png())[:-100])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _gzip_bomb(_upstream: Upstream, connection: socket.socket, _argument: str) -> None:
    """Ten megabytes on the wire."""
    with contextlib.suppress(OSError):
        connection.sendall(answer(gzip.compress(bytes(10**7)) * 1000, "Content-Encoding: gzip"))


def _many_members(_upstream: Upstream, connection: socket.socket, _argument: str) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(answer(gzip.compress(b"") * 100_000, "Content-Encoding: gzip"))


def _encoded(name: str) -> Action:
    return _says(answer(gzip.compress(files.good_png()), f"Content-Encoding: {name}"))


def _actions() -> Mapping[str, Action]:
    good = files.good_png()
    return {
        "good": _says(answer(good, "Content-Type: image/png", "Set-Cookie: session=zebra")),
        "as-html": _says(answer(good, "Content-Type: text/html")),
        "html": _says(answer(b"<!doctype html><html><body>hello</body></html>", "Content-Type: image/png")),
        "empty": _says(answer(b"", "Content-Type: image/png")),
        "missing": _says(answer(b"nothing here", status="404 Not Found")),
        "error": _says(answer(b"Traceback of ours", status="500 Oops")),
        "redirect": _redirect,
        "hops": _hops,
        "loop": _loop,
        "no-location": _says(answer(b"", status="302 Found")),
        "not-modified": _says(answer(b"", status="304 Not Modified", length=None)),
        "silent": _silent,
        "pause": _pause,
        "drip": _drip,
        "endless": _endless,
        "announced": _says(answer(b"x", "Content-Type: image/png", length=10**10)),
        "reset": _reset,
        "short": _says(answer(good, length=len(good) + 50)),
        "long": _says(answer(good, length=len(good) - 50)),
        "gzip": _encoded("gzip"),
        "br": _encoded("br"),
        "zstd": _encoded("zstd"),
        "gzip-bomb": _gzip_bomb,
        "many-members": _many_members,
        "garbage": _says(b"\x00\xff" * 500),
        "big-header": _says(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000 + b"\r\n\r\n" + good),
        "svg": _says(answer(files.svg_with_entities(), "Content-Type: image/svg+xml")),
    }


ACTIONS: Mapping[str, Action] = _actions()
