"""CUDA graphs of the decode step: one launch instead of some twenty for each layer.

A graph is captured for each of a dozen batch sizes; a smaller batch is padded with rows that have no keys and write to
a page nobody reads. All graphs read the same buffers and share one memory pool.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fovea.core.log import logger
from fovea.engine.memory import MemoryPlan
from fovea.engine.sampler import choose_likeliest
from fovea.engine.scheduler import Chunk
from fovea.engine.sequence import Sequence
from fovea.kernels.batch import SHARED_FROM, AttentionBatch
from fovea.kernels.kv_pages import KVPages
from fovea.models.decoder import Rope
from fovea.models.vlm import VLM

BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
EVEN = 2  # numbers of 8 bytes: rows begin at multiples of 16, or Triton would compile kernels anew for one sequence
SHARED_TOKENS = 128  # from so many on a beginning that all sequences have is worth a kernel of its own
TOKEN, SLOT, KV_LEN, REGIME, POSITION = range(5)  # rows of the input buffer; one position row or three


@dataclass(slots=True)
class _Staged:
    """Pinned inputs of one step; there are two, because one may still be on its way to the device."""

    rows: Tensor  # [rows * sequences + EVEN] int64, as many sequences as the graph has; at the end see _shared_len
    tables: Tensor  # [sequences, blocks] int64
    blocks: list[tuple[list[int], int]]  # which list of blocks, and how much of it, each row of the tables holds


def fill_in(tokens: Tensor, last: Tensor) -> Tensor:
    """Token ids, where a number below 0 stands for a token of the last step by its row (see Sequence.expect).

    A row without a token (BROKEN, NOT_FINITE) gives 0: its sequence has ended, whatever comes of it.
    """
    return torch.where(tokens < 0, last[(-1 - tokens).clamp_min(0)], tokens).clamp_min(0)


def shared_len(tables: NDArray[np.int64], most: int, block_size: int) -> int:
    """Tokens in the blocks that all rows of tables [sequences, blocks] begin with, at most `most`; 0: too few."""
    if (tables[:, 0] != tables[0, 0]).any():
        return 0
    differs = (tables[:, : most // block_size] != tables[0, : most // block_size]).any(axis=0)
    tokens = (int(differs.argmax()) if differs.any() else len(differs)) * block_size
    return tokens if tokens >= SHARED_TOKENS else 0


Size = TypeVar("Size", bound=Hashable)
Recorded = tuple[torch.cuda.CUDAGraph, Tensor]  # a graph, and what it leaves its result in until the next replay


class Recorder:
    """Makes graphs, all in one pool of memory, because they run in turns."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()
        self.is_on = False  # whether sizes are noted, and graphs made of them, while requests run

    def record(self, body: Callable[[], Tensor]) -> Recorded:
        """A graph of what `body` launches. It must have run before, so that libraries are set up."""
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                made = body()
            except BaseException:
                with suppress(RuntimeError):  # what went wrong is being raised
                    graph.capture_end()
                raise
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        return graph, made

    def when_wanted_again(
        self,
        graphs: dict[Size, Recorded | None],
        size: Size,
        rehearse: Callable[[], object],
        body: Callable[[], Tensor],
    ) -> Recorded | None:
        """The graph of a size, made when it is asked for the second time; None at the first (and then in `graphs`)."""
        if size not in graphs and self.is_on:
            graphs[size] = None
        elif self.is_on and graphs[size] is None:
            self.make(graphs, size, rehearse, body)
        return graphs.get(size)

    def make(
        self,
        graphs: dict[Size, Recorded | None],
        size: Size,
        rehearse: Callable[[], object],
        body: Callable[[], Tensor],
    ) -> None:
        """The graph of a size. Where one cannot be made, for want of memory say, no others are tried."""
        try:
            rehearse()
            graphs[size] = self.record(body)
        except RuntimeError as error:  # no memory, or the model waits for the device somewhere
            self.is_on = False
            logger.warning("no further CUDA graphs, steps of new sizes run without: %s", str(error)[:200])


@dataclass(frozen=True, slots=True)
class Shared:
    """What all graphs of a runner read and write, in turns.

    `last` [sequences]: the tokens of the step before by row; every replay reads it and writes its own.
    """

    model: VLM
    rope: Rope
    pages: list[KVPages]
    last: Tensor
    logits: Tensor  # [at least as many rows as a graph has, vocabulary] in the model's type
    arrivals: Tensor  # see AttentionBatch
    nothing: Tensor  # shared_len where nobody looks for it
    plan: MemoryPlan
    recorder: Recorder

    @property
    def idle_slot(self) -> int:
        """A place in the pages that nobody reads."""
        return self.plan.num_blocks * self.plan.block_size

    def choose(self, hidden: Tensor) -> Tensor:
        """Raw logits of final hidden states [rows, hidden], whose likeliest tokens become the last ones."""
        logits = self.model.decoder.raw_logits(hidden, self.logits[: len(hidden)])
        self.last[: len(hidden)] = choose_likeliest(logits)
        return logits


