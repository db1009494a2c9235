"""Attention of towers by the C kernel, see segments.c."""

from __future__ import annotations

import ctypes
from itertools import accumulate

import torch
from torch import Tensor

from fovea.kernels.cpu.library import Crew, CSegments

KEYS, QUERIES, VECTOR, MOST_SIZE = 128, 96, 16, 128  # as in segments.c


def attends(crew: Crew, q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether segment_attention takes these [P, heads, D]: views of one tensor, or of several of its shape."""
    size = q.shape[2]
    return (
        crew.has_segment_attention
        and q.dtype == torch.bfloat16
        and size % 2 == 0
        and size <= MOST_SIZE
        and q.stride() == k.stride() == v.stride()
        and q.stride()[1:] == (size, 1)
    )


def segment_attention(crew: Crew, q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """See reference.segment_attention."""
    rows, heads, size = q.shape
    room, padded = -(-size // VECTOR) * VECTOR, [-(-length // KEYS) * KEYS for length in lengths]
    starts, places, tasks = (
        torch.tensor([0, *accumulate(counts)])
        for counts in (lengths, padded, [-(-length // QUERIES) for length in lengths])
    )
    laid = torch.empty(heads, sum(padded), size // 2 + room // 2, dtype=torch.int32)
    out = torch.empty(rows, heads, size, dtype=q.dtype)
    keys = laid.data_ptr()
    segments = CSegments(
        *(q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()),
        *(keys, keys + heads * sum(padded) * (size // 2) * laid.itemsize),
        *(starts.data_ptr(), places.data_ptr(), tasks.data_ptr()),
        *(len(lengths), heads, size, room, q.stride(0), size**-0.5, 0),
    )
    crew.library.fovea_segment_attention(crew.address, ctypes.addressof(segments))
    return out
