"""Pages in float8: what goes in comes out within a sixteenth, at its place, and whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fovea.kernels import kv_pages
from fovea.kernels.fp8_weights import FP8, LARGEST
from fovea.kernels.kv_pages import Fp8Pages

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def pages(blocks: int = 5, block_size: int = 4, heads: int = 2, dim: int = 16) -> Fp8Pages:
    made = kv_pages.make_pages(torch.zeros, (blocks, block_size, heads, dim), FP8, CPU)
    assert isinstance(made, Fp8Pages)
    return made


def read(place: Fp8Pages, slots: Tensor, dtype: torch.dtype) -> Tensor:
    every = kv_pages.gather(place, torch.arange(len(place.values)), dtype)
    return every.flatten(0, 1)[slots]


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), magnitude=st.sampled_from([1e-4, 1.0, 3e3]))
def test_rows_come_out_as_they_went_in_but_for_three_bits(dtype: torch.dtype, seed: int, magnitude: float) -> None:
    torch.manual_seed(seed)
    place, slots = pages(), torch.randperm(20)[:7]
    rows = (magnitude * torch.randn(7, 2, 16)).to(dtype)
    kv_pages.store(place, slots, rows)
    scales = rows.float().abs().amax(-1, keepdim=True) / LARGEST
    made, wanted = read(place, slots, torch.float32), rows.float()
    assert bool(((made - wanted).abs() <= wanted.abs() / 15 + 2**-9 * scales).all())
    others = torch.tensor([slot for slot in range(20) if slot not in slots.tolist()])
    assert not read(place, others, torch.float32).any()


def test_heads_and_tokens_have_scales_of_their_own() -> None:
    place, rows = pages(), torch.ones(3, 2, 16)
    rows[0, 1] *= 1e4
    rows[2] *= 1e-3
    kv_pages.store(place, torch.tensor([3, 4, 19]), rows)
    assert torch.equal(read(place, torch.tensor([3, 4, 19]), torch.float32), rows), "powers of two times 448 are exact"


def test_a_row_depends_on_nothing_that_is_stored_with_it() -> None:
    torch.manual_seed(0)
    rows, together, alone = torch.randn(6, 2, 16), pages(), pages()
    kv_pages.store(together, torch.arange(6), rows)
    for i in reversed(range(6)):
        kv_pages.store(alone, torch.tensor([i]), rows[i : i + 1])
    assert torch.equal(together.values.view(torch.uint8), alone.values.view(torch.uint8))
    assert torch.equal(together.scales, alone.scales)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so_until_its_block_is_cleared(bad: float) -> None:
    place, rows = pages(), torch.ones(2, 2, 16)
    rows[0, 1, 5] = bad
    kv_pages.store(place, torch.tensor([2, 9]), rows)
    made = read(place, torch.tensor([2, 9]), torch.float32)
    assert not bool(made[0, 1].isfinite().all())
    assert torch.equal(made[0, 0], rows[0, 0])
    assert torch.equal(made[1], rows[1])
    kv_pages.clear(place, torch.tensor([0]))
    made = read(place, torch.tensor([2, 9]), torch.float32)
    assert not made[0].any()
    assert torch.equal(made[1], rows[1])


def test_other_types_have_no_scales() -> None:
    made = kv_pages.make_pages(torch.zeros, (2, 4, 1, 8), torch.bfloat16, CPU)
    assert isinstance(made, Tensor)
    assert kv_pages.split(made) == (made, None)
