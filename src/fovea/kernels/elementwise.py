"""Small operations in one pass over memory each: rotary positions (and the KV write), SiLU times up, quick GELU.

Programs are large enough that each thread has several loads of 16 bytes under way; offsets inside a program are 32-bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fovea.kernels.batch import AttentionBatch
from fovea.kernels.early import can_start_early, wait
from fovea.kernels.fp8_weights import LARGEST, TINY
from fovea.kernels.kv_pages import Pages, split
from fovea.kernels.reference import QUICK_GELU_SLOPE

GATES_AT_ONCE = 2048
VALUES_AT_ONCE = 4096
HEADS_AT_ONCE = 32  # of a patch
NEW_HEADS_AT_ONCE = 16  # of a token


@triton.jit
def _rotate(low, high, c, s):  # type: ignore[no-untyped-def]
    """In float32, rounded once."""
    x, y = low.to(tl.float32), high.to(tl.float32)
    return (x * c - y * s).to(low.dtype), (y * c + x * s).to(high.dtype)


@triton.jit(do_not_specialize=["position_stride"])
def _rotary(  # type: ignore[no-untyped-def]
    positions, regimes, inv_freq, scales, cos, sin, position_stride, SECOND: tl.constexpr, THIRD: tl.constexpr,
    HALF: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    token, dims = tl.program_id(0), tl.arange(0, PADDED)
    real = dims < HALF
    row = (dims >= SECOND).to(tl.int32) + (dims >= THIRD).to(tl.int32)
    regime = tl.load(regimes + token).to(tl.int32)
    place = tl.load(positions + row * position_stride + token, mask=real, other=0).to(tl.float32)
    angles = place * tl.load(inv_freq + regime * HALF + dims, mask=real, other=0.0)
    scale = tl.load(scales + regime)
    tl.store(cos + token * HALF + dims, tl.cos(angles) * scale, mask=real)
    tl.store(sin + token * HALF + dims, tl.sin(angles) * scale, mask=real)


def rotary(
    positions: Tensor, regimes: Tensor, inv_freq: Tensor, scales: Tensor, sections: tuple[int, ...] | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See reference.rotary; the rows of positions may lie apart."""
    num_tokens, half = positions.shape[1], inv_freq.shape[1]
    assert positions.stride(1) == 1 or num_tokens == 1
    second, third = (half, half) if sections is None else (sections[0], sections[0] + sections[1])
    cos, sin = inv_freq.new_empty(2, num_tokens, half)
    _rotary[(num_tokens,)](
        positions, regimes, inv_freq, scales, cos, sin, positions.stride(0), SECOND=second, THIRD=third, HALF=half,
        PADDED=triton.next_power_of_2(half), num_warps=1,
    )  # fmt: skip
    return cos, sin


