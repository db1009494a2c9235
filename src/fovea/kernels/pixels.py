"""Operations on pixels in one pass over memory each: a pass of Pillow's resize; normalising and cutting into patches.

Both are integers and table look-ups, so they equal their plain twins to the bit. Sizes are run-time arguments: one
compiled kernel serves pictures of every size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fovea.native.resample_table import HALF, PRECISION_BITS

PIXELS_AT_ONCE = 1024
RESAMPLE_WARPS = 4
VALUES_AT_ONCE = 1024
CUT_WARPS = 4
MOST_VALUES = 2**31 - 2**16  # places are counted in 32 bits


@triton.jit(do_not_specialize=["old", "new", "inner", "taps", "count"])
def _resample(  # type: ignore[no-untyped-def]
    pixels, table, out, old, new, inner, taps, count, HALF: tl.constexpr, BITS: tl.constexpr, PLACES: tl.constexpr
):
    places = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    real = places < count
    line = places // inner
    within = places - line * inner
    outer = line // new
    row = table + (line - outer * new) * (1 + taps)
    first = tl.load(row, mask=real, other=0)
    start = outer * old
    total = tl.full([PLACES], HALF, tl.int32)
    for k in range(taps):
        weight = tl.load(row + 1 + k, mask=real, other=0)
        at = (start + tl.minimum(first + k, old - 1)) * inner + within
        total += tl.load(pixels + at, mask=real, other=0).to(tl.int32) * weight
    total = tl.minimum(tl.maximum(total >> BITS, 0), 255)
    tl.store(out + places, total.to(tl.uint8), mask=real)


def resample(
    pixels: Tensor, table: Tensor, *, places_at_once: int = PIXELS_AT_ONCE, num_warps: int = RESAMPLE_WARPS
) -> Tensor:
    """uint8 [outer, old, inner], contiguous, to [outer, new, inner]; table [new, 1 + taps] int32."""
    assert pixels.is_contiguous(), "lines lie behind one another"
    assert table.is_contiguous(), "rows lie behind one another"
    (outer, old, inner), new = pixels.shape, table.shape[0]
    out = torch.empty(outer, new, inner, dtype=torch.uint8, device=pixels.device)
    count = out.numel()
    assert max(count, pixels.numel(), table.numel()) < MOST_VALUES, "the picture is too large for 32-bit places"
    _resample[(triton.cdiv(count, places_at_once),)](
        pixels, table, out, old, new, inner, table.shape[1] - 1, count,
        HALF=HALF, BITS=PRECISION_BITS, PLACES=places_at_once, num_warps=num_warps,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["columns", "count", "first_patch"])
def _cut_patches(  # type: ignore[no-untyped-def]
    canvas, levels, out, columns, count, first_patch,
    PX: tl.constexpr, SIDE: tl.constexpr, REPEATS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    places = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    real = places < count
    patch, channel = places // (3 * PX * PX), places // (PX * PX) % 3
    y, x = places // PX % PX, places % PX
    block, cell = patch // (SIDE * SIDE), patch % (SIDE * SIDE)
    block_row = block // columns
    row = (block_row * SIDE + cell // SIDE) * PX + y
    column = ((block - block_row * columns) * SIDE + cell % SIDE) * PX + x
    width = columns * SIDE * PX
    value = tl.load(canvas + (row * width + column) * 3 + channel, mask=real, other=0).to(tl.int32)
    level = tl.load(levels + channel * 256 + value, mask=real, other=0.0)
    into = out + ((first_patch + patch).to(tl.int64) * 3 + channel) * (REPEATS * PX * PX) + y * PX + x
    for repeat in tl.static_range(REPEATS):
        tl.store(into + repeat * PX * PX, level, mask=real)


def cut_patches(
    canvases: Sequence[Tensor],
    levels: Tensor,
    px: int,
    side: int,
    repeats: int,
    *,
    values_at_once: int = VALUES_AT_ONCE,
    num_warps: int = CUT_WARPS,
) -> Tensor:
    """uint8 [height, width, 3] each, contiguous, to [P, 3 * repeats * px * px] in the type of `levels` [3, 256]."""
    counts = [canvas.shape[0] * canvas.shape[1] // px**2 for canvas in canvases]
    out = torch.empty(sum(counts), 3 * repeats * px**2, dtype=levels.dtype, device=levels.device)
    first = 0
    for canvas, num_patches in zip(canvases, counts, strict=True):
        assert canvas.is_contiguous(), "rows lie behind one another"
        count = canvas.numel()
        assert count < MOST_VALUES, "the canvas is too large for 32-bit places"
        _cut_patches[(triton.cdiv(count, values_at_once),)](
            canvas, levels, out, canvas.shape[1] // (side * px), count, first,
            PX=px, SIDE=side, REPEATS=repeats, PLACES=values_at_once, num_warps=num_warps,
        )  # fmt: skip
        first += num_patches
    return out
