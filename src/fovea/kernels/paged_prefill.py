"""Causal attention of sequences with several new tokens over their pages, read in place, all of them in one launch.

The new tokens of a sequence times the query heads that share a KV head are the rows of its tiles: grouped queries
share every load of keys, and a question of a few tokens fills a tile. Keys that all rows of a tile may see (a cached
prefix is among them) are not masked.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fovea.kernels.attention_tiles import LOG2_E, Tile, fold_keys, head_parts, load_parts, load_steps
from fovea.kernels.batch import AttentionBatch
from fovea.kernels.kv_pages import Pages, split

USUAL = Tile(queries=64, keys=64, warps=4, stages=3)
WIDE = Tile(queries=64, keys=32, warps=4, stages=2)  # heads of more than 128 columns
FLOAT32 = Tile(queries=32, keys=32, warps=4, stages=2)  # no matrix units: for tests
STARTS_AT_ONCE = 64  # sequences looked through at once for the one a tile belongs to


@triton.jit
def _find_tile(query_starts, seqs, place, GROUP: tl.constexpr, QUERIES: tl.constexpr, AT_ONCE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sequence that owns tile `place` and its tile in it; sequence i begins at tile rows_before(i) // QUERIES + i.

    That leaves each at least the tiles it needs, so every program can find its own from the starts alone.
    """
    base = tl.load(query_starts)
    owner, begins = -1, 0
    for at in range(0, seqs, AT_ONCE):
        indices = at + tl.arange(0, AT_ONCE)
        starts = tl.load(query_starts + indices, mask=indices < seqs, other=0)
        begin = ((starts - base) * GROUP // QUERIES).to(tl.int32) + indices
        mine = (indices < seqs) & (begin <= place)
        owner += tl.sum(mine.to(tl.int32), axis=0)
        begins = tl.maximum(begins, tl.max(tl.where(mine, begin, 0), axis=0))
    return owner, place - begins


@triton.jit
def _restored(rows, steps, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """What rows in float8 with a scale each stand for, rounded to the type of the queries."""
    return (rows.to(tl.float32) * steps[:, None]).to(dtype)


@triton.jit
def _load_keys(  # type: ignore[no-untyped-def]
    k_cache, k_scales, v_cache, v_scales, kv_head, table, places, inside, a, b, dtype: tl.constexpr,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, TWO: tl.constexpr, WHOLE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    if MASKED:
        blocks = tl.load(table + places // BLOCK_SIZE, mask=inside, other=0)
    else:
        blocks = tl.load(table + places // BLOCK_SIZE)
    blocks, offset = blocks.to(tl.int64), places % BLOCK_SIZE
    at = (blocks * BLOCK_SIZE + offset)[:, None] * (KV_HEADS * HEAD_DIM)
    k_a, k_b = load_parts(k_cache + at, inside, a, b, HEAD_DIM, MASKED, TWO, WHOLE)
    v_a, v_b = load_parts(v_cache + at, inside, a, b, HEAD_DIM, MASKED, TWO, WHOLE)
    if k_scales is not None:
        k_steps = load_steps(k_scales, blocks, offset, kv_head, inside, KV_HEADS, BLOCK_SIZE, MASKED)
        v_steps = load_steps(v_scales, blocks, offset, kv_head, inside, KV_HEADS, BLOCK_SIZE, MASKED)
        k_a, v_a = _restored(k_a, k_steps, dtype), _restored(v_a, v_steps, dtype)
        if TWO:
            k_b, v_b = _restored(k_b, k_steps, dtype), _restored(v_b, v_steps, dtype)
        else:
            k_b, v_b = k_a, v_a
    return k_a, k_b, v_a, v_b


@triton.jit(do_not_specialize=["table_stride", "first_seq", "seqs"])
def _paged_prefill(  # type: ignore[no-untyped-def]
    q, k_cache, k_scales, v_cache, v_scales, out, tables, kv_lens, query_starts, scale, table_stride, first_seq, seqs,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_A: tl.constexpr, DIM_B: tl.constexpr,
    TWO: tl.constexpr, WHOLE: tl.constexpr, BLOCK_SIZE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    GROUP: tl.constexpr = HEADS // KV_HEADS
    kv_head = tl.program_id(1)
    query_starts += first_seq
    # Last tiles first: they have the most keys.
    seq, tile = _find_tile(query_starts, seqs, tl.num_programs(0) - 1 - tl.program_id(0), GROUP, QUERIES, AT_ONCE)
    start = tl.load(query_starts + seq)
    num_new = (tl.load(query_starts + seq + 1) - start).to(tl.int32)
    first = tile * QUERIES
    if first >= num_new * GROUP:
        return
    rows, keys = first + tl.arange(0, QUERIES), tl.arange(0, KEYS)
    a, b = tl.arange(0, DIM_A), DIM_A + tl.arange(0, DIM_B)
    real = rows < num_new * GROUP
    before = tl.load(kv_lens + first_seq + seq).to(tl.int32) - num_new
    seen = before + tl.minimum(rows // GROUP, num_new - 1)  # the last key a row may see
    end = before + tl.minimum((first + QUERIES - 1) // GROUP, num_new - 1) + 1
    at = (rows // GROUP * HEADS + kv_head * GROUP + rows % GROUP)[:, None] * HEAD_DIM
    q += start.to(tl.int64) * (HEADS * HEAD_DIM)
    out += start.to(tl.int64) * (HEADS * HEAD_DIM)
    q_a, q_b = load_parts(q + at, real, a, b, HEAD_DIM, True, TWO, WHOLE)
    k_cache, v_cache = k_cache + kv_head * HEAD_DIM, v_cache + kv_head * HEAD_DIM
    table = tables + (first_seq + seq).to(tl.int64) * table_stride
    best = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out_a, out_b = tl.zeros([QUERIES, DIM_A], tl.float32), tl.zeros([QUERIES, DIM_B], tl.float32)
    everybody = (before + first // GROUP + 1) // KEYS * KEYS
    # Without the `if`s, loops that may not run at all have their products serialised by ptxas.
    if everybody > 0:
        for place in range(0, everybody, KEYS):
            k_a, k_b, v_a, v_b = _load_keys(
                k_cache, k_scales, v_cache, v_scales, kv_head, table, place + keys, keys, a, b, q_a.dtype,
                KV_HEADS, HEAD_DIM, TWO, WHOLE, BLOCK_SIZE, False,
            )  # fmt: skip
            best, total, out_a, out_b = fold_keys(
                q_a, q_b, k_a, k_b, v_a, v_b, keys, best, total, out_a, out_b, scale, TWO, False, False
            )
    if everybody < end:
        for place in range(everybody, end, KEYS):
            places = place + keys
            k_a, k_b, v_a, v_b = _load_keys(
                k_cache, k_scales, v_cache, v_scales, kv_head, table, places, places < end, a, b, q_a.dtype,
                KV_HEADS, HEAD_DIM, TWO, WHOLE, BLOCK_SIZE, True,
            )  # fmt: skip
            visible = places[None, :] <= seen[:, None]
            best, total, out_a, out_b = fold_keys(
                q_a, q_b, k_a, k_b, v_a, v_b, visible, best, total, out_a, out_b, scale, TWO, True, False
            )
    out_a, out_b = out_a / total[:, None], out_b / total[:, None]
    tl.store(out + at + a[None, :], out_a.to(out.dtype.element_ty), mask=real[:, None] & (a < HEAD_DIM)[None, :])
    if TWO:
        tl.store(out + at + b[None, :], out_b.to(out.dtype.element_ty), mask=real[:, None] & (b < HEAD_DIM)[None, :])


def default_tile(head_dim: int, dtype: torch.dtype) -> Tile:
    if dtype == torch.float32:
        return FLOAT32
    return USUAL if head_dim <= 128 else WIDE


def paged_prefill(
    q: Tensor,
    k_cache: Pages,
    v_cache: Pages,
    batch: AttentionBatch,
    out: Tensor,
    *,
    tile: Tile | None = None,
    padded: bool = False,
) -> None:
    """Fill the rows of `out` [T, N, D] that belong to sequences with several new tokens; q [T, N, D], both dense."""
    num_tokens, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1], k_cache.shape[2]
    first, group = batch.num_decode, num_heads // num_kv_heads
    query_lens = batch.query_lens[first:]
    tile = tile or default_tile(head_dim, q.dtype)
    parts = head_parts(head_dim, padded)
    most_tiles = sum(query_lens) * group // tile.queries + len(query_lens)
    _paged_prefill[(most_tiles, num_kv_heads)](
        q, *split(k_cache), *split(v_cache), out, batch.block_tables, batch.kv_lens_tensor,
        _query_starts(batch, q.device), head_dim**-0.5 * LOG2_E, batch.block_tables.stride(0), first, len(query_lens),
        HEADS=num_heads, KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, DIM_A=parts.dim_a, DIM_B=parts.dim_b,
        TWO=parts.two, WHOLE=parts.whole, BLOCK_SIZE=block_size, QUERIES=tile.queries, KEYS=tile.keys,
        AT_ONCE=STARTS_AT_ONCE, num_warps=tile.warps, num_stages=tile.stages, maxnreg=tile.registers,
    )  # fmt: skip


def _query_starts(batch: AttentionBatch, device: torch.device) -> Tensor:
    if batch.query_starts is not None:
        return batch.query_starts
    lens = torch.tensor([0, *batch.query_lens], dtype=torch.int64)
    return lens.cumsum(0).to(device)
