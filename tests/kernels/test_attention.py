"""Attention kernels equal their plain twins: in Triton's interpreter here, compiled where there is a card."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea.kernels.batch import SEGMENT_ROWS, Segments, segment_tiles


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed on this platform")
def test_every_attention_kernel_equals_its_plain_twin() -> None:
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "tests.kernels.compare_attention"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "equal"


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=8))
def test_tiles_cover_every_row_once_and_stay_inside_their_segment(lengths: list[int]) -> None:
    ends = np.cumsum(lengths)
    seen = np.zeros(ends[-1], int)
    for row, first, end in segment_tiles(lengths):
        assert end in ends
        assert end - first == lengths[ends.tolist().index(end)]
        assert first <= row < end
        seen[row : min(row + SEGMENT_ROWS, end)] += 1
    assert (seen == 1).all()


def test_tiles_of_long_segments_come_first() -> None:
    tiles = segment_tiles([5, 300, 40, 300])
    sizes = (tiles[:, 2] - tiles[:, 1]).tolist()
    assert sizes == sorted(sizes, reverse=True)


def test_segments_on_a_cpu_are_lengths_alone() -> None:
    assert Segments.of([3, 4], torch.device("cpu")) == Segments([3, 4], None)