class DecodeGraphs:
    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        model, last, plan = shared.model, shared.last, shared.plan
        self._block_size = plan.block_size
        self._sizes = [size for size in BATCH_SIZES if size <= len(last)] or [1]
        self._num_positions = 1 if model.spec.decoder.rope.sections is None else 3
        most, num_blocks = max(self._sizes[-1], EVEN), -(-plan.max_model_len // plan.block_size)
        self._num_rows = POSITION + self._num_positions
        self._staged = [
            _Staged(
                torch.zeros(self._num_rows * most + EVEN, dtype=torch.int64).pin_memory(),
                torch.zeros(most, num_blocks, dtype=torch.int64).pin_memory(),
                [([], 0)] * most,
            )
            for _ in range(2)
        ]
        self._rows = torch.zeros(self._num_rows * most + EVEN, dtype=torch.int64, device=model.device)
        self._tables = torch.zeros(most, num_blocks, dtype=torch.int64, device=model.device)
        self._graphs: dict[int, Recorded] = {}

    def fits(self, chunks: list[Chunk]) -> bool:
        """Whether every chunk is one generated token, so that no picture and no prompt is involved."""
        return (
            bool(self._graphs)
            and len(chunks) <= self._sizes[-1]
            and all(chunk.num_tokens == 1 and chunk.start >= chunk.sequence.num_prompt_tokens for chunk in chunks)
        )

    def run(self, chunks: list[Chunk]) -> tuple[Tensor, Tensor]:
        """Raw logits [len(chunks), vocabulary] and their likeliest tokens; valid until the next run."""
        count = len(chunks)
        size = next(s for s in self._sizes if s >= count)
        self._staged.reverse()
        staged = self._staged[0]
        self._stage(staged, chunks, size)
        used = self._num_rows * max(size, EVEN) + EVEN
        self._rows[:used].copy_(staged.rows[:used], non_blocking=True)
        self._tables[:count].copy_(staged.tables[:count], non_blocking=True)
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[:count], self._shared.last[:count]

    def _stage(self, staged: _Staged, chunks: list[Chunk], size: int) -> None:
        rows, count = self._of_size(staged.rows, size).numpy(), len(chunks)
        rows[:, count:] = 0
        rows[SLOT, count:] = self._shared.idle_slot
        sequences = [chunk.sequence for chunk in chunks]
        ends = np.fromiter((chunk.end for chunk in chunks), np.int64, count)
        places = ends - 1
        tables = self._stage_tables(staged, sequences)
        blocks = tables[np.arange(count), places // self._block_size]
        rows[TOKEN, :count] = [sequence.token_ids[-1] for sequence in sequences]
        rows[SLOT, :count] = blocks * self._block_size + places % self._block_size
        rows[KV_LEN, :count] = ends
        rows[REGIME, :count] = [sequence.regime for sequence in sequences]
        rows[POSITION:, :count] = places + [sequence.request.position_delta for sequence in sequences]
        if size >= SHARED_FROM:
            self._shared_len(staged.rows, size).fill_(shared_len(tables[:count], int(places.min()), self._block_size))

    def _stage_tables(self, staged: _Staged, sequences: list[Sequence]) -> NDArray[np.int64]:
        tables = staged.tables.numpy()
        for i, sequence in enumerate(sequences):
            blocks = sequence.blocks
            known, length = staged.blocks[i]
            # A sequence keeps its list of blocks until it starts anew, and the list only grows.
            if known is not blocks or length != len(blocks):
                tables[i, : len(blocks)] = blocks
                staged.blocks[i] = (blocks, len(blocks))
        return tables

    def _of_size(self, rows: Tensor, size: int) -> Tensor:
        """The inputs of a graph, side by side so that one copy carries them: [rows, size]."""
        width = max(size, EVEN)
        return rows[: self._num_rows * width].view(self._num_rows, width)[:, :size]

    def _shared_len(self, rows: Tensor, size: int) -> Tensor:
        """Behind the inputs of a graph [1]: how many tokens all of its sequences begin with."""
        place = self._num_rows * max(size, EVEN)
        return rows[place : place + 1]

    def rehearse(self) -> None:
        """Run every size once as it will be captured, on idle sequences."""
        for size in reversed(self._sizes):
            rows = self._of_size(self._rows, size)
            rows.zero_()
            rows[SLOT] = self._shared.idle_slot
            self._step(size)

    def capture(self) -> None:
        """Largest first, so that smaller graphs fit into memory that is there already."""
        self.rehearse()
        for size in reversed(self._sizes):
            self._graphs[size] = self._shared.recorder.record(partial(self._step, size))

    def _step(self, size: int) -> Tensor:
        shared, rows = self._shared, self._of_size(self._rows, size)
        cos, sin = shared.rope(rows[POSITION:], rows[REGIME])
        batch = AttentionBatch(
            num_decode=size,
            query_lens=[1] * size,
            kv_lens=[],  # on the device only: a graph must not depend on them
            slots=rows[SLOT],
            block_tables=self._tables[:size],
            kv_lens_tensor=rows[KV_LEN],
            decode_mask=None,
            cos=cos,
            sin=sin,
            arrivals=shared.arrivals,
            shared_len=self._shared_len(self._rows, size),
            positions=rows[POSITION:],
        )
        decoder = shared.model.decoder
        return shared.choose(decoder(decoder.embed(fill_in(rows[TOKEN], shared.last)), shared.pages, batch))
