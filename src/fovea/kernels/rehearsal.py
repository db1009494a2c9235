"""Compiling all Triton kernels of a model before the first request, side by side instead of one when it is needed.

Something is run once with every kernel left out, which tells which are wanted and how; then they are compiled in
threads (most of it happens outside of the interpreter's lock). Compiled kernels are kept on disk by Triton, which is
imported when it is asked for: not every machine has it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from fovea.core.machine import usable_cores

MOST_THREADS = 16


def compile_kernels(rehearse: Callable[[], object]) -> int:
    """Call `rehearse`, whose results mean nothing, and compile what it would have launched. Returns the number."""
    wanted: dict[tuple[int, str], tuple[Any, str]] = {}

    def note(*, key: str, fn: Any, compile: dict[str, Any], **_: object) -> bool:
        kernel = fn.jit_function
        wanted[id(kernel), key] = (kernel, compile["specialization_data"])
        return True  # neither compile nor launch

    import triton

    before = triton.knobs.runtime.jit_cache_hook
    triton.knobs.runtime.jit_cache_hook = note
    try:
        rehearse()
    finally:
        triton.knobs.runtime.jit_cache_hook = before
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    with ThreadPoolExecutor(min(MOST_THREADS, usable_cores())) as pool:
        for made in [pool.submit(_make, kernel, how, device) for kernel, how in wanted.values()]:
            made.result()
    return len(wanted)


def _make(kernel: Any, how: str, device: int | None) -> None:
    """Compile a kernel and load it. Triton 3.6 has a C compiler make what launches it, which takes as long again."""
    if device is None:
        kernel.preload(how)
        return
    torch.cuda.set_device(device)  # a new thread would take the first
    _ = kernel.preload(how).run


def on_compile(tell: Callable[[str], None]) -> None:
    """From now on call `tell` with the name of every kernel that is compiled after all."""

    def told(*, fn: Any, **_: object) -> None:
        tell(fn.name)

    import triton

    triton.knobs.runtime.jit_post_compile_hook = told
