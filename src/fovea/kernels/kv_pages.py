"""Keys and values in pages: in the model's type, or in float8 with a scale for each token and KV head.

The largest magnitude of a token's key (or value) of one head becomes 448, the type's largest. Nothing is calibrated,
and no value depends on what else is in a step, so that a cached prefix is what a prompt would compute anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fovea.kernels.fp8_weights import FP8, quantise_rows


@dataclass(frozen=True, slots=True)
class Fp8Pages:
    values: Tensor  # float8_e4m3fn [blocks, block_size, G, D]
    scales: Tensor  # float32 [blocks, G, block_size]: those that one head reads lie beside one another

    @property
    def shape(self) -> torch.Size:
        return self.values.shape


Pages = Tensor | Fp8Pages  # [blocks, block_size, G, D]
KVPages = tuple[Pages, Pages]  # keys and values of one layer


def make_pages(zeros: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Pages:
    """`zeros`: torch.zeros, or what makes them otherwise; dtype FP8: with scales."""
    if dtype != FP8:
        return zeros(shape, dtype=dtype, device=device)
    num_blocks, block_size, num_kv_heads, _ = shape
    values = zeros(shape, dtype=torch.uint8, device=device).view(FP8)
    return Fp8Pages(values, zeros((num_blocks, num_kv_heads, block_size), dtype=torch.float32, device=device))


def split(pages: Pages) -> tuple[Tensor, Tensor | None]:
    """Values, and of float8 their scales."""
    return (pages.values, pages.scales) if isinstance(pages, Fp8Pages) else (pages, None)


def store(pages: Pages, slots: Tensor, rows: Tensor) -> None:
    """Put rows [T, G, D] at their slots [T]; the plain form."""
    if isinstance(pages, Tensor):
        pages.flatten(0, 1).index_copy_(0, slots, rows)
        return
    block_size = pages.values.shape[1]
    made, steps = quantise_rows(rows.flatten(0, 1))
    pages.values.view(torch.uint8).flatten(0, 1).index_copy_(0, slots, made.view(torch.uint8).view(rows.shape))
    pages.scales[slots // block_size, :, slots % block_size] = steps.view(rows.shape[:2])


def gather(pages: Pages, blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """Blocks [...] as they are read, in the model's type [..., block_size, G, D]; the plain form."""
    if isinstance(pages, Tensor):
        return pages[blocks]
    values, scales = pages.values.view(torch.uint8)[blocks].view(FP8), pages.scales[blocks].transpose(-1, -2)
    return (values.float() * scales[..., None]).to(dtype)


def clear(pages: Pages, blocks: Tensor) -> None:
    """Zeros into some blocks [B] int64."""
    if isinstance(pages, Tensor):
        pages.index_fill_(0, blocks, 0)
        return
    pages.values.view(torch.uint8).index_fill_(0, blocks, 0)
    pages.scales.index_fill_(0, blocks, 0)
