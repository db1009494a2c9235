"""The plain twins against naive loops in float64: every faster kernel is then compared with the twins."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fovea.kernels import reference as ops
from fovea.kernels.batch import AttentionBatch


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rotations(num_tokens: int, head_dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    angles = random(num_tokens, head_dim // 2, seed=seed).float()
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 8), (5, 64), (3, 7, 96)])
def test_rms_norm_is_the_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, eps = random(*shape, dtype=dtype) * 3, random(shape[-1], seed=1, dtype=dtype), 1e-5
    wide = x.double()
    want = wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    got = ops.rms_norm(x, weight, eps)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, atol=0.0, rtol={torch.float32: 1e-5}.get(dtype, 2e-2))


def test_rms_norm_of_zeros_is_zero() -> None:
    assert torch.equal(ops.rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-6), torch.zeros(2, 8))


def test_rms_norm_of_large_half_precision_numbers_does_not_overflow() -> None:
    """Squares of 1000 do not fit float16: they must be taken in float32."""
    got = ops.rms_norm(torch.full((1, 8), 1000.0, dtype=torch.float16), torch.ones(8, dtype=torch.float16), 1e-6)
    torch.testing.assert_close(got.float(), torch.ones(1, 8), atol=1e-3, rtol=0)


def test_silu_mul_gates_the_second_half_by_the_first() -> None:
    gate, up = random(4, 6), random(4, 6, seed=1)
    want = gate.double() / (1 + (-gate.double()).exp()) * up.double()
    torch.testing.assert_close(ops.silu_mul(torch.cat((gate, up), -1)).double(), want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("head_dim", [4, 16, 96])
def test_rotate_turns_each_pair_by_its_angle(head_dim: int) -> None:
    x, (cos, sin) = random(3, 2, head_dim), rotations(3, head_dim)
    got, half = ops.rotate(x, cos, sin), head_dim // 2
    for token in range(3):
        for head in range(2):
            for i in range(half):
                a, b = float(x[token, head, i]), float(x[token, head, i + half])
                c, s = float(cos[token, i]), float(sin[token, i])
                assert float(got[token, head, i]) == pytest.approx(a * c - b * s, abs=1e-5)
                assert float(got[token, head, i + half]) == pytest.approx(b * c + a * s, abs=1e-5)


def test_rotate_keeps_lengths_and_the_type() -> None:
    cos, sin = rotations(5, 8)
    x = random(5, 3, 8, dtype=torch.bfloat16)
    got = ops.rotate(x, cos, sin)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double().norm(dim=-1), x.double().norm(dim=-1), atol=0.0, rtol=2e-2)


class Paged:
    """Sequences whose keys and values lie in shuffled pages, and the batch that describes them."""

    def __init__(
        self, spans: list[tuple[int, int]], *, heads: int, kv_heads: int, head_dim: int, block_size: int, seed: int = 0
    ) -> None:
        """`spans`: (first new token, end) of each sequence; those of one token first."""
        lengths = [end for _, end in spans]
        counts = [-(-length // block_size) for length in lengths]
        places = torch.randperm(sum(counts) + 2, generator=torch.Generator().manual_seed(seed)).tolist()
        self.tables = [[places.pop() for _ in range(count)] for count in counts]
        shape = (sum(counts) + 2, block_size, kv_heads, head_dim)
        # Pages that belong to nobody, and the rest of last pages, hold what would show if it were read.
        self.k_cache, self.v_cache = torch.full(shape, 1e3), torch.full(shape, 1e3)
        self.keys = [random(n, kv_heads, head_dim, seed=seed + 10 + i) for i, n in enumerate(lengths)]
        self.values = [random(n, kv_heads, head_dim, seed=seed + 90 + i) for i, n in enumerate(lengths)]
        for table, keys, values in zip(self.tables, self.keys, self.values, strict=True):
            for place, (key, value) in enumerate(zip(keys, values, strict=True)):
                block, offset = table[place // block_size], place % block_size
                self.k_cache[block, offset], self.v_cache[block, offset] = key, value
        self.spans = spans
        self.q = random(sum(end - start for start, end in spans), heads, head_dim, seed=seed + 5)
        self.batch = self._batch(block_size)

    def _batch(self, block_size: int) -> AttentionBatch:
        num_decode = sum(1 for start, end in self.spans if end - start == 1)
        kv_lens = [end for _, end in self.spans]
        tables = torch.zeros(len(self.tables), max(map(len, self.tables)), dtype=torch.int64)
        for row, table in zip(tables, self.tables, strict=True):
            row[: len(table)] = torch.tensor(table)
        decoding = kv_lens[:num_decode]
        mask = None
        if decoding and min(decoding) != max(decoding):
            num_keys = -(-max(decoding) // block_size) * block_size
            mask = (torch.arange(num_keys) < torch.tensor(decoding)[:, None])[:, None, None]
        nothing = torch.empty(0)
        return AttentionBatch(
            num_decode=num_decode,
            query_lens=[end - start for start, end in self.spans],
            kv_lens=kv_lens,
            slots=torch.empty(0, dtype=torch.int64),
            block_tables=tables,
            kv_lens_tensor=torch.tensor(kv_lens),
            decode_mask=mask,
            cos=nothing,
            sin=nothing,
        )

    def expected(self) -> Tensor:
        """Attention by loops: each new token over the keys up to its own place."""
        rows, group = [], self.q.shape[1] // self.keys[0].shape[1]
        queries = iter(self.q.double())
        for (start, end), keys, values in zip(self.spans, self.keys, self.values, strict=True):
            for place in range(start, end):
                query = next(queries)
                heads = []
                for head in range(self.q.shape[1]):
                    k = keys[: place + 1, head // group].double()
                    v = values[: place + 1, head // group].double()
                    weights = (k @ query[head] / math.sqrt(k.shape[-1])).softmax(0)
                    heads.append(weights @ v)
                rows.append(torch.stack(heads))
        return torch.stack(rows)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    decode=st.lists(st.integers(1, 40), max_size=4),
    prefill=st.lists(st.tuples(st.integers(0, 20), st.integers(2, 20)), max_size=3),
    group=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1), (6, 3)]),
    head_dim=st.sampled_from([4, 16, 24]),
    block_size=st.sampled_from([1, 2, 4, 16]),
    seed=st.integers(0, 1000),
)
def test_paged_attention_is_attention(
    decode: list[int],
    prefill: list[tuple[int, int]],
    group: tuple[int, int],
    head_dim: int,
    block_size: int,
    seed: int,
) -> None:
    spans = [(length - 1, length) for length in decode] + [(start, start + count) for start, count in prefill]
    if not spans:
        return
    case = Paged(spans, heads=group[0], kv_heads=group[1], head_dim=head_dim, block_size=block_size, seed=seed)
    got = ops.paged_attention(case.q, case.k_cache, case.v_cache, case.batch)
    torch.testing.assert_close(got.double(), case.expected(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lengths", [[3], [5, 5], [9, 2, 1]])
def test_decode_rows_do_not_read_beyond_their_keys(lengths: list[int]) -> None:
    """Not a number in every slot that is not the sequence's own would show in the sums."""
    case = Paged([(n - 1, n) for n in lengths], heads=4, kv_heads=2, head_dim=8, block_size=4)
    assert bool(torch.isfinite(ops.paged_attention(case.q, case.k_cache, case.v_cache, case.batch)).all())
    torch.testing.assert_close(
        ops.paged_attention(case.q, case.k_cache, case.v_cache, case.batch).double(), case.expected(), atol=1e-5, rtol=0
    )


