"""Linear layers of a few rows (decode of one or a few sequences): each weight is read once, at the speed of memory.

A program holds a few rows of the weight in its registers, all its loads of 16 bytes under way at once and begun before
the kernel that makes x has ended; then it takes the rows of x one after another. What surrounds the layer is done in
passing: the RMSNorm before it; the residual sum, SiLU times up, or rotary positions and the KV write after it. All of
that is in float32, rounded once at the end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fovea.kernels.batch import AttentionBatch
from fovea.kernels.early import can_start_early, wait

ROW_BYTES_OF_THREAD = 64  # four loads of a weight's row
TILE_BYTES_OF_THREAD = 256  # half its registers
FEWER = 2  # with several rows of x the weights are kept in float32: that many times fewer
MOST_WARPS = 8
MOST_OUTPUTS = 4  # more programs share the work more evenly


class Tile(NamedTuple):
    """What one program holds of the weight, and how many share it: a sweep varies it."""

    outputs: int  # rows, or pairs of rows
    warps: int


def tile_for(num_rows: int, width: int, element_bytes: int, *, paired: bool) -> Tile:
    padded: int = triton.next_power_of_2(width)
    warps = min(MOST_WARPS, max(1, padded * element_bytes // (32 * ROW_BYTES_OF_THREAD)))
    row_bytes = width * element_bytes // (32 * warps)
    outputs = TILE_BYTES_OF_THREAD // max(1, row_bytes) // (1 if num_rows == 1 else FEWER) // (1 + paired)
    return Tile(1 << max(0, min(outputs, MOST_OUTPUTS).bit_length() - 1), warps)


@triton.jit
def _weights(weight, rows, span, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Those rows of the weight [rows, span]."""
    at = weight + rows.to(tl.int64)[:, None] * WIDTH + span
    return tl.load(at, mask=span < WIDTH, other=0.0, eviction_policy="evict_first")


@triton.jit
def _times(weights, values):  # type: ignore[no-untyped-def]
    return tl.sum(weights.to(tl.float32) * values, axis=1)


@triton.jit
def _scaled(sums, scales, rows):  # type: ignore[no-untyped-def]
    """Products with those rows of the weight, where it has a scale for each of them (float8)."""
    if scales is not None:
        sums *= tl.load(scales + rows)
    return sums


