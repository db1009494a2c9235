"""RMSNorm and LayerNorm: one program for each row, which it reads and writes once.

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
def _layer_norm(  # type: ignore[no-untyped-def]
    x, shift, weight, bias, out, eps, WIDTH: tl.constexpr, PADDED: tl.constexpr
):
    row, places = tl.program_id(0).to(tl.int64) * WIDTH, tl.arange(0, PADDED)
    real = places < WIDTH
    values = tl.load(x + row + places, mask=real, other=0.0).to(tl.float32)
    if shift is not None:
        values += tl.load(shift + places, mask=real, other=0.0)
    centred = tl.where(real, values - tl.sum(values, axis=0) / WIDTH, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / WIDTH + eps)
    factors = tl.load(weight + places, mask=real, other=0.0).to(tl.float32)
    shifts = tl.load(bias + places, mask=real, other=0.0).to(tl.float32)
    tl.store(out + row + places, (centred * scale * factors + shifts).to(out.dtype.element_ty), mask=real)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, shift: Tensor | None = None, *, num_warps: int | None = None
) -> Tensor:
    """LayerNorm of x [..., width], or of x + shift [width] in float32."""
    x, width = x.contiguous(), x.shape[-1]
    out = torch.empty_like(x)
    _layer_norm[(x.numel() // width,)](
        x, shift, weight, bias, out, eps, WIDTH=width, PADDED=triton.next_power_of_2(width),
        num_warps=num_warps or _num_warps(width // 2 + 1),  # the power of two below, measured for widths of towers
    )  # fmt: skip
    return out


def _num_warps(width: int) -> int:
    warps: int = triton.next_power_of_2(width) // (32 * VALUES_IN_THREAD)
    return min(MOST_WARPS, max(1, warps))
