"""CUDA graphs of steps with prompts: one launch instead of some ten for each layer.

A step's tokens are padded to one of some dozen numbers. Its sequences, those of one token too, are told to the device
alone, as many as a graph has room for; those that are not there have no tokens. Padded tokens write to a page nobody
reads and belong to no sequence. A few graphs are made at the start, those of a full step among them; one of another
size when it is wanted for the second time. A larger one does until then, and while it costs less than that: launching
a step's kernels one by one keeps the host busy for as long as a small model takes for thousands of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fovea.engine.batch import ALIGNED, StepArrays, insert_embeddings, last_tokens, sampling, scores_prompt
from fovea.engine.encoder_cache import EncoderCache
from fovea.engine.graphs import Recorded, Shared, fill_in
from fovea.engine.scheduler import Chunk
from fovea.kernels.batch import AttentionBatch
from fovea.models.moe import FEW_TOKENS

TOKENS = (16, 32, 64, 128, 192, 256, 384, *range(512, 8193, 128))
FEW_SEQUENCES = 64  # the kernel finds its tiles among so many at once
FIRST_TOKENS = (512, 1024, 1536, 2048)  # of graphs that are made at the start, beside a full step's
SECOND_TOKENS = (3072, 3584, 4096, 4608, 6144)  # the same where launching takes longer than computing them
SPARE_TOKENS = 512  # of padding that cost less than launching a step's kernels one by one
WORTH_TOKENS = 4096  # of padding that cost as much as making a graph
# How long the host launches the kernels of a layer, and how fast prompts are computed: seen on an H100 and a busy host.
LAYER_LAUNCH_S = 0.0014
FLOPS = 6e14
ALONE = 2  # sequences of a step whose size will come again; with more of them sizes are as good as random


@dataclass(frozen=True, slots=True)
class _Size:
    tokens: int
    sequences: int


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Parts of one buffer, each at an even place; block tables come last, of which no more is sent than is used."""

    flat: Tensor
    token_ids: Tensor  # [tokens]
    regimes: Tensor  # [tokens]
    slots: Tensor  # [tokens]
    positions: Tensor  # [rows, tokens]
    kv_lens: Tensor  # [sequences]
    starts: Tensor  # [sequences + 1]
    last_rows: Tensor  # [sequences]
    sampled: Tensor  # [sequences]
    tables: Tensor  # [sequences, blocks]

    @classmethod
    def over(cls, flat: Tensor, size: _Size, rows: int, blocks: int) -> _Inputs:
        tokens, sequences = size.tokens, size.sequences
        shapes = [(tokens,), (tokens,), (tokens,), (rows, tokens)]
        shapes += [(sequences,), (sequences + 1,), (sequences,), (sequences,), (sequences, blocks)]
        parts, start = [], 0
        for shape in shapes:
            count = int(np.prod(shape))
            parts.append(flat[start : start + count].view(shape))
            start += -(-count // ALIGNED) * ALIGNED
        return cls(flat, *parts)


class PromptGraphs:
    def __init__(self, shared: Shared, max_tokens: int) -> None:
        self._shared = shared
        spec, most = shared.model.spec, len(shared.last)
        if spec.decoder.moe is not None:  # with more rows experts are chosen on the host
            max_tokens = min(max_tokens, FEW_TOKENS)
        tokens = [count for count in TOKENS if count <= max_tokens]
        few = min(FEW_SEQUENCES, most)
        self._sizes = [_Size(count, room) for count in tokens for room in dict.fromkeys((few, most))]
        self._rows = 1 if spec.decoder.rope.sections is None else 3
        self._blocks = -(-shared.plan.max_model_len // shared.plan.block_size)
        device, largest = shared.model.device, self._sizes[-1]
        room = (3 + self._rows) * largest.tokens + (4 + self._blocks) * most + 10 * ALIGNED
        self._flat = torch.zeros(room, dtype=torch.int64, device=device)
        self._x = torch.zeros(largest.tokens, spec.decoder.hidden_size, dtype=shared.model.dtype, device=device)
        self._has_levels = spec.projector.deepstack > 0
        token_s = 2 * spec.decoder.num_layer_weights() / FLOPS
        self._launch_tokens = spec.decoder.num_layers * LAYER_LAUNCH_S / token_s  # computed while a step is launched
        self._graphs: dict[_Size, Recorded | None] = {}  # None: wanted once
        self._padded: dict[_Size, int] = {}  # tokens that a larger graph computed for nothing

    def rehearse(self) -> None:
        """Run a full step once as it will be captured."""
        for size in self._sizes_of(self._sizes[-1].tokens):
            self._rehearse(size)

    def capture(self) -> None:
        """Largest first, so that smaller graphs fit into memory that is there already."""
        recorder = self._shared.recorder
        slow = (count for count in SECOND_TOKENS if count <= self._launch_tokens)
        for tokens in sorted({*FIRST_TOKENS, *slow, self._sizes[-1].tokens}, reverse=True):
            sizes = self._sizes_of(tokens)
            for size in sizes if recorder.is_on else ():
                recorder.make(self._graphs, size, partial(self._rehearse, sizes[0]), partial(self._step, size))

    def fits(self, chunks: list[Chunk]) -> bool:
        """Whether there is a graph, or one could be made now."""
        wanted = self._sizes_for(chunks)
        if not wanted or not _is_usual(chunks, with_spans=not self._has_levels):
            return False
        made = self._made(wanted)
        if made is None or (made != wanted[0] and not self._does(made, wanted[0], len(chunks))):
            bodies = partial(self._rehearse, wanted[0]), partial(self._step, wanted[0])
            self._shared.recorder.when_wanted_again(self._graphs, wanted[0], *bodies)
        return self._made(wanted) is not None

    def run(self, chunks: list[Chunk], cache: EncoderCache[Tensor]) -> tuple[Tensor, Tensor]:
        """Raw logits of the chunks that sample [rows, vocabulary] and their likeliest tokens; until the next run."""
        size, shared = self._made(self._sizes_for(chunks)), self._shared
        assert size is not None, "asked for what fits"
        inputs = self._send(chunks, size)
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        x = self._x[:num_tokens]
        x.copy_(shared.model.decoder.embed(fill_in(inputs.token_ids[:num_tokens], shared.last)))
        levels = insert_embeddings(x, chunks, cache)
        assert levels is None
        recorded = self._graphs[size]
        assert recorded is not None
        graph, logits = recorded
        graph.replay()
        count = len(sampling(chunks))
        return logits[:count], shared.last[:count]

    def _rehearse(self, size: _Size) -> None:
        """Run a size once as it will be captured, without any sequence; the last tokens stay."""
        last = self._shared.last.clone()
        self._flat.zero_()
        self._inputs(size).slots.fill_(self._shared.idle_slot)
        self._step(size)
        self._shared.last.copy_(last)

    def _does(self, made: _Size, wanted: _Size, num_sequences: int) -> bool:
        """Note what a larger graph costs in place of the one that is wanted; whether that is still worth it."""
        self._padded[wanted] = self._padded.get(wanted, 0) + made.tokens - wanted.tokens
        return num_sequences > ALONE and self._padded[wanted] < WORTH_TOKENS

    def _sizes_of(self, tokens: int) -> list[_Size]:
        """For few sequences and for many."""
        return [size for size in self._sizes if size.tokens == tokens]

    def _sizes_for(self, chunks: list[Chunk]) -> list[_Size]:
        """Those that hold them: the best first, then those that take less time than launching kernels one by one."""
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        most = max(num_tokens + SPARE_TOKENS, self._launch_tokens)
        holding = [s for s in self._sizes if s.tokens >= num_tokens and s.sequences >= len(chunks)]
        return [s for s in holding if s is holding[0] or s.tokens <= most]

    def _made(self, sizes: list[_Size]) -> _Size | None:
        """The first that has a graph."""
        return next((size for size in sizes if self._graphs.get(size) is not None), None)

    def _inputs(self, size: _Size) -> _Inputs:
        return _Inputs.over(self._flat, size, self._rows, self._blocks)

    def _send(self, chunks: list[Chunk], size: _Size) -> _Inputs:
        """By one copy that the host does not wait for."""
        arrays = StepArrays.of(chunks, self._shared.plan.block_size, 0)
        count, width = arrays.tables.shape
        staged = torch.empty(self._flat.numel(), dtype=torch.int64, pin_memory=self._flat.is_cuda)
        into = _Inputs.over(staged, size, self._rows, self._blocks)
        _fill(into.token_ids, arrays.token_ids)
        _fill(into.regimes, arrays.regimes)
        _fill(into.slots, arrays.slots, self._shared.idle_slot)
        for row in range(self._rows):
            _fill(into.positions[row], arrays.positions[row % len(arrays.positions)])
        _fill(into.kv_lens, arrays.kv_lens)
        _fill(into.starts, arrays.starts, int(arrays.starts[-1]))
        _fill(into.last_rows, arrays.last_rows)
        _fill(into.sampled, np.asarray(sampling(chunks), np.int64))
        into.tables.numpy()[:count, :width] = arrays.tables
        used = into.tables.storage_offset() + count * self._blocks
        self._flat[:used].copy_(staged[:used], non_blocking=True)
        return self._inputs(size)

    def _step(self, size: _Size) -> Tensor:
        shared, inputs = self._shared, self._inputs(size)
        cos, sin = shared.rope(inputs.positions, inputs.regimes)
        batch = AttentionBatch(
            num_decode=0,
            query_lens=[size.tokens, *[0] * (size.sequences - 1)],  # their sum: whose they are is on the device only
            kv_lens=[],
            slots=inputs.slots,
            block_tables=inputs.tables,
            kv_lens_tensor=inputs.kv_lens,
            decode_mask=None,
            cos=cos,
            sin=sin,
            query_starts=inputs.starts,
            arrivals=shared.arrivals,
            shared_len=shared.nothing,
            positions=inputs.positions,
        )
        last = last_tokens(batch, inputs.last_rows, [])
        hidden = shared.model.decoder(self._x[: size.tokens], shared.pages, batch, None, last)
        return shared.choose(hidden[inputs.sampled])


def _is_usual(chunks: list[Chunk], *, with_spans: bool) -> bool:
    """Whether only the last tokens' logits are wanted, and rows of pictures (if `with_spans`) have nothing special."""
    for chunk in chunks:
        request = chunk.sequence.request
        if request.open_spans or scores_prompt(chunk) or (request.spans and not with_spans):
            return False
    return True


def _fill(into: Tensor, values: NDArray[np.int64], rest: int = 0) -> None:
    part = into.numpy()
    part[: len(values)] = values
    part[len(values) :] = rest