@triton.jit
def _store_rows(  # type: ignore[no-untyped-def]
    cache, scales, slot, head, low, high, dims, is_head,
    KV_HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK_SIZE: tl.constexpr, LARGEST: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """Both halves [TILE, PADDED] of those heads [TILE, 1] that are some, at a token's slot."""
    wanted = is_head & (dims < HALF)
    if scales is not None:
        low, high = low.to(tl.float32), high.to(tl.float32)
        largest = tl.max(tl.maximum(tl.abs(low), tl.abs(high)), axis=1, keep_dims=True)
        step = tl.maximum(largest, TINY) / LARGEST
        low, high = low / step, high / step
        at_scale = (slot // BLOCK_SIZE * KV_HEADS + head) * BLOCK_SIZE + slot % BLOCK_SIZE
        tl.store(scales + at_scale, step, mask=is_head)
    at = cache + (slot * KV_HEADS + head) * 2 * HALF + dims
    tl.store(at, low.to(cache.dtype.element_ty), mask=wanted)
    tl.store(at + HALF, high.to(cache.dtype.element_ty), mask=wanted)


@triton.jit
def _rotate_and_store(  # type: ignore[no-untyped-def]
    qkv, cos, sin, slots, q_out, k_cache, k_scales, v_cache, v_scales,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, LARGEST: tl.constexpr, TINY: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    heads, dims = (tl.program_id(1) * TILE + tl.arange(0, TILE))[:, None], tl.arange(0, PADDED)[None, :]
    key, value = heads - HEADS, heads - HEADS - KV_HEADS
    real = dims < HALF
    wait(EARLY)
    row = qkv + token * (HEADS + 2 * KV_HEADS) * 2 * HALF + heads * 2 * HALF + dims
    low = tl.load(row, mask=real & (value < KV_HEADS), other=0.0)
    high = tl.load(row + HALF, mask=real & (value < KV_HEADS), other=0.0)
    c = tl.load(cos + token * HALF + dims, mask=real, other=0.0)
    s = tl.load(sin + token * HALF + dims, mask=real, other=0.0)
    turned_low, turned_high = _rotate(low, high, c, s)
    slot = tl.load(slots + token).to(tl.int64)
    to_q = q_out + token * HEADS * 2 * HALF + heads * 2 * HALF + dims
    tl.store(to_q, turned_low, mask=real & (key < 0))
    tl.store(to_q + HALF, turned_high, mask=real & (key < 0))
    is_key, is_value = (key >= 0) & (value < 0), (value >= 0) & (value < KV_HEADS)
    _store_rows(
        k_cache, k_scales, slot, key, turned_low, turned_high, dims, is_key, KV_HEADS, HALF, BLOCK_SIZE, LARGEST, TINY
    )
    _store_rows(v_cache, v_scales, slot, value, low, high, dims, is_value, KV_HEADS, HALF, BLOCK_SIZE, LARGEST, TINY)


def rotate_and_store(
    qkv: Tensor, num_heads: int, k_cache: Pages, v_cache: Pages, batch: AttentionBatch,
    *, heads_at_once: int = NEW_HEADS_AT_ONCE, num_warps: int = 4,
) -> Tensor:  # fmt: skip
    """qkv [T, N + 2 G, D] to rotated queries [T, N, D]; rotated keys and values go to the pages."""
    num_tokens, all_heads, head_dim = qkv.shape
    early = can_start_early(qkv)
    q = torch.empty(num_tokens, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    _rotate_and_store[(num_tokens, triton.cdiv(all_heads, heads_at_once))](
        qkv, batch.cos, batch.sin, batch.slots, q, *split(k_cache), *split(v_cache),
        HEADS=num_heads, KV_HEADS=(all_heads - num_heads) // 2, HALF=head_dim // 2,
        PADDED=triton.next_power_of_2(head_dim // 2), TILE=heads_at_once, BLOCK_SIZE=k_cache.shape[1],
        LARGEST=LARGEST, TINY=TINY, EARLY=early, launch_pdl=early, num_warps=num_warps,
    )  # fmt: skip
    return q


@triton.jit
def _silu_mul(gate_up, out, width, COLUMNS: tl.constexpr, EARLY: tl.constexpr):  # type: ignore[no-untyped-def]
    row, columns = tl.program_id(0).to(tl.int64) * width, tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = columns < width
    wait(EARLY)
    gate = tl.load(gate_up + 2 * row + columns, mask=real, other=0.0)
    up = tl.load(gate_up + 2 * row + width + columns, mask=real, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    tl.store(out + row + columns, silu * up, mask=real)


def silu_mul(gate_up: Tensor, *, columns_at_once: int = GATES_AT_ONCE, num_warps: int = 4) -> Tensor:
    """[T, 2 F] to [T, F]; SiLU in float32, rounded before the product as torch does."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    early = can_start_early(gate_up)
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    _silu_mul[(rows, triton.cdiv(width, columns_at_once))](
        gate_up, out, width, COLUMNS=columns_at_once, EARLY=early, launch_pdl=early, num_warps=num_warps
    )
    return out


@triton.jit
def _quick_gelu(x, out, count, slope, VALUES: tl.constexpr):  # type: ignore[no-untyped-def]
    start, places = tl.program_id(0).to(tl.int64) * VALUES, tl.arange(0, VALUES)
    real = places < count - start
    value = tl.load(x + start + places, mask=real, other=0.0)
    wide = value.to(tl.float32)
    tl.store(out + start + places, (wide / (1.0 + tl.exp(-slope * wide))).to(value.dtype), mask=real)


def quick_gelu(x: Tensor, *, values_at_once: int = VALUES_AT_ONCE, num_warps: int = 4) -> Tensor:
    """In float32 inside, rounded once."""
    x = x.contiguous()
    out, count = torch.empty_like(x), x.numel()
    grid = (triton.cdiv(count, values_at_once),)
    _quick_gelu[grid](x, out, count, QUICK_GELU_SLOPE, VALUES=values_at_once, num_warps=num_warps)
    return out


@triton.jit
def _rotate_qk(  # type: ignore[no-untyped-def]
    qkv, cos, sin, ALL_HEADS: tl.constexpr, TURNED: tl.constexpr, HALF: tl.constexpr, PADDED: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    patch = tl.program_id(0).to(tl.int64)
    heads, dims = (tl.program_id(1) * TILE + tl.arange(0, TILE))[:, None], tl.arange(0, PADDED)[None, :]
    real = (heads < TURNED) & (dims < HALF)
    at = qkv + patch * ALL_HEADS * 2 * HALF + heads * 2 * HALF + dims
    low, high = tl.load(at, mask=real, other=0.0), tl.load(at + HALF, mask=real, other=0.0)
    c = tl.load(cos + patch * HALF + dims, mask=dims < HALF, other=0.0)
    s = tl.load(sin + patch * HALF + dims, mask=dims < HALF, other=0.0)
    low, high = _rotate(low, high, c, s)
    tl.store(at, low, mask=real)
    tl.store(at + HALF, high, mask=real)


def rotate_qk(
    qkv: Tensor, cos: Tensor, sin: Tensor, *, heads_at_once: int = HEADS_AT_ONCE, num_warps: int = 4
) -> Tensor:
    """In place: [P, 3 heads, D], contiguous; the value heads are not touched."""
    num_patches, all_heads, head_dim = qkv.shape
    turned = 2 * all_heads // 3
    _rotate_qk[(num_patches, triton.cdiv(turned, heads_at_once))](
        qkv, cos, sin, ALL_HEADS=all_heads, TURNED=turned, HALF=head_dim // 2,
        PADDED=triton.next_power_of_2(head_dim // 2), TILE=heads_at_once, num_warps=num_warps,
    )  # fmt: skip
    return qkv
