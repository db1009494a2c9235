"""From a StepPlan to the tensors of one forward."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fovea.engine.encoder_cache import EncoderCache
from fovea.engine.scheduler import Chunk
from fovea.kernels.batch import AttentionBatch
from fovea.models.decoder import Rope


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    token_ids: Tensor  # [T]
    attention: AttentionBatch
    logit_rows: Tensor  # indices of the last token of each chunk that samples


def build_batch(
    chunks: list[Chunk], rope: Rope, block_size: int, device: torch.device, *, idle_block: int = 0
) -> ForwardBatch:
    """`chunks` in the order of the plan: those of one token first. `idle_block` pads block tables."""
    token_ids = [token for chunk in chunks for token in chunk.sequence.token_ids[chunk.start : chunk.end]]
    positions = _stack_positions(chunks)
    regimes = np.repeat([chunk.sequence.regime for chunk in chunks], [chunk.num_tokens for chunk in chunks])
    cos, sin = rope(_to(positions, device), _to(regimes, device))
    num_decode = sum(1 for chunk in chunks if chunk.num_tokens == 1)
    kv_lens = [chunk.end for chunk in chunks]
    ends = np.cumsum([chunk.num_tokens for chunk in chunks])
    sampled = [int(end) - 1 for chunk, end in zip(chunks, ends, strict=True) if chunk.samples]
    attention = AttentionBatch(
        num_decode=num_decode,
        query_lens=[chunk.num_tokens for chunk in chunks],
        kv_lens=kv_lens,
        slots=_to(np.concatenate([_slots(chunk, block_size) for chunk in chunks]), device),
        block_tables=_to(_block_tables(chunks, idle_block), device),
        kv_lens_tensor=_to(np.asarray(kv_lens, np.int64), device),
        decode_mask=_decode_mask(kv_lens[:num_decode], block_size) if device.type == "cpu" else None,
        cos=cos,
        sin=sin,
    )
    return ForwardBatch(
        token_ids=_to(np.asarray(token_ids, np.int64), device),
        attention=attention,
        logit_rows=_to(np.asarray(sampled, np.int64), device),
    )


def insert_embeddings(x: Tensor, chunks: list[Chunk], cache: EncoderCache[Tensor]) -> None:
    """Write pictures' rows over the embeddings [T, hidden] of their placeholder tokens, in place."""
    first = 0
    for chunk in chunks:
        request = chunk.sequence.request
        for span, item in zip(request.spans, request.media, strict=True):
            start, end = max(span.start, chunk.start), min(span.end, chunk.end)
            if start >= end:
                continue
            rows = cache.get(item.key) if item.embeds is None else torch.from_numpy(item.embeds)
            place = first + start - chunk.start
            x[place : place + end - start] = rows[start - span.start : end - span.start].to(x)
        first += chunk.num_tokens


def _to(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _stack_positions(chunks: list[Chunk]) -> np.ndarray:
    """[rows, T]; a text-only sequence has one row, repeated beside those with three."""
    rows = [chunk.sequence.positions(chunk.start, chunk.end) for chunk in chunks]
    most = max(len(r) for r in rows)
    return np.concatenate([np.broadcast_to(r, (most, r.shape[1])) for r in rows], axis=1)


def _slots(chunk: Chunk, block_size: int) -> np.ndarray:
    places = np.arange(chunk.start, chunk.end)
    blocks = np.asarray(chunk.sequence.blocks, np.int64)
    return blocks[places // block_size] * block_size + places % block_size


def _block_tables(chunks: list[Chunk], idle_block: int) -> np.ndarray:
    """[S, B], short ones padded with a block that masks or lengths keep from being read.

    On a CPU masked values are multiplied by 0, so it must be a block in which nobody's NaN can stand.
    """
    shape = (len(chunks), max(len(chunk.sequence.blocks) for chunk in chunks))
    tables = np.full(shape, idle_block, np.int64)
    for i, chunk in enumerate(chunks):
        tables[i, : len(chunk.sequence.blocks)] = chunk.sequence.blocks
    return tables


def _decode_mask(kv_lens: list[int], block_size: int) -> Tensor | None:
    if not kv_lens or min(kv_lens) == max(kv_lens):
        return None
    num_keys = -(-max(kv_lens) // block_size) * block_size
    return (torch.arange(num_keys) < torch.tensor(kv_lens)[:, None])[:, None, None]
