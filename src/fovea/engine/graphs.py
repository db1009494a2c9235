"""CUDA graphs of the decode step: one launch instead of some twenty for each layer.

A graph is captured for each of a dozen batch sizes; a smaller batch is padded with rows that have no keys and write to
a page nobody reads. All graphs read the same buffers and share one memory pool.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from fovea.core.log import logger
from fovea.engine.memory import MemoryPlan
from fovea.engine.scheduler import Chunk
from fovea.kernels.batch import AttentionBatch
from fovea.models.decoder import KVPages, Rope
from fovea.models.vlm import VLM

BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
TOKEN, SLOT, KV_LEN, REGIME, POSITION = range(5)  # rows of the input buffer; one position row or three


class DecodeGraphs:
    def __init__(self, model: VLM, rope: Rope, pages: list[KVPages], plan: MemoryPlan, max_num_seqs: int) -> None:
        self._model, self._rope, self._pages = model, rope, pages
        self._block_size = plan.block_size
        self._idle_slot = plan.num_blocks * plan.block_size
        self._sizes = [size for size in BATCH_SIZES if size <= max_num_seqs] or [1]
        self._num_positions = 1 if model.spec.decoder.rope.sections is None else 3
        most, num_blocks = self._sizes[-1], -(-plan.max_model_len // plan.block_size)
        rows = POSITION + self._num_positions
        self._staged_rows = torch.zeros(rows, most, dtype=torch.int64).pin_memory()
        self._staged_tables = torch.zeros(most, num_blocks, dtype=torch.int64).pin_memory()
        self._staged_blocks: list[tuple[list[int], int]] = [([], 0)] * most
        self._rows = torch.zeros(rows, most, dtype=torch.int64, device=model.device)
        self._tables = torch.zeros(most, num_blocks, dtype=torch.int64, device=model.device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._capture_all()

    def fits(self, chunks: list[Chunk]) -> bool:
        """Whether every chunk is one generated token, so that no picture and no prompt is involved."""
        return len(chunks) <= self._sizes[-1] and all(
            chunk.num_tokens == 1 and chunk.start >= chunk.sequence.num_prompt_tokens for chunk in chunks
        )

    def run(self, chunks: list[Chunk]) -> Tensor:
        """Logits [len(chunks), vocabulary]; valid until the next run."""
        size = next(s for s in self._sizes if s >= len(chunks))
        self._stage(chunks, size)
        self._rows[:, :size].copy_(self._staged_rows[:, :size], non_blocking=True)
        self._tables[: len(chunks)].copy_(self._staged_tables[: len(chunks)], non_blocking=True)
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[: len(chunks)]

    def _stage(self, chunks: list[Chunk], size: int) -> None:
        rows, count = self._staged_rows.numpy(), len(chunks)
        rows[:, count:size] = 0
        rows[SLOT, count:size] = self._idle_slot
        rows[TOKEN, :count] = [chunk.sequence.token_ids[chunk.start] for chunk in chunks]
        rows[SLOT, :count] = [self._slot(chunk) for chunk in chunks]
        rows[KV_LEN, :count] = [chunk.end for chunk in chunks]
        rows[REGIME, :count] = [chunk.sequence.regime for chunk in chunks]
        rows[POSITION:, :count] = [chunk.start + chunk.sequence.request.position_delta for chunk in chunks]
        for i, chunk in enumerate(chunks):
            self._stage_table(i, chunk.sequence.blocks)

    def _slot(self, chunk: Chunk) -> int:
        block = chunk.sequence.blocks[chunk.start // self._block_size]
        return block * self._block_size + chunk.start % self._block_size

    def _stage_table(self, row: int, blocks: list[int]) -> None:
        """Written only where it changed: a sequence keeps its list of blocks until it starts anew; it only grows."""
        known, length = self._staged_blocks[row]
        if known is not blocks or length != len(blocks):
            self._staged_tables.numpy()[row, : len(blocks)] = blocks
            self._staged_blocks[row] = (blocks, len(blocks))

    def _capture_all(self) -> None:
        """Largest first, so that smaller graphs fit into memory that is there already."""
        started = time.perf_counter()
        self._rows[SLOT] = self._idle_slot
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()
        for size in reversed(self._sizes):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._step(size)  # compiles kernels and sets up libraries outside the capture
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                logits = self._step(size)
            self._graphs[size] = (graph, logits)
        torch.cuda.synchronize()
        logger.info("captured %d decode graphs in %.1f s", len(self._graphs), time.perf_counter() - started)

    def _step(self, size: int) -> Tensor:
        rows = self._rows[:, :size]
        cos, sin = self._rope(rows[POSITION:], rows[REGIME])
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
        )
        decoder = self._model.decoder
        return decoder.logits(decoder(decoder.embed(rows[TOKEN]), self._pages, batch))
