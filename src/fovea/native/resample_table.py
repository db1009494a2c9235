"""The passes of Pillow's 8-bit resize and their coefficients (src/libImaging/Resample.c of Pillow 13).

A resize is a pass along the rows and one along the columns, each rounded to 8 bits. In a pass, new pixel i is the
clipped, rounded sum of `weights[i, k] * old[first[i] + k]` in fixed point with PRECISION_BITS bits.

Contract: the same passes in the same order with the same integers as Pillow, from the same operations on float64 one
after the other. (Where a compiler fuses Pillow's multiply and add, as on 64-bit ARM, the last bit may differ.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fovea.core.types import ImagePlan, Resample

PRECISION_BITS = 32 - 8 - 2
HALF = 1 << (PRECISION_BITS - 1)
SUPPORT: dict[Resample, float] = {"bilinear": 1.0, "bicubic": 2.0}
_TABLES_KEPT = 64

Table = NDArray[np.int32]  # [new, 1 + taps]: the first old pixel, then a weight for it and each that follows


def plan_passes(plan: ImagePlan, width_px: int, height_px: int) -> list[tuple[int, Table]]:
    """(axis, table) of each pass that resizes a picture of this size, in order; axis 1 runs along the rows."""
    if plan.transpose:
        width_px, height_px = height_px, width_px
    return passes((width_px, height_px), (plan.resize_width_px, plan.resize_height_px), plan.resample)


def passes(old_px: tuple[int, int], new_px: tuple[int, int], resample: Resample) -> list[tuple[int, Table]]:
    """plan_passes from sizes (width, height)."""
    (old_width, old_height), (new_width, new_height) = old_px, new_px
    sizes = [(1, old_width, new_width), (0, old_height, new_height)]
    fewer_rows, fewer_columns = old_height - new_height, old_width - new_width
    if fewer_rows > 0 and fewer_rows > 2 * fewer_columns:  # Pillow's rule for what is faster
        sizes.reverse()
    return [(axis, resample_table(old, new, resample)) for axis, old, new in sizes if old != new]


@lru_cache(maxsize=_TABLES_KEPT)
def resample_table(old: int, new: int, resample: Resample) -> Table:
    """The table that makes `new` pixels of `old`. Read-only: it is shared."""
    scale = old / new
    stretch = max(scale, 1.0)
    support = SUPPORT[resample] * stretch
    center = (np.arange(new) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    count = np.minimum((center + support + 0.5).astype(np.int64), old) - first
    taps = np.arange(int(count.max()))
    distance = ((taps + first[:, None]) - center[:, None] + 0.5) * (1.0 / stretch)  # [new, taps]
    weights = np.where(taps < count[:, None], _filter(np.abs(distance), resample), 0.0)
    total = np.cumsum(weights, axis=1)[:, -1:]  # one after the other, as Pillow adds them
    weights = np.divide(weights, total, out=weights, where=total != 0.0)
    fixed = np.where(weights < 0, -0.5, 0.5) + weights * (1 << PRECISION_BITS)
    table = np.concatenate((first[:, None], fixed.astype(np.int64)), axis=1).astype(np.int32)
    table.setflags(write=False)
    return table


def _filter(x: NDArray[Any], resample: Resample) -> NDArray[Any]:
    """The filter at distances `x` >= 0: a triangle, or the cubic with a = -0.5."""
    if resample == "bilinear":
        return np.where(x < 1.0, 1.0 - x, 0.0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
