"""The only file that runs the model: encode pictures, run one packed forward, sample."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fovea.core.types import MediaItem, TokenLogprobs
from fovea.engine.batch import build_batch, insert_embeddings
from fovea.engine.encoder_cache import EncoderCache
from fovea.engine.graphs import DecodeGraphs
from fovea.engine.memory import LOGIT_ROWS_AT_ONCE, MemoryPlan
from fovea.engine.sampler import SamplingRow, prompt_logprobs, sample
from fovea.engine.scheduler import Chunk
from fovea.engine.sequence import Sequence
from fovea.models.decoder import KVPages
from fovea.models.vlm import VLM


@dataclass(slots=True)
class StepResult:
    """For each chunk that samples, in order: the token (-1: none could be drawn) and its log-probabilities."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)


class Runner:
    """`num_eager_decodes` counts decode steps that ran without a graph although there are graphs."""

    def __init__(
        self, model: VLM, plan: MemoryPlan, encoder_cache: EncoderCache[Tensor], *, max_num_seqs: int, use_graphs: bool
    ) -> None:
        self.model = model
        self.num_graph_steps = 0
        self.num_eager_decodes = 0
        self._encoder_cache = encoder_cache
        self._block_size = plan.block_size
        self._rope = model.make_rope()
        self._pages = self._allocate(plan)
        self._graphs: DecodeGraphs | None = None
        if use_graphs:
            with torch.inference_mode():
                self._graphs = DecodeGraphs(model, self._rope, self._pages, plan, max_num_seqs)

    def _allocate(self, plan: MemoryPlan) -> list[KVPages]:
        spec = self.model.spec.decoder
        # One block more than the pool knows: padded rows of a graph write there.
        shape = (plan.num_blocks + 1, plan.block_size, spec.num_kv_heads, spec.head_dim)

        device, dtype = self.model.device, self.model.dtype
        make = _lazy_zeros if device.type == "cpu" else torch.zeros
        return [
            (make(shape, dtype=dtype, device=device), make(shape, dtype=dtype, device=device))
            for _ in range(spec.num_layers)
        ]

    @torch.inference_mode()
    def encode(self, items: list[MediaItem]) -> float:
        """Run the tower on pictures and store their rows. Returns the seconds it took on the host's clock."""
        started = time.perf_counter()
        for item, rows in zip(items, self.model.encode(items), strict=True):
            self._encoder_cache.fill(item.key, rows.clone())
        return time.perf_counter() - started

    @torch.inference_mode()
    def forward(self, chunks: list[Chunk]) -> StepResult:
        """One packed forward of all chunks, then a token for each that has reached its end."""
        sampling = [chunk.sequence for chunk in chunks if chunk.samples]
        logits = self._replay(chunks) if self._is_decode(chunks) else self._eager(chunks)
        if not sampling:
            return StepResult()
        sampled = sample(logits, [_sampling_row(sequence) for sequence in sampling])
        return StepResult(sampled.token_ids, sampled.logprobs)

    def _is_decode(self, chunks: list[Chunk]) -> bool:
        if self._graphs is None or any(chunk.num_tokens > 1 for chunk in chunks):
            return False
        fits = self._graphs.fits(chunks)
        self.num_eager_decodes += not fits
        return fits

    def _replay(self, chunks: list[Chunk]) -> Tensor:
        assert self._graphs is not None
        self.num_graph_steps += 1
        return self._graphs.run(chunks)

    def _eager(self, chunks: list[Chunk]) -> Tensor:
        """Any mix of chunks; logits of those that sample, in order [rows, vocabulary]."""
        decoder = self.model.decoder
        batch = build_batch(chunks, self._rope, self._block_size, self.model.device)
        x = decoder.embed(batch.token_ids)
        insert_embeddings(x, chunks, self._encoder_cache)
        hidden = decoder(x, self._pages, batch.attention)
        self._score_prompts(hidden, chunks)
        return decoder.logits(hidden[batch.logit_rows])

    def _score_prompts(self, hidden: Tensor, chunks: Rows[Chunk]) -> None:
        """Log-probabilities of the prompt's own tokens, for requests that asked."""
        first = 0
        for chunk in chunks:
            sequence = chunk.sequence
            last = min(chunk.end, sequence.num_prompt_tokens - 1)
            if sequence.wants_prompt_logprobs and chunk.start < last:
                rows = hidden[first : first + last - chunk.start]
                self._score(sequence.prompt_logprobs, rows, sequence.token_ids[chunk.start + 1 : last + 1], chunk)
            first += chunk.num_tokens

    def _score(self, into: list[TokenLogprobs | None], rows: Tensor, next_ids: list[int], chunk: Chunk) -> None:
        top = chunk.sequence.request.params.prompt_logprobs or 0
        for i in range(0, len(rows), LOGIT_ROWS_AT_ONCE):
            logits = self.model.decoder.logits(rows[i : i + LOGIT_ROWS_AT_ONCE])
            into.extend(prompt_logprobs(logits, next_ids[i : i + LOGIT_ROWS_AT_ONCE], top))


def _sampling_row(sequence: Sequence) -> SamplingRow:
    """Made once for a sequence: it refers to the list that grows."""
    if sequence.sampling_row is None:
        sequence.sampling_row = SamplingRow(
            params=sequence.request.params,
            prompt_token_ids=sequence.request.token_ids,
            output_token_ids=sequence.generated,
            stop_token_ids=sequence.request.stop_token_ids,
            bad_words=sequence.request.bad_words,
        )
    sequence.sampling_row.generator = sequence.generator
    return sequence.sampling_row


def _lazy_zeros(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros whose memory the system hands out when it is first written (calloc): unused pages cost nothing.

    They must be zeros and not just anything: attention multiplies masked values by 0, and 0 * NaN is NaN.
    """
    values = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(values).view(dtype).view(shape)
