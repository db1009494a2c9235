"""Drawing tokens on the device, see draw_reference: a program for each row, and no sort.

What top_k and top_p leave is all from some value on. It is found by bisecting: a pass over the row counts, or adds up,
what lies above three values between the two that are left; some ten passes for a row. A row of a large vocabulary is
half a megabyte and stays in L2; the next values are on their way while these are looked at.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fovea.kernels.draw_reference import WEIGHT_SCALE, Ways

VALUES_AT_ONCE = 4096
NUM_WARPS = 16
STAGES = tl.constexpr(3)
SCALE = tl.constexpr(WEIGHT_SCALE)
FAR = tl.constexpr(23.0)  # exp of minus that is less than 1 / WEIGHT_SCALE
NOWHERE = tl.constexpr(2147483647)


@triton.jit
def _values(row, first, width, AT_ONCE: tl.constexpr):  # type: ignore[no-untyped-def]
    at = first + tl.arange(0, AT_ONCE)
    return tl.load(row + at, mask=at < width, other=-float("inf"))


@triton.jit
def _masses(x, best, sharpness, min_p, lowest):  # type: ignore[no-untyped-def]
    """Weights as whole numbers, of values from `lowest` on."""
    weights = tl.exp((x - best) * sharpness)
    stays = (weights >= min_p) & (x >= lowest)  # neither is true of NaN
    return (tl.where(stays, weights, 0.0) * SCALE).to(tl.int64)


@triton.jit
def _lowest(row, width, best, sharpness, min_p, lowest, needed, BY_COUNT: tl.constexpr, AT_ONCE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The largest value from which on there are `needed` values, or weights of that sum; where all weigh next to
    nothing, one below the needed."""
    low, high = best - FAR / sharpness, best + (tl.abs(best) * 2.4e-7 + 1e-30)
    inside = width  # values from low on that are below high, as far as is known
    middle = low + (high - low) * 0.5
    while (inside > 1) & (middle > low) & (middle < high):
        first_quarter, last_quarter = low + (high - low) * 0.25, low + (high - low) * 0.75
        sums_a, sums_b = tl.zeros([AT_ONCE], tl.int64), tl.zeros([AT_ONCE], tl.int64)
        sums_c, between = tl.zeros([AT_ONCE], tl.int64), tl.zeros([AT_ONCE], tl.int32)
        for first in tl.range(0, width, AT_ONCE, num_stages=STAGES):
            x = _values(row, first, width, AT_ONCE)
            if BY_COUNT:
                some = tl.full([AT_ONCE], 1, tl.int64)
            else:
                some = _masses(x, best, sharpness, min_p, lowest)
            sums_a += tl.where(x >= first_quarter, some, 0)
            sums_b += tl.where(x >= middle, some, 0)
            sums_c += tl.where(x >= last_quarter, some, 0)
            # How many are in the second quarter and, from bit 16 on, in the third.
            between += tl.where((x >= first_quarter) & (x < middle), 1, 0)
            between += tl.where((x >= middle) & (x < last_quarter), 65536, 0)
        enough_a = tl.sum(sums_a, axis=0).to(tl.float64) >= needed
        enough_b = tl.sum(sums_b, axis=0).to(tl.float64) >= needed
        enough_c = tl.sum(sums_c, axis=0).to(tl.float64) >= needed
        second, third = tl.sum(between % 65536, axis=0), tl.sum(between // 65536, axis=0)
        inside = tl.where(enough_c, width, tl.where(enough_b, third, tl.where(enough_a, second, width)))
        next_low = tl.where(enough_c, last_quarter, tl.where(enough_b, middle, tl.where(enough_a, first_quarter, low)))
        high = tl.where(enough_c, high, tl.where(enough_b, last_quarter, tl.where(enough_a, middle, first_quarter)))
        low = next_low
        middle = low + (high - low) * 0.5
    return low


@triton.jit
def _total(row, width, best, sharpness, min_p, lowest, AT_ONCE: tl.constexpr):  # type: ignore[no-untyped-def]
    sums = tl.zeros([AT_ONCE], tl.int64)
    for first in tl.range(0, width, AT_ONCE, num_stages=STAGES):
        sums += _masses(_values(row, first, width, AT_ONCE), best, sharpness, min_p, lowest)
    return tl.sum(sums, axis=0)


@triton.jit(do_not_specialize=["count"])
def _draw(logits, rows, numbers, tokens, width, count, AT_ONCE: tl.constexpr):  # type: ignore[no-untyped-def]
    number = tl.program_id(0)
    row = logits + tl.load(rows + number) * width
    sharpness, min_p = tl.load(numbers + number).to(tl.float32), tl.load(numbers + count + number).to(tl.float32)
    top_k, top_p = tl.load(numbers + 2 * count + number), tl.load(numbers + 3 * count + number)
    most = tl.full([AT_ONCE], -float("inf"), tl.float32)
    for first in tl.range(0, width, AT_ONCE, num_stages=STAGES):
        most = tl.maximum(most, _values(row, first, width, AT_ONCE))
    best = tl.max(most, axis=0)
    lowest = tl.full([], -float("inf"), tl.float32)
    if top_k > 0:
        lowest = _lowest(row, width, best, sharpness, min_p, lowest, top_k, True, AT_ONCE)
    total = _total(row, width, best, sharpness, min_p, lowest, AT_ONCE)
    if top_p < 1:
        needed = total.to(tl.float64) * top_p
        above = _lowest(row, width, best, sharpness, min_p, lowest, needed, False, AT_ONCE)
        lowest = tl.maximum(lowest, above)
        total = _total(row, width, best, sharpness, min_p, lowest, AT_ONCE)
    target = (total.to(tl.float64) * tl.load(numbers + 4 * count + number)).to(tl.int64)
    target = tl.minimum(target, total - 1)
    running, found = total * 0, width - 1
    for first in tl.range(0, width, AT_ONCE, num_stages=STAGES):
        masses = _masses(_values(row, first, width, AT_ONCE), best, sharpness, min_p, lowest)
        added = tl.sum(masses, axis=0)
        if (running <= target) & (running + added > target):
            passed = running + tl.cumsum(masses, axis=0) > target
            found = tl.min(tl.where(passed, first + tl.arange(0, AT_ONCE), NOWHERE), axis=0)
        running += added
    tl.store(tokens + number, found.to(tl.int64))


def draw(logits: Tensor, rows: Tensor, ways: Ways, *, values_at_once: int = VALUES_AT_ONCE) -> Tensor:
    """draw_reference.draw of some rows [R] of dense float32 logits [S, V], which nobody copies."""
    assert logits.is_contiguous()
    assert logits.dtype == torch.float32
    tokens = torch.zeros_like(rows)
    _draw[(len(rows),)](
        logits, rows, ways.numbers, tokens, logits.shape[1], len(rows), AT_ONCE=values_at_once, num_warps=NUM_WARPS
    )
    return tokens