def test_rotate_and_store_puts_every_key_and_value_at_its_slot() -> None:
    tokens, heads, kv_heads, head_dim, block_size = 5, 4, 2, 8, 4
    qkv = random(tokens, heads + 2 * kv_heads, head_dim)
    cos, sin = rotations(tokens, head_dim)
    slots = torch.tensor([9, 2, 15, 0, 6])
    k_cache, v_cache = (torch.full((4, block_size, kv_heads, head_dim), -7.0) for _ in range(2))
    batch = AttentionBatch(0, [5], [5], slots, torch.zeros(1, 1), torch.tensor([5]), None, cos, sin)
    q = ops.rotate_and_store(qkv, heads, k_cache, v_cache, batch)
    torch.testing.assert_close(q, ops.rotate(qkv[:, :heads], cos, sin))
    keys = ops.rotate(qkv[:, heads : heads + kv_heads], cos, sin)
    for i, slot in enumerate(slots.tolist()):
        torch.testing.assert_close(k_cache[slot // 4, slot % 4], keys[i])
        torch.testing.assert_close(v_cache[slot // 4, slot % 4], qkv[i, heads + kv_heads :])
    others = [slot for slot in range(16) if slot not in slots.tolist()]
    assert bool((k_cache.flatten(0, 1)[others] == -7.0).all())
    assert bool((v_cache.flatten(0, 1)[others] == -7.0).all())


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([1, 2, 3, 3, 7]), min_size=1, max_size=6), st.integers(0, 1000))
def test_segment_attention_stays_inside_each_segment(lengths: list[int], seed: int) -> None:
    q, k, v = (random(sum(lengths), 2, 8, seed=seed + i) for i in range(3))
    got = ops.segment_attention(q, k, v, lengths)
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        scores = torch.einsum("qhd,khd->hqk", q[rows].double(), k[rows].double()) / math.sqrt(8)
        want = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[rows].double())
        torch.testing.assert_close(got[rows].double(), want, atol=1e-5, rtol=1e-4)
        start += length
