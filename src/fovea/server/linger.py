"""Closing a connection so that the last answer arrives.

A socket that is closed while the other side still sends answers with a reset, and the reset overtakes the answer: a
client that was refused in the middle of its upload would see a broken connection instead of the reason. So closing
means: say that nothing more comes, go on reading into nothing for a bounded time and number of bytes, then close.

Writes of one turn of the event loop leave as one: the head of an answer and its body are one packet, not two.
"""

from __future__ import annotations

import asyncio
from typing import Any

LINGER_S = 5.0
LINGER_BYTES = 64 * 1024 * 1024
CHECK_S = 0.5
MAX_GATHERED_BYTES = 16 * 1024


class LingeringTransport(asyncio.Transport):
    """A socket's transport, but for `close` and `write`. `discard` is told of what arrives after closing."""

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop, *, stall_s: float) -> None:
        super().__init__()
        self._inner = inner
        self._loop = loop
        self._stall_s = stall_s
        self._is_closing = False
        self._num_discarded = 0
        self._num_unsent = 0
        self._give_up_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._gathered: list[bytes | bytearray | memoryview] = []
        self._num_gathered = 0

    def close(self) -> None:
        self.close_within(LINGER_S)

    def close_within(self, linger_s: float) -> None:
        if self._is_closing or self._inner.is_closing():
            return
        self._is_closing = True
        self._flush()
        self._inner.resume_reading()
        self._inner.write_eof()
        self._num_unsent = self._inner.get_write_buffer_size()
        self._give_up_at = self._loop.time() + (self._stall_s if self._num_unsent else linger_s)
        self._timer = self._loop.call_later(min(CHECK_S, linger_s), self._check, linger_s)

    def _check(self, linger_s: float) -> None:
        """The client has `linger_s` once everything is sent; before that, it must keep taking."""
        now, num_unsent = self._loop.time(), self._inner.get_write_buffer_size()
        if num_unsent < self._num_unsent:
            self._num_unsent = num_unsent
            self._give_up_at = now + (self._stall_s if num_unsent else linger_s)
        if now >= self._give_up_at:
            self.abort()
        else:
            self._timer = self._loop.call_later(min(CHECK_S, linger_s), self._check, linger_s)

    def discard(self, num_bytes: int) -> None:
        self._num_discarded += num_bytes
        if self._num_discarded > LINGER_BYTES:
            self.abort()

    def lost(self) -> None:
        """The connection is gone; nothing is left to wait for."""
        if self._timer is not None:
            self._timer.cancel()

    def abort(self) -> None:
        self._is_closing = True
        self._inner.abort()

    def is_closing(self) -> bool:
        return self._is_closing or self._inner.is_closing()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closing or not data:
            return
        self._gathered.append(data)
        self._num_gathered += len(data)
        if self._num_gathered >= MAX_GATHERED_BYTES:
            self._flush()
        elif len(self._gathered) == 1:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._gathered and not self._inner.is_closing():
            self._inner.write(b"".join(self._gathered))
        self._gathered.clear()
        self._num_gathered = 0

    def pause_reading(self) -> None:
        if not self._is_closing:
            self._inner.pause_reading()

    def resume_reading(self) -> None:
        self._inner.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._inner.get_write_buffer_size() + self._num_gathered

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._inner.get_extra_info(name, default)
