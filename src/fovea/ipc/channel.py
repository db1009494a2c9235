"""Frames over a Unix socket pair, each with a payload of bytes and at most one blob.

    frame     header, then the payload; a payload over INLINE_BYTES travels in shared memory
    header    payload length (u32), 1 if the payload is in a descriptor (u8), 1 if there is a blob (u8)

Sockets are anonymous: nobody else can connect to them. A length is checked before anything is allocated; what does not
parse is a ChannelClosedError, because nothing behind it can be trusted.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fovea.core.log import logger
from fovea.ipc.blob import map_blob, none_left, write_blob

INLINE_BYTES = 64 * 1024
_READ_BYTES = 256 * 1024
_MAX_FDS = 64  # received at once
_HEADER = struct.Struct("<IBB")


class ChannelClosedError(Exception):
    """The other side is gone, or sent what is no frame. Stays inside this package."""


@dataclass(frozen=True, slots=True)
class Frame:
    """`blob` is a descriptor that the receiver owns, or None."""

    payload: bytes | memoryview
    blob: int | None


class _Parser:
    """Bytes and descriptors in, frames out."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._fds: deque[int] = deque()

    def push(self, data: bytes, fds: list[int]) -> list[Frame]:
        self._bytes += data
        self._fds.extend(fds)
        frames = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popleft())

    def _next(self) -> Frame | None:
        if len(self._bytes) < _HEADER.size:
            return None
        num_bytes, is_large, has_blob = _HEADER.unpack_from(self._bytes)
        if num_bytes > INLINE_BYTES or is_large > 1 or has_blob > 1:
            raise ChannelClosedError
        end = _HEADER.size + num_bytes
        if len(self._bytes) < end:
            return None
        if len(self._fds) < is_large + has_blob:
            raise ChannelClosedError
        payload: bytes | memoryview = bytes(self._bytes[_HEADER.size : end])
        del self._bytes[:end]
        if is_large:
            payload = map_blob(self._fds.popleft())
        return Frame(payload, self._fds.popleft() if has_blob else None)


@dataclass(slots=True)
class _Outgoing:
    data: memoryview
    fds: list[int]  # sent with the first byte; `owned` are closed then
    owned: list[int]


def _pack(payload: bytes, blob: int | None) -> _Outgoing:
    owned = []
    if len(payload) > INLINE_BYTES:
        owned, payload = [write_blob([payload])], b""
    data = _HEADER.pack(len(payload), len(owned), blob is not None) + payload
    return _Outgoing(memoryview(data), owned + ([] if blob is None else [blob]), owned)


def _send_some(sock: socket.socket, outgoing: _Outgoing) -> bool:
    """True when all of it is sent. Raises BlockingIOError when nothing can be sent now."""
    if outgoing.fds:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", outgoing.fds))]
        count = sock.sendmsg([outgoing.data], rights)
        outgoing.fds = []
        _release(outgoing)
    else:
        count = sock.send(outgoing.data)
    outgoing.data = outgoing.data[count:]
    return not outgoing.data


def _release(outgoing: _Outgoing) -> None:
    while outgoing.owned:
        os.close(outgoing.owned.pop())


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    data, fds, flags, _ = socket.recv_fds(sock, _READ_BYTES, _MAX_FDS)
    for fd in fds:
        os.set_inheritable(fd, False)
    if flags & getattr(socket, "MSG_CTRUNC", 0):
        for fd in fds:
            os.close(fd)
        raise ChannelClosedError
    return data, fds


class Channel:
    """The blocking end, for a worker's own loop."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._parser = _Parser()

    def send(self, payload: bytes, blob: int | None = None) -> None:
        """`blob` stays the caller's: the receiver gets a descriptor of its own."""
        outgoing = _pack(payload, blob)
        try:
            while not _send_some(self._sock, outgoing):
                pass
        except OSError:
            raise ChannelClosedError from None
        finally:
            _release(outgoing)

    def receive(self, timeout_s: float | None) -> list[Frame]:
        """What has arrived; waits up to `timeout_s` (None: for ever) for the first."""
        try:
            readable, _, _ = select.select([self._sock], [], [], timeout_s)
            if not readable:
                return []
            data, fds = _receive(self._sock)
        except OSError:
            raise ChannelClosedError from None
        if not data:
            raise ChannelClosedError
        return self._parser.push(data, fds)

    def receive_one(self) -> Frame:
        """The next frame, where the other side sends one at a time."""
        while True:
            frames = self.receive(None)
            if frames:
                return frames[0]

    def close(self) -> None:
        self._parser.close()
        self._sock.close()


class AsyncChannel:
    """The end in an event loop. `on_frame` is called for each frame, `on_close` once when the other side is gone.

    What can't be understood, here or by `on_frame`, ends the channel too; then `is_breached`.
    """

    def __init__(self, sock: socket.socket, on_frame: Callable[[Frame], None], on_close: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_frame = on_frame
        self._on_close = on_close
        self._parser = _Parser()
        self._queue: deque[_Outgoing] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._read)
        self.is_open = True
        self.is_breached = False

    def has_ended(self) -> bool:
        """Whether the other side is gone, even if the loop has not heard of it yet."""
        if not self.is_open:
            return True
        poll = select.poll()
        poll.register(self._sock, 0)  # only what is always told: the end
        return bool(poll.poll(0))

    def send(self, payload: bytes, blob: int | None = None) -> None:
        """Never blocks. `blob` stays the caller's and may be closed at once.

        Raises UnavailableError, with nothing sent, if there is no descriptor left for it.
        """
        if not self.is_open:
            return
        outgoing = _pack(payload, blob)
        if blob is not None:  # a descriptor of our own: sending may have to wait
            try:
                outgoing.fds[-1] = os.dup(blob)
            except OSError:
                _release(outgoing)
                raise none_left() from None
            outgoing.owned.append(outgoing.fds[-1])
        self._queue.append(outgoing)
        if len(self._queue) == 1:
            self._write()

    def close(self) -> None:
        if not self.is_open:
            return
        self.is_open = False
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        for outgoing in self._queue:
            _release(outgoing)
        self._queue.clear()
        self._parser.close()
        self._sock.close()

    def _write(self) -> None:
        try:
            while self._queue:
                if _send_some(self._sock, self._queue[0]):
                    self._queue.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._sock, self._write)
            return
        except OSError:
            self._gone()
            return
        self._loop.remove_writer(self._sock)

    def _read(self) -> None:
        try:
            data, fds = _receive(self._sock)
            frames = self._parser.push(data, fds)
        except BlockingIOError:
            return
        except (OSError, ChannelClosedError) as error:
            self.is_breached = isinstance(error, ChannelClosedError)
            self._gone()
            return
        if not data:
            self._gone()
        for frame in frames:
            self._deliver(frame)

    def _deliver(self, frame: Frame) -> None:
        """A frame that nobody understands is a breach: nothing behind it can be trusted either."""
        if not self.is_open:
            if frame.blob is not None:
                os.close(frame.blob)
            return
        try:
            self._on_frame(frame)
        except Exception:
            logger.exception("a message of another process was not understood")
            self.is_breached = True
            self._gone()

    def _gone(self) -> None:
        if self.is_open:
            self.close()
            self._on_close()


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected stream sockets; neither is inherited unless it is passed on by number."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for sock in (ours, theirs):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1024 * 1024)
    return ours, theirs
