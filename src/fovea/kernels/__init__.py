"""The operations of the decoder, each in plain torch (`reference`) and, for CUDA, as a Triton kernel that equals it.

A tensor's device decides which one runs. Triton is imported when the first CUDA tensor arrives, so machines without it
never need it. On a CPU, `cpu` has kernels in C for steps that decode; layers and batches carry them, or don't.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from fovea.core.log import logger
from fovea.kernels import draw_reference, pixels_reference, reference
from fovea.kernels.batch import FEW_ALONE, FEW_ROWS, PLAIN, SMALLEST_HEAD, AttentionBatch, AttentionRule, Norm, Segments
from fovea.kernels.cpu.library import DTYPES, Crew
from fovea.kernels.cpu.pixels import cut_patches as native_patches
from fovea.kernels.cpu.segments import attends
from fovea.kernels.cpu.segments import segment_attention as native_segments
from fovea.kernels.cpu.weight import NativeWeight
from fovea.kernels.draw_reference import Ways
from fovea.kernels.fp8_weights import Fp8Weight, fp8_of, has_scaled_product, parameters, stored, with_bias
from fovea.kernels.kv_pages import Pages
from fovea.kernels.reference import gelu_tanh_mul

__all__ = [
    "FEW_ROWS",
    "Norm",
    "Ways",
    "activated",
    "cut_patches",
    "draw",
    "fp8_product",
    "gelu_tanh_mul",
    "layer_norm",
    "likeliest",
    "linear_add",
    "logits",
    "mlp_add",
    "norm_gate_up",
    "norm_qkv",
    "paged_attention",
    "product_add",
    "project_qkv",
    "quick_gelu",
    "resample",
    "rms_norm",
    "rotary",
    "rotate_and_store",
    "rotate_qk",
    "segment_attention",
    "silu_mul",
]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See reference.rms_norm."""
    if x.is_cuda:
        from fovea.kernels.norms import rms_norm as fused

        return fused(x, weight, eps)
    return reference.rms_norm(x, weight, eps)


def layer_norm(x: Tensor, norm: nn.LayerNorm, shift: Tensor | None = None) -> Tensor:
    """See reference.layer_norm."""
    if x.is_cuda:
        from fovea.kernels.norms import layer_norm as fused

        return fused(x, norm.weight, norm.bias, norm.eps, shift)
    return reference.layer_norm(x, norm, shift)


def norm_qkv(
    x: Tensor,
    norm: Norm,
    linear: nn.Module,
    num_heads: int,
    k_cache: Pages,
    v_cache: Pages,
    batch: AttentionBatch,
    head_norms: tuple[Norm, Norm] | None = None,
) -> Tensor:
    """Norm and projection of x [T, hidden], then rotate_and_store: rotated queries [T, N, D].

    head_norms: of each query head and of each key head, before they are rotated. No kernel joins these to the rest.
    """
    if isinstance(k_cache, Tensor) and isinstance(v_cache, Tensor):  # float8 needs whole heads to find their scales
        if head_norms is None and _turns_all(batch, k_cache) and _is_few_rows(x):
            from fovea.kernels.few_rows import norm_qkv as fused

            weight, bias, scales = stored(linear)
            return fused(x, norm.weight, norm.eps, weight, bias, num_heads, k_cache, v_cache, batch, scales=scales)
        if (native := _native(linear, x)) is not None and native.turns(x):
            return native.norm_qkv(x, norm, num_heads, k_cache, v_cache, batch, head_norms)
    return _store_heads(_normed(x, norm, linear), num_heads, k_cache, v_cache, batch, head_norms)


def project_qkv(
    x: Tensor,
    linear: nn.Module,
    num_heads: int,
    k_cache: Pages,
    v_cache: Pages,
    batch: AttentionBatch,
    head_norms: tuple[Norm, Norm] | None = None,
) -> Tensor:
    """Projection of normed x [T, hidden], then rotate_and_store: rotated queries [T, N, D]."""
    return _store_heads(linear(x), num_heads, k_cache, v_cache, batch, head_norms)


