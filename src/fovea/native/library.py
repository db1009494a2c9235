"""The compiled kernels, loaded. Nothing here knows torch."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from fovea.core.log import logger
from fovea.native.build import built_library, existing_path

_P, _I, _F, _B = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
SIGNATURES: Mapping[str, list[type]] = {
    "fovea_linear": [_P, _P, _P, _I, _P, _B, _B, _B],
    "fovea_norm_gate_up": [_P, _P, _P, _I, _P, _P, _B],
    "fovea_norm_qkv": [_P, _P, _P, _I, _P, _P, _B],
    "fovea_paged_decode": [_P, _P],
    "fovea_step": [_P, _P],
    "fovea_segment_attention": [_P, _P],
    "fovea_has_segment_attention": [],
    "fovea_cut_patches": [_P, _P],
    "fovea_resample_columns": [_P, _P, _P, _I, _I, _I, _I],
    "fovea_resample_rows": [_P, _P, _P, _I, _I, _I, _I, _P, _P],
}


def make_library(folder: Path | None = None) -> ctypes.CDLL | None:
    """Compiled now if they never were; None where there are none, which is said in the log.

    folder: where the file is kept, see built_library.
    """
    path, found = built_library(folder)
    library = None
    try:
        library = None if path is None else _load(path)
    except (OSError, AttributeError) as error:
        found = str(error)
    if library is None:
        logger.warning("no kernels in C, so the CPU runs plain torch, more slowly: %s", found)
    else:
        logger.info("kernels in C for the CPU: %s", found)
    return library


def existing_library() -> ctypes.CDLL | None:
    """For those who can do without: nothing is compiled, and nothing is said."""
    try:
        path = existing_path()
        return None if path is None else _load(path)
    except (OSError, AttributeError):
        return None


@cache
def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, types in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, _B  # of those that return nothing nobody looks
    return library
