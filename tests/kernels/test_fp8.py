"""Float8 weights: how exact they are, and that kernels equal their plain twins."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from fovea.kernels.fp8_weights import fits_fp8, fp8_bytes, norm_rows, quantise_fp8, quantise_rows, silu_mul_rows
from fovea.kernels.reference import rms_norm, silu_mul


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed on this platform")
def test_every_float8_kernel_equals_its_plain_twin() -> None:
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "tests.kernels.compare_fp8"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "equal"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_value_of_a_weight_is_off_by_more_than_a_sixteenth(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(37, 64).mul_(torch.logspace(-3, 1, 37)[:, None]).to(dtype)
    weight[5] = 0
    made = quantise_fp8(weight)
    off = (made.restored() - weight.float()).abs()
    assert (off <= weight.float().abs() / 15.9 + made.scales[:, None] * 2**-10).all()
    assert made.values.nbytes + made.scales.nbytes == made.nbytes == fp8_bytes(37, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 5, 70])
def test_products_on_a_cpu_are_those_of_the_restored_weight(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    made, x = quantise_fp8(torch.randn(48, 96)), torch.randn(rows, 96).to(dtype)
    product, wanted = made.product(x), x.float() @ made.restored().t()
    assert product.dtype == dtype
    torch.testing.assert_close(product.float(), wanted, atol=1e-4 if dtype == torch.float32 else 0.5, rtol=1e-2)


def test_rows_are_quantised_with_what_precedes_them() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 64), torch.randn(32)
    for (values, steps), wanted in (
        (quantise_rows(x), x),
        (norm_rows(x[:, :32], weight, 1e-5), rms_norm(x[:, :32], weight, 1e-5)),
        (silu_mul_rows(x), silu_mul(x)),
    ):
        torch.testing.assert_close(values.float() * steps, wanted, atol=2e-3, rtol=1 / 15)


def test_sides_are_multiples_of_16() -> None:
    assert fits_fp8(16, 48)
    assert not fits_fp8(24, 48)
    assert not fits_fp8(48, 24)
