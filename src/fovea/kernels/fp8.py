"""Rows of activations in float8 with a scale each, made in one pass with what precedes: RMSNorm, SiLU times up.

One program for each row, which it reads and writes once; everything in between is float32. The plain twins are in
fp8_weights.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fovea.kernels.early import can_start_early, wait
from fovea.kernels.fp8_weights import FP8, LARGEST, TINY

VALUES_IN_THREAD = 16
MOST_WARPS = 16


@triton.jit
def _store(wide, out, steps, places, real, WIDTH: tl.constexpr, LARGEST: tl.constexpr, TINY: tl.constexpr):  # type: ignore[no-untyped-def]
    """A row in float32, zero where it is not real, and its scale."""
    row = tl.program_id(0).to(tl.int64)
    step = tl.maximum(tl.max(tl.abs(wide), axis=0), TINY) / LARGEST
    tl.store(steps + row, step)
    tl.store(out + row * WIDTH + places, (wide / step).to(out.dtype.element_ty), mask=real)


@triton.jit
def _quantise_rows(  # type: ignore[no-untyped-def]
    x, out, steps, WIDTH: tl.constexpr, PADDED: tl.constexpr, LARGEST: tl.constexpr, TINY: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    row, places = tl.program_id(0).to(tl.int64) * WIDTH, tl.arange(0, PADDED)
    real = places < WIDTH
    wait(EARLY)
    values = tl.load(x + row + places, mask=real, other=0.0).to(tl.float32)
    _store(values, out, steps, places, real, WIDTH, LARGEST, TINY)


@triton.jit
def _norm_rows(  # type: ignore[no-untyped-def]
    x, weight, out, steps, eps, WIDTH: tl.constexpr, PADDED: tl.constexpr, LARGEST: tl.constexpr, TINY: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    row, places = tl.program_id(0).to(tl.int64) * WIDTH, tl.arange(0, PADDED)
    real = places < WIDTH
    factors = tl.load(weight + places, mask=real, other=0.0).to(tl.float32)
    wait(EARLY)
    values = tl.load(x + row + places, mask=real, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / WIDTH + eps)
    _store(values * scale * factors, out, steps, places, real, WIDTH, LARGEST, TINY)


@triton.jit
def _silu_mul_rows(  # type: ignore[no-untyped-def]
    gate_up, out, steps, WIDTH: tl.constexpr, PADDED: tl.constexpr, LARGEST: tl.constexpr, TINY: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    row, places = tl.program_id(0).to(tl.int64) * 2 * WIDTH, tl.arange(0, PADDED)
    real = places < WIDTH
    wait(EARLY)
    gate = tl.load(gate_up + row + places, mask=real, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row + WIDTH + places, mask=real, other=0.0).to(tl.float32)
    _store(gate / (1.0 + tl.exp(-gate)) * up, out, steps, places, real, WIDTH, LARGEST, TINY)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """See fp8_weights.quantise_rows."""
    x, width = x.contiguous(), x.shape[1]
    out, steps = _places(x, width)
    _quantise_rows[(len(x),)](x, out, steps, **_options(x, width))
    return out, steps


def norm_rows(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See fp8_weights.norm_rows."""
    x, width = x.contiguous(), x.shape[1]
    out, steps = _places(x, width)
    _norm_rows[(len(x),)](x, weight, out, steps, eps, **_options(x, width))
    return out, steps


def silu_mul_rows(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """See fp8_weights.silu_mul_rows."""
    gate_up, width = gate_up.contiguous(), gate_up.shape[1] // 2
    out, steps = _places(gate_up, width)
    _silu_mul_rows[(len(gate_up),)](gate_up, out, steps, **_options(gate_up, width))
    return out, steps


def _places(x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    made = torch.empty(len(x), width, dtype=FP8, device=x.device)
    return made, torch.empty(len(x), 1, dtype=torch.float32, device=x.device)


def _options(x: Tensor, width: int) -> dict[str, int | float | bool]:
    """The constants of a launch."""
    padded, early = triton.next_power_of_2(width), can_start_early(x)
    return {
        "WIDTH": width, "PADDED": padded, "LARGEST": LARGEST, "TINY": TINY, "EARLY": early, "launch_pdl": early,
        "num_warps": min(MOST_WARPS, max(1, padded // (32 * VALUES_IN_THREAD))),
    }  # fmt: skip
