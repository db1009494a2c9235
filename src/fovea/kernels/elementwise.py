"""Small operations in one pass over memory each: rotary positions (with the KV write), SiLU times up, quick GELU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fovea.kernels.batch import AttentionBatch
from fovea.kernels.reference import QUICK_GELU_SLOPE

COLUMNS_AT_ONCE = 1024
HEADS_AT_ONCE = 8


@triton.jit
def _rotate_and_store(  # type: ignore[no-untyped-def]
    qkv, cos, sin, slots, q_out, k_cache, v_cache,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0), tl.program_id(1)
    dims = tl.arange(0, PADDED)
    real = dims < HALF
    row = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * 2 * HALF
    low = tl.load(row + dims, mask=real, other=0.0)
    high = tl.load(row + HALF + dims, mask=real, other=0.0)
    if head < HEADS + KV_HEADS:
        c = tl.load(cos + token * HALF + dims, mask=real, other=0.0)
        s = tl.load(sin + token * HALF + dims, mask=real, other=0.0)
        x, y = low.to(tl.float32), high.to(tl.float32)
        low = (x * c - y * s).to(low.dtype)
        high = (y * c + x * s).to(high.dtype)
    slot = tl.load(slots + token)
    if head < HEADS:
        target = q_out + (token * HEADS + head) * 2 * HALF
    elif head < HEADS + KV_HEADS:
        target = k_cache + (slot * KV_HEADS + head - HEADS) * 2 * HALF
    else:
        target = v_cache + (slot * KV_HEADS + head - HEADS - KV_HEADS) * 2 * HALF
    tl.store(target + dims, low, mask=real)
    tl.store(target + HALF + dims, high, mask=real)


def rotate_and_store(qkv: Tensor, num_heads: int, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch) -> Tensor:
    """qkv [T, N + 2 G, D] to rotated queries [T, N, D]; rotated keys and values go to the pages."""
    num_tokens, all_heads, head_dim = qkv.shape
    q = torch.empty(num_tokens, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    _rotate_and_store[(num_tokens, all_heads)](
        qkv, batch.cos, batch.sin, batch.slots, q, k_cache, v_cache,
        HEADS=num_heads, KV_HEADS=(all_heads - num_heads) // 2, HALF=head_dim // 2,
        PADDED=triton.next_power_of_2(head_dim // 2), num_warps=1,
    )  # fmt: skip
    return q


@triton.jit
def _silu_mul(gate_up, out, width, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    row, columns = tl.program_id(0), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = columns < width
    gate = tl.load(gate_up + row.to(tl.int64) * 2 * width + columns, mask=real, other=0.0)
    up = tl.load(gate_up + row.to(tl.int64) * 2 * width + width + columns, mask=real, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    tl.store(out + row.to(tl.int64) * width + columns, silu * up, mask=real)


def silu_mul(gate_up: Tensor) -> Tensor:
    """[T, 2 F] to [T, F]; SiLU in float32, rounded before the product as torch does."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    grid = (rows, triton.cdiv(width, COLUMNS_AT_ONCE))
    _silu_mul[grid](gate_up, out, width, COLUMNS=COLUMNS_AT_ONCE, num_warps=4)
    return out


@triton.jit
def _quick_gelu(x, out, count, slope, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    places = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    real = places < count
    value = tl.load(x + places, mask=real, other=0.0)
    wide = value.to(tl.float32)
    tl.store(out + places, (wide / (1.0 + tl.exp(-slope * wide))).to(value.dtype), mask=real)


def quick_gelu(x: Tensor) -> Tensor:
    """In float32 inside, rounded once."""
    x = x.contiguous()
    out = torch.empty_like(x)
    grid = (triton.cdiv(x.numel(), COLUMNS_AT_ONCE),)
    _quick_gelu[grid](x, out, x.numel(), QUICK_GELU_SLOPE, COLUMNS=COLUMNS_AT_ONCE, num_warps=4)
    return out


@triton.jit
def _rotate_qk(  # type: ignore[no-untyped-def]
    qkv, cos, sin, ALL_HEADS: tl.constexpr, TURNED: tl.constexpr, HALF: tl.constexpr, PADDED: tl.constexpr,
    HEADS: tl.constexpr,
):  # fmt: skip
    patch, heads = tl.program_id(0).to(tl.int64), tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    dims = tl.arange(0, PADDED)
    real = (heads < TURNED)[:, None] & (dims < HALF)[None, :]
    at = qkv + (patch * ALL_HEADS + heads)[:, None] * 2 * HALF + dims[None, :]
    low, high = tl.load(at, mask=real, other=0.0), tl.load(at + HALF, mask=real, other=0.0)
    c = tl.load(cos + patch * HALF + dims, mask=dims < HALF, other=0.0)[None, :]
    s = tl.load(sin + patch * HALF + dims, mask=dims < HALF, other=0.0)[None, :]
    x, y = low.to(tl.float32), high.to(tl.float32)
    tl.store(at, (x * c - y * s).to(low.dtype), mask=real)
    tl.store(at + HALF, (y * c + x * s).to(high.dtype), mask=real)


def rotate_qk(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """In place: [P, 3 heads, D], contiguous."""
    num_patches, all_heads, head_dim = qkv.shape
    turned = 2 * all_heads // 3
    _rotate_qk[(num_patches, triton.cdiv(turned, HEADS_AT_ONCE))](
        qkv, cos, sin, ALL_HEADS=all_heads, TURNED=turned, HALF=head_dim // 2,
        PADDED=triton.next_power_of_2(head_dim // 2), HEADS=HEADS_AT_ONCE, num_warps=4,
    )  # fmt: skip
    return qkv
