"""Attention of one new token for each sequence over its pages, read in place (FlashDecoding's split of the keys).

The grid depends on shapes only, never on lengths, so that the kernel can live in a CUDA graph: each sequence and KV
head is cut into a fixed number of splits, which find their share of the keys on the device. The split that arrives
last merges them all, in their order, so that the result does not depend on who was last.
Queries that share a KV head share its loads and use the matrix units. A query that has a KV head to itself is plain
arithmetic: each row of the key tile has a softmax of its own until the end, so nothing crosses lanes in the loop.

Keys that all sequences begin with (questions about one picture, a common system prompt) are read by a kernel of their
own, once for each tile of queries instead of once for each sequence; what it finds is merged with the rest (cascade
inference, https://flashinfer.ai/2024/02/02/cascade-inference.html).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fovea.kernels.attention_tiles import LOG2_E, MIN_DOT_SIDE, load_steps
from fovea.kernels.batch import SHARED_FROM, AttentionBatch
from fovea.kernels.early import can_start_early, wait
from fovea.kernels.kv_pages import Fp8Pages, Pages, split

NOTHING = tl.constexpr(-1e30)  # the best score of a row that has seen no key; finite, so that differences are numbers


class DecodeTile(NamedTuple):
    """How keys are cut, and how a program takes its share: what a sweep varies."""

    keys: int
    warps: int
    stages: int
    programs: int  # wanted on the device; a power of two, so that batches of 1, 2, 4 ... fill it evenly
    most_splits: int


USUAL = DecodeTile(keys=16, warps=1, stages=3, programs=1024, most_splits=32)
# Queries that share a KV head: for few sequences and any in float8, and for many; then for queries that do not.
GROUPED = DecodeTile(keys=32, warps=2, stages=3, programs=512, most_splits=32)
GROUPED_MANY = GROUPED._replace(warps=4)
ALONE_MANY = DecodeTile(keys=32, warps=4, stages=4, programs=512, most_splits=32)
FEW_HEADS, MANY_GROUPS, MANY_HEADS = 128, 512, 2048  # KV heads of all sequences, from which on others are faster
TOGETHER = DecodeTile(keys=64, warps=4, stages=2, programs=256, most_splits=8)  # for keys that all begin with
TOGETHER_ROWS = 64  # queries of a program then
ROW_BYTES = 256  # of a key, up to which these hold
MERGED_AT_ONCE = 8192  # numbers that the last split reads at once


@triton.jit
def _walk(  # type: ignore[no-untyped-def]
    query, k_cache, k_scales, v_cache, v_scales, kv_head, table, start, end, scale, dims,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Keys [start, end): for each row the best score in units of log2, the sum of weights, the weighted values."""
    keys = tl.arange(0, KEYS)
    k_cache, v_cache = k_cache + kv_head * HEAD_DIM, v_cache + kv_head * HEAD_DIM
    SUMS: tl.constexpr = KEYS if ROWS == 1 else ROWS
    best = tl.full([SUMS], NOTHING, tl.float32)
    total = tl.zeros([SUMS], tl.float32)
    out = tl.zeros([SUMS, DIM], tl.float32)
    wide = query.to(tl.float32)
    WIDE: tl.constexpr = tl.bfloat16 if query.dtype == tl.float16 else query.dtype
    for first in tl.range(start, end, KEYS, num_stages=STAGES):
        places = first + keys
        inside = places < end
        block = tl.load(table + places // BLOCK_SIZE, mask=inside, other=0)
        block, offset = block.to(tl.int64), places % BLOCK_SIZE
        at = (block * BLOCK_SIZE + offset)[:, None] * (KV_HEADS * HEAD_DIM) + dims[None, :]
        loaded = inside[:, None] & (dims < HEAD_DIM)[None, :]
        k = tl.load(k_cache + at, mask=loaded, other=0.0)
        v = tl.load(v_cache + at, mask=loaded, other=0.0)
        if k_scales is not None:
            k_steps = load_steps(k_scales, block, offset, kv_head, inside, KV_HEADS, BLOCK_SIZE, True)
            v_steps = load_steps(v_scales, block, offset, kv_head, inside, KV_HEADS, BLOCK_SIZE, True)
        if ROWS == 1:
            scores = tl.sum(wide * k.to(tl.float32), axis=1) * scale
            if k_scales is not None:
                scores *= k_steps
            scores = tl.where(inside, scores, -float("inf"))
            new_best = tl.maximum(best, scores)
            weights = tl.exp2(scores - new_best)
            shrink = tl.exp2(best - new_best)
            total = total * shrink + weights
            if v_scales is not None:
                weights *= v_steps
            out = out * shrink[:, None] + weights[:, None] * v.to(tl.float32)
        else:
            scores = tl.dot(query, tl.trans(k.to(query.dtype)), input_precision="ieee") * scale
            if k_scales is not None:
                scores *= k_steps[None, :]
            scores = tl.where(inside[None, :], scores, -float("inf"))
            new_best = tl.maximum(best, tl.max(scores, axis=1))
            weights = tl.exp2(scores - new_best[:, None])
            shrink = tl.exp2(best - new_best)
            total = total * shrink + tl.sum(weights, axis=1)
            if v_scales is not None:
                # A weight times a scale may be too small for float16; float8 values are exact in either type.
                weights, v = (weights * v_steps[None, :]).to(WIDE), v.to(WIDE)
            out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision="ieee")
        best = new_best
    if ROWS == 1:
        most = tl.max(best, axis=0, keep_dims=True)
        weights = tl.exp2(best - most)
        out = tl.sum(out * weights[:, None], axis=0, keep_dims=True)
        total = tl.sum(total * weights, axis=0, keep_dims=True)
        best = most
    return best, total, out


