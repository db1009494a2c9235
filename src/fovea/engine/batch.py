"""From a StepPlan to the tensors of one forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fovea.core.types import ROW
from fovea.engine.encoder_cache import EncoderCache
from fovea.engine.scheduler import Chunk
from fovea.kernels.batch import AttentionBatch, LastTokens
from fovea.kernels.cpu.library import Crew
from fovea.models.decoder import Rotary

ALIGNED = 16  # numbers of 8 bytes


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    token_ids: Tensor  # [T]
    attention: AttentionBatch
    last: LastTokens | None  # None: all final hidden states are wanted, or there are no others
    logit_rows: Tensor  # which of the final hidden states are those of chunks that sample


def build_batch(
    chunks: list[Chunk],
    rope: Rotary,
    block_size: int,
    device: torch.device,
    *,
    idle_block: int = 0,
    arrivals: Tensor | None = None,
    shared_len: Tensor | None = None,
    crew: Crew | None = None,
) -> ForwardBatch:
    """`chunks` in the order of the plan: those of one token first. `idle_block` pads block tables.

    `arrivals`, `shared_len`, `crew`: see AttentionBatch.
    """
    arrays = StepArrays.of(chunks, block_size, idle_block)
    only_last = len(arrays.token_ids) > len(chunks) and not any(scores_prompt(chunk) for chunk in chunks)
    sampled = np.asarray(sampling(chunks), np.int64)
    rows = sampled if only_last else arrays.last_rows[sampled]
    token_ids, positions, regimes, slots, kv_lens_tensor, query_starts, last_rows, tables, logit_rows = _upload(
        [*arrays, rows], device
    )
    cos, sin = rope(positions, regimes)
    query_lens, kv_lens = [chunk.num_tokens for chunk in chunks], [chunk.end for chunk in chunks]
    num_decode, is_cpu = query_lens.count(1), device.type == "cpu"
    attention = AttentionBatch(
        num_decode=num_decode,
        query_lens=query_lens,
        kv_lens=kv_lens,
        slots=slots,
        block_tables=tables,
        kv_lens_tensor=kv_lens_tensor,
        decode_mask=_decode_mask(kv_lens[:num_decode], block_size) if is_cpu else None,
        cos=cos,
        sin=sin,
        query_starts=query_starts,
        arrivals=arrivals,
        shared_len=shared_len,
        positions=positions,
        open_spans=_open_spans(chunks),
        crew=crew,
    )
    last = None
    if only_last:
        mask = _decode_mask(kv_lens, block_size) if is_cpu else None
        last = last_tokens(attention, last_rows, kv_lens, decode_mask=mask)
    return ForwardBatch(token_ids, attention, last, logit_rows)


def last_tokens(
    batch: AttentionBatch, rows: Tensor, kv_lens: list[int], *, decode_mask: Tensor | None = None
) -> LastTokens:
    """`rows` [S]: where the last new token of each sequence of the batch is."""
    count = len(rows)
    alone = replace(
        batch, num_decode=count, query_lens=[1] * count, kv_lens=kv_lens, decode_mask=decode_mask, query_starts=None
    )
    return LastTokens(rows, alone)


class StepArrays(NamedTuple):
    """What a device is told of a step, all int64; T tokens of S chunks."""

    token_ids: NDArray[np.int64]  # [T]
    positions: NDArray[np.int64]  # [rows, T]
    regimes: NDArray[np.int64]  # [T]
    slots: NDArray[np.int64]  # [T]
    kv_lens: NDArray[np.int64]  # [S]
    starts: NDArray[np.int64]  # [S + 1]
    last_rows: NDArray[np.int64]  # [S]
    tables: NDArray[np.int64]  # [S, B]

    @classmethod
    def of(cls, chunks: list[Chunk], block_size: int, idle_block: int) -> StepArrays:
        """`chunks` in the order of the plan: those of one token first."""
        query_lens = [chunk.num_tokens for chunk in chunks]
        num_decode = query_lens.count(1)
        starts = np.cumsum([0, *query_lens])
        return cls(
            token_ids=_token_ids(chunks, num_decode),
            positions=_positions(chunks, num_decode),
            regimes=np.repeat([chunk.sequence.regime for chunk in chunks], query_lens),
            slots=_slots(chunks, num_decode, block_size),
            kv_lens=np.asarray([chunk.end for chunk in chunks], np.int64),
            starts=starts,
            last_rows=starts[1:] - 1,
            tables=_block_tables(chunks, idle_block),
        )


def sampling(chunks: list[Chunk]) -> list[int]:
    """Which of them want a token."""
    return [i for i, chunk in enumerate(chunks) if chunk.samples]


def scores_prompt(chunk: Chunk) -> bool:
    """Whether log-probabilities of the prompt's own tokens are wanted of this chunk."""
    return chunk.sequence.wants_prompt_logprobs and chunk.start < chunk.sequence.num_prompt_tokens - 1


