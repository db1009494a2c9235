"""A client that sends exactly what it is told and reads whatever comes, each request on a connection of its own."""

from __future__ import annotations

import http.client
import io
import json
import select
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from tests.corpus.routes import Request

READ_BYTES = 1 << 16
MAX_ANSWER_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Reply:
    """status 0: the connection ended without an answer. closed: the server closed it (else the client gave up).

    complete: the body is as long as it was said to be.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    elapsed_s: float
    closed: bool
    complete: bool = True
    raw: bytes = field(repr=False, default=b"")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, {} if the body is not in that shape."""
        try:
            error = self.json["error"]
        except (ValueError, KeyError, TypeError):
            return {}
        return error if isinstance(error, dict) else {}

    def events(self) -> list[str]:
        """The data of the server-sent events, in order."""
        text = self.body.decode("utf-8")
        return [block.removeprefix("data: ") for block in text.split("\n\n") if block.startswith("data: ")]

    def chunks(self) -> list[dict[str, Any]]:
        return [json.loads(data) for data in self.events() if data != "[DONE]"]


def send(port: int, request: Request, request_id: str = "", *, timeout_s: float = 90.0, method: str = "POST") -> Reply:
    """The request with `Connection: close`, and its answer."""
    lines = [f"{method} {request.path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in request.headers]
    if request_id:
        lines.append(f"X-Request-Id: {request_id}")
    if method not in ("GET", "HEAD"):
        lines.append(f"Content-Length: {len(request.body)}")
    head = "\r\n".join([*lines, "", ""]).encode("utf-8")
    return talk(port, head + request.body, timeout_s=timeout_s)


def get(port: int, path: str, *, timeout_s: float = 30.0) -> Reply:
    return send(port, Request(path, b"", ()), method="GET", timeout_s=timeout_s)


def talk(
    port: int, data: bytes, *, timeout_s: float = 90.0, half_close: bool = False, leave_after_bytes: int | None = None
) -> Reply:
    """Send bytes while reading, until the other side closes or the time is over. An early answer ends the sending."""
    start = time.monotonic()
    received = bytearray()
    closed = False
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.setblocking(False)
        left = memoryview(data)
        while (rest_s := timeout_s - (time.monotonic() - start)) > 0 and len(received) < MAX_ANSWER_BYTES:
            wants_write = [connection] if left else []
            readable, writable, _ = select.select([connection], wants_write, [], min(rest_s, 1.0))
            try:
                if readable:
                    block = connection.recv(READ_BYTES)
                    if not block:
                        closed = True
                        break
                    received += block
                elif writable:
                    left = left[connection.send(left[: 1 << 20]) :]
                    if not left and half_close:
                        connection.shutdown(socket.SHUT_WR)
            except (ConnectionResetError, BrokenPipeError):
                if not readable and _drain(connection, received):
                    continue
                closed = True
                break
            if leave_after_bytes is not None and len(received) >= leave_after_bytes and not left:
                break
    return parse(bytes(received), time.monotonic() - start, closed, data[:5] == b"HEAD ")


def _drain(connection: socket.socket, received: bytearray) -> bool:
    """Sending failed: what has arrived may still be read. False when there is nothing."""
    try:
        block = connection.recv(READ_BYTES)
    except OSError:
        return False
    received += block
    return bool(block)


def parse(raw: bytes, elapsed_s: float, closed: bool, is_head: bool = False) -> Reply:
    """The first final answer in `raw`; one to HEAD has no body."""
    rest = raw
    while rest.startswith(b"HTTP/1.1 1") and b"\r\n\r\n" in rest:
        rest = rest.partition(b"\r\n\r\n")[2]
    response = http.client.HTTPResponse(_Socket(rest), method="HEAD" if is_head else "GET")  # type: ignore[arg-type]
    try:
        response.begin()
    except (http.client.HTTPException, OSError):
        return Reply(0, {}, b"", elapsed_s, closed, not raw, raw)
    complete = True
    try:
        body = response.read()
    except http.client.IncompleteRead as error:
        body, complete = error.partial, False
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, headers, body, elapsed_s, closed, complete, raw)


class _Socket:
    """What HTTPResponse needs of a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self._data)
