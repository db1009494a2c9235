"""What the attention kernels for many queries share: how a head is cut into tiles, and one step over a tile of keys.

Matrix units take sides that are powers of two. A head size that is none, like 80, would waste 48 of 128 columns in
every product, so a head is two parts, DIM_A + DIM_B columns (64 + 16), each with tiles of its own.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
MIN_DOT_SIDE = 16  # the smallest side of a tile that the matrix units take
ONE_PART = 64  # columns of a head that is not cut


class Tile(NamedTuple):
    """How much one program does at once, and how: what a sweep varies."""

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None  # most of a thread; fewer let more programs share a multiprocessor


class HeadParts(NamedTuple):
    """Constants of a kernel. Without a second part (not `two`) `dim_b` is unused; `whole`: no column is padding."""

    dim_a: int
    dim_b: int
    two: bool
    whole: bool


@functools.cache
def head_parts(head_dim: int, padded: bool = False) -> HeadParts:
    """`padded`: the second part is as wide as the first.

    Wider heads are always cut: where the tiles of scores and of the result differ in width, a loop that carries one
    result has its products serialised by ptxas (Triton 3.6 copies the result before it waits for it); two it does not.
    """
    whole = max(MIN_DOT_SIDE, triton.next_power_of_2(head_dim))
    if whole <= ONE_PART:
        return HeadParts(whole, MIN_DOT_SIDE, False, whole == head_dim)
    first = whole // 2
    second = first if padded else max(MIN_DOT_SIDE, triton.next_power_of_2(head_dim - first))
    return HeadParts(first, second, True, first + second == head_dim)


@triton.jit
def load_rows(pointers, inside, columns, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr, WHOLE: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile [rows, columns]: rows outside (if MASKED) and columns beyond the head (unless WHOLE) are zeros."""
    if MASKED:
        if WHOLE:
            tile = tl.load(pointers, mask=inside[:, None], other=0.0)
        else:
            tile = tl.load(pointers, mask=inside[:, None] & (columns < HEAD_DIM)[None, :], other=0.0)
    elif WHOLE:
        tile = tl.load(pointers)
    else:
        tile = tl.load(pointers, mask=(columns < HEAD_DIM)[None, :], other=0.0)
    return tile


@triton.jit
def load_parts(  # type: ignore[no-untyped-def]
    pointers, inside, a, b, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr, TWO: tl.constexpr, WHOLE: tl.constexpr
):  # fmt: skip
    """Both parts of rows whose first columns are at `pointers` [rows, 1]; the first one twice unless there are TWO."""
    part_a = load_rows(pointers + a[None, :], inside, a, HEAD_DIM, MASKED, TWO or WHOLE)
    part_b = part_a
    if TWO:
        part_b = load_rows(pointers + b[None, :], inside, b, HEAD_DIM, MASKED, WHOLE)
    return part_a, part_b


@triton.jit
def load_steps(  # type: ignore[no-untyped-def]
    scales, block, offset, kv_head, inside, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """The scales of keys, or values, in float8: see kv_pages.Fp8Pages."""
    at = scales + (block * KV_HEADS + kv_head) * BLOCK_SIZE + offset
    if MASKED:
        steps = tl.load(at, mask=inside, other=0.0)
    else:
        steps = tl.load(at)
    return steps


@triton.jit
def score(q_a, q_b, k_a, k_b, visible, TWO: tl.constexpr, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """[queries, keys], unscaled; -inf for what is not visible (if MASKED)."""
    scores = tl.dot(q_a, tl.trans(k_a), input_precision="ieee")
    if TWO:
        scores = tl.dot(q_b, tl.trans(k_b), scores, input_precision="ieee")
    if MASKED:
        scores = tl.where(visible, scores, -float("inf"))
    return scores


@triton.jit
def fold_keys(  # type: ignore[no-untyped-def]
    q_a, q_b, k_a, k_b, v_a, v_b, visible, best, total, out_a, out_b, scale,
    TWO: tl.constexpr, MASKED: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """Online softmax (arXiv:1805.02867) over one more tile of keys; scale holds log2(e), so that exp is exp2.

    FIXED: `best` is not raised, so that nothing is made smaller later and no product waits for a maximum. The largest
    weight is not one then, which is exact in any type; so weights are cut to bfloat16 before they are summed up, or a
    key that has nearly all the weight would count for more or less than that.
    """
    scores = score(q_a, q_b, k_a, k_b, visible, TWO, MASKED)
    if FIXED:
        weights = tl.exp2(scores * scale - best[:, None])
        if v_a.dtype == tl.bfloat16:
            weights = (weights.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
        total += tl.sum(weights, axis=1)
    else:
        new_best = tl.maximum(best, tl.max(scores, axis=1) * scale)
        weights = tl.exp2(scores * scale - new_best[:, None])
        shrink = tl.exp2(best - new_best)
        total = total * shrink + tl.sum(weights, axis=1)
        out_a *= shrink[:, None]
        if TWO:
            out_b *= shrink[:, None]
        best = new_best
    rounded = weights.to(v_a.dtype)
    out_a = tl.dot(rounded, v_a, out_a, input_precision="ieee")
    if TWO:
        out_b = tl.dot(rounded, v_b, out_b, input_precision="ieee")
    return best, total, out_a, out_b
