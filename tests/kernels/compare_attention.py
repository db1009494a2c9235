"""Every attention kernel against its plain twin over random shapes, odd ones too. Run as a program: prints "equal".

Like compare_triton: in Triton's interpreter (TRITON_INTERPRET=1) or, on a machine with a card, compiled.
"""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from torch import Tensor

from fovea.kernels import kv_pages, reference
from fovea.kernels.attention_tiles import Tile
from fovea.kernels.batch import AttentionBatch, Segments, segment_tiles
from fovea.kernels.fp8_weights import FP8
from fovea.kernels.packed_attention import segment_attention
from fovea.kernels.paged_decode import ALONE_MANY, GROUPED_MANY, USUAL, paged_decode
from fovea.kernels.paged_prefill import paged_prefill
from tests.kernels.support import wanted_dtypes

ON_CARD = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_CARD else "cpu")
TOWER_HEADS = ((2, 80), (1, 64), (2, 72), (1, 96), (1, 128), (3, 16), (2, 40))  # heads, head size
HEADS = ((4, 4, 96), (12, 2, 128), (2, 2, 64), (6, 2, 80), (7, 1, 128), (2, 1, 16), (1, 1, 256))  # N, G, D
BLOCK_SIZES = (1, 4, 16, 64)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
INT_TYPES = (torch.int32, torch.int64)
TILE = None if ON_CARD else Tile(queries=64, keys=32, warps=4, stages=2)  # fewer, larger steps for the interpreter


def main() -> None:
    rng = random.Random(0)
    for dtype in wanted_dtypes(TOLERANCE) if ON_CARD else (torch.float32,):
        for heads, dim in TOWER_HEADS:
            count = rng.randint(1, 4 if ON_CARD else 2)
            lengths = [rng.choice((1, 31, 32, 33, 127, 128, 129, rng.randint(1, 150))) for _ in range(count)]
            for fixed_from in (None, 0, 100) if dtype != torch.float16 else (None,):
                compare_segments(heads, dim, lengths, dtype, padded=False, fixed_from=fixed_from)
            compare_segments(heads, dim, lengths[:1], dtype, padded=True, fixed_from=None)
            compare_late_keys(heads, dim, dtype)
        for heads, kv_heads, dim in HEADS:
            for is_fp8 in (False, True) if ON_CARD or dim <= 96 else (False,):
                for _ in range(3 if ON_CARD else 1):
                    compare_paged(Pages(rng, kv_heads, dim, dtype, is_fp8=is_fp8), heads)
                compare_shared(rng, heads, kv_heads, dim, dtype, is_fp8=is_fp8)
    print("equal")  # noqa: T201


def close(ours: Tensor, twin: Tensor) -> None:
    torch.testing.assert_close(ours, twin, atol=TOLERANCE[ours.dtype], rtol=TOLERANCE[ours.dtype])


