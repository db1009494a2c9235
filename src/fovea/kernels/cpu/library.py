"""The C kernels of a CPU, loaded; what is handed to them; and attention. Each equals its twin in ops or reference.py.

Where they cannot be compiled or loaded make_crew gives None, and the plain forms stay.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fovea.kernels.batch import AttentionBatch, Norm
from fovea.kernels.kv_pages import Pages, split
from fovea.native.library import make_library

DTYPES = (torch.float32, torch.bfloat16)
MOST_SUMS, MOST_GROUP, CHUNK = 8192, 64, 256  # as in attention.c
_P, _I, _F, _B = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int


class CCrew(ctypes.Structure):
    _fields_ = (("run", _P), ("threads", _I))


class CWeight(ctypes.Structure):
    _fields_ = (
        *(("kind", _I), ("rows", _I), ("width", _I), ("block", _I), ("outputs", _I)),
        *(("values", _P), ("scales", _P), ("bias", _P)),
    )


class CNorm(ctypes.Structure):
    _fields_ = (("weight", _P), ("eps", _F))

    @classmethod
    def of(cls, norm: Norm) -> CNorm:
        return cls(norm.weight.data_ptr(), norm.eps)


class CTurn(ctypes.Structure):
    _fields_ = (
        *(("heads", _I), ("kv_heads", _I), ("size", _I), ("turned", _I)),
        *(("slots", _P), ("cos", _P), ("sin", _P), ("q_norm", CNorm), ("k_norm", CNorm)),
        *(("q", _P), ("keys", _P), ("values", _P)),
    )

    @classmethod
    def of(
        cls, num_heads: int, pages: torch.Size, batch: AttentionBatch, head_norms: tuple[Norm, Norm] | None
    ) -> CTurn:
        """Without the pages' own memory, and that of the queries."""
        return cls(
            heads=num_heads,
            kv_heads=pages[2],
            size=pages[3],
            turned=2 * batch.cos.shape[1],
            slots=batch.slots.data_ptr(),
            cos=batch.cos.data_ptr(),
            sin=batch.sin.data_ptr(),
            q_norm=CNorm() if head_norms is None else CNorm.of(head_norms[0]),
            k_norm=CNorm() if head_norms is None else CNorm.of(head_norms[1]),
        )


class CDecode(ctypes.Structure):
    _fields_ = (
        *(("q", _P), ("keys", _P), ("values", _P), ("out", _P), ("parts", _P), ("tables", _P), ("lengths", _P)),
        *(("seqs", _I), ("heads", _I), ("kv_heads", _I), ("size", _I), ("block_size", _I), ("stride", _I)),
        *(("chunks", _I), ("scale", _F), ("narrow", _B), ("next", _I)),
    )


class CLayer(ctypes.Structure):
    _fields_ = (
        *(("qkv", _P), ("out", _P), ("gate_up", _P), ("down", _P)),
        *(("attention_norm", CNorm), ("mlp_norm", CNorm), ("q_norm", CNorm), ("k_norm", CNorm)),
        *(("keys", _P), ("values", _P)),
    )


class CStep(ctypes.Structure):
    _fields_ = (
        *(("layers", _P), ("num_layers", _I), ("count", _I), ("width", _I)),
        *(("x", _P), ("attended", _P), ("hidden", _P), ("normed", _P)),
        *(("norm", CNorm), ("turn", CTurn), ("decode", CDecode)),
    )


class CSegments(ctypes.Structure):
    _fields_ = (
        *(("q", _P), ("k", _P), ("v", _P), ("out", _P), ("keys", _P), ("values", _P)),
        *(("starts", _P), ("places", _P), ("tasks", _P)),
        *(("segments", _I), ("heads", _I), ("size", _I), ("room", _I), ("stride", _I), ("scale", _F), ("next", _I)),
    )


class CCut(ctypes.Structure):
    _fields_ = (
        *(("canvas", _P), ("levels", _P), ("out", _P)),
        *(("rows", _I), ("columns", _I), ("side", _I), ("px", _I), ("repeats", _I), ("next", _I), ("narrow", _B)),
    )


@dataclass(frozen=True, slots=True)
class Crew:
    """The loaded kernels and the threads that do their work."""

    library: ctypes.CDLL
    threads: CCrew

    @property
    def address(self) -> int:
        return ctypes.addressof(self.threads)

    @property
    def has_segment_attention(self) -> bool:
        return bool(self.library.fovea_has_segment_attention())

    def decodes(self, num_heads: int, dtype: torch.dtype, k_cache: Pages, v_cache: Pages) -> bool:
        """Whether paged_decode takes so many heads of queries over these pages: their type is one of DTYPES."""
        size, group = k_cache.shape[3], num_heads // k_cache.shape[2]
        fits = group <= MOST_GROUP and group * size <= MOST_SUMS and k_cache.shape == v_cache.shape
        return fits and dtype == split(k_cache)[0].dtype and dtype in DTYPES

    def paged_decode(self, q: Tensor, k_cache: Pages, v_cache: Pages, batch: AttentionBatch) -> Tensor:
        """One query of each of the first sequences of the batch [S, N, D], over its pages: [S, N, D]."""
        q, out = q.contiguous(), torch.empty(q.shape, dtype=q.dtype)
        decode, _parts = described_decode(q.shape, q.dtype, k_cache.shape, batch)
        decode.q, decode.out = q.data_ptr(), out.data_ptr()
        decode.keys, decode.values = split(k_cache)[0].data_ptr(), split(v_cache)[0].data_ptr()
        self.library.fovea_paged_decode(self.address, ctypes.addressof(decode))
        return out


def described_decode(
    shape: torch.Size | tuple[int, int, int], dtype: torch.dtype, pages: torch.Size, batch: AttentionBatch
) -> tuple[CDecode, Tensor | None]:
    """What does not differ between layers, for queries [S, N, D] and pages; and memory that it points to."""
    num_seqs, num_heads, size = shape
    chunks = -(-max(batch.kv_lens[:num_seqs]) // CHUNK)
    parts = torch.empty(num_seqs * num_heads * chunks * (size + 2)) if chunks > 1 else None
    decode = CDecode(
        parts=None if parts is None else parts.data_ptr(),
        tables=batch.block_tables.data_ptr(),
        lengths=batch.kv_lens_tensor.data_ptr(),
        seqs=num_seqs,
        heads=num_heads,
        kv_heads=pages[2],
        size=size,
        block_size=pages[1],
        stride=batch.block_tables.stride(0),
        chunks=chunks,
        scale=size**-0.5,
        narrow=dtype == torch.bfloat16,
    )
    return decode, parts


def make_crew(num_threads: int, folder: Path | None = None) -> Crew | None:
    """The kernels with so many threads; None where there are none."""
    library = make_library(folder)
    return None if library is None else Crew(library, CCrew(_parallel(), num_threads))


@cache
def _parallel() -> int | None:
    """GOMP_parallel of the OpenMP runtime torch has loaded: its threads wait there anyway. None: one thread works."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
