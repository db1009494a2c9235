"""The C kernels as they are compiled on other processors than this one."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from fovea.native import build

VARIANTS = ("this processor", "vectors of half the width", "vectors of a quarter, and no intrinsics")


def variant(name: str) -> tuple[str, ...]:
    """The compiler's flags. Skips where this processor does not run what they make."""
    if name == VARIANTS[0]:
        return build.FLAGS
    if platform.machine() != "x86_64":
        pytest.skip("flags for x86-64")
    if name == VARIANTS[1] and "avx2" not in Path("/proc/cpuinfo").read_text().split():
        pytest.skip("no AVX2 here")
    level = ("-march=x86-64-v3",) if name == VARIANTS[1] else ("-march=x86-64", "-DFOVEA_PORTABLE")
    return (*(flag for flag in build.FLAGS if flag != "-march=native"), *level)
