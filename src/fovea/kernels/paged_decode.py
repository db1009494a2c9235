"""Attention of one new token for each sequence over its pages, read in place (FlashDecoding's split of the keys).

The grid depends on shapes only, never on lengths, so that the kernel can live in a CUDA graph: each sequence and KV
head is cut into a fixed number of splits, which find their share of the keys on the device and are merged by a second
kernel.
Queries that share a KV head share its loads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fovea.kernels.batch import AttentionBatch

KEYS_AT_ONCE = 64
MAX_SPLITS = 64
PROGRAMS_WANTED = 528  # four for each of an H100's 132 multiprocessors
MIN_DOT_ROWS = 16  # the smallest side of a tile that the matrix units take


@triton.jit(do_not_specialize=["table_stride"])
def _decode_split(  # type: ignore[no-untyped-def]
    q, k_cache, v_cache, block_tables, kv_lens, partial, lse, scale, table_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    seq, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_len = tl.load(kv_lens + seq)
    share = tl.cdiv(tl.cdiv(kv_len, SPLITS), KEYS) * KEYS
    start, end = split * share, tl.minimum(split * share + share, kv_len)
    rows, dims, keys = tl.arange(0, ROWS), tl.arange(0, DIM), tl.arange(0, KEYS)
    heads = kv_head * GROUP + rows
    query_at = (seq * HEADS + heads)[:, None] * HEAD_DIM + dims[None, :]
    real = (rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    query = tl.load(q + query_at, mask=real, other=0.0)
    best = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, DIM], tl.float32)
    for first in range(start, end, KEYS):
        places = first + keys
        inside = places < end
        block = tl.load(block_tables + seq * table_stride + places // BLOCK_SIZE, mask=inside, other=0)
        slot = block.to(tl.int64) * BLOCK_SIZE + places % BLOCK_SIZE
        at = (slot * KV_HEADS + kv_head)[:, None] * HEAD_DIM + dims[None, :]
        loaded = inside[:, None] & (dims < HEAD_DIM)[None, :]
        k = tl.load(k_cache + at, mask=loaded, other=0.0)
        v = tl.load(v_cache + at, mask=loaded, other=0.0)
        if ROWS == 1:
            scores = tl.sum(query.to(tl.float32) * k.to(tl.float32), axis=1)[None, :]
        else:
            scores = tl.dot(query, tl.trans(k), input_precision="ieee")
        scores = tl.where(inside[None, :], scores * scale, -float("inf"))
        new_best = tl.maximum(best, tl.max(scores, axis=1))
        shrink = tl.exp(best - new_best)
        weights = tl.exp(scores - new_best[:, None])
        total = total * shrink + tl.sum(weights, axis=1)
        if ROWS == 1:
            summed = tl.sum(tl.trans(weights) * v.to(tl.float32), axis=0)[None, :]
        else:
            summed = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        out = out * shrink[:, None] + summed
        best = new_best
    at_split = (seq * HEADS + heads) * SPLITS + split
    tl.store(partial + at_split[:, None] * HEAD_DIM + dims[None, :], out / tl.maximum(total, 1e-30)[:, None], mask=real)
    tl.store(
        lse + at_split, tl.where(total > 0, best + tl.log(tl.maximum(total, 1e-30)), -float("inf")), mask=rows < GROUP
    )


@triton.jit
def _merge_splits(  # type: ignore[no-untyped-def]
    partial, lse, out, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, SPLITS: tl.constexpr, PADDED: tl.constexpr
):  # fmt: skip
    head = tl.program_id(0)
    splits, dims = tl.arange(0, PADDED), tl.arange(0, DIM)
    sums = tl.load(lse + head * SPLITS + splits, mask=splits < SPLITS, other=-float("inf"))
    most = tl.max(sums, axis=0)
    weights = tl.where(sums > -float("inf"), tl.exp(sums - most), 0.0)  # all zero for a padded row
    at = (head * SPLITS + splits)[:, None] * HEAD_DIM + dims[None, :]
    real = (splits < SPLITS)[:, None] & (dims < HEAD_DIM)[None, :]
    rows = tl.load(partial + at, mask=real, other=0.0)
    merged = tl.sum(rows * weights[:, None], axis=0) / tl.maximum(tl.sum(weights, axis=0), 1e-30)
    tl.store(out + head * HEAD_DIM + dims, merged.to(out.dtype.element_ty), mask=dims < HEAD_DIM)


def num_splits(num_seqs: int, num_kv_heads: int) -> int:
    """Enough programs to fill the device; a function of shapes only.

    A power of two: each number is a kernel of its own, and compiling one while requests wait takes half a second.
    """
    wanted = -(-PROGRAMS_WANTED // (num_seqs * num_kv_heads))
    return int(min(MAX_SPLITS, triton.next_power_of_2(wanted)))


def paged_decode(q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch) -> Tensor:
    """q [S, N, D] of the decode sequences to [S, N, D]. A sequence of length 0 (padding) gives zeros."""
    num_seqs, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1], k_cache.shape[2]
    group, splits = num_heads // num_kv_heads, num_splits(num_seqs, num_kv_heads)
    partial = torch.empty(num_seqs, num_heads, splits, head_dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(num_seqs, num_heads, splits, dtype=torch.float32, device=q.device)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    dim = triton.next_power_of_2(head_dim)
    _decode_split[(num_seqs, num_kv_heads, splits)](
        q.contiguous(), k_cache, v_cache, batch.block_tables, batch.kv_lens_tensor, partial, lse,
        head_dim**-0.5, batch.block_tables.stride(0),
        HEADS=num_heads, KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, DIM=dim, GROUP=group,
        ROWS=1 if group == 1 else max(MIN_DOT_ROWS, triton.next_power_of_2(group)),
        BLOCK_SIZE=block_size, KEYS=KEYS_AT_ONCE, SPLITS=splits, num_warps=4,
    )  # fmt: skip
    _merge_splits[(num_seqs * num_heads,)](
        partial, lse, out, HEAD_DIM=head_dim, DIM=dim, SPLITS=splits, PADDED=triton.next_power_of_2(splits), num_warps=2
    )
    return out