def insert_embeddings(x: Tensor, chunks: list[Chunk], cache: EncoderCache[Tensor]) -> Tensor | None:
    """Write pictures' rows over the embeddings [T, hidden] of their placeholder tokens, in place.

    Returns what deepstack adds behind the first layers [levels, T, hidden]; None where no row has more than embeddings.
    """
    first, added = 0, None
    for chunk in chunks:
        request = chunk.sequence.request
        for span, item in zip(request.spans, request.media, strict=True):
            start, end = max(span.start, chunk.start), min(span.end, chunk.end)
            if start >= end:
                continue
            into = x[first + start - chunk.start :][: end - start]
            if item.embeds is not None and item.ids is not None:
                _insert_between(into, item.embeds, item.ids, start - span.start)
                continue
            rows = cache.get(item.key) if item.embeds is None else torch.from_numpy(item.embeds)
            part = rows[start - span.start : end - span.start].to(x)
            if part.shape[1] != x.shape[1]:
                place = first + start - chunk.start
                part, *levels = part.split(x.shape[1], dim=1)
                added = x.new_zeros(len(levels), *x.shape) if added is None else added
                added[:, place : place + end - start] = torch.stack(levels)
            into[:] = part
        first += chunk.num_tokens
    return added


def _insert_between(into: Tensor, embeds: NDArray[np.float32], ids: Sequence[int], start: int) -> None:
    """Embeddings handed in, over a part [T, hidden] of their span that begins at `start`; its text is there already."""
    is_row = np.asarray(ids) == ROW
    places = is_row[start : start + len(into)].nonzero()[0]
    first = int(is_row[:start].sum())
    into[torch.from_numpy(places).to(into.device)] = torch.from_numpy(embeds[first : first + len(places)]).to(into)


def _upload(arrays: list[np.ndarray], device: torch.device) -> list[Tensor]:
    """All inputs of a step in one pinned buffer and one copy that the host does not wait for; on a CPU as they are.

    Each begins at a multiple of ALIGNED: Triton compiles a kernel anew for an address that is less even.
    """
    if device.type != "cuda":
        return [torch.from_numpy(array) for array in arrays]
    ends = np.cumsum([-(-array.size // ALIGNED) * ALIGNED for array in arrays]).tolist()
    starts = [0, *ends[:-1]]
    staged = torch.empty(ends[-1], dtype=torch.int64, pin_memory=True)
    flat = staged.numpy()
    for start, array in zip(starts, arrays, strict=True):
        flat[start : start + array.size] = array.ravel()
    there = staged.to(device, non_blocking=True)
    return [there[start : start + a.size].view(a.shape) for start, a in zip(starts, arrays, strict=True)]


def _token_ids(chunks: list[Chunk], num_decode: int) -> np.ndarray:
    token_ids = [chunk.sequence.token_ids[chunk.start] for chunk in chunks[:num_decode]]
    for chunk in chunks[num_decode:]:
        token_ids += chunk.sequence.token_ids[chunk.start : chunk.end]
    return np.asarray(token_ids, np.int64)


def _positions(chunks: list[Chunk], num_decode: int) -> np.ndarray:
    """[rows, T]; a text-only sequence has one row, repeated beside those with three."""
    rows = max(1 if (p := chunk.sequence.request.positions) is None else len(p) for chunk in chunks)
    positions = np.empty((rows, sum(chunk.num_tokens for chunk in chunks)), np.int64)
    positions[:, :num_decode] = [c.start + c.sequence.request.position_delta for c in chunks[:num_decode]]
    for i, chunk in enumerate(chunks[:num_decode]):
        if chunk.start < chunk.sequence.num_prompt_tokens:
            positions[:, i] = chunk.sequence.positions(chunk.start, chunk.end)[:, 0]
    first = num_decode
    for chunk in chunks[num_decode:]:
        positions[:, first : first + chunk.num_tokens] = chunk.sequence.positions(chunk.start, chunk.end)
        first += chunk.num_tokens
    return positions


def _slots(chunks: list[Chunk], num_decode: int, size: int) -> np.ndarray:
    """Where each token's key and value go [T]."""
    ones = [c.sequence.blocks[c.start // size] * size + c.start % size for c in chunks[:num_decode]]
    parts = [np.asarray(ones, np.int64)]
    for chunk in chunks[num_decode:]:
        first = chunk.start // size
        blocks = np.asarray(chunk.sequence.blocks[first : -(-chunk.end // size)], np.int64)
        slots = (blocks[:, None] * size + np.arange(size)).ravel()
        parts.append(slots[chunk.start - first * size : chunk.end - first * size])
    return np.concatenate(parts)


def _block_tables(chunks: list[Chunk], idle_block: int) -> np.ndarray:
    """[S, B], short ones padded with a block that masks or lengths keep from being read.

    On a CPU masked values are multiplied by 0, so it must be a block in which nobody's NaN can stand.
    """
    shape = (len(chunks), max(len(chunk.sequence.blocks) for chunk in chunks))
    tables = np.full(shape, idle_block, np.int64)
    for i, chunk in enumerate(chunks):
        tables[i, : len(chunk.sequence.blocks)] = chunk.sequence.blocks
    return tables


def _open_spans(chunks: list[Chunk]) -> list[tuple[tuple[int, int], ...]] | None:
    """See AttentionBatch."""
    if not any(chunk.sequence.request.open_spans for chunk in chunks):
        return None
    found = []
    for chunk in chunks:
        spans = chunk.sequence.request.open_spans
        found.append(tuple((s.start, s.end) for s in spans if s.start < chunk.end and chunk.start < s.end))
    return found if any(found) else None


def _decode_mask(kv_lens: list[int], block_size: int) -> Tensor | None:
    if not kv_lens or min(kv_lens) == max(kv_lens):
        return None
    num_keys = -(-max(kv_lens) // block_size) * block_size
    return (torch.arange(num_keys) < torch.tensor(kv_lens)[:, None])[:, None, None]