def noise(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def compare_segments(
    heads: int, dim: int, lengths: list[int], dtype: torch.dtype, *, padded: bool, fixed_from: int | None
) -> None:
    """Queries, keys and values are views of one tensor; a row that is not a number stays in its segment."""
    qkv = noise(sum(lengths), 3 * heads, dim, dtype=dtype)
    segments = Segments(lengths, torch.from_numpy(segment_tiles(lengths)).to(DEVICE))
    q, k, v = qkv.chunk(3, dim=1)
    ours = segment_attention(q, k, v, segments, tile=TILE, padded=padded, fixed_from=fixed_from)
    close(ours, reference.segment_attention(q, k, v, lengths))
    if len(lengths) > 1:
        v[lengths[0]] = float("nan")
        out = segment_attention(q, k, v, segments, tile=TILE, fixed_from=fixed_from)
        assert bool(out[: lengths[0]].isfinite().all())
        assert bool(out[lengths[0] : lengths[0] + lengths[1]].isnan().all())


def compare_late_keys(heads: int, dim: int, dtype: torch.dtype) -> None:
    """Keys after the first tile that weigh far more than its own, for some queries more than any type can hold.

    And fewer keys than a tile has, all of them far below the zeros that stand in for the others.
    """
    lengths = [180, 20]
    q, k, v = noise(sum(lengths), 3 * heads, dim, dtype=dtype).chunk(3, dim=1)
    k[150] = q[10] * (400 / dim**0.5)  # some 400 for query 10, far below for those that point elsewhere
    q[180:], k[180:] = 4.0, -4.0
    segments = Segments(lengths, torch.from_numpy(segment_tiles(lengths)).to(DEVICE))
    ours = segment_attention(q, k, v, segments, tile=TILE, fixed_from=None if dtype == torch.float16 else 0)
    close(ours, reference.segment_attention(q, k, v, lengths))


def in_float8(pages: Tensor) -> tuple[kv_pages.Pages, Tensor]:
    """Pages with the same rows, and what those stand for, in the type of the others."""
    place = kv_pages.make_pages(torch.zeros, tuple(pages.shape), FP8, DEVICE)
    kv_pages.store(place, torch.arange(pages.shape[0] * pages.shape[1], device=DEVICE), pages.flatten(0, 1))
    return place, kv_pages.gather(place, torch.arange(len(pages), device=DEVICE), pages.dtype)


class Pages:
    """Random sequences, those of one new token first; what is not theirs is not a number."""

    def __init__(self, rng: random.Random, kv_heads: int, dim: int, dtype: torch.dtype, *, is_fp8: bool) -> None:
        most = 300 if ON_CARD else 60
        block = rng.choice(BLOCK_SIZES)
        lengths = [rng.choice((1, 15, 16, 17, 63, 64, 65, rng.randint(1, most))) for _ in range(rng.randint(0, 3))]
        self.num_decode = len(lengths)
        query_lens = [1] * len(lengths)
        for _ in range(rng.randint(1, 3)):
            query_lens.append(rng.choice((2, 3, 21, 22, rng.randint(2, most // 2))))
            lengths.append(query_lens[-1] + rng.choice((0, 0, 1, 16, 64, rng.randint(0, most))))
        counts = [-(-length // block) for length in lengths]
        places = iter(torch.randperm(sum(counts) + 1).tolist())
        tables = torch.zeros(len(lengths), max(counts), dtype=rng.choice(INT_TYPES))
        self.k, self.v = (noise(sum(counts) + 1, block, kv_heads, dim, dtype=dtype) for _ in range(2))
        for table, count, length in zip(tables, counts, lengths, strict=True):
            table[:count] = torch.tensor([next(places) for _ in range(count)])
            for cache in (self.k, self.v):
                cache[table[count - 1], (length - 1) % block + 1 :] = float("nan")
        nobodys = next(places)
        self.k[nobodys], self.v[nobodys] = float("nan"), float("nan")
        self.caches: tuple[kv_pages.Pages, kv_pages.Pages] = self.k, self.v
        if is_fp8:
            (keys, self.k), (values, self.v) = in_float8(self.k), in_float8(self.v)
            self.caches = keys, values
        starts = torch.tensor([0, *query_lens], dtype=rng.choice(INT_TYPES)).cumsum(0, dtype=rng.choice(INT_TYPES))
        nothing = torch.empty(0)
        kv_lens = torch.tensor(lengths, dtype=rng.choice(INT_TYPES)).to(DEVICE)
        self.arrivals = torch.zeros(self.num_decode * kv_heads, dtype=torch.int32, device=DEVICE)
        self.batch = AttentionBatch(
            self.num_decode, query_lens, lengths, nothing, tables.to(DEVICE), kv_lens, None, nothing, nothing,
            rng.choice((None, starts.to(DEVICE))), rng.choice((None, self.arrivals)),
        )  # fmt: skip


def twin(q: Tensor, pages: Pages) -> Tensor:
    """Each sequence by itself: the twin multiplies masked values by 0, so they must be numbers."""
    batch, k, v, parts, start = pages.batch, pages.k.nan_to_num(), pages.v.nan_to_num(), [], 0
    for i, (new, length) in enumerate(zip(batch.query_lens, batch.kv_lens, strict=True)):
        table, lens = batch.block_tables[i : i + 1].long(), batch.kv_lens_tensor[i : i + 1]
        one = AttentionBatch(int(new == 1), [new], [length], batch.slots, table, lens, None, batch.cos, batch.sin)
        parts.append(reference.paged_attention(q[start : start + new], k, v, one))
        start += new
    return torch.cat(parts)


def compare_paged(pages: Pages, heads: int) -> None:
    batch, first = pages.batch, pages.num_decode
    q = noise(sum(batch.query_lens), heads, pages.k.shape[3], dtype=pages.k.dtype)
    want, out = twin(q, pages), torch.full_like(q, 7.0)
    paged_prefill(q, *pages.caches, batch, out, tile=TILE, padded=first % 2 == 0)
    close(out[first:], want[first:])
    assert bool((out[:first] == 7.0).all()), "rows of sequences with one new token are somebody else's"
    if not first:
        return
    usual = ALONE_MANY if heads == pages.k.shape[2] else GROUPED_MANY
    for tile in (usual._replace(programs=1), USUAL._replace(most_splits=4), *([None] if ON_CARD else [])):
        paged_decode(q[:first], *pages.caches, batch, out[:first], tile=tile)
        close(out[:first], want[:first])
        assert not pages.arrivals.any(), "left as zeros for the next step"
    empty = AttentionBatch(
        first, [1] * first, [], batch.slots, batch.block_tables, torch.zeros_like(batch.kv_lens_tensor), None,
        batch.cos, batch.sin,
    )  # fmt: skip
    assert not paged_decode(q[:first], *pages.caches, empty, tile=usual._replace(most_splits=2)).any(), (
        "padding rows of a graph have no keys"
    )


def compare_shared(
    rng: random.Random, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, *, is_fp8: bool
) -> None:
    """Sequences that begin with the same blocks, a padded row among them: as if each had them for itself."""
    block, count, begin = rng.choice(BLOCK_SIZES), rng.choice((15, 20, 31)), rng.choice((1, 2, 9))
    lengths = [begin * block + rng.randint(1, 70) for _ in range(count)] + [0]
    rows = noise(2, 4 * count, block, kv_heads, dim, dtype=dtype)
    k, v = (in_float8(some)[0] if is_fp8 else some for some in rows)
    tables = torch.randint(0, 4 * count, (count + 1, -(-max(lengths) // block)))
    tables[:, :begin] = tables[0, :begin]
    nothing, lens = torch.empty(0), torch.tensor(lengths).to(DEVICE)
    batch = AttentionBatch(
        count + 1, [1] * (count + 1), lengths, nothing, tables.to(DEVICE), lens, None, nothing, nothing
    )
    q = noise(count + 1, heads, dim, dtype=dtype)
    tile = (ALONE_MANY if heads == kv_heads else GROUPED_MANY)._replace(most_splits=rng.choice((1, 4)))
    want = paged_decode(q, k, v, batch, tile=tile)
    for shared in (0, begin * block):
        arrivals = torch.zeros((count + 1) * kv_heads, dtype=torch.int32, device=DEVICE)
        known = replace(batch, shared_len=torch.tensor([shared], device=DEVICE), arrivals=arrivals)
        close(paged_decode(q, k, v, known, tile=tile), want)
        assert not arrivals.any(), "left as zeros for the next step"


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
