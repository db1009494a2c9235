"""The C kernels of a CPU equal their plain twins, whatever instructions they are compiled for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fovea import kernels as ops
from fovea.kernels import reference
from fovea.kernels.batch import AttentionBatch, Segments
from fovea.kernels.cpu import library
from fovea.kernels.cpu.library import Crew
from fovea.kernels.cpu.segments import attends
from fovea.kernels.cpu.step import NativeLayer, NativeStep
from fovea.kernels.cpu.weight import MOST_ROWS, NativeWeight
from fovea.kernels.int_weights import GROUP, IntWeight, quantise_int4, quantise_int8
from fovea.models.decoder import RMSNorm
from fovea.native import build
from tests.native.variants import VARIANTS, variant

DTYPES = (torch.float32, torch.bfloat16)
# Of float32: sums in another order. Of bfloat16: the last rounding of a result. Of integers: 15 bits of an input's row.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
INT_TOLERANCE = 2e-4


@pytest.fixture(scope="module", params=VARIANTS)
def crew(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    folder = tmp_path_factory.mktemp("kernels")
    folder.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "FLAGS", variant(request.param))
        made = library.make_crew(2, folder)
        if made is None:
            pytest.skip("no compiler here")
        yield made


class Native(nn.Module):
    """A linear layer for ops, and the plain layer that it should equal."""

    def __init__(self, crew: Crew, weight: Tensor | IntWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.native = NativeWeight(crew, weight, bias)
        wide = weight if isinstance(weight, Tensor) else weight.restored()
        self.wide, self.bias = wide.float(), None if bias is None else bias.float()

    def plain(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.wide, self.bias)


def weight_of(kind: str, rows: int, width: int, dtype: torch.dtype) -> Tensor | IntWeight:
    made: Tensor = torch.randn(rows, width) / width**0.5
    if kind == "dense":
        return made.to(dtype)
    return quantise_int8(made) if kind == "int8" else quantise_int4(made, GROUP)


def close(got: Tensor, want: Tensor, dtype: torch.dtype, kind: str = "dense") -> None:
    tolerance = max(TOLERANCE[dtype], INT_TOLERANCE if kind != "dense" else 0.0)
    torch.testing.assert_close(got.float(), want.float(), rtol=tolerance, atol=tolerance * float(want.abs().max()))


def kinds(width: int) -> list[str]:
    return ["dense", "int8", *(["int4"] if width % GROUP == 0 else [])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (7, 5), (13, 96), (70, 64), (129, 48), (200, 160), (64, 1056)])
def test_a_product_equals_the_plain_one_for_every_number_of_rows(
    rows: int, width: int, dtype: torch.dtype, crew: Crew
) -> None:
    torch.manual_seed(rows)
    for kind in kinds(width):
        linear = Native(crew, weight_of(kind, rows, width, dtype), torch.randn(rows).to(dtype))
        for count in (1, 2, 3, 4, 7, 8, 15, MOST_ROWS):
            x = torch.randn(count, width).to(dtype)
            assert linear.native.takes(x)
            close(linear.native.linear(x), linear.plain(x), dtype, kind)
            close(linear.native.linear(x, torch.float32), linear.plain(x), dtype, kind)


def test_many_rows_of_int4_are_done_in_parts(crew: Crew) -> None:
    torch.manual_seed(0)
    linear = Native(crew, weight_of("int4", 100, 64, torch.float32), None)
    x = torch.randn(3 * MOST_ROWS + 5, 64)
    assert linear.native.multiplies(x)
    assert not linear.native.takes(x)
    close(linear.native.linear(x), linear.plain(x), torch.float32, "int4")


def test_a_row_gets_the_same_bits_whatever_its_neighbours_and_threads(crew: Crew) -> None:
    torch.manual_seed(1)
    for kind in kinds(96):
        weight = weight_of(kind, 192, 96, torch.float32)
        alone, other = (
            NativeWeight(crew, weight, None),
            NativeWeight(Crew(crew.library, library.CCrew(None, 1)), weight, None),
        )
        x = torch.randn(8, 96)
        together = alone.linear(x)
        assert torch.equal(other.linear(x), together)
        assert torch.equal(alone.linear(x[4:]), together[4:]) or kind == "dense"
        close(alone.linear(x[3:4]), together[3:4], torch.float32)


def test_nan_and_infinity_stay_in_their_row(crew: Crew) -> None:
    torch.manual_seed(2)
    for kind in kinds(64):
        weight = NativeWeight(crew, weight_of(kind, 64, 64, torch.float32), None)
        x = torch.randn(4, 64)
        x[1, 5], x[2, 6] = torch.nan, torch.inf
        made = weight.linear(x)
        assert not made[1:3].isfinite().any()
        assert made[[0, 3]].isfinite().all()


def test_large_and_tiny_values_keep_their_scale(crew: Crew) -> None:
    torch.manual_seed(3)
    for kind in kinds(64):
        linear = Native(crew, weight_of(kind, 64, 64, torch.float32), None)
        for scale in (1e-20, 1e20):
            x = torch.randn(2, 64) * scale
            close(linear.native.linear(x), linear.plain(x), torch.float32, kind)
        assert not linear.native.linear(torch.zeros(2, 64)).any()


def batch_of(lengths: list[int], num_blocks: int, size: int, rotated: int) -> AttentionBatch:
    """One new token of each sequence; tables padded with the last block."""
    longest = -(-max(lengths) // size)
    order = random.Random(len(lengths)).sample(range(num_blocks - 1), longest * len(lengths))
    tables = torch.full((len(lengths), longest + 1), num_blocks - 1)
    for i, length in enumerate(lengths):
        used = -(-length // size)
        tables[i, :used] = torch.tensor(order[i * longest : i * longest + used])
    slots = [int(tables[i, (n - 1) // size]) * size + (n - 1) % size for i, n in enumerate(lengths)]
    places = torch.arange(longest * size) < torch.tensor(lengths)[:, None]
    angles = torch.rand(len(lengths), rotated // 2)
    return AttentionBatch(
        num_decode=len(lengths),
        query_lens=[1] * len(lengths),
        kv_lens=lengths,
        slots=torch.tensor(slots),
        block_tables=tables,
        kv_lens_tensor=torch.tensor(lengths),
        decode_mask=places[:, None, None] if min(lengths) != max(lengths) else None,
        cos=angles.cos(),
        sin=angles.sin(),
    )


def pages(num_blocks: int, size: int, heads: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    made = torch.randn(2, num_blocks, size, heads, width).to(dtype)
    return made[0], made[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("lengths", "size", "heads", "kv_heads", "width"),
    [
        ([1], 16, 9, 3, 64),
        ([16, 17, 15, 1, 200], 16, 9, 3, 64),
        ([64, 64], 16, 4, 4, 32),
        ([33, 70], 33, 7, 1, 17),
        ([700, 256, 257, 3], 256, 12, 2, 128),
        ([5, 4, 3], 1, 2, 2, 7),
        ([540, 9], 8, 32, 32, 96),
        ([90], 64, 3, 1, 256),
    ],
)
def test_paged_decode_equals_its_plain_twin(
    lengths: list[int], size: int, heads: int, kv_heads: int, width: int, dtype: torch.dtype, crew: Crew
) -> None:
    torch.manual_seed(4)
    num_blocks = len(lengths) * -(-max(lengths) // size) + 2
    batch = batch_of(lengths, num_blocks, size, 2 * (width // 2))
    keys, values = pages(num_blocks, size, kv_heads, width, dtype)
    q = torch.randn(len(lengths), heads, width).to(dtype)
    assert crew.decodes(heads, dtype, keys, values)
    want = reference.paged_attention(q.float(), keys.float(), values.float(), batch)
    close(ops.paged_attention(q, keys, values, replace(batch, crew=crew)), want, dtype)


def test_a_sequence_attends_with_the_same_bits_whatever_its_neighbours(crew: Crew) -> None:
    torch.manual_seed(5)
    batch = batch_of([300, 33, 7], 80, 16, 64)
    keys, values = pages(80, 16, 3, 64, torch.float32)
    q = torch.randn(3, 9, 64)
    together = crew.paged_decode(q, keys, values, batch)
    alone = batch_of([300], 80, 16, 64)
    alone.block_tables[0, :19] = batch.block_tables[0, :19]
    assert torch.equal(crew.paged_decode(q[:1], keys, values, alone), together[:1])


def test_nan_reaches_its_own_sequence_and_no_other_and_stale_nan_nobody(crew: Crew) -> None:
    torch.manual_seed(6)
    batch = batch_of([20, 400], 80, 16, 64)
    keys, values = pages(80, 16, 3, 64, torch.float32)
    keys[batch.block_tables[1, 20], 3] = torch.nan
    values[batch.block_tables[0, 1], 4:] = torch.nan  # behind the 20th key
    out = crew.paged_decode(torch.randn(2, 9, 64), keys, values, batch)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def norm_of(width: int, dtype: torch.dtype) -> RMSNorm:
    norm = RMSNorm(width, 1e-5)
    norm.weight = nn.Parameter((1 + torch.randn(width) / 8).to(dtype), requires_grad=False)
    return norm


Layers = list[tuple[RMSNorm, Native, Native, RMSNorm, Native, Native]]


def decoder_of(crew: Crew, kind: str, dtype: torch.dtype, hidden: int, heads: int, kv_heads: int, width: int) -> Layers:
    def linear(rows: int, columns: int, *, has_bias: bool = False) -> Native:
        bias = torch.randn(rows).to(dtype) / 4 if has_bias else None
        return Native(crew, weight_of(kind, rows, columns, dtype), bias)

    return [
        (
            norm_of(hidden, dtype),
            linear((heads + 2 * kv_heads) * width, hidden, has_bias=True),
            linear(hidden, heads * width),
            norm_of(hidden, dtype),
            linear(256, hidden),
            linear(hidden, 128),
        )
        for _ in range(2)
    ]


def plain_layers(
    layers: Layers,
    x: Tensor,
    caches: list[tuple[Tensor, Tensor]],
    heads: int,
    batch: AttentionBatch,
    head_norms: tuple[RMSNorm, RMSNorm] | None,
) -> Tensor:
    """In float32 all the way; the caches are too."""
    for (norm, qkv, out, mlp_norm, gate_up, down), pair in zip(layers, caches, strict=True):
        normed = reference.rms_norm(x, norm.weight.float(), norm.eps)
        rows = qkv.plain(normed).view(len(x), -1, pair[0].shape[3])
        for norm, some in zip(head_norms or (), (rows[:, :heads], rows[:, heads : -pair[0].shape[2]]), strict=False):
            some.copy_(reference.rms_norm(some, norm.weight.float(), norm.eps))
        q = reference.rotate_and_store(rows, heads, *pair, batch)
        x = x + out.plain(reference.paged_attention(q, *pair, batch).flatten(1))
        hidden = reference.silu_mul(gate_up.plain(reference.rms_norm(x, mlp_norm.weight.float(), mlp_norm.eps)))
        x = x + down.plain(hidden)
    return x


def by_calls(
    layers: Layers,
    x: Tensor,
    caches: list[tuple[Tensor, Tensor]],
    heads: int,
    batch: AttentionBatch,
    head_norms: tuple[RMSNorm, RMSNorm] | None,
) -> Tensor:
    for (norm, qkv, out, mlp_norm, gate_up, down), pair in zip(layers, caches, strict=True):
        q = ops.norm_qkv(x, norm, qkv, heads, *pair, batch, head_norms)
        x = ops.linear_add(ops.paged_attention(q, *pair, batch).flatten(1), out, x)
        x = ops.linear_add(ops.norm_gate_up(x, mlp_norm, gate_up), down, x)
    return x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["dense", "int8", "int4"])
@pytest.mark.parametrize("has_head_norms", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "width", "rotated"), [(6, 2, 32, 32), (4, 4, 16, 8), (8, 1, 64, 64)])
def test_a_step_equals_the_layers_one_by_one_and_the_plain_ones(
    heads: int, kv_heads: int, width: int, rotated: int, has_head_norms: bool, kind: str, dtype: torch.dtype, crew: Crew
) -> None:
    torch.manual_seed(7)
    lengths, hidden = [40, 1, 17, 300], 96
    layers = decoder_of(crew, kind, dtype, hidden, heads, kv_heads, width)
    batch = replace(batch_of(lengths, 90, 16, rotated), crew=crew)
    caches = [pages(90, 16, kv_heads, width, dtype) for _ in layers]
    copies, wide = ([(k.clone().to(t), v.clone().to(t)) for k, v in caches] for t in (dtype, torch.float32))
    x, last = torch.randn(len(lengths), hidden).to(dtype), norm_of(hidden, dtype)
    head_norms = (norm_of(width, dtype), norm_of(width, dtype)) if has_head_norms else None
    described = [
        NativeLayer(norm, qkv.native, out.native, mlp_norm, gate_up.native, down.native, head_norms)
        for norm, qkv, out, mlp_norm, gate_up, down in layers
    ]
    step = NativeStep(crew, described, last, heads)
    assert step.takes(x, caches, batch)
    got = step.run(x.clone(), caches, batch)
    called = by_calls(layers, x.clone(), copies, heads, batch, head_norms)
    close(got, reference.rms_norm(called.float(), last.weight.float(), last.eps), dtype)
    for pair, other in zip(caches, copies, strict=True):
        assert torch.equal(pair[0], other[0])
        assert torch.equal(pair[1], other[1])
    plain = replace(batch, crew=None)
    want = reference.rms_norm(
        plain_layers(layers, x.float(), wide, heads, plain, head_norms), last.weight.float(), last.eps
    )
    torch.testing.assert_close(got.float(), want, rtol=0, atol=5e-4 if dtype == torch.float32 else 8e-2)


def test_a_step_with_prompts_or_too_many_rows_is_not_taken(crew: Crew) -> None:
    layers = decoder_of(crew, "int8", torch.float32, 96, 6, 2, 32)
    described = [NativeLayer(a, b.native, c.native, d, e.native, f.native) for a, b, c, d, e, f in layers]
    step = NativeStep(crew, described, norm_of(96, torch.float32), 6)
    batch = replace(batch_of([5, 6], 10, 16, 32), crew=crew)
    caches = [pages(10, 16, 2, 32, torch.float32) for _ in layers]
    x = torch.randn(2, 96)
    assert step.takes(x, caches, batch)
    assert not step.takes(x, caches, replace(batch, crew=None))
    assert not step.takes(torch.randn(3, 96), caches, batch)
    assert not step.takes(x.half(), caches, batch)
    assert not step.takes(x, caches, replace(batch, open_spans=[((0, 2),), ()]))
    many = replace(batch, num_decode=MOST_ROWS + 1)
    assert not step.takes(torch.randn(MOST_ROWS + 1, 96), caches, many)


@pytest.mark.parametrize(
    ("lengths", "heads", "size"),
    [
        ([5], 2, 64),
        ([1], 1, 16),
        ([64] * 9, 4, 80),
        ([130, 7, 1, 300], 3, 72),
        ([200, 95, 97], 4, 128),
        ([128, 33], 2, 34),
    ],
)
def test_segments_attend_as_in_plain_torch(lengths: list[int], heads: int, size: int, crew: Crew) -> None:
    torch.manual_seed(8)
    heads_of_all = torch.randn(sum(lengths), 3 * heads, size).bfloat16()
    q, k, v = heads_of_all.chunk(3, dim=1)
    want = reference.segment_attention(q.double(), k.double(), v.double(), lengths)
    if not crew.has_segment_attention:
        assert not attends(crew, q, k, v)
        pytest.skip("this processor has no products of bfloat16, or is to have none")
    assert attends(crew, q, k, v)
    got = ops.segment_attention(q, k, v, Segments.of(lengths, q.device, crew)).double()
    plain = reference.segment_attention(q, k, v, lengths).double()
    assert (got - want).abs().max() <= 1.2 * (plain - want).abs().max()
    assert not attends(crew, q.float(), k.float(), v.float())


def test_nan_stays_in_its_segment(crew: Crew) -> None:
    torch.manual_seed(9)
    if not crew.has_segment_attention:
        pytest.skip("this processor has no products of bfloat16, or is to have none")
    q, k, v = torch.randn(300, 6, 64).bfloat16().chunk(3, dim=1)
    k[150, 1], v[250, 0, 3] = torch.nan, torch.nan
    made = ops.segment_attention(q, k, v, Segments.of([100, 100, 100], q.device, crew))
    assert made[:100].isfinite().all()
    assert made[100:200, 1].isnan().all()
    assert made[100:200, 0].isfinite().all()
    assert made[200:, 0, 3].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("px", "side", "repeats"), [(14, 2, 2), (16, 1, 1), (3, 4, 1), (1, 1, 3)])
def test_patches_have_the_plain_ones_bits(px: int, side: int, repeats: int, dtype: torch.dtype, crew: Crew) -> None:
    torch.manual_seed(10)
    cell = px * side
    sizes = [(cell, cell), (3 * cell, 5 * cell), (7 * cell, 2 * cell)]
    canvases = [torch.randint(0, 256, (*size, 3), dtype=torch.uint8) for size in sizes]
    levels = torch.randn(3, 256).to(dtype)
    plain = ops.cut_patches(canvases, levels, px, side, repeats)
    assert torch.equal(ops.cut_patches(canvases, levels, px, side, repeats, crew), plain)
