"""Products of many rows (prompts, pictures) with the activation behind them: a pass over memory less than cuBLAS's.

A program computes a tile of the result, and the tensor memory accelerator brings its factors. There are more programs
than multiprocessors, which take them as they come: some may be busy with the tower's kernels. SiLU times up needs both
halves of the weight, so a tile has as many rows of each, side by side. Everything is in float32 until the end and
rounded once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fovea.kernels.batch import SOME_ROWS
from fovea.kernels.early import is_hopper, multiprocessors
from fovea.kernels.reference import QUICK_GELU_SLOPE

WORTH_FILLED = 0.9  # of what multiprocessors could do; with less cuBLAS is faster, whose tiles have more sizes
ACCELERATOR_BYTES = 16  # rows begin at multiples of it
GELU_CUBE = 0.044715  # of the usual approximation by tanh, (2 / pi)^0.5 (x + this x^3)
# All of them are x / (1 + exp(-y)), 0.5 (1 + tanh(y / 2)) being that; y is this times what the kernel makes of x.
SLOPES = {"silu": 1.0, "quick_gelu": QUICK_GELU_SLOPE, "gelu_tanh": 2 * (2 / math.pi) ** 0.5}


class Tile(NamedTuple):
    """What one program computes at once: a sweep varies it."""

    rows: int = 128
    outputs: int = 256  # rows of the weight
    inner: int = 64
    warps: int = 8
    stages: int = 3
    group: int = 8  # tiles of rows that take turns before the next outputs: their factors stay in L2
    in_turn: int = 1  # tiles of one program: with more, the factors of the next come while one is finished


USUAL = Tile()


@triton.jit
def _by_sigmoid(x, y):  # type: ignore[no-untyped-def]
    """x / (1 + 2^-y); a root is one instruction, a quotient is eight."""
    root = tl.rsqrt(1.0 + tl.exp2(-y))
    return x * root * root


@triton.jit(do_not_specialize=["num_rows"])
def _product(  # type: ignore[no-untyped-def]
    x, weight, bias, out, num_rows, num_outputs, slope, cube,
    HALVES: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INNER: tl.constexpr,
    STAGES: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """x [T, K], weight [HALVES, F, K], out [T, F]; a tile of the weight is [HALVES, OUTPUTS, INNER]."""
    num_down, num_across = tl.cdiv(num_rows, ROWS), tl.cdiv(num_outputs, OUTPUTS)
    for tile in tl.range(tl.program_id(0), num_down * num_across, tl.num_programs(0), flatten=True):
        group, place = tile // (GROUP * num_across), tile % (GROUP * num_across)
        height = tl.minimum(num_down - group * GROUP, GROUP)
        row, output = (group * GROUP + place % height) * ROWS, place // height * OUTPUTS
        made = tl.zeros([ROWS, HALVES * OUTPUTS], tl.float32)
        for first in tl.range(0, WIDTH, INNER, num_stages=STAGES):
            weights = tl.reshape(weight.load([0, output, first]), (HALVES * OUTPUTS, INNER))
            made = tl.dot(x.load([row, first]), weights.T, made, input_precision="ieee")
        if HALVES == 2:
            gate, up = tl.split(tl.permute(tl.reshape(made, (ROWS, 2, OUTPUTS)), (0, 2, 1)))
            made = _by_sigmoid(gate, slope * gate) * up
        else:
            outputs = output + tl.arange(0, OUTPUTS)
            made += tl.load(bias + outputs, mask=outputs < num_outputs, other=0.0).to(tl.float32)[None, :]
            if cube is None:
                made = _by_sigmoid(made, slope * made)
            else:
                made = _by_sigmoid(made, slope * (made + cube * made * made * made))
        out.store([row, output], made.to(out.dtype))


def takes(x: Tensor, weight: Tensor, halves: int) -> bool:
    """Whether we are faster than cuBLAS and a pass: measured for types of 16 bits on Hopper."""
    (num_rows, width), num_outputs, size = x.shape, weight.shape[0] // halves, x.element_size()
    if num_rows <= SOME_ROWS or size != 2 or not is_hopper(x.device):
        return False
    if width * size % ACCELERATOR_BYTES or num_outputs * size % ACCELERATOR_BYTES:
        return False
    return share_filled(num_rows, num_outputs, halves, multiprocessors(x.device)) >= WORTH_FILLED


def share_filled(num_rows: int, num_outputs: int, halves: int, count: int) -> float:
    """How much of the time of `count` multiprocessors is spent on results: some idle while others do the last tiles."""
    wanted = num_rows * num_outputs / (USUAL.rows * USUAL.outputs // halves)
    return wanted / (-(-_num_tiles(num_rows, num_outputs, halves) // count) * count)


def _num_tiles(num_rows: int, num_outputs: int, halves: int, tile: Tile = USUAL) -> int:
    count: int = triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_outputs, tile.outputs // halves)
    return count


def gate_up(x: Tensor, weight: Tensor, *, tile: Tile = USUAL) -> Tensor:
    """x [T, K] times weight [2 F, K], then silu(gate) * up: [T, F]."""
    return _run(x, weight.view(2, -1, x.shape[1]), None, "silu", tile)


def activated(x: Tensor, weight: Tensor, bias: Tensor, kind: str, *, tile: Tile = USUAL) -> Tensor:
    """x [T, K] times weight [F, K] with a bias, then one of SLOPES: [T, F]."""
    return _run(x, weight[None], bias, kind, tile)


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, kind: str, tile: Tile) -> Tensor:
    """weight [1 or 2 halves, F, K]."""
    (num_rows, width), (halves, num_outputs, _) = x.shape, weight.shape
    x, outputs = x.contiguous(), tile.outputs // halves
    out = x.new_empty(num_rows, num_outputs)
    num_tiles = _num_tiles(num_rows, num_outputs, halves, tile)
    slope, cube = SLOPES[kind] * math.log2(math.e), GELU_CUBE if kind == "gelu_tanh" else None
    _product[(triton.cdiv(num_tiles, tile.in_turn),)](
        TensorDescriptor.from_tensor(x, [tile.rows, tile.inner]),
        TensorDescriptor.from_tensor(weight, [halves, outputs, tile.inner]),
        bias, TensorDescriptor.from_tensor(out, [tile.rows, outputs]), num_rows, num_outputs, slope, cube,
        HALVES=halves, WIDTH=width, ROWS=tile.rows, OUTPUTS=outputs, INNER=tile.inner, STAGES=tile.stages,
        GROUP=tile.group, num_warps=tile.warps,
    )  # fmt: skip
    return out
