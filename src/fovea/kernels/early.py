"""Starting a kernel while the one before it still runs (programmatic dependent launch, Hopper and newer).

A kernel launched with `launch_pdl=True` may begin before its predecessor has ended. Until `wait` it reads only what no
kernel writes (weights); afterwards everything that came before it in the stream is finished and visible. So each such
kernel must call `wait`, in every program.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

START_EARLY = True
HOPPER = 9  # major number of its compute capability


@functools.cache
def _has_early_start(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)


@functools.cache
def is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] == HOPPER


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many a GPU has; in Triton's interpreter one."""
    if device.type == "cpu":
        return 1
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def can_start_early(x: Tensor) -> bool:
    """Whether kernels on the device of x are to start early; never in Triton's interpreter."""
    return START_EARLY and x.is_cuda and _has_early_start(x.device)


@triton.jit
def wait(EARLY: tl.constexpr):  # type: ignore[no-untyped-def]
    """Let the next kernel begin, then wait for the one before to end."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
