"""What attention needs to know about packed rows; arguments, nothing ambient.

A step packs the new tokens of all its sequences behind one another without padding. Sequences with one
new token come first ("decode"), those with more follow ("prefill"). A tower packs the patches of all its pictures.

Letters used beside tensors: T packed tokens, S sequences, N query heads, G KV heads, D head size, B blocks of
a sequence, P patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from fovea.kernels.cpu.library import Crew

FEW_ROWS = 4  # up to here linear layers on CUDA are bound by reading weights, and our kernels read them faster
FEW_ALONE = 2  # the same where they join no other kernel: matrix units take 0.6 to 0.95 of the time for 3 and 4 rows
SOME_ROWS = 128  # up to here a kernel of ours reads gate and up and multiplies them, on Hopper
SEGMENT_ROWS = 128  # rows of one entry of Segments.tiles
SHARED_FROM = 16  # decode sequences: fewer are not asked whether they begin alike
SMALLEST_HEAD = 16  # of a decoder on CUDA; kernels compiled for heads of 8 gave other tokens, and nobody knows why yet


class Norm(Protocol):
    """An RMSNorm: its call is rms_norm with its weight and eps."""

    @property
    def weight(self) -> Tensor: ...
    @property
    def eps(self) -> float: ...
    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class AttentionRule:
    """How a layer's attention departs from the usual: `scale` times the products (None: 1 / sqrt(D)), `softcap` times
    the tanh of that divided by it, and `window`: a token sees so many tokens, itself included, as transformers counts
    a sliding_window. `spans_exceed_window`: inside an open span (AttentionBatch) tokens see each other although they
    are outside the window (PaliGemma 2; not so in Gemma 3).
    """

    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    spans_exceed_window: bool = False


PLAIN = AttentionRule()


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """`query_lens[i]` new tokens of sequence i, which has `kv_lens[i]` keys including them.

    `slots[t]` is where token t's key and value go: block * block_size + offset. `decode_mask` is True where a decode
    sequence has a key; None when none of them is padded. `query_starts[i]` is the first new token of sequence i among
    the packed ones, its last entry their number; on CUDA it spares prefill a copy. `arrivals` are zeros which
    decode attention on CUDA counts in and leaves as zeros: whoever repeats steps makes them once; None: made each time.

    `shared_len`: so many first keys of all decode sequences are the same ones, in the same blocks, and none ends with
    them; which may be read once for all of them. With fewer than SHARED_FROM sequences nobody reads it. None: nobody
    has looked.

    `open_spans[i]`: ranges [start, end) of sequence i's tokens, inside which all see each other; those that its new
    tokens touch. New tokens end where such a range does, or outside. None: there are none in any sequence.
    """

    num_decode: int
    query_lens: list[int]
    kv_lens: list[int]
    slots: Tensor  # [T] int64
    block_tables: Tensor  # [S, B] int64 or int32
    kv_lens_tensor: Tensor  # [S] int64 or int32
    decode_mask: Tensor | None  # [num_decode, 1, 1, keys], for the plain form only
    cos: Tensor  # [T, D / 2] float32
    sin: Tensor  # [T, D / 2] float32
    query_starts: Tensor | None = None  # [S + 1] int64 or int32
    arrivals: Tensor | None = None  # [at least num_decode * G] int32
    shared_len: Tensor | None = None  # [1] int64
    open_spans: list[tuple[tuple[int, int], ...]] | None = None
    crew: Crew | None = None  # who decodes on a CPU; None: the plain form
    positions: Tensor | None = None  # [rows, T] int64, for decoders that rotate by themselves


@dataclass(frozen=True, slots=True)
class LastTokens:
    """The last new token of each sequence: all that a decoder's last layer makes beside keys and values."""

    rows: Tensor  # [S] int64: where they are among the packed tokens
    attention: AttentionBatch  # of them alone, over the same keys


@dataclass(frozen=True, slots=True)
class Segments:
    """Segments of packed rows that attend within themselves; make it once and use it in every layer.

    A row of `tiles` is at most SEGMENT_ROWS rows of one segment: its first row, and the segment's first and end. Those
    of long segments come first, so that the device ends on short work. None on a CPU, where nobody reads it.
    """

    lengths: list[int]
    tiles: Tensor | None  # [tiles, 3] int32
    crew: Crew | None = None  # who may do it on a CPU

    @classmethod
    def of(cls, lengths: list[int], device: torch.device, crew: Crew | None = None) -> Segments:
        if device.type != "cuda":
            return cls(lengths, None, crew)
        staged = torch.from_numpy(segment_tiles(lengths)).pin_memory()
        return cls(lengths, staged.to(device, non_blocking=True))


def segment_tiles(lengths: list[int]) -> np.ndarray:
    """[tiles, 3] int32, see Segments."""
    sizes = np.asarray(lengths, np.int64)
    ends = np.cumsum(sizes)
    order = np.argsort(-sizes, kind="stable")
    counts = -(-sizes[order] // SEGMENT_ROWS)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    firsts = np.repeat((ends - sizes)[order], counts)
    rows = firsts + (np.arange(len(firsts)) - before) * SEGMENT_ROWS
    return np.stack((rows, firsts, np.repeat(ends[order], counts)), axis=1).astype(np.int32)
