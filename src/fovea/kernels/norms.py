"""RMSNorm, and LayerNorm with the sum before it: one program for each row, which it reads and writes once.

Statistics are taken in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fovea.kernels.early import can_start_early, wait

VALUES_IN_THREAD = 16  # of a row: two loads of 16 bytes
MOST_WARPS = 8


@triton.jit
def _rms_norm(  # type: ignore[no-untyped-def]
    x, weight, out, eps, WIDTH: tl.constexpr, PADDED: tl.constexpr, EARLY: tl.constexpr
):
    row, places = tl.program_id(0).to(tl.int64) * WIDTH, tl.arange(0, PADDED)
    real = places < WIDTH
    factors = tl.load(weight + places, mask=real, other=0.0).to(tl.float32)
    wait(EARLY)
    values = tl.load(x + row + places, mask=real, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / WIDTH + eps)
    tl.store(out + row + places, (values * scale * factors).to(out.dtype.element_ty), mask=real)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, num_warps: int | None = None) -> Tensor:
    """[..., width] to the same."""
    x, width = x.contiguous(), x.shape[-1]
    out, early = torch.empty_like(x), can_start_early(x)
    _rms_norm[(x.numel() // width,)](
        x, weight, out, eps, WIDTH=width, PADDED=triton.next_power_of_2(width), EARLY=early, launch_pdl=early,
        num_warps=num_warps or _num_warps(width),
    )  # fmt: skip
    return out


@triton.jit
def _add_layer_norm(  # type: ignore[no-untyped-def]
    x, y, weight, bias, out, eps, WIDTH: tl.constexpr, PADDED: tl.constexpr
):
    row, places = tl.program_id(0).to(tl.int64) * WIDTH, tl.arange(0, PADDED)
    real = places < WIDTH
    values = tl.load(x + row + places, mask=real, other=0.0)
    if y is not None:
        added = values.to(tl.float32) + tl.load(y + row + places, mask=real, other=0.0).to(tl.float32)
        values = added.to(values.dtype)
        tl.store(x + row + places, values, mask=real)
    wide = values.to(tl.float32)
    centred = tl.where(real, wide - tl.sum(wide, axis=0) / WIDTH, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / WIDTH + eps)
    factors = tl.load(weight + places, mask=real, other=0.0).to(tl.float32)
    shifts = tl.load(bias + places, mask=real, other=0.0).to(tl.float32)
    tl.store(out + row + places, (centred * scale * factors + shifts).to(out.dtype.element_ty), mask=real)


def add_layer_norm(
    x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, eps: float, *, num_warps: int | None = None
) -> tuple[Tensor, Tensor]:
    """x + y, which takes the place of x, and its LayerNorm, all [P, width]. Without y: x and its LayerNorm."""
    width = x.shape[-1]
    assert x.is_contiguous(), "the sum is written over x"
    out = torch.empty_like(x)
    _add_layer_norm[(x.numel() // width,)](
        x, None if y is None else y.contiguous(), weight, bias, out, eps, WIDTH=width,
        PADDED=triton.next_power_of_2(width), num_warps=num_warps or _num_warps(width),
    )  # fmt: skip
    return x, out


def _num_warps(width: int) -> int:
    warps: int = triton.next_power_of_2(width) // (32 * VALUES_IN_THREAD)
    return min(MOST_WARPS, max(1, warps))
