"""What the programs that compare kernels have in common."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch


def wanted_dtypes(known: Iterable[torch.dtype]) -> list[torch.dtype]:
    """Those that the command line names, all if it names none: programs of one type each compile side by side."""
    return [dtype for dtype in known if not sys.argv[1:] or str(dtype).removeprefix("torch.") in sys.argv[1:]]
