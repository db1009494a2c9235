"""The likeliest token of each row of logits, in one pass over them and whatever their type."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

VALUES_AT_ONCE = 8192
NUM_WARPS = 8


@triton.jit(do_not_specialize=["width"])
def _likeliest(logits, tokens, values, width, AT_ONCE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each lane keeps its own best; NaN is above all, as torch has it."""
    row, lanes = tl.program_id(0).to(tl.int64), tl.arange(0, AT_ONCE)
    best = tl.full([AT_ONCE], -float("inf"), tl.float32)
    place = tl.full([AT_ONCE], 0, tl.int32) + lanes
    broken = tl.full([AT_ONCE], 2147483647, tl.int32)  # the first place of a NaN
    for first in range(0, width, AT_ONCE):
        at = first + lanes
        value = tl.load(logits + row * width + at, mask=at < width, other=-float("inf")).to(tl.float32)
        larger = value > best
        best, place = tl.where(larger, value, best), tl.where(larger, at, place)
        broken = tl.minimum(broken, tl.where(value != value, at, 2147483647))
    most = tl.max(best, axis=0)
    token = tl.min(tl.where(best == most, place, 2147483647), axis=0)
    first_broken = tl.min(broken, axis=0)
    is_broken = first_broken < 2147483647
    tl.store(tokens + row, tl.where(is_broken, first_broken, token).to(tl.int64))
    tl.store(values + row, tl.where(is_broken, float("nan"), most))


def likeliest(logits: Tensor, *, values_at_once: int = VALUES_AT_ONCE) -> tuple[Tensor, Tensor]:
    """See reference.likeliest; logits [R, V], dense."""
    logits = logits.contiguous()
    num_rows, width = logits.shape
    # Zeros, because a rehearsal leaves kernels out, and what is no token must not be looked up as one.
    made = torch.zeros(2, num_rows, dtype=torch.int64, device=logits.device)
    tokens, values = made[0], made[1].view(torch.float32)[:num_rows]
    if num_rows:
        _likeliest[(num_rows,)](logits, tokens, values, width, AT_ONCE=values_at_once, num_warps=NUM_WARPS)
    return tokens, values
