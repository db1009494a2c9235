"""Pillow's resize by the C kernels, with the same bits."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from fovea.core.types import Resample
from fovea.native.library import existing_library
from fovea.native.resample_table import SUPPORT, Table, passes

LANES = 16  # the most that a vector has


def resized(pixels: NDArray[np.uint8], size: tuple[int, int], resample: Resample) -> NDArray[np.uint8] | None:
    """pixels [height, width, 3] in a size (width, height); None: there is no kernel for it."""
    library = existing_library() if resample in SUPPORT else None
    if library is None:
        return None
    height, width = pixels.shape[:2]
    for axis, table in passes((width, height), size, resample):
        pixels = _pass(library, np.ascontiguousarray(pixels), axis, table)
    return pixels


def _pass(library: ctypes.CDLL, pixels: NDArray[np.uint8], axis: int, table: Table) -> NDArray[np.uint8]:
    (height, width, _), (new, taps) = pixels.shape, (len(table), table.shape[1] - 1)
    out = np.empty((new, width, 3) if axis == 0 else (height, new, 3), np.uint8)
    pointers = pixels.ctypes.data, out.ctypes.data, table.ctypes.data
    if axis == 0:
        library.fovea_resample_columns(*pointers, height, new, taps, width * 3)
    else:
        weights = np.empty(new * taps * LANES, np.int32)
        row = np.zeros((width + taps + LANES) * 3, np.uint8)
        library.fovea_resample_rows(*pointers, height, width, new, taps, weights.ctypes.data, row.ctypes.data)
    return out
