"""Threads that prepare requests take turns wherever they would hold the interpreter's lock anyway.

Eight threads that want that lock are no faster than one, and the loop that keeps a device busy waits for each of them
in turn: a step of 0.3 ms took up to 25. What lets go of the lock (tokenising, decoding pictures, fetching) goes on
outside of a turn, side by side.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_TURN: ContextVar[threading.Lock | None] = ContextVar("turn", default=None)


class Turns:
    """`with turns.take():` runs in one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def take(self) -> Iterator[None]:
        with self._lock:
            token = _TURN.set(self._lock)
            try:
                yield
            finally:
                _TURN.reset(token)


@contextmanager
def outside_turn() -> Iterator[None]:
    """Let others have their turn meanwhile. Whatever waits for another thread must be in here, or both wait forever."""
    lock = _TURN.get()
    if lock is None:
        yield
        return
    token = _TURN.set(None)
    lock.release()
    try:
        yield
    finally:
        lock.acquire()
        _TURN.reset(token)
