"""Kernels for pixels: the same bits from Triton and from plain torch as from Pillow."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fovea.core.types import ImagePlan, Resample
from fovea.kernels import cut_patches, resample
from fovea.native.resample_table import PRECISION_BITS, plan_passes, resample_table

FILTERS: dict[Resample, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
SIDES = st.one_of(st.integers(1, 4), st.integers(1, 150))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed on this platform")
def test_every_kernel_for_pixels_equals_its_plain_twin_and_pillow() -> None:
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "tests.kernels.compare_pixels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "equal"


@given(
    size=st.tuples(SIDES, SIDES), new=st.tuples(SIDES, SIDES), kind=st.sampled_from(list(FILTERS)), seed=st.integers(0)
)
@example(size=(1, 1), new=(150, 150), kind="bicubic", seed=0)
@example(size=(9000, 1), new=(1, 3), kind="bicubic", seed=0)
@example(size=(2, 9000), new=(7, 2), kind="bilinear", seed=1)
@example(size=(50, 40), new=(40, 20), kind="bicubic", seed=0)  # just not twice as many rows less as columns
@example(size=(50, 40), new=(40, 19), kind="bicubic", seed=0)  # from here on the columns come first
@example(size=(40, 90), new=(20, 9), kind="bicubic", seed=1)
@settings(deadline=None, max_examples=150)
def test_a_resize_is_pillow_s_to_the_bit(
    size: tuple[int, int], new: tuple[int, int], kind: Resample, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    if seed % 2:  # hard edges overshoot and are clipped
        pixels = np.where(pixels > 127, np.uint8(255), np.uint8(0))
    want = np.asarray(Image.fromarray(pixels).resize(new, FILTERS[kind]))
    got = torch.from_numpy(pixels)
    for axis, table in plan_passes(ImagePlan(*new, kind, *new, (1, 1, 1), 1, 1), *size):
        height, width = got.shape[:2]
        lines = got if axis == 1 else got.view(1, height, -1)
        after = resample(lines, torch.from_numpy(table.copy()))
        got = after if axis == 1 else after.view(-1, width, 3)
    np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize(("old", "new"), [(1, 9), (9, 1), (100, 37), (37, 100), (1000, 999)])
def test_a_table_stays_inside_the_picture_and_keeps_its_brightness(old: int, new: int, kind: Resample) -> None:
    table = resample_table(old, new, kind)
    first, weights = table[:, 0], table[:, 1:]
    used = (weights != 0) * np.arange(1, weights.shape[1] + 1)
    assert first.min() >= 0
    assert (first + used.max(axis=1)).max() <= old
    assert np.abs(weights.sum(axis=1) - (1 << PRECISION_BITS)).max() <= weights.shape[1]
    assert not table.flags.writeable, "it is shared"


def test_patches_stand_in_blocks_and_each_channel_is_repeated() -> None:
    """Two canvases; every value is told from every other by its level."""
    canvases = [torch.arange(height * 8 * 3, dtype=torch.uint8).view(height, 8, 3) for height in (4, 8)]
    levels = torch.arange(3 * 256, dtype=torch.float32).view(3, 256)
    patches = cut_patches(canvases, levels, px=2, side=2, repeats=2)
    assert patches.shape == (2 * 4 + 4 * 4, 3 * 2 * 4)
    number = 0
    for canvas in canvases:
        for row, column in ((r, c) for r in range(0, canvas.shape[0], 4) for c in range(0, 8, 4)):
            for y, x in ((0, 0), (0, 2), (2, 0), (2, 2)):
                square = canvas[row + y : row + y + 2, column + x : column + x + 2].float()
                want = torch.stack([square[:, :, c].flatten() + 256 * c for c in (0, 0, 1, 1, 2, 2)])
                torch.testing.assert_close(patches[number], want.flatten(), atol=0, rtol=0)
                number += 1
    assert number == len(patches)
