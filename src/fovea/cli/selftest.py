"""The kernels that this machine will use, against arithmetic written out naively in float64, in well under a second."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fovea import kernels
from fovea.kernels import reference
from fovea.kernels.batch import AttentionBatch

# In float32; on a GPU a product may be made of shorter factors (TF32).
TOLERANCE = {"cpu": 1e-4, "cuda": 5e-3}
BLOCK_SIZE, NUM_BLOCKS = 16, 8
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 32


def devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def worst_error(device: str) -> float:
    """The largest difference of any element of any operation, in float32."""
    make = torch.Generator().manual_seed(0)
    tests = (_norm_error, _activation_error, _segments_error, _paged_error)
    with torch.inference_mode():
        return max(test(make, torch.device(device)) for test in tests)


def _normal(make: torch.Generator, device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, generator=make).to(device)


def _difference(found: Tensor, expected: Tensor) -> float:
    error = float((found.double().cpu() - expected.double().cpu()).abs().max())
    return math.inf if math.isnan(error) else error


def _norm_error(make: torch.Generator, device: torch.device) -> float:
    x, weight = _normal(make, device, 7, 32), _normal(make, device, 32)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    return _difference(kernels.rms_norm(x, weight, 1e-6), expected)


def _activation_error(make: torch.Generator, device: torch.device) -> float:
    x = _normal(make, device, 7, 64)
    gate, up = x.double().chunk(2, dim=-1)
    return _difference(kernels.silu_mul(x), gate / (1 + (-gate).exp()) * up)


def _segments_error(make: torch.Generator, device: torch.device) -> float:
    lengths = [3, 3, 5]
    q, k, v = (_normal(make, device, sum(lengths), HEADS, HEAD_DIM) for _ in range(3))
    expected, start = [], 0
    for length in lengths:
        rows = slice(start, start + length)
        expected.append(_naive_attention(q[rows], k[rows], v[rows], first_place=length))
        start += length
    return _difference(reference.segment_attention(q, k, v, lengths), torch.cat(expected))


def _paged_error(make: torch.Generator, device: torch.device) -> float:
    """Rotate, store and attend: two sequences of unequal length decode, a third computes its last three tokens."""
    tables = torch.tensor([[5, 2, 0], [7, 1, 4], [3, 6, 0]], device=device)
    kv_lens, query_lens = [20, 40, 40], [1, 1, 3]
    shape = (NUM_BLOCKS, BLOCK_SIZE, KV_HEADS, HEAD_DIM)
    k_cache, v_cache = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
    queries, expected = [], []
    for i, kv_len in enumerate(kv_lens):
        qkv = _normal(make, device, kv_len, HEADS + 2 * KV_HEADS, HEAD_DIM)
        alone = _batch([kv_len], [kv_len], tables[i : i + 1], device)
        rotated = kernels.rotate_and_store(qkv, HEADS, k_cache, v_cache, alone)
        naive = _naive_rotation(qkv[:, :-KV_HEADS], alone.cos, alone.sin)
        queries.append(rotated[-query_lens[i] :])
        first_place = kv_len - query_lens[i] + 1
        expected.append(
            _naive_attention(
                naive[-query_lens[i] :, :HEADS], naive[:, HEADS:], qkv[:, -KV_HEADS:], first_place=first_place
            )
        )
    batch = _batch(kv_lens, query_lens, tables, device)
    return _difference(kernels.paged_attention(torch.cat(queries), k_cache, v_cache, batch), torch.cat(expected))


def _batch(kv_lens: list[int], query_lens: list[int], tables: Tensor, device: torch.device) -> AttentionBatch:
    """The last `query_lens` tokens of sequences with `kv_lens` tokens; those with one token decode."""
    num_decode = query_lens.count(1)
    places = [torch.arange(kv - new, kv, device=device) for kv, new in zip(kv_lens, query_lens)]
    slots = [table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for table, p in zip(tables, places)]
    lengths = torch.tensor(kv_lens, dtype=torch.int32, device=device)
    keys = torch.arange(tables.shape[1] * BLOCK_SIZE, device=device)
    angles = torch.cat(places)[:, None] * 100.0 ** -torch.linspace(0, 1, HEAD_DIM // 2, device=device)
    return AttentionBatch(
        num_decode=num_decode,
        query_lens=query_lens,
        kv_lens=kv_lens,
        slots=torch.cat(slots),
        block_tables=tables,
        kv_lens_tensor=lengths,
        decode_mask=(keys < lengths[:num_decode, None])[:, None, None],
        cos=angles.cos(),
        sin=angles.sin(),
    )


def _naive_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.double().chunk(2, dim=-1)
    cos, sin = cos.double()[:, None], sin.double()[:, None]
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


def _naive_attention(q: Tensor, k: Tensor, v: Tensor, *, first_place: int) -> Tensor:
    """Query i sees the first `first_place + i` keys, or all there are."""
    group = q.shape[1] // k.shape[1]
    out = torch.zeros(q.shape, dtype=torch.float64)
    for i in range(q.shape[0]):
        for head in range(q.shape[1]):
            keys = k[: first_place + i, head // group].double().cpu()
            values = v[: first_place + i, head // group].double().cpu()
            scores = keys @ q[i, head].double().cpu() / math.sqrt(q.shape[2])
            weights = (scores - scores.max()).exp()
            out[i, head] = (weights / weights.sum()) @ values
    return out
