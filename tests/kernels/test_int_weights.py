"""Integer weights stand for the float ones within what their steps allow, and every way to a product agrees."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fovea.kernels import int_weights
from fovea.kernels.int_weights import (
    GROUP,
    INT8_FEW_ROWS,
    Int4Weight,
    Int8Weight,
    IntWeight,
    int4_bytes,
    int8_bytes,
    quantise_int4,
    quantise_int8,
)

ROWS = (1, 2, 4, 8, 9, 16, 33, 64, 65, 127, 128, 257, 300)
SHAPES = [(64, 64), (1, 32), (7, 96), (130, 160), (200, 32), (65, 512)]
ODD_SHAPES = [(7, 33), (130, 40), (3, 1), (64, 17)]  # widths that kernels cannot take
TOLERANCE = 1e-2  # of a product's norm; activations are bfloat16 in some of the ways, 2^-9 each
PLAIN_WAYS: tuple[tuple[str, Callable[[], int]], ...] = (
    ("has_int8_kernel", lambda: False),
    ("has_int8_product", lambda: False),
    ("int4_kernel_block", lambda: 0),
)
MAKERS: dict[str, Callable[[Tensor], IntWeight]] = {
    "int8": quantise_int8,
    "int4": lambda weight: quantise_int4(weight, GROUP),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def difference(got: Tensor, wanted: Tensor) -> float:
    return float((got.float() - wanted).norm() / wanted.norm().clamp_min(1e-9))


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, answer in PLAIN_WAYS:
        monkeypatch.setattr(int_weights, name, answer)


def cases() -> list[tuple[str, int, int]]:
    both = [(kind, *shape) for kind in MAKERS for shape in SHAPES]
    return both + [("int8", *shape) for shape in ODD_SHAPES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "out", "width"), cases())
def test_a_product_of_any_rows_equals_that_of_the_restored_weight(
    kind: str, out: int, width: int, dtype: torch.dtype
) -> None:
    weight = MAKERS[kind](normal(out, width))
    restored = weight.restored()
    assert restored.shape == (out, width)
    for rows in ROWS:
        x = normal(rows, width, seed=rows).to(dtype)
        made = weight.product(x)
        assert (made.shape, made.dtype) == ((rows, out), dtype)
        assert difference(made, x.float() @ restored.t()) < TOLERANCE, rows
    assert weight.product(normal(0, width).to(dtype)).shape == (0, out)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["int8", "int4"]),
    st.integers(1, 300),
    st.integers(1, 200),
    st.integers(1, 9),
    st.integers(0, 31),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_products_of_any_shape_agree(
    kind: str, rows: int, out: int, groups: int, more: int, dtype: torch.dtype
) -> None:
    width = groups * GROUP + (more if kind == "int8" else 0)
    weight, x = MAKERS[kind](normal(out, width)), normal(rows, width, seed=1).to(dtype)
    assert difference(weight.product(x), x.float() @ weight.restored().t()) < TOLERANCE


@pytest.mark.parametrize("kind", MAKERS)
def test_without_torch_s_kernels_products_stay_the_same(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    original = normal(100, 128)
    with_kernels = MAKERS[kind](original)
    xs = [normal(rows, 128, seed=rows) for rows in ROWS]
    fast = [with_kernels.product(x) for x in xs]
    without_kernels(monkeypatch)
    plain = MAKERS[kind](original)
    assert torch.equal(plain.restored(), with_kernels.restored())
    for x, wanted in zip(xs, fast, strict=True):
        assert difference(plain.product(x), wanted) < TOLERANCE
        assert difference(with_kernels.product(x), wanted) < TOLERANCE


def test_no_int8_value_is_off_by_more_than_half_a_step_of_its_row() -> None:
    weight = normal(50, 100) * torch.logspace(-6, 3, 50)[:, None]
    largest = weight.abs().amax(1, keepdim=True)
    error = (quantise_int8(weight).restored() - weight).abs()
    assert bool((error <= largest / 127 / 2 + largest * 2**-8).all())


def test_no_int4_value_is_off_by_more_than_half_a_step_of_its_group() -> None:
    weight = normal(70, 4 * GROUP) * torch.logspace(-6, 3, 70)[:, None] + 0.01
    groups = weight.unflatten(1, (-1, GROUP))
    span, largest = groups.amax(2) - groups.amin(2), groups.abs().amax(2)
    error = (quantise_int4(weight, GROUP).restored() - weight).abs().unflatten(1, (-1, GROUP)).amax(2)
    assert bool((error <= span / 15 / 2 + largest * 2**-7).all())


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("value", [0.0, 1.0, -0.5])
def test_a_constant_weight_is_kept_exactly(kind: str, value: float) -> None:
    weight = MAKERS[kind](torch.full((33, 64), value))
    assert difference(weight.restored(), torch.full((33, 64), value)) < 2**-8
    assert bool(torch.isfinite(weight.product(normal(3, 64))).all())


@pytest.mark.parametrize("kind", MAKERS)
def test_large_weights_are_quantised_in_parts_that_make_the_same(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    weight = normal(300, 64)
    whole = MAKERS[kind](weight)
    x = normal(200, 64)
    product = whole.product(x)
    monkeypatch.setattr(int_weights, "SCRATCH_ELEMENTS", 70 * 64)
    monkeypatch.setattr(int_weights, "SPLIT_AT_ONCE", 7)
    parts = MAKERS[kind](weight)
    assert torch.equal(parts.restored(), whole.restored())
    torch.testing.assert_close(parts.product(x), product)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_means_the_same_whatever_its_neighbours(kind: str, dtype: torch.dtype) -> None:
    weight, x = MAKERS[kind](normal(96, 256)), normal(300, 256).to(dtype)
    x[5] *= 1000  # one row's size must not reach another's steps
    whole = weight.product(x).float()
    for rows in ROWS:
        assert difference(weight.product(x[:rows]), whole[:rows]) < TOLERANCE
        assert difference(weight.product(x[:1]), whole[:1]) < TOLERANCE


def test_rows_that_are_multiplied_as_integers_are_equal_to_the_bit_in_any_batch() -> None:
    if not int_weights.has_int8_product():
        pytest.skip("this CPU has no exact int8 product")
    weight, x = quantise_int8(normal(96, 256)), normal(300, 256)
    whole = weight.product(x)
    for rows in range(INT8_FEW_ROWS + 1, 300, 37):
        assert torch.equal(weight.product(x[:rows]), whole[:rows])


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_not_finite_in_one_row_stays_there(kind: str) -> None:
    weight = MAKERS[kind](normal(64, 64))
    for rows in (4, 20, 150):
        x = normal(rows, 64)
        clean = weight.product(x)
        x[2, 3] = float("nan")
        made = weight.product(x)
        kept = [row for row in range(rows) if row != 2]
        torch.testing.assert_close(made[kept], clean[kept])
        assert bool(made[2].isnan().any())


@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_are_counted_before_there_is_a_weight(shape: tuple[int, int]) -> None:
    weight = normal(*shape)
    made8, made4 = quantise_int8(weight), quantise_int4(weight, GROUP)
    assert isinstance(made8, Int8Weight)
    assert isinstance(made4, Int4Weight)
    assert made8.nbytes == int8_bytes(*shape) == made8.values.nbytes + made8.scales.nbytes
    assert made4.nbytes == int4_bytes(*shape, GROUP) == made4.packed.nbytes + made4.scales.nbytes


def test_units_that_saturate_and_builds_that_lack_kernels_are_noticed_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def saturating(a: Tensor, b: Tensor) -> Tensor:
        return (a.int() @ b.int()).clamp(-(2**15), 2**15 - 1)

    def absent(*_: object) -> Tensor:
        raise AttributeError

    monkeypatch.setattr(logging.getLogger("fovea"), "propagate", True)
    monkeypatch.setattr(torch, "_int_mm", saturating)
    monkeypatch.setattr(torch.ops.aten, "_weight_int8pack_mm", absent)
    monkeypatch.setattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu", absent)
    with caplog.at_level("INFO", logger="fovea"):
        assert not int_weights.has_int8_product.__wrapped__()
        assert not int_weights.has_int8_kernel.__wrapped__()
        assert int_weights.int4_kernel_block.__wrapped__() == 0
    assert [what in caplog.text for what in ("int8 product", "int8 kernel", "int4 kernel")] == [True] * 3
