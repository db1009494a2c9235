"""Giving freed memory back to the system.

An engine on a CPU makes tensors of other sizes with every step. The C library keeps what they leave between blocks that
are still in use, and takes more from the system when nothing kept is large enough: with different pictures all the time
a process grew by 30 to 180 KB a request although what it used stayed the same. Trimming returns whole free pages, also
those in the middle; it takes tens of milliseconds for a gigabyte, so it is done now and then.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

TRIM_EVERY_S = 10.0


class HeapTrimmer:
    """`worked` after every turn with work in it, `rest` when there is none."""

    def __init__(self, clock: Callable[[], float], trim: Callable[[], None] | None = None) -> None:
        self._clock = clock
        self._trim = trim or trim_heap
        self._trimmed = clock()
        self._has_worked = False

    def worked(self) -> None:
        self._has_worked = True
        if self._clock() - self._trimmed >= TRIM_EVERY_S:
            self._run()

    def rest(self) -> None:
        """Once after work, not again and again."""
        if self._has_worked:
            self._run()

    def _run(self) -> None:
        self._trim()
        self._trimmed = self._clock()
        self._has_worked = False


def trim_heap() -> None:
    """Does nothing where the C library has no such function (macOS, musl)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
