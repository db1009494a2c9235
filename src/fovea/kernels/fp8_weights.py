"""Weights in float8_e4m3fn, made from ordinary ones, and what rows of activations in that type are.

A weight [N, K] has one float32 scale for each output row, a matrix of activations one for each of its rows: the
largest magnitude becomes 448, the type's largest. On CUDA a few rows are multiplied as they are (see few_rows); more
become float8, too, and go to torch's row-wise scaled product. Elsewhere blocks of the weight are restored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fovea.core.log import logger
from fovea.kernels.int_weights import SCRATCH_ELEMENTS, dense_dtype

FP8 = torch.float8_e4m3fn
LARGEST = 448.0  # of float8_e4m3fn
SIDE = 16  # inputs and outputs of a scaled product are multiples of it
TINY = 1e-12  # rows of zeros have a scale, too
# Tensor cores then add the products of some tens of values at a time to float32 ones; the fast way keeps some 14 bits
# throughout, which with thousands of inputs may cost as much as float8 itself does.
FAST_ACCUM = False
MADE_AT_ONCE = 16 * 1024**2  # elements of a weight that are float32 while it is made, on CUDA


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    values: Tensor  # float8_e4m3fn [N, K]
    scales: Tensor  # float32 [N]

    @property
    def nbytes(self) -> int:
        return fp8_bytes(*self.values.shape)

    def product(self, x: Tensor) -> Tensor:
        """x [rows, K] times the transposed weight, of which blocks are restored: [rows, N], in the type of x."""
        dtype = x.dtype if x.is_cuda or x.dtype == torch.float32 else dense_dtype(x.dtype)
        wide, out = x.to(dtype), x.new_empty(len(x), len(self.values))
        count = max(1, SCRATCH_ELEMENTS // x.shape[1])
        pairs = zip(self.values.split(count), self.scales.split(count), out.split(count, 1), strict=True)
        for values, scales, into in pairs:
            into.copy_(F.linear(wide, values.to(dtype)).float().mul_(scales))
        return out

    def scaled_product(self, rows: Tensor, steps: Tensor, dtype: torch.dtype) -> Tensor:
        """rows float8 [M, K] with scales float32 [M, 1]: [M, N], rounded to bfloat16 and returned as dtype. On CUDA."""
        made: Tensor = torch._scaled_mm(
            rows, self.values.t(), steps, self.scales[None], out_dtype=torch.bfloat16, use_fast_accum=FAST_ACCUM
        )
        return made.to(dtype)

    def restored(self) -> Tensor:
        """The weight that the values stand for [N, K], in float32."""
        return self.values.float() * self.scales[:, None]


def fp8_of(linear: nn.Module) -> Fp8Weight | None:
    """A layer's weight if it is in float8."""
    weight = None if isinstance(linear, nn.Linear) else getattr(linear, "weight", None)
    return weight if isinstance(weight, Fp8Weight) else None


def stored(linear: nn.Module) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Weight, bias, and of a weight in float8 its scales."""
    if (fp8 := fp8_of(linear)) is None:
        return *parameters(linear), None
    assert linear.bias is None or isinstance(linear.bias, Tensor)
    return fp8.values, linear.bias, fp8.scales


def parameters(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer that stays as it is."""
    assert isinstance(linear, nn.Linear), "on CUDA this layer stays as it is"
    return linear.weight, linear.bias


def with_bias(made: Tensor, linear: nn.Module) -> Tensor:
    """The bias is added in place."""
    assert linear.bias is None or isinstance(linear.bias, Tensor)
    return made if linear.bias is None else made.add_(linear.bias)


def fp8_bytes(rows: int, width: int) -> int:
    return rows * width + 4 * rows


def fits_fp8(rows: int, width: int) -> bool:
    """Whether a weight [rows, width] has a scaled product."""
    return rows % SIDE == 0 and width % SIDE == 0


def quantise_fp8(weight: Tensor) -> Fp8Weight:
    """weight [N, K] of any float type. No value is off by more than 1/16 of itself, or 2^-10 of its row's scale."""
    values = torch.empty(weight.shape, dtype=FP8, device=weight.device)
    scales = weight.new_empty(len(weight), dtype=torch.float32)
    count = max(1, (MADE_AT_ONCE if weight.is_cuda else SCRATCH_ELEMENTS) // weight.shape[1])
    for some, into, its in zip(weight.split(count), values.split(count), scales.split(count), strict=True):
        made, steps = quantise_rows(some)
        into.copy_(made)
        its.copy_(steps[:, 0])
    return Fp8Weight(values, scales)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [M, K] of any float type to float8 [M, K] and a float32 scale for each row [M, 1]; the plain form."""
    wide = x.float()
    steps = wide.abs().amax(1, keepdim=True).clamp_min_(TINY).div_(LARGEST)
    return (wide / steps).clamp_(-LARGEST, LARGEST).to(FP8), steps


def norm_rows(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The RMSNorm of x [M, K], quantised; the plain form."""
    return quantise_rows(F.rms_norm(x.float(), weight.shape, weight.float(), eps))


def silu_mul_rows(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """silu(gate) * up of rows [M, 2 * F], quantised [M, F]; the plain form."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return quantise_rows(F.silu(gate) * up)


@cache
def has_scaled_product(device: torch.device) -> bool:
    """Whether this torch multiplies float8 by rows on that GPU."""
    try:
        rows = torch.zeros(SIDE, SIDE, dtype=FP8, device=device)
        ones = torch.ones(SIDE, 1, device=device)
        torch._scaled_mm(rows, rows.t(), ones, ones.t(), out_dtype=torch.bfloat16, use_fast_accum=FAST_ACCUM)
    except (AttributeError, RuntimeError, ValueError) as error:
        logger.warning("no row-wise product of float8 here, weights are restored for every product: %s", error)
        return False
    return True
