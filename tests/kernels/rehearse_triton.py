"""Compiling ahead, without a card: a made-up device stands in, and nothing is launched. Run as a program: "compiled".

The kernels a rehearsal would have launched are there afterwards; others are told of.
"""

from __future__ import annotations

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from fovea.kernels import elementwise, norms
from fovea.kernels.rehearsal import compile_kernels, on_compile

ROWS, WIDTH = 3, 256


class NoDevice:
    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int | None = None) -> int:
        return 0

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind


def rehearse() -> None:
    x, weight = torch.randn(ROWS, WIDTH, dtype=torch.bfloat16), torch.ones(WIDTH, dtype=torch.bfloat16)
    norms.rms_norm(x, weight, 1e-6)
    elementwise.silu_mul(x)


def main() -> None:
    driver.set_active(NoDevice())
    assert compile_kernels(rehearse) == 2
    launch, late = jit.JITFunction.run, list[str]()

    def only_compile(kernel: Any, *args: Any, **options: Any) -> Any:
        return launch(kernel, *args, **{**options, "warmup": True})

    jit.JITFunction.run = only_compile
    on_compile(late.append)
    rehearse()
    assert late == []
    norms.rms_norm(torch.randn(ROWS, 2 * WIDTH), torch.ones(2 * WIDTH), 1e-6)
    assert late == ["_rms_norm"]
    print("compiled")  # noqa: T201


if __name__ == "__main__":
    main()