@triton.jit
def _norm(values, factors, eps, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """A row [1, span] times the norm's weight, and what its products are still to be multiplied by."""
    return values * factors, tl.rsqrt(tl.sum(values * values, axis=1) / WIDTH + eps)


@triton.jit
def _linear(  # type: ignore[no-untyped-def]
    x, weight, scales, bias, residual, out, num_rows, num_outputs,
    WIDTH: tl.constexpr, SPAN: tl.constexpr, OUTPUTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    outputs, span = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, SPAN)[None, :]
    real, wanted = outputs < num_outputs, tl.minimum(outputs, num_outputs - 1)
    weights = _weights(weight, wanted, span, WIDTH)
    wait(EARLY)
    for row in range(num_rows):
        values = tl.load(x + row * WIDTH + span, mask=span < WIDTH, other=0.0).to(tl.float32)
        added = tl.zeros([OUTPUTS], tl.float32)
        if bias is not None:
            added += tl.load(bias + wanted).to(tl.float32)
        if residual is not None:
            added += tl.load(residual + row * num_outputs + wanted).to(tl.float32)
        sums = (_scaled(_times(weights, values), scales, wanted) + added).to(x.dtype.element_ty)
        tl.store(out + row * num_outputs + outputs, sums.to(out.dtype.element_ty), mask=real)


@triton.jit
def _norm_gate_up(  # type: ignore[no-untyped-def]
    x, norm_weight, weight, scales, out, num_rows, num_outputs, eps,
    WIDTH: tl.constexpr, SPAN: tl.constexpr, OUTPUTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    outputs, span = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, SPAN)[None, :]
    real, wanted = outputs < num_outputs, tl.minimum(outputs, num_outputs - 1)
    gates = _weights(weight, wanted, span, WIDTH)
    ups = _weights(weight, wanted + num_outputs, span, WIDTH)
    factors = tl.load(norm_weight + span, mask=span < WIDTH, other=0.0).to(tl.float32)
    wait(EARLY)
    for row in range(num_rows):
        values = tl.load(x + row * WIDTH + span, mask=span < WIDTH, other=0.0).to(tl.float32)
        values, scale = _norm(values, factors, eps, WIDTH)
        gate = _scaled(_times(gates, values) * scale, scales, wanted)
        up = _scaled(_times(ups, values) * scale, scales, wanted + num_outputs)
        gated = gate / (1.0 + tl.exp(-gate)) * up
        tl.store(out + row * num_outputs + outputs, gated.to(out.dtype.element_ty), mask=real)


@triton.jit
def _norm_qkv(  # type: ignore[no-untyped-def]
    x, norm_weight, weight, scales, bias, cos, sin, slots, q_out, k_cache, v_cache, num_rows, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    WIDTH: tl.constexpr, SPAN: tl.constexpr, OUTPUTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """An output is a pair of values that turn against each other: dimensions d and d + HALF of a head."""
    num_pairs: tl.constexpr = (HEADS + 2 * KV_HEADS) * HALF
    pairs, span = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, SPAN)[None, :]
    real, wanted = pairs < num_pairs, tl.minimum(pairs, num_pairs - 1)
    head, dim = wanted // HALF, wanted % HALF
    first = head * 2 * HALF + dim
    is_query, is_value = head < HEADS, head >= HEADS + KV_HEADS
    lows, highs = _weights(weight, first, span, WIDTH), _weights(weight, first + HALF, span, WIDTH)
    factors = tl.load(norm_weight + span, mask=span < WIDTH, other=0.0).to(tl.float32)
    wait(EARLY)
    for row in range(num_rows):
        values = tl.load(x + row * WIDTH + span, mask=span < WIDTH, other=0.0).to(tl.float32)
        c = tl.load(cos + row * HALF + dim, mask=head < HEADS + KV_HEADS, other=1.0)
        s = tl.load(sin + row * HALF + dim, mask=head < HEADS + KV_HEADS, other=0.0)
        slot = tl.load(slots + row).to(tl.int64) * KV_HEADS * 2 * HALF
        values, scale = _norm(values, factors, eps, WIDTH)
        low = _scaled(_times(lows, values) * scale, scales, first)
        high = _scaled(_times(highs, values) * scale, scales, first + HALF)
        if bias is not None:
            low += tl.load(bias + first).to(tl.float32)
            high += tl.load(bias + first + HALF).to(tl.float32)
        low, high = (low * c - high * s).to(x.dtype.element_ty), (high * c + low * s).to(x.dtype.element_ty)
        to_q = q_out + row * HEADS * 2 * HALF + first
        tl.store(to_q, low, mask=real & is_query)
        tl.store(to_q + HALF, high, mask=real & is_query)
        to_k = k_cache + slot + first - HEADS * 2 * HALF
        tl.store(to_k, low, mask=real & (head >= HEADS) & (head < HEADS + KV_HEADS))
        tl.store(to_k + HALF, high, mask=real & (head >= HEADS) & (head < HEADS + KV_HEADS))
        to_v = v_cache + slot + first - (HEADS + KV_HEADS) * 2 * HALF
        tl.store(to_v, low, mask=real & is_value)
        tl.store(to_v + HALF, high, mask=real & is_value)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, scales: Tensor | None = None,
    residual: Tensor | None = None, dtype: torch.dtype | None = None, tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """x [T, K] times weight [F, K]: [T, F], rounded to x's type and returned as `dtype`.

    scales: float32 [F], of a weight in float8.
    With a residual [T, F] the sum is formed before rounding and takes the residual's place.
    """
    num_rows, num_outputs = x.shape[0], weight.shape[0]
    out = residual if residual is not None else x.new_empty(num_rows, num_outputs, dtype=dtype or x.dtype)
    options = _options(x, tile or _tile_for(x, weight, paired=False))
    _linear[(triton.cdiv(num_outputs, options["OUTPUTS"]),)](
        x.contiguous(), weight, scales, bias, residual, out, num_rows, num_outputs, **options
    )
    return out


def norm_gate_up(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor,
    *, scales: Tensor | None = None, tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """x [T, K], normed, times weight [2 F, K], then silu(gate) * up: [T, F]."""
    num_rows, num_outputs = x.shape[0], weight.shape[0] // 2
    out = x.new_empty(num_rows, num_outputs)
    options = _options(x, tile or _tile_for(x, weight, paired=True))
    _norm_gate_up[(triton.cdiv(num_outputs, options["OUTPUTS"]),)](
        x.contiguous(), norm_weight, weight, scales, out, num_rows, num_outputs, eps, **options
    )
    return out


def norm_qkv(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None, num_heads: int,
    k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch,
    *, scales: Tensor | None = None, tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """x [T, K], normed and projected: rotated queries [T, N, D]; rotated keys, and values, go to the pages."""
    num_kv_heads, head_dim = k_cache.shape[2:]
    q = x.new_empty(x.shape[0], num_heads, head_dim)
    options = _options(x, tile or _tile_for(x, weight, paired=True))
    _norm_qkv[(triton.cdiv(weight.shape[0] // 2, options["OUTPUTS"]),)](
        x.contiguous(), norm_weight, weight, scales, bias, batch.cos, batch.sin, batch.slots, q, k_cache, v_cache,
        x.shape[0], eps, HEADS=num_heads, KV_HEADS=num_kv_heads, HALF=head_dim // 2, **options,
    )  # fmt: skip
    return q


def _tile_for(x: Tensor, weight: Tensor, *, paired: bool) -> Tile:
    """A thread that reads float8 has as many values as one that reads x's type: registers hold them in float32."""
    return tile_for(x.shape[0], x.shape[1], max(x.element_size(), weight.element_size()), paired=paired)


def _options(x: Tensor, tile: Tile) -> dict[str, Any]:
    """The constants of a launch."""
    width, early = x.shape[1], can_start_early(x)
    return {
        "WIDTH": width, "SPAN": triton.next_power_of_2(width), "OUTPUTS": tile.outputs, "EARLY": early,
        "launch_pdl": early, "num_warps": tile.warps, "num_stages": 1,
    }  # fmt: skip
