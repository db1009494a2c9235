"""The gated half of an MLP for tens of rows (a step that decodes many sequences): matrix units, at the speed of memory.

A tile of the weight is the left factor, whose 64 rows are what Hopper's matrix units take; the rows of x are the right
one, where tiles of 16 do. So a few rows cost no more arithmetic than there is, all of x is in one tile, and each weight
is read once. SiLU times up is done in passing, in float32 and rounded once. The other layers are as fast in cuBLAS,
and weights in float8 in torch's scaled product.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fovea.kernels.batch import SOME_ROWS
from fovea.kernels.early import can_start_early, is_hopper, multiprocessors, wait

SMALLEST_TILE = 16  # rows of x


class Tile(NamedTuple):
    """How much of each half of the weight one program takes at once: a sweep varies it."""

    outputs: int
    inner: int
    warps: int
    stages: int


USUAL = Tile(outputs=64, inner=64, warps=4, stages=3)


@triton.jit
def _weights(weight, outputs, places, WIDTH: tl.constexpr, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    at = weight + outputs.to(tl.int64)[:, None] * WIDTH + places[None, :]
    if EVEN:
        tile = tl.load(at)
    else:
        tile = tl.load(at, mask=(places < WIDTH)[None, :], other=0.0)
    return tile


@triton.jit(do_not_specialize=["num_rows"])
def _gate_up(  # type: ignore[no-untyped-def]
    x, weight, out, num_rows, num_outputs,
    WIDTH: tl.constexpr, INNER: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    STAGES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    rows, outputs = tl.arange(0, ROWS), tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    wanted, inner = tl.minimum(outputs, num_outputs - 1), tl.arange(0, INNER)
    gate, up = tl.zeros([OUTPUTS, ROWS], tl.float32), tl.zeros([OUTPUTS, ROWS], tl.float32)
    wait(EARLY)
    for first in tl.range(0, WIDTH, INNER, num_stages=STAGES):
        places = first + inner
        real = (rows < num_rows)[:, None] if EVEN else (rows < num_rows)[:, None] & (places < WIDTH)[None, :]
        values = tl.trans(tl.load(x + rows[:, None] * WIDTH + places[None, :], mask=real, other=0.0))
        gate = tl.dot(_weights(weight, wanted, places, WIDTH, EVEN), values, gate, input_precision="ieee")
        up = tl.dot(_weights(weight, wanted + num_outputs, places, WIDTH, EVEN), values, up, input_precision="ieee")
    made = tl.trans(gate / (1.0 + tl.exp(-gate)) * up)
    at = out + rows[:, None] * num_outputs + outputs[None, :]
    tl.store(at, made.to(out.dtype.element_ty), mask=(rows < num_rows)[:, None] & (outputs < num_outputs)[None, :])


def takes(x: Tensor, weight: Tensor) -> bool:
    """Measured for types of 16 bits on Hopper, where it pays with more programs than multiprocessors: too few loads are
    under way otherwise."""
    if not 0 < x.shape[0] <= SOME_ROWS or x.element_size() != 2 or not is_hopper(x.device):
        return False
    programs: int = triton.cdiv(weight.shape[0] // 2, USUAL.outputs)
    return programs > multiprocessors(x.device)


def gate_up(x: Tensor, weight: Tensor, *, tile: Tile = USUAL) -> Tensor:
    """x [T, K], up to SOME_ROWS, times weight [2 F, K], then silu(gate) * up: [T, F]."""
    (num_rows, width), num_outputs = x.shape, weight.shape[0] // 2
    assert num_rows <= SOME_ROWS
    out, early = x.new_empty(num_rows, num_outputs), can_start_early(x)
    _gate_up[(triton.cdiv(num_outputs, tile.outputs),)](
        x.contiguous(), weight, out, num_rows, num_outputs, WIDTH=width, INNER=tile.inner,
        EVEN=width % tile.inner == 0, ROWS=max(SMALLEST_TILE, triton.next_power_of_2(num_rows)), OUTPUTS=tile.outputs,
        STAGES=tile.stages, EARLY=early, launch_pdl=early, num_warps=tile.warps,
    )  # fmt: skip
    return out
