"""Full attention inside segments of any lengths, all of them in one launch (FlashAttention-2, arXiv:2307.08691).

A program takes some queries of one head and walks over the segment's keys. Only a segment's last tile of keys is
masked, so the loop over the others has nothing but products and exponentials.

Maxima and rescaling are nearly a third of that loop's instructions. So in long segments of bfloat16, whose range is
float32's, the largest score of the first tile of keys stays what weights are relative to (FIXED): they may grow by
2**64 before a product could overflow. Tiles of queries where they do, and short segments, where looking at the first
keys twice costs what it saves, are left to a second launch with running maxima.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fovea.kernels.attention_tiles import LOG2_E, Tile, fold_keys, head_parts, load_parts, score
from fovea.kernels.batch import SEGMENT_ROWS, Segments

NARROW = Tile(queries=128, keys=64, warps=8, stages=3, registers=128)  # heads up to 96 columns: two programs share
SMALL = Tile(queries=64, keys=64, warps=4, stages=3, registers=128)  # up to 64
WIDE = Tile(queries=64, keys=64, warps=4, stages=3, registers=168)
FLOAT32 = Tile(queries=32, keys=32, warps=4, stages=2)  # no matrix units: for tests
FIXED_FROM_KEYS = 1024  # there it gains 3 to 5 % with heads of 72 and 80, at 577 keys nothing
GREATEST_SUM = tl.constexpr(2.0**64)  # of weights relative to the first tile: products with values stay in range


@triton.jit
def _segment_attention(  # type: ignore[no-untyped-def]
    q, k, v, out, tiles, left, scale, fixed_from,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_A: tl.constexpr, DIM_B: tl.constexpr, TWO: tl.constexpr,
    WHOLE: tl.constexpr, Q_ROW: tl.constexpr, Q_HEAD: tl.constexpr, K_ROW: tl.constexpr, K_HEAD: tl.constexpr,
    V_ROW: tl.constexpr, V_HEAD: tl.constexpr, TILE_ROWS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    FIXED: tl.constexpr, LEFT: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = TILE_ROWS // QUERIES
    tile, head = tiles + tl.program_id(0) // PARTS * 3, tl.program_id(1)
    row = tl.load(tile) + tl.program_id(0) % PARTS * QUERIES
    first, end = tl.load(tile + 1), tl.load(tile + 2)
    if row >= end:
        return
    left += tl.program_id(0) * HEADS + head
    if FIXED and end - first < fixed_from:
        tl.store(left, 1)
        return
    if LEFT and tl.load(left) == 0:
        return
    rows, keys = tl.arange(0, QUERIES), tl.arange(0, KEYS)
    a, b = tl.arange(0, DIM_A), DIM_A + tl.arange(0, DIM_B)
    real = row + rows < end
    q += row.to(tl.int64) * Q_ROW + head * Q_HEAD
    k += first.to(tl.int64) * K_ROW + head * K_HEAD
    v += first.to(tl.int64) * V_ROW + head * V_HEAD
    q_rows, k_rows, v_rows = rows[:, None] * Q_ROW, keys[:, None] * K_ROW, keys[:, None] * V_ROW
    q_a, q_b = load_parts(q + q_rows, real, a, b, HEAD_DIM, True, TWO, WHOLE)
    if FIXED:
        inside = keys < end - first
        k_a, k_b = load_parts(k + k_rows, inside, a, b, HEAD_DIM, True, TWO, WHOLE)
        best = tl.max(score(q_a, q_b, k_a, k_b, inside[None, :], TWO, True), axis=1) * scale
    else:
        best = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out_a, out_b = tl.zeros([QUERIES, DIM_A], tl.float32), tl.zeros([QUERIES, DIM_B], tl.float32)
    last = (end - first - 1) // KEYS * KEYS
    # Without the `if`, a loop that may not run at all has its products serialised by ptxas.
    if last > 0:
        for _ in range(0, last, KEYS):
            k_a, k_b = load_parts(k + k_rows, keys, a, b, HEAD_DIM, False, TWO, WHOLE)
            v_a, v_b = load_parts(v + v_rows, keys, a, b, HEAD_DIM, False, TWO, WHOLE)
            best, total, out_a, out_b = fold_keys(
                q_a, q_b, k_a, k_b, v_a, v_b, keys, best, total, out_a, out_b, scale, TWO, False, FIXED
            )
            k += KEYS * K_ROW
            v += KEYS * V_ROW
    inside = last + keys < end - first
    k_a, k_b = load_parts(k + k_rows, inside, a, b, HEAD_DIM, True, TWO, WHOLE)
    v_a, v_b = load_parts(v + v_rows, inside, a, b, HEAD_DIM, True, TWO, WHOLE)
    best, total, out_a, out_b = fold_keys(
        q_a, q_b, k_a, k_b, v_a, v_b, inside[None, :], best, total, out_a, out_b, scale, TWO, True, FIXED
    )
    if FIXED:
        tl.store(left, tl.max(tl.where(total < GREATEST_SUM, 0, 1), axis=0))
    out += (row.to(tl.int64) * HEADS + head) * HEAD_DIM
    at = out + rows[:, None] * (HEADS * HEAD_DIM)
    out_a, out_b = out_a / total[:, None], out_b / total[:, None]
    tl.store(at + a[None, :], out_a.to(out.dtype.element_ty), mask=real[:, None] & (a < HEAD_DIM)[None, :])
    if TWO:
        tl.store(at + b[None, :], out_b.to(out.dtype.element_ty), mask=real[:, None] & (b < HEAD_DIM)[None, :])


def default_tile(head_dim: int, dtype: torch.dtype) -> Tile:
    if dtype == torch.float32:
        return FLOAT32
    if head_dim <= 64:
        return SMALL
    return NARROW if head_dim <= 96 else WIDE


def segment_attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, *,
    tile: Tile | None = None, padded: bool = False, fixed_from: int | None = None,
) -> Tensor:  # fmt: skip
    """q, k, v [P, heads, D], views of any strides whose last dimension is dense, to a dense [P, heads, D].

    `tile.queries` divides SEGMENT_ROWS; `padded` makes both parts of a head equally wide; segments of `fixed_from` keys
    or more go to the first of two launches (see above), by default none unless the type is bfloat16.
    """
    assert segments.tiles is not None
    assert q.stride(2) == k.stride(2) == v.stride(2) == 1
    num_rows, heads, head_dim = q.shape
    tile, parts = tile or default_tile(head_dim, q.dtype), head_parts(head_dim, padded)
    if fixed_from is None and q.dtype == torch.bfloat16:
        fixed_from = FIXED_FROM_KEYS
    if fixed_from is not None and max(segments.lengths, default=fixed_from) < fixed_from:  # a graph knows no lengths
        fixed_from = None
    out = torch.empty(num_rows, heads, head_dim, dtype=q.dtype, device=q.device)
    grid = (len(segments.tiles) * (SEGMENT_ROWS // tile.queries), heads)
    left = torch.empty(grid, dtype=torch.int32, device=q.device)
    for fixed in (False,) if fixed_from is None else (True, False):
        _segment_attention[grid](
            q, k, v, out, segments.tiles, left, head_dim**-0.5 * LOG2_E, fixed_from or 0,
            HEADS=heads, HEAD_DIM=head_dim, DIM_A=parts.dim_a, DIM_B=parts.dim_b, TWO=parts.two, WHOLE=parts.whole,
            Q_ROW=q.stride(0), Q_HEAD=q.stride(1), K_ROW=k.stride(0), K_HEAD=k.stride(1), V_ROW=v.stride(0),
            V_HEAD=v.stride(1), TILE_ROWS=SEGMENT_ROWS, QUERIES=tile.queries, KEYS=tile.keys, FIXED=fixed,
            LEFT=fixed_from is not None and not fixed, num_warps=tile.warps, num_stages=tile.stages,
            maxnreg=tile.registers,
        )  # fmt: skip
    return out
