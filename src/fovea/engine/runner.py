"""The only file that runs the model: encode pictures, run one packed forward, sample."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fovea.core.params import SamplingParams
from fovea.core.types import EngineRequest, MediaItem, TokenLogprobs
from fovea.engine.batch import build_batch, insert_embeddings
from fovea.engine.encoder_cache import EncoderCache
from fovea.engine.graphs import DecodeGraphs
from fovea.engine.memory import LOGIT_ROWS_AT_ONCE, MemoryPlan
from fovea.engine.sampler import NOT_FINITE, SamplingRow, prompt_logprobs, sample
from fovea.engine.scheduler import Chunk
from fovea.engine.sequence import Sequence
from fovea.models.decoder import KVPages
from fovea.models.vlm import VLM


@dataclass(slots=True)
class StepResult:
    """For each chunk that samples, in order: the token (BROKEN, NOT_FINITE: none) and its log-probabilities.

    `broken_pictures`: keys of pictures whose embeddings, made since the last forward, are not finite.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    broken_pictures: list[bytes] = field(default_factory=list)


class Runner:
    """`num_eager_decodes` counts decode steps that ran without a graph although there are graphs."""

    def __init__(
        self, model: VLM, plan: MemoryPlan, encoder_cache: EncoderCache[Tensor], *, max_num_seqs: int, use_graphs: bool
    ) -> None:
        self.model = model
        self.num_graph_steps = 0
        self.num_eager_decodes = 0
        self._encoder_cache = encoder_cache
        self.vocab_size = model.spec.decoder.vocab_size
        self._block_size = plan.block_size
        self._idle_block = plan.num_blocks  # nobody's: no sequence writes there
        self._unchecked: list[tuple[bytes, Tensor]] = []  # pictures encoded since the last forward; are they finite?
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
        """Run the tower on pictures and store their rows. Returns the seconds it took on the host's clock.

        Rows that are not finite are stored as zeros, and told by the next forward, which waits for the device anyway.
        """
        started = time.perf_counter()
        for item, rows in zip(items, self.model.encode(items), strict=True):
            is_finite = torch.isfinite(rows).all()
            self._encoder_cache.fill(item.key, torch.where(is_finite, rows, 0))
            self._unchecked.append((item.key, is_finite))
        return time.perf_counter() - started

    @torch.inference_mode()
    def clear(self, blocks: list[int]) -> None:
        """Zeros into blocks nobody owns, where NaN may stand: attention on a CPU multiplies masked values by 0."""
        index = torch.tensor(blocks, dtype=torch.int64, device=self.model.device)
        for keys, values in self._pages:
            keys.index_fill_(0, index, 0)
            values.index_fill_(0, index, 0)

    @torch.inference_mode()
    def forward(self, chunks: list[Chunk]) -> StepResult:
        """One packed forward of all chunks, then a token for each that has reached its end."""
        sampling = [chunk.sequence for chunk in chunks if chunk.samples]
        logits = self._replay(chunks) if self._is_decode(chunks) else self._eager(chunks)
        if not sampling:
            return StepResult(broken_pictures=self._broken_pictures())
        sampled = sample(logits, [_sampling_row(sequence) for sequence in sampling])
        return StepResult(sampled.token_ids, sampled.logprobs, self._broken_pictures())

    def _broken_pictures(self) -> list[bytes]:
        unchecked, self._unchecked = self._unchecked, []
        return [key for key, is_finite in unchecked if not is_finite.item()]

    def is_sound(self) -> bool:
        """Whether the model makes finite numbers of one token, computed in the block that is nobody's."""
        num_rows = 1 if self.model.spec.decoder.rope.sections is None else 3
        params = SamplingParams(temperature=0.0, max_tokens=1)
        request = EngineRequest("check", (0,), params, frozenset(), positions=np.zeros((num_rows, 1), np.int32))
        sequence = Sequence(request, 0, None)
        sequence.blocks = [self._idle_block]
        return self.forward([Chunk(sequence, 0, 1)]).token_ids != [NOT_FINITE]

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
        batch = build_batch(chunks, self._rope, self._block_size, self.model.device, idle_block=self._idle_block)
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
