"""When memory is given back: now and then while there is work, once when there is none."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from fovea.ipc.heap import TRIM_EVERY_S, HeapTrimmer, trim_heap


class Trims:
    def __init__(self) -> None:
        self.now = 0.0
        self.count = 0
        self.trimmer = HeapTrimmer(lambda: self.now, self.trim)

    def trim(self) -> None:
        self.count += 1


def test_work_is_interrupted_rarely() -> None:
    trims = Trims()
    for _ in range(1000):
        trims.now += TRIM_EVERY_S / 100
        trims.trimmer.worked()
    assert 9 <= trims.count <= 10


def test_rest_trims_once_after_work() -> None:
    trims = Trims()
    trims.trimmer.rest()
    assert trims.count == 0
    trims.trimmer.worked()
    for _ in range(3):
        trims.trimmer.rest()
    assert trims.count == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only there /proc tells")
def test_pages_between_blocks_in_use_are_given_back() -> None:
    """Blocks too small to be mapped on their own, every hundredth of them kept: the top of the heap can't shrink."""
    blocks = [np.ones(16_000, np.uint8) for _ in range(8000)]
    full = resident_pages()
    kept = blocks[::100]
    blocks.clear()
    before = resident_pages()
    trim_heap()
    after = resident_pages()
    assert len(kept) == 80
    assert after < before or before < full / 2  # another C library has given them back already


def resident_pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])
