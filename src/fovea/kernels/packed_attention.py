"""Full attention inside segments of any lengths, all of them in one launch (FlashAttention-2, arXiv:2307.08691).

A program takes some queries of one head and walks over the segment's keys. Only a segment's last tile of keys is
masked, so the loop over the others has nothing but products and exponentials.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fovea.kernels.attention_tiles import LOG2_E, Tile, fold_keys, head_parts, load_rows
from fovea.kernels.batch import SEGMENT_ROWS, Segments

NARROW = Tile(queries=128, keys=64, warps=8, stages=3, registers=128)  # heads up to 96 columns: two programs share
SMALL = Tile(queries=64, keys=64, warps=4, stages=3)  # up to 64
WIDE = Tile(queries=128, keys=64, warps=8, stages=2)
FLOAT32 = Tile(queries=32, keys=32, warps=4, stages=2)  # no matrix units: for tests


@triton.jit
def _segment_attention(  # type: ignore[no-untyped-def]
    q, k, v, out, tiles, scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_A: tl.constexpr, DIM_B: tl.constexpr, TWO: tl.constexpr,
    WHOLE: tl.constexpr, Q_ROW: tl.constexpr, Q_HEAD: tl.constexpr, K_ROW: tl.constexpr, K_HEAD: tl.constexpr,
    V_ROW: tl.constexpr, V_HEAD: tl.constexpr, TILE_ROWS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = TILE_ROWS // QUERIES
    tile, head = tiles + tl.program_id(0) // PARTS * 3, tl.program_id(1)
    row = tl.load(tile) + tl.program_id(0) % PARTS * QUERIES
    first, end = tl.load(tile + 1), tl.load(tile + 2)
    if row >= end:
        return
    rows, keys = tl.arange(0, QUERIES), tl.arange(0, KEYS)
    a, b = tl.arange(0, DIM_A), DIM_A + tl.arange(0, DIM_B)
    real = row + rows < end
    q += row.to(tl.int64) * Q_ROW + head * Q_HEAD
    k += first.to(tl.int64) * K_ROW + head * K_HEAD
    v += first.to(tl.int64) * V_ROW + head * V_HEAD
    q_rows, k_rows, v_rows = rows[:, None] * Q_ROW, keys[:, None] * K_ROW, keys[:, None] * V_ROW
    q_a = load_rows(q + q_rows + a[None, :], real, a, HEAD_DIM, True, TWO or WHOLE)
    q_b = q_a
    if TWO:
        q_b = load_rows(q + q_rows + b[None, :], real, b, HEAD_DIM, True, WHOLE)
    best = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out_a, out_b = tl.zeros([QUERIES, DIM_A], tl.float32), tl.zeros([QUERIES, DIM_B], tl.float32)
    last = (end - first - 1) // KEYS * KEYS
    # Without the `if`, a loop that may not run at all has its products serialised by ptxas.
    if last > 0:
        for _ in range(0, last, KEYS):
            k_a = load_rows(k + k_rows + a[None, :], keys, a, HEAD_DIM, False, TWO or WHOLE)
            v_a = load_rows(v + v_rows + a[None, :], keys, a, HEAD_DIM, False, TWO or WHOLE)
            k_b, v_b = k_a, v_a
            if TWO:
                k_b = load_rows(k + k_rows + b[None, :], keys, b, HEAD_DIM, False, WHOLE)
                v_b = load_rows(v + v_rows + b[None, :], keys, b, HEAD_DIM, False, WHOLE)
            best, total, out_a, out_b = fold_keys(
                q_a, q_b, k_a, k_b, v_a, v_b, keys, best, total, out_a, out_b, scale, TWO, False
            )
            k += KEYS * K_ROW
            v += KEYS * V_ROW
    inside = last + keys < end - first
    k_a = load_rows(k + k_rows + a[None, :], inside, a, HEAD_DIM, True, TWO or WHOLE)
    v_a = load_rows(v + v_rows + a[None, :], inside, a, HEAD_DIM, True, TWO or WHOLE)
    k_b, v_b = k_a, v_a
    if TWO:
        k_b = load_rows(k + k_rows + b[None, :], inside, b, HEAD_DIM, True, WHOLE)
        v_b = load_rows(v + v_rows + b[None, :], inside, b, HEAD_DIM, True, WHOLE)
    best, total, out_a, out_b = fold_keys(
        q_a, q_b, k_a, k_b, v_a, v_b, inside[None, :], best, total, out_a, out_b, scale, TWO, True
    )
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
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, *, tile: Tile | None = None, padded: bool = False
) -> Tensor:
    """q, k, v [P, heads, D], views of any strides whose last dimension is dense, to a dense [P, heads, D].

    `tile.queries` divides SEGMENT_ROWS; `padded` makes both parts of a head equally wide.
    """
    assert segments.tiles is not None
    assert q.stride(2) == k.stride(2) == v.stride(2) == 1
    num_rows, heads, head_dim = q.shape
    tile, parts = tile or default_tile(head_dim, q.dtype), head_parts(head_dim, padded)
    out = torch.empty(num_rows, heads, head_dim, dtype=q.dtype, device=q.device)
    grid = (len(segments.tiles) * (SEGMENT_ROWS // tile.queries), heads)
    _segment_attention[grid](
        q, k, v, out, segments.tiles, head_dim**-0.5 * LOG2_E,
        HEADS=heads, HEAD_DIM=head_dim, DIM_A=parts.dim_a, DIM_B=parts.dim_b, TWO=parts.two, WHOLE=parts.whole,
        Q_ROW=q.stride(0), Q_HEAD=q.stride(1), K_ROW=k.stride(0), K_HEAD=k.stride(1), V_ROW=v.stride(0),
        V_HEAD=v.stride(1), TILE_ROWS=SEGMENT_ROWS, QUERIES=tile.queries, KEYS=tile.keys, num_warps=tile.warps,
        num_stages=tile.stages, maxnreg=tile.registers,
    )  # fmt: skip
    return out