@triton.jit
def _begins(shared_len, BEGINS: tl.constexpr, KEYS: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many keys a split of the common beginning has."""
    return tl.maximum(tl.cdiv(tl.cdiv(shared_len, BEGINS), KEYS) * KEYS, 1)


@triton.jit
def _merge(  # type: ignore[no-untyped-def]
    partial, sums, out, first_head, active, begun,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, MERGED: tl.constexpr, PARTS: tl.constexpr,
    BEGINS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Put the first `begun` of BEGINS splits of the common beginning and the `active` ones behind those together, for
    GROUP heads. Read from L2: other multiprocessors wrote them."""
    rows, splits, some = tl.arange(0, MERGED), tl.arange(0, PARTS), tl.arange(0, AT_ONCE)
    dims, heads = tl.arange(0, DIM), (first_head + tl.arange(0, MERGED)) * PARTS
    there = (splits < begun) | ((splits >= BEGINS) & (splits < BEGINS + active))
    known = (rows < GROUP)[:, None] & there[None, :]
    found = tl.load(sums + heads[:, None] + splits[None, :], mask=known, other=-float("inf"), cache_modifier=".cg")
    most = tl.maximum(tl.max(found, axis=1), NOTHING)
    total = tl.sum(tl.exp2(found - most[:, None]), axis=1)
    merged = tl.zeros([MERGED, DIM], tl.float32)
    for first in range(0, BEGINS + active, AT_ONCE):
        place = first + some
        filled = (place < begun) | ((place >= BEGINS) & (place < BEGINS + active))
        wanted = (rows < GROUP)[:, None] & filled[None, :]
        at = heads[:, None] + place[None, :]
        weights = tl.exp2(tl.load(sums + at, mask=wanted, other=-float("inf"), cache_modifier=".cg") - most[:, None])
        parts = tl.load(
            partial + at[:, :, None] * HEAD_DIM + dims[None, None, :],
            mask=wanted[:, :, None] & (dims < HEAD_DIM)[None, None, :], other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        merged += tl.sum(parts * weights[:, :, None], axis=1)
    merged = merged / tl.maximum(total, 1e-30)[:, None]
    into = (first_head + rows)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(out + into, merged.to(out.dtype.element_ty), mask=(rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :])


@triton.jit(do_not_specialize=["table_stride"], do_not_specialize_on_alignment=["block_tables", "kv_lens"])
def _paged_decode(  # type: ignore[no-untyped-def]
    q, k_cache, k_scales, v_cache, v_scales, out, block_tables, kv_lens, shared, partial, sums, arrivals, scale,
    table_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr,
    MERGED: tl.constexpr, BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, PARTS: tl.constexpr,
    BEGINS: tl.constexpr, BEGIN_KEYS: tl.constexpr, AT_ONCE: tl.constexpr, STAGES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BEGINS: splits of the common beginning, which are there already; 0: nobody looks for one."""
    wait(EARLY)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    # Neighbours on the device take neighbouring heads, which lie beside one another in a page.
    kv_head, split, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_len = tl.load(kv_lens + seq).to(tl.int32)
    begin, begun = 0, 0
    if BEGINS > 0:
        begin = tl.minimum(tl.load(shared).to(tl.int32), kv_len)  # a padded row has no keys
        begun = tl.cdiv(begin, _begins(begin, BEGINS, BEGIN_KEYS))
    own = kv_len - begin
    share = tl.cdiv(tl.cdiv(own, SPLITS), KEYS) * KEYS
    start, end = begin + split * share, tl.minimum(begin + split * share + share, kv_len)
    rows, dims = tl.arange(0, ROWS), tl.arange(0, DIM)
    first_head = seq * HEADS + kv_head * GROUP
    real = (rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    at = (first_head + rows)[:, None] * HEAD_DIM + dims[None, :]
    if ROWS == 1:  # for every key: a tile of its own shape would dictate how keys lie in registers
        repeated = first_head * HEAD_DIM + dims[None, :] + tl.zeros([KEYS, 1], tl.int32)
        query = tl.load(q + repeated, mask=(dims < HEAD_DIM)[None, :], other=0.0)
    else:
        query = tl.load(q + at, mask=real, other=0.0)
    best, total, result = _walk(
        query, k_cache, k_scales, v_cache, v_scales, kv_head,
        block_tables + seq.to(tl.int64) * table_stride, start, end, scale, dims,
        KV_HEADS, HEAD_DIM, DIM, ROWS, BLOCK_SIZE, KEYS, STAGES,
    )  # fmt: skip
    result = result / tl.maximum(total, 1e-30)[:, None]
    if SPLITS == 1 and begun == 0:
        tl.store(out + at, result.to(out.dtype.element_ty), mask=real)
    else:
        if start < end:
            at_split = (first_head + rows) * PARTS + BEGINS + split
            tl.store(partial + at_split[:, None] * HEAD_DIM + dims[None, :], result, mask=real)
            tl.store(sums + at_split, best + tl.log2(tl.maximum(total, 1e-30)), mask=rows < GROUP)
        tl.debug_barrier()  # all of this program's stores come before its arrival
        arrived = SPLITS - 1
        if SPLITS > 1:
            arrived = tl.atomic_add(arrivals + seq * KV_HEADS + kv_head, 1, sem="acq_rel", scope="gpu")
        if arrived == SPLITS - 1:
            active = tl.cdiv(own, tl.maximum(share, 1))
            _merge(partial, sums, out, first_head, active, begun, HEAD_DIM, DIM, GROUP, MERGED, PARTS, BEGINS, AT_ONCE)
            if SPLITS > 1:
                tl.store(arrivals + seq * KV_HEADS + kv_head, 0)


@triton.jit(do_not_specialize=["num_seqs"], do_not_specialize_on_alignment=["block_tables"])
def _common_beginning(  # type: ignore[no-untyped-def]
    q, k_cache, k_scales, v_cache, v_scales, block_tables, shared, partial, sums, scale, num_seqs,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr, BEGINS: tl.constexpr, PARTS: tl.constexpr, STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """The keys all sequences begin with, for ROWS queries of one KV head; the first row of the tables tells where."""
    wait(EARLY)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    kv_head, split, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    shared_len = tl.load(shared).to(tl.int32)
    share = _begins(shared_len, BEGINS, KEYS)
    start, end = split * share, tl.minimum(split * share + share, shared_len)
    if start < end:
        rows, dims = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM)
        head = rows // GROUP * HEADS + kv_head * GROUP + rows % GROUP
        is_row = rows < num_seqs * GROUP
        real = is_row[:, None] & (dims < HEAD_DIM)[None, :]
        query = tl.load(q + head[:, None] * HEAD_DIM + dims[None, :], mask=real, other=0.0)
        best, total, result = _walk(
            query, k_cache, k_scales, v_cache, v_scales, kv_head, block_tables, start, end, scale, dims,
            KV_HEADS, HEAD_DIM, DIM, ROWS, BLOCK_SIZE, KEYS, STAGES,
        )  # fmt: skip
        at = head * PARTS + split
        tl.store(partial + at[:, None] * HEAD_DIM + dims[None, :], result / total[:, None], mask=real)
        tl.store(sums + at, best + tl.log2(total), mask=is_row)


def num_splits(num_seqs: int, num_kv_heads: int, tile: DecodeTile) -> int:
    """Enough programs to fill the device; a function of shapes only.

    A power of two: each number is a kernel of its own, and compiling one while requests wait takes half a second.
    """
    wanted = -(-tile.programs // (num_seqs * num_kv_heads))
    return int(min(tile.most_splits, triton.next_power_of_2(wanted)))


def default_tile(heads: int, group: int, row_bytes: int, *, is_fp8: bool) -> DecodeTile:
    """`heads`: KV heads of all sequences. `row_bytes`: of one key of one head in the model's type; fewer keys at once
    where they are long, or shared memory is not enough.
    """
    if row_bytes > ROW_BYTES:
        return _fitting(ALONE_MANY if group == 1 else GROUPED_MANY, row_bytes)
    if group == 1:
        return USUAL if is_fp8 or heads < MANY_HEADS else ALONE_MANY
    if is_fp8 or heads < FEW_HEADS:
        return GROUPED
    return USUAL if heads < MANY_GROUPS else GROUPED_MANY


def _fitting(tile: DecodeTile, row_bytes: int) -> DecodeTile:
    times_longer = triton.next_power_of_2(triton.cdiv(row_bytes, ROW_BYTES))
    return tile._replace(keys=max(MIN_DOT_SIDE, tile.keys // times_longer))


def paged_decode(
    q: Tensor,
    k_cache: Pages,
    v_cache: Pages,
    batch: AttentionBatch,
    out: Tensor | None = None,
    *,
    tile: DecodeTile | None = None,
    together: DecodeTile = TOGETHER,
) -> Tensor:
    """q [S, N, D] of the decode sequences to [S, N, D], both dense. A sequence of length 0 (padding) gives zeros."""
    num_seqs, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1], k_cache.shape[2]
    group = num_heads // num_kv_heads
    row_bytes = head_dim * q.element_size()
    is_fp8, together = isinstance(k_cache, Fp8Pages), _fitting(together, row_bytes)
    tile = tile or default_tile(num_seqs * num_kv_heads, group, row_bytes, is_fp8=is_fp8)
    splits, dim = num_splits(num_seqs, num_kv_heads, tile), triton.next_power_of_2(head_dim)
    shared = batch.shared_len if num_seqs >= SHARED_FROM else None
    begins = 0 if shared is None else together.most_splits
    parts = triton.next_power_of_2(begins + splits)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    partial, sums, arrivals = _scratch(q, parts, num_kv_heads, batch) if parts > 1 else (out, out, out)
    merged, early = triton.next_power_of_2(group), can_start_early(q)
    rows = 1 if group == 1 else max(MIN_DOT_SIDE, merged)
    q, scale = q.contiguous(), head_dim**-0.5 * LOG2_E
    sizes = {
        "HEADS": num_heads, "KV_HEADS": num_kv_heads, "HEAD_DIM": head_dim, "DIM": dim, "BLOCK_SIZE": block_size,
        "PARTS": parts, "BEGINS": begins, "EARLY": early, "launch_pdl": early,
    }  # fmt: skip
    if shared is not None:
        _common_beginning[(num_kv_heads, begins, triton.cdiv(num_seqs * group, TOGETHER_ROWS))](
            q, *split(k_cache), *split(v_cache), batch.block_tables, shared, partial, sums, scale, num_seqs,
            **sizes, ROWS=TOGETHER_ROWS, KEYS=together.keys, STAGES=together.stages, num_warps=together.warps,
        )  # fmt: skip
    _paged_decode[(num_kv_heads, splits, num_seqs)](
        q, *split(k_cache), *split(v_cache), out, batch.block_tables, batch.kv_lens_tensor,
        out if shared is None else shared, partial, sums, arrivals, scale, batch.block_tables.stride(0), **sizes,
        ROWS=rows, MERGED=merged, KEYS=tile.keys, SPLITS=splits, BEGIN_KEYS=together.keys, STAGES=tile.stages,
        AT_ONCE=max(1, min(parts, MERGED_AT_ONCE // (merged * dim))), num_warps=tile.warps,
    )  # fmt: skip
    return out


def _scratch(q: Tensor, parts: int, num_kv_heads: int, batch: AttentionBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Where splits leave their results and their sums, and where they are counted."""
    num_seqs, num_heads, head_dim = q.shape
    partial = torch.empty(num_seqs, num_heads, parts, head_dim, dtype=torch.float32, device=q.device)
    sums = torch.empty(num_seqs, num_heads, parts, dtype=torch.float32, device=q.device)
    arrivals = batch.arrivals
    if arrivals is None:
        arrivals = torch.zeros(num_seqs * num_kv_heads, dtype=torch.int32, device=q.device)
    assert arrivals.numel() >= num_seqs * num_kv_heads
    return partial, sums, arrivals