def _store_heads(
    projected: Tensor,
    num_heads: int,
    k_cache: Pages,
    v_cache: Pages,
    batch: AttentionBatch,
    head_norms: tuple[Norm, Norm] | None,
) -> Tensor:
    heads = projected.view(projected.shape[0], -1, k_cache.shape[-1])
    if head_norms is not None:
        q, k, v = heads.split((num_heads, k_cache.shape[2], v_cache.shape[2]), dim=1)
        heads = torch.cat((head_norms[0](q), head_norms[1](k), v), dim=1)
    return rotate_and_store(heads, num_heads, k_cache, v_cache, batch)


def norm_gate_up(x: Tensor, norm: Norm, linear: nn.Module) -> Tensor:
    """Norm and projection of x [T, hidden], then silu_mul: [T, F]."""
    if _is_read_once(x, linear):
        from fovea.kernels.few_rows import norm_gate_up as fused

        weight, _, scales = stored(linear)
        return fused(x, norm.weight, norm.eps, weight, scales=scales)
    if x.is_cuda and isinstance(linear, nn.Linear):
        from fovea.kernels import many_rows, some_rows

        if some_rows.takes(x, linear.weight):
            return some_rows.gate_up(norm(x), linear.weight)
        if many_rows.takes(x, linear.weight, 2):
            return many_rows.gate_up(norm(x), linear.weight)
    if (native := _native(linear, x)) is not None and native.has_halves:
        return native.norm_gate_up(x, norm)
    return silu_mul(_normed(x, norm, linear))


def mlp_add(x: Tensor, norm: Norm, gate_up: nn.Module, down: nn.Module) -> Tensor:
    """norm_gate_up of x [T, hidden], then linear_add of it to x, whose place the sum may take."""
    weight = None if _is_few_rows(x) else _scaled_weight(down, x)
    if weight is None:
        return linear_add(norm_gate_up(x, norm, gate_up), down, x)
    from fovea.kernels.fp8 import silu_mul_rows

    return with_bias(x.add_(weight.scaled_product(*silu_mul_rows(_normed(x, norm, gate_up)), x.dtype)), down)


def _normed(x: Tensor, norm: Norm, linear: nn.Module) -> Tensor:
    """A layer of the normed rows of x."""
    if _is_read_once(x, linear):
        return _few_rows(norm(x), linear)
    if (fp8 := _scaled_weight(linear, x)) is None:
        made: Tensor = linear(norm(x))
        return made
    from fovea.kernels.fp8 import norm_rows

    return with_bias(fp8.scaled_product(*norm_rows(x, norm.weight, norm.eps), x.dtype), linear)


def activated(x: Tensor, linear: nn.Module, kind: str) -> Tensor | None:
    """A layer of x [P, K] and an activation in one kernel: [P, F]. None: there is none for them."""
    if x.is_cuda and isinstance(linear, nn.Linear) and linear.bias is not None:
        from fovea.kernels import many_rows

        if kind in many_rows.SLOPES and many_rows.takes(x, linear.weight, 1):
            return many_rows.activated(x, linear.weight, linear.bias, kind)
    return None


def linear_add(x: Tensor, linear: nn.Module, residual: Tensor) -> Tensor:
    """See reference.linear_add. The sum may take the place of the residual."""
    if _is_read_once(x, linear):
        return _few_rows(x, linear, residual)
    if x.is_cuda:
        if (fp8 := fp8_of(linear)) is not None:
            return with_bias(residual.add_(fp8_product(fp8, x)), linear)
        return with_bias(product_add(x, linear, residual), linear)
    if (native := _native(linear, x)) is not None:
        return native.add_to(residual, x)
    return reference.linear_add(x, linear, residual)


def product_add(x: Tensor, linear: nn.Module, residual: Tensor) -> Tensor:
    """linear_add without the layer's bias, on CUDA: over the residual, in one pass."""
    return residual.addmm_(x, parameters(linear)[0].t())


