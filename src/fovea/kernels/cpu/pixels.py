"""Patches by the C kernel, see patches.c."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from fovea.kernels.cpu.library import DTYPES, CCut, Crew


def cut_patches(crew: Crew, canvases: Sequence[Tensor], levels: Tensor, px: int, side: int, repeats: int) -> Tensor:
    """See pixels_reference.cut_patches; levels of a type that the kernels know."""
    assert levels.dtype in DTYPES
    levels, cell = levels.contiguous(), side * px
    counts = [canvas.shape[0] // cell * (canvas.shape[1] // cell) * side**2 for canvas in canvases]
    out = torch.empty(sum(counts), 3 * repeats * px * px, dtype=levels.dtype)
    for canvas, part in zip(canvases, out.split(counts), strict=True):
        whole = canvas.contiguous()
        cut = CCut(
            *(whole.data_ptr(), levels.data_ptr(), part.data_ptr()),
            *(whole.shape[0] // cell, whole.shape[1] // cell, side, px, repeats),
            *(0, levels.dtype == torch.bfloat16),
        )
        crew.library.fovea_cut_patches(crew.address, ctypes.addressof(cut))
    return out
