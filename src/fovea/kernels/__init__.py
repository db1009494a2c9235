"""The operations of the decoder, each in plain torch (`reference`) and, for CUDA, as a Triton kernel that equals it.

A tensor's device decides which one runs. Triton is imported when the first CUDA tensor arrives, so machines without it
never need it.
"""

from __future__ import annotations

from torch import Tensor

from fovea.kernels import reference
from fovea.kernels.batch import AttentionBatch
from fovea.kernels.reference import rms_norm, segment_attention

__all__ = [
    "paged_attention",
    "quick_gelu",
    "rms_norm",
    "rotate_and_store",
    "rotate_qk",
    "segment_attention",
    "silu_mul",
]


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


def rotate_qk(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See reference.rotate_qk."""
    if qkv.is_cuda:
        from fovea.kernels.elementwise import rotate_qk as fused

        return fused(qkv, cos, sin)
    return reference.rotate_qk(qkv, cos, sin)


def rotate_and_store(qkv: Tensor, num_heads: int, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch) -> Tensor:
    """See reference.rotate_and_store."""
    if qkv.is_cuda:
        from fovea.kernels.elementwise import rotate_and_store as fused

        return fused(qkv, num_heads, k_cache, v_cache, batch)
    return reference.rotate_and_store(qkv, num_heads, k_cache, v_cache, batch)


def paged_attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch) -> Tensor:
    """See reference.paged_attention. On CUDA the sequences with one new token go through a kernel that reads the pages
    in place; longer ones are gathered."""
    if q.is_cuda and batch.num_decode:
        from fovea.kernels.paged_decode import paged_decode

        decoded = paged_decode(q[: batch.num_decode], k_cache, v_cache, batch)
        return reference.paged_prefill(q, k_cache, v_cache, batch, decoded)
    return reference.paged_attention(q, k_cache, v_cache, batch)