def logits(x: Tensor, head: nn.Module | Tensor, into: Tensor | None = None) -> Tensor:
    """See reference.logits. `into` [rows, V]: memory that may hold them, on CUDA."""
    if not x.is_cuda:
        native = None if isinstance(head, Tensor) else _native(head, x)
        return reference.logits(x, head) if native is None else native.linear(x, torch.float32)
    weight = head if isinstance(head, Tensor) else parameters(head)[0]
    if _is_few_rows(x):
        from fovea.kernels.few_rows import linear as fused

        return fused(x, weight, dtype=torch.float32)
    return torch.mm(x, weight.t()) if into is None else torch.mm(x, weight.t(), out=into)


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.likeliest."""
    if logits.is_cuda:
        from fovea.kernels.argmax import likeliest as fused

        return fused(logits)
    return reference.likeliest(logits)


def draw(logits: Tensor, rows: Tensor, ways: Ways) -> Tensor:
    """draw_reference.draw of some rows [R] of float32 logits [S, V]."""
    if logits.is_cuda:
        from fovea.kernels.drawing import draw as fused

        return fused(logits, rows, ways)
    return draw_reference.draw(logits[rows], ways)


def _is_few_rows(x: Tensor) -> bool:
    return x.is_cuda and 0 < x.shape[0] <= FEW_ROWS


def _is_read_once(x: Tensor, linear: nn.Module) -> bool:
    """Whether our kernels for few rows are the fastest for a layer where they save no other kernel."""
    return _is_few_rows(x) and (x.shape[0] <= FEW_ALONE or fp8_of(linear) is not None)


def _few_rows(x: Tensor, linear: nn.Module, residual: Tensor | None = None) -> Tensor:
    from fovea.kernels.few_rows import linear as fused

    weight, bias, scales = stored(linear)
    return fused(x, weight, bias, scales=scales, residual=residual)


def _native(linear: nn.Module, x: Tensor) -> NativeWeight | None:
    """What reads a layer's weight for these rows on a CPU."""
    native = None if x.is_cuda else getattr(linear, "native", None)
    assert native is None or isinstance(native, NativeWeight)
    return native if native is not None and native.takes(x) else None


def _turns_all(batch: AttentionBatch, k_cache: Pages) -> bool:
    """Whether every dimension of a head is rotated, as the kernels have it, and there are enough."""
    return 2 * batch.cos.shape[-1] == k_cache.shape[-1] >= SMALLEST_HEAD


def fp8_product(weight: Fp8Weight, x: Tensor) -> Tensor:
    """Fp8Weight.product. On CUDA more than FEW_ROWS rows of x become float8, too."""
    if _is_few_rows(x):
        from fovea.kernels.few_rows import linear as fused

        return fused(x, weight.values, scales=weight.scales)
    if x.is_cuda and has_scaled_product(x.device):
        from fovea.kernels.fp8 import quantise_rows

        return weight.scaled_product(*quantise_rows(x), x.dtype)
    return weight.product(x)


def _scaled_weight(linear: nn.Module, x: Tensor) -> Fp8Weight | None:
    """A layer's weight if it is multiplied by rows in float8."""
    weight = fp8_of(linear) if x.is_cuda else None
    return weight if weight is not None and has_scaled_product(x.device) else None


def silu_mul(gate_up: Tensor) -> Tensor:
    """See reference.silu_mul."""
    if gate_up.is_cuda:
        from fovea.kernels.elementwise import silu_mul as fused

        return fused(gate_up)
    return reference.silu_mul(gate_up)


def quick_gelu(x: Tensor) -> Tensor:
    """See reference.quick_gelu."""
    if x.is_cuda:
        from fovea.kernels.elementwise import quick_gelu as fused

        return fused(x)
    return reference.quick_gelu(x)


