"""Weights as integers of 8 or 4 bits, on a CPU: how they are made, and products with them.

int8: one scale for each output row, symmetric. int4: groups along the input dimension, each with a scale and a zero
point; two values lie in a byte as torch's int4 kernel wants them: [N / block, K, block / 2], where a byte's low half is
of a row in the first half of the block, its high half of the row half a block further.

Products are chosen by the number of rows; all see the same weights. Few rows: torch's weight-only kernels, which read
integers and multiply in bfloat16. More rows of int8: activations are written as two int8 numbers each (15 bits of a
row's largest value) and multiplied exactly in integers. Otherwise blocks of the weight are made into floats and
multiplied as usual; that plain form is there on every machine. docs/quantization.md has the measurements.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fovea.core.log import logger

INT8_FEW_ROWS, INT4_FEW_ROWS = 8, 64  # up to here torch's weight-only kernels are fastest
SPLIT_ROWS = 128  # below, and for float32 at any number, two int8 products beat a dense one over restored weights
SPLIT_AT_ONCE = 256  # rows; bounds the int32 results
LOW_STEPS = 254  # steps of the second int8 number inside one of the first
GROUP = 32  # values that share a scale and a zero point in int4; larger ones are no faster
SCRATCH_ELEMENTS = 1024**2  # of a weight that are floats at a time
KERNEL_WIDTH = 16  # its multiples are safe: of other widths the int8 kernel reads past the end
EIGHT_BITS, MID = 127, 8
TINY = 1e-30


class IntWeight(Protocol):
    """A weight [N, K] kept as integers."""

    @property
    def nbytes(self) -> int: ...
    def product(self, x: Tensor) -> Tensor:
        """x [rows, K] times the transposed weight: [rows, N], in the type of x."""
        ...

    def restored(self) -> Tensor:
        """The weight that the integers stand for [N, K], in float32."""
        ...


@dataclass(frozen=True, slots=True)
class Int8Weight:
    values: Tensor  # int8 [N, K]
    scales: Tensor  # bfloat16 [N]

    @property
    def nbytes(self) -> int:
        return int8_bytes(*self.values.shape)

    def product(self, x: Tensor) -> Tensor:
        rows, width = x.shape
        if width % KERNEL_WIDTH:
            return self._dense(x)
        if 0 < rows <= INT8_FEW_ROWS and has_int8_kernel():
            made: Tensor = torch.ops.aten._weight_int8pack_mm(x.bfloat16().contiguous(), self.values, self.scales)
            return made.to(x.dtype)
        if rows > INT8_FEW_ROWS and has_int8_product() and (rows < SPLIT_ROWS or x.dtype == torch.float32):
            return self._split(x)
        return self._dense(x)

    def _split(self, x: Tensor) -> Tensor:
        """Each value of x as high + low / LOW_STEPS in steps of its row's largest / 127, both int8."""
        out = x.new_empty(len(x), len(self.values))
        for some, into in zip(x.split(SPLIT_AT_ONCE), out.split(SPLIT_AT_ONCE), strict=True):
            wide = some.float()
            steps = wide.abs().amax(1, keepdim=True).clamp_min_(TINY).div_(EIGHT_BITS)
            wide = wide / steps
            high = wide.round()
            both = torch.cat((high, wide.sub_(high).mul_(LOW_STEPS).round_())).to(torch.int8)
            made = torch._int_mm(both, self.values.t()).float()
            total = made[: len(some)].add_(made[len(some) :], alpha=1 / LOW_STEPS)
            into.copy_(total.mul_(steps).mul_(self.scales))
        return out

    def _dense(self, x: Tensor) -> Tensor:
        dtype = dense_dtype(x.dtype)
        wide, out = x.to(dtype), x.new_empty(len(x), len(self.values))
        count = max(1, SCRATCH_ELEMENTS // x.shape[1])
        pairs = zip(self.values.split(count), self.scales.split(count), out.split(count, 1), strict=True)
        for values, scales, into in pairs:
            into.copy_(F.linear(wide, values.to(dtype)).mul_(scales))
        return out

    def restored(self) -> Tensor:
        return self.values.float() * self.scales.float()[:, None]


@dataclass(frozen=True, slots=True)
class Int4Weight:
    packed: Tensor  # uint8 [N / block, K, block / 2], rows padded to a block
    scales: Tensor  # bfloat16 [K / group, N, 2]: scale and zero point, rows padded, too
    rows: int
    group: int

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scales.nbytes

    def product(self, x: Tensor) -> Tensor:
        if 0 < len(x) <= INT4_FEW_ROWS and int4_kernel_block() == 2 * self.packed.shape[2]:
            flat = self.packed.view(-1, self.packed.shape[1] // 2)
            made: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
                x.bfloat16().contiguous(), flat, self.group, self.scales
            )
            return made[:, : self.rows].to(x.dtype)
        return self._dense(x)

    def _dense(self, x: Tensor) -> Tensor:
        wide = x.to(dense_dtype(x.dtype))
        out = x.new_empty(len(x), self.packed.shape[0] * 2 * self.packed.shape[2])
        count = max(1, SCRATCH_ELEMENTS // (2 * self.packed[0].numel()))
        columns = count * 2 * self.packed.shape[2]
        for first, into in zip(range(0, len(self.packed), count), out.split(columns, 1), strict=True):
            into.copy_(wide @ self._columns(first, count, wide.dtype))
        return out[:, : self.rows]

    def _columns(self, first: int, count: int, dtype: torch.dtype) -> Tensor:
        """Some blocks of the weight, transposed [K, rows of these blocks]."""
        packed = self.packed[first : first + count].transpose(0, 1)
        width, blocks, half = packed.shape
        made = packed.new_empty(width, blocks, 2, half, dtype=torch.float32)
        made[:, :, 0] = (packed & 15).view(torch.int8).sub_(MID)
        made[:, :, 1] = (packed >> 4).view(torch.int8).sub_(MID)
        start, columns = first * 2 * half, blocks * 2 * half
        pairs = self.scales[:, None, start : start + columns].float().unbind(-1)
        scales, zeros = (pair.contiguous() for pair in pairs)  # strided ones cost eight times as much
        grouped = made.view(-1, self.group, columns)
        return torch.addcmul(zeros, grouped, scales, out=grouped).view(width, columns).to(dtype)

    def restored(self) -> Tensor:
        return self._columns(0, len(self.packed), torch.float32).t()[: self.rows].contiguous()


def int8_bytes(rows: int, width: int) -> int:
    return rows * width + 2 * rows


def int4_bytes(rows: int, width: int, group: int) -> int:
    padded = -(-rows // int4_block()) * int4_block()
    return padded * width // 2 + padded * (width // group) * 4


def quantise_int8(weight: Tensor) -> Int8Weight:
    """weight [N, K] of any float type. No value is off by more than half of its row's largest / 127, but for 2^-8."""
    values = weight.new_empty(weight.shape, dtype=torch.int8)
    scales = weight.new_empty(len(weight), dtype=torch.bfloat16)
    count = max(1, SCRATCH_ELEMENTS // weight.shape[1])
    for some, into, its in zip(weight.split(count), values.split(count), scales.split(count), strict=True):
        wide = some.float()
        its.copy_(wide.abs().amax(1).clamp_min_(TINY).div_(EIGHT_BITS))
        into.copy_((wide / its.float()[:, None]).round_().clamp_(-EIGHT_BITS, EIGHT_BITS))
    return Int8Weight(values, scales)


def quantise_int4(weight: Tensor, group: int) -> Int4Weight:
    """weight [N, K] of any float type, K a multiple of the group.

    No value is off by more than half of (largest - smallest of its group) / 15, but for the rounding of scale and zero
    point to bfloat16, 2^-8 of the largest.
    """
    rows, width = weight.shape
    block = int4_block()
    blocks = -(-rows // block)
    packed = weight.new_empty(blocks, width, block // 2, dtype=torch.uint8)
    scales = weight.new_zeros(width // group, blocks * block, 2, dtype=torch.bfloat16)
    count = max(1, SCRATCH_ELEMENTS // (block * width))
    for first in range(0, blocks, count):
        part = packed[first : first + count]
        some = weight[first * block : (first + count) * block].float()
        values, steps, zeros = _grouped(some.unflatten(1, (-1, group)))
        scales[:, first * block : first * block + len(some)] = torch.stack((steps, zeros), -1).transpose(0, 1)
        values = F.pad(values, (0, 0, 0, len(part) * block - len(some)))
        low, high = values.unflatten(0, (-1, 2, block // 2)).permute(1, 0, 3, 2)
        part.copy_(low | (high << 4))
    return Int4Weight(packed, scales, rows, group)


def _grouped(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """float32 [N, groups, group] to values 0 to 15 [N, K] (uint8), scales and zero points [N, groups] (bfloat16)."""
    least, most = groups.amin(2), groups.amax(2)
    steps = ((most - least) / 15).clamp_min_(TINY).bfloat16()
    zeros = (least + MID * steps.float()).bfloat16()
    values = (groups - zeros.float()[:, :, None]).div_(steps.float()[:, :, None]).round_().add_(MID).clamp_(0, 15)
    return values.to(torch.uint8).flatten(1), steps, zeros


@cache
def dense_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which restored weights are multiplied: bfloat16 where the CPU has units for it."""
    try:
        has_units = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        has_units = False
    return torch.bfloat16 if has_units else torch.float32


@cache
def has_int8_kernel() -> bool:
    """Whether this torch has the weight-only int8 kernel, and it multiplies right."""
    values, x = _int8_probe(), torch.ones(2, 64, dtype=torch.bfloat16)
    try:
        made = torch.ops.aten._weight_int8pack_mm(x, values, torch.ones(32, dtype=torch.bfloat16))
    except (AttributeError, RuntimeError):
        return _told("int8 kernel")
    return torch.allclose(made.float(), values.sum(1).float().expand(2, -1), rtol=1e-2) or _told("int8 kernel")


@cache
def has_int8_product() -> bool:
    """Whether int8 matrices are multiplied fast and exactly: some units saturate in between."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return _told("int8 product")
    values = _int8_probe()
    x = torch.cat((values[:9], torch.full_like(values[:9], 127), torch.full_like(values[:9], -127)))
    try:
        made = torch._int_mm(x, values.t())
    except (AttributeError, RuntimeError):
        return _told("int8 product")
    return torch.equal(made, (x.double() @ values.double().t()).to(made.dtype)) or _told("int8 product")


@cache
def int4_kernel_block() -> int:
    """The rows in a block of the int4 kernel's weights on this CPU; 0: there is none that multiplies right."""
    values = (torch.arange(128 * 32) * 7 % 16).to(torch.uint8).view(128, 32)
    wanted = (values.float() - MID).sum(1)
    scales = torch.stack((torch.ones(1, 128), torch.zeros(1, 128)), -1).bfloat16()
    for block in (64, 32):
        low, high = values.unflatten(0, (-1, 2, block // 2)).permute(1, 0, 3, 2)
        packed = (low | (high << 4)).contiguous().view(128, 16)
        try:
            x = torch.ones(2, 32, dtype=torch.bfloat16)
            made = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, 32, scales)
        except (AttributeError, RuntimeError):
            break
        if torch.allclose(made.float(), wanted.expand(2, -1), rtol=1e-2):
            return block
    _told("int4 kernel")
    return 0


def int4_block() -> int:
    """The rows in a block of packed weights."""
    return int4_kernel_block() or 64


def _int8_probe() -> Tensor:
    """[32, 64] with the largest and smallest values among others."""
    values = (torch.arange(32 * 64) * 37 % 255 - 127).to(torch.int8).view(32, 64)
    values[0], values[1] = EIGHT_BITS, -EIGHT_BITS
    return values


def _told(what: str) -> bool:
    """Said once, as each answer is remembered."""
    logger.info("this build of torch has no usable %s on this CPU: quantised layers use plain products instead", what)
    return False
