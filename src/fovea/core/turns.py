"""Threads take turns wherever they would hold the interpreter's lock anyway.

Eight threads that prepare requests are no faster than one where they want that lock, and the loop that keeps a device
busy waits for them in turn, 5 ms at a time: whoever lets go of the lock for a moment, as each launch of a kernel does,
may have to wait that long for it. So the loop takes turns with them, and comes first. What lets go of the lock for long
(tokenising, decoding pictures, fetching, waiting for a device) goes on outside of a turn, side by side.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Turns:
    """`with turns.take():` runs in one thread at a time, in the order in which they asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # around the two below
        self._is_taken = False
        self._waiting: deque[threading.Lock] = deque()  # each is released to hand its owner the turn

    @contextmanager
    def take(self, *, first: bool = False) -> Iterator[None]:
        """first: ahead of all who wait."""
        try:
            self._acquire(first)
        except KeyboardInterrupt:
            self._release()
            raise
        token = _TURN.set((self, first))
        try:
            yield
        finally:
            _TURN.reset(token)
            self._release()

    def _acquire(self, first: bool) -> None:
        """An interrupt comes when the turn is had: given to whoever left before, it would never come back."""
        with self._lock:
            if not self._is_taken:
                self._is_taken = True
                return
            call = threading.Lock()
            call.acquire()
            (self._waiting.appendleft if first else self._waiting.append)(call)
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                call.acquire()
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _release(self) -> None:
        """The turn goes to who waits, not to who is quicker: so a loop that comes first leaves one a step to others."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_taken = False


_TURN: ContextVar[tuple[Turns, bool] | None] = ContextVar("turn", default=None)


@contextmanager
def outside_turn() -> Iterator[None]:
    """Let others have their turn meanwhile. Whatever waits for another thread must be in here, or both wait forever."""
    taken = _TURN.get()
    if taken is None:
        yield
        return
    turns, first = taken
    token = _TURN.set(None)
    turns._release()
    try:
        yield
    finally:
        turns._acquire(first)
        _TURN.reset(token)


def taking_turns(work: Callable[P, R]) -> Callable[P, R]:
    """The same for threads that work for this one, which waits for them outside: they take turns with the others."""
    taken = _TURN.get()
    if taken is None:
        return work
    turns, _ = taken

    def in_turn(*args: P.args, **kwargs: P.kwargs) -> R:
        with turns.take():
            return work(*args, **kwargs)

    return in_turn