def rotary(
    positions: Tensor, regimes: Tensor, inv_freq: Tensor, scales: Tensor, sections: tuple[int, ...] | None
) -> tuple[Tensor, Tensor]:
    """See reference.rotary."""
    if positions.is_cuda:
        from fovea.kernels.elementwise import rotary as fused

        return fused(positions, regimes, inv_freq, scales, sections)
    return reference.rotary(positions, regimes, inv_freq, scales, sections)


def rotate_qk(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See reference.rotate_qk."""
    if qkv.is_cuda:
        from fovea.kernels.elementwise import rotate_qk as fused

        return fused(qkv, cos, sin)
    return reference.rotate_qk(qkv, cos, sin)


def rotate_and_store(qkv: Tensor, num_heads: int, k_cache: Pages, v_cache: Pages, batch: AttentionBatch) -> Tensor:
    """See reference.rotate_and_store."""
    if qkv.is_cuda and _turns_all(batch, k_cache):
        from fovea.kernels.elementwise import rotate_and_store as fused

        return fused(qkv, num_heads, k_cache, v_cache, batch)
    return reference.rotate_and_store(qkv, num_heads, k_cache, v_cache, batch)


def paged_attention(
    q: Tensor, k_cache: Pages, v_cache: Pages, batch: AttentionBatch, rule: AttentionRule = PLAIN
) -> Tensor:
    """See reference.paged_attention. On CUDA both kinds of sequences are read in place, into one tensor.

    No kernel knows rules, open spans and very small heads: there CUDA runs the plain form.
    """
    is_usual = rule is PLAIN and batch.open_spans is None
    if not q.is_cuda:
        crew = batch.crew if is_usual and batch.num_decode else None
        if crew is None or not crew.decodes(q.shape[1], q.dtype, k_cache, v_cache):
            return reference.paged_attention(q, k_cache, v_cache, batch, rule)
        decoded = crew.paged_decode(q[: batch.num_decode], k_cache, v_cache, batch)
        return reference.paged_prefill(q, k_cache, v_cache, batch, decoded)
    if not is_usual or q.shape[-1] < SMALLEST_HEAD:
        _tell_of_plain_attention()
        return reference.ruled_attention(q, k_cache, v_cache, batch, rule)
    q = q.contiguous()
    out = torch.empty_like(q)
    if batch.num_decode:
        from fovea.kernels.paged_decode import paged_decode

        paged_decode(q[: batch.num_decode], k_cache, v_cache, batch, out[: batch.num_decode])
    if batch.num_decode < len(batch.query_lens):
        from fovea.kernels.paged_prefill import paged_prefill

        paged_prefill(q, k_cache, v_cache, batch, out)
    return out


@cache
def _tell_of_plain_attention() -> None:
    """Once in a process."""
    logger.warning("no kernel has this model's attention (a rule, open spans or tiny heads): it runs in plain torch")


def segment_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """See reference.segment_attention; q, k and v may be views of one tensor."""
    if q.is_cuda:
        from fovea.kernels.packed_attention import segment_attention as packed

        return packed(q, k, v, segments)
    if segments.crew is not None and attends(segments.crew, q, k, v):
        return native_segments(segments.crew, q, k, v, segments.lengths)
    return reference.segment_attention(q, k, v, segments.lengths)


def resample(pixels: Tensor, table: Tensor) -> Tensor:
    """See pixels_reference.resample."""
    if pixels.is_cuda:
        from fovea.kernels.pixels import resample as fused

        return fused(pixels, table)
    return pixels_reference.resample(pixels, table)


def cut_patches(
    canvases: Sequence[Tensor], levels: Tensor, px: int, side: int, repeats: int, crew: Crew | None = None
) -> Tensor:
    """See pixels_reference.cut_patches. crew: who does it on a CPU; None: the plain form."""
    if levels.is_cuda:
        from fovea.kernels.pixels import cut_patches as fused

        return fused(canvases, levels, px, side, repeats)
    if crew is not None and levels.dtype in DTYPES:
        return native_patches(crew, canvases, levels, px, side, repeats)
    return pixels_reference.cut_patches(canvases, levels, px, side, repeats)
