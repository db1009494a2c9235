"""What attention needs to know about a packed batch; one object, passed as an argument, nothing ambient.

A step packs the new tokens of all its sequences behind one another without padding. Sequences with one
new token come first ("decode"), those with more follow ("prefill").

Letters used beside tensors: T packed tokens, S sequences, N query heads, G KV heads, D head size, B blocks of
a sequence, P patches.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """`query_lens[i]` new tokens of sequence i, which has `kv_lens[i]` keys including them.

    `slots[t]` is where token t's key and value go: block * block_size + offset. `decode_mask` is True where a decode
    sequence has a key; None when none of them is padded.
    """

    num_decode: int
    query_lens: list[int]
    kv_lens: list[int]
    slots: Tensor  # [T] int64
    block_tables: Tensor  # [S, B] int64
    kv_lens_tensor: Tensor  # [S] int64
    decode_mask: Tensor | None  # [num_decode, 1, 1, keys], for the plain form only
    cos: Tensor  # [T, D / 2] float32
    sin: Tensor  # [T, D / 2] float32
