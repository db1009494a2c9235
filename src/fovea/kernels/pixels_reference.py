"""The plain torch form of the operations on pixels: integers and look-ups only, so every form has the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fovea.native.resample_table import HALF, PRECISION_BITS


def resample(pixels: Tensor, table: Tensor) -> Tensor:
    """One pass of Pillow's resize along the middle axis: uint8 [outer, old, inner] to [outer, new, inner].

    table [new, 1 + taps] int32 as resample_table makes it.
    """
    first, weights = table[:, 0], table[:, 1:]
    last = pixels.shape[1] - 1
    shape = (pixels.shape[0], table.shape[0], pixels.shape[2])
    total = torch.full(shape, HALF, dtype=torch.int32, device=pixels.device)
    for k in range(weights.shape[1]):
        values = pixels.index_select(1, (first + k).clamp(max=last))
        total += values.int() * weights[:, k, None]
    return (total >> PRECISION_BITS).clamp_(0, 255).to(torch.uint8)


def cut_patches(canvases: Sequence[Tensor], levels: Tensor, px: int, side: int, repeats: int) -> Tensor:
    """Canvases uint8 [height, width, 3] to the tower's patches [P, 3 * repeats * px * px], one canvas after the other.

    levels [3, 256]: what each value of a channel becomes. Patches stand in blocks of `side` by `side`, blocks and the
    patches in them in reading order; each patch holds every channel `repeats` times (a still repeated in time).
    """
    parts = []
    for canvas in canvases:
        rows, columns = canvas.shape[0] // (side * px), canvas.shape[1] // (side * px)
        cells = canvas.view(rows, side, px, columns, side, px, 3).permute(
            0, 3, 1, 4, 6, 2, 5
        )  # [R, C, s, s, 3, px, px]
        cells = cells.reshape(-1, 3, px * px)
        values = torch.stack([levels[c].index_select(0, cells[:, c].flatten().int()) for c in range(3)])
        values = values.view(3, -1, 1, px * px).transpose(0, 1)
        parts.append(values.expand(-1, -1, repeats, -1).flatten(1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
