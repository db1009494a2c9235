"""Weights that the C kernels multiply a few rows by, with what surrounds linear layers in a decoder."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from fovea.kernels.batch import AttentionBatch, Norm
from fovea.kernels.cpu.library import DTYPES, CNorm, Crew, CTurn, CWeight
from fovea.kernels.int_weights import Int4Weight, Int8Weight, IntWeight

MOST_ROWS, MOST_NUMBERS, BLOCK = 32, 8 * 32768, 64  # as in products.h
MOST_MADE = 32 * 16384  # as in linear.c
INT8, INT4 = 2, 3  # kinds in kernels.h; before them DTYPES, in their order
INT4_ROWS = 512  # up to here they are faster than torch's product with the restored weight


class NativeWeight:
    """A weight [N, K] that the kernels read where it lies, with a bias [N] of the model's type or none."""

    def __init__(self, crew: Crew, weight: Tensor | IntWeight, bias: Tensor | None) -> None:
        self._library, self._kept = crew.library, (crew, weight, bias)
        self._described, self.width = _described(weight, bias)
        self.outputs: int = self._described.outputs
        self._is_int4 = isinstance(weight, Int4Weight)
        self._dtypes: tuple[torch.dtype, ...] = (weight.dtype,) if isinstance(weight, Tensor) else DTYPES
        self.most_rows: int = min(MOST_ROWS, MOST_NUMBERS // (self.width + 64))
        self.address, self._crew_address = ctypes.addressof(self._described), crew.address

    def takes(self, x: Tensor) -> bool:
        """Whether x [rows, K] is multiplied here: a few rows, of a type that the kernels know."""
        return 0 < len(x) <= self.most_rows and x.dtype in self._dtypes

    def turns(self, x: Tensor) -> bool:
        """Whether norm_qkv has room for what x [rows, K] becomes."""
        return len(x) * self.outputs <= MOST_MADE

    @property
    def has_halves(self) -> bool:
        """Whether norm_gate_up finds both halves of the outputs in whole blocks."""
        return not self._is_int4 or self.outputs % (2 * BLOCK) == 0

    def multiplies(self, x: Tensor) -> bool:
        """Whether linear takes x [rows, K], and is the fastest there is."""
        return self.takes(x[: self.most_rows]) and len(x) <= (INT4_ROWS if self._is_int4 else self.most_rows)

    def linear(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """x [rows, K] to [rows, N] in the type of x, or another that the kernels know."""
        x, out_dtype = x.contiguous(), dtype or x.dtype
        out = torch.empty(len(x), self.outputs, dtype=out_dtype)
        for some, into in zip(x.split(self.most_rows), out.split(self.most_rows), strict=True):
            self._library.fovea_linear(
                *(self._crew_address, self.address, some.data_ptr(), len(some), into.data_ptr(), 0),
                *(x.dtype == torch.bfloat16, out_dtype == torch.bfloat16),
            )
        return out

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual [rows, N] + linear(x), over the residual."""
        x, residual, narrow = x.contiguous(), residual.contiguous(), x.dtype == torch.bfloat16
        pointers = self._crew_address, self.address, x.data_ptr(), x.shape[0], residual.data_ptr()
        self._library.fovea_linear(*pointers, 1, narrow, narrow)
        return residual

    def norm_gate_up(self, x: Tensor, norm: Norm) -> Tensor:
        """See ops.norm_gate_up."""
        rows, x = x.shape[0], x.contiguous()
        out, its = torch.empty(rows, self.outputs // 2, dtype=x.dtype), CNorm.of(norm)
        self._library.fovea_norm_gate_up(
            *(self._crew_address, self.address, x.data_ptr(), rows, ctypes.addressof(its), out.data_ptr()),
            x.dtype == torch.bfloat16,
        )
        return out

    def norm_qkv(
        self,
        x: Tensor,
        norm: Norm,
        num_heads: int,
        k_cache: Tensor,
        v_cache: Tensor,
        batch: AttentionBatch,
        head_norms: tuple[Norm, Norm] | None,
    ) -> Tensor:
        """See ops.norm_qkv."""
        rows, x = x.shape[0], x.contiguous()
        q, its = torch.empty(rows, num_heads, k_cache.shape[3], dtype=x.dtype), CNorm.of(norm)
        turn = CTurn.of(num_heads, k_cache.shape, batch, head_norms)
        turn.q, turn.keys, turn.values = q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr()
        self._library.fovea_norm_qkv(
            *(self._crew_address, self.address, x.data_ptr(), rows, ctypes.addressof(its), ctypes.addressof(turn)),
            x.dtype == torch.bfloat16,
        )
        return q


def _described(weight: Tensor | IntWeight, bias: Tensor | None) -> tuple[CWeight, int]:
    """The C struct, and the width K."""
    at = None if bias is None else bias.data_ptr()
    if isinstance(weight, Int4Weight):
        blocks, width, half = weight.packed.shape
        return CWeight(
            *(INT4, blocks * 2 * half, width, 2 * half, weight.rows, weight.packed.data_ptr()),
            *(weight.scales.data_ptr(), at),
        ), width
    if isinstance(weight, Int8Weight):
        outputs, width = weight.values.shape
        described = INT8, outputs, width, 1, outputs, weight.values.data_ptr(), weight.scales.data_ptr(), at
        return CWeight(*described), width
    assert isinstance(weight, Tensor)
    outputs, width = weight.shape
    return CWeight(DTYPES.index(weight.dtype), outputs, width, 1, outputs, weight.data_ptr(), None, at), width
