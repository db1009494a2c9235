"""Linear layers with float8 weights, from activations in bfloat16 to results in it, beside bfloat16 products alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.decoder import tiled
from benchmarks.kernels.measure import Arms, Case, sets_for
from benchmarks.kernels.shapes import ELEMENT_BYTES, Shapes, linear, noise
from fovea import kernels as ops
from fovea.kernels import few_rows
from fovea.kernels.fp8_weights import quantise_fp8

ROWS = (1, 64, 256, 2048)


def cases(s: Shapes) -> Iterator[Case]:
    """The floor in time takes the products for bfloat16 ones: with many rows the share may exceed it."""
    heads, attended = (s.heads + 2 * s.kv_heads) * s.head_dim, s.heads * s.head_dim
    layers = {
        "qkv": (s.hidden, heads),
        "out": (attended, s.hidden),
        "gate_up": (s.hidden, 2 * s.mlp),
        "down": (s.mlp, s.hidden),
    }
    for rows in ROWS:
        for name, (width, outputs) in layers.items():
            moved = width * outputs + rows * (width + outputs) * ELEMENT_BYTES
            build, flops = _layer(rows, width, outputs, sets_for(moved)), 2 * rows * width * outputs
            yield Case(s.name, f"fp8 {name}", f"{rows} rows", moved, build, flops)


def _layer(rows: int, width: int, outputs: int, sets: int) -> Callable[[], Arms]:
    def build() -> Arms:
        x, plain = noise(rows, width), [linear(width, outputs).weight for _ in range(sets)]
        quantised = [quantise_fp8(weight) for weight in plain]

        def ours(i: int, **options: Any) -> Tensor:
            if not options:
                return ops.fp8_product(quantised[i], x)
            some = quantised[i]
            return few_rows.linear(x, some.values, scales=some.scales, **tiled(options, few_rows.Tile))

        return Arms(ours, {"bfloat16": lambda i: torch.mm(x, plain[i].t())}, sets, is_pure=False)

    return build
