"""The only file that runs the model: encode pictures, run one packed forward, sample."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fovea import kernels as ops
from fovea.core.log import logger
from fovea.core.params import SamplingParams
from fovea.core.turns import outside_turn
from fovea.core.types import EngineRequest, MediaItem, TokenLogprobs
from fovea.engine.batch import build_batch, insert_embeddings, scores_prompt
from fovea.engine.encoder_cache import EncoderCache
from fovea.engine.graphs import DecodeGraphs, Recorder, Shared, fill_in
from fovea.engine.memory import LOGIT_ROWS_AT_ONCE, MemoryPlan
from fovea.engine.prompt_graphs import PromptGraphs
from fovea.engine.sampler import NOT_FINITE, Sampled, SamplingRow, choose, is_plain, prompt_logprobs, sample
from fovea.engine.scheduler import Chunk
from fovea.engine.sequence import Sequence
from fovea.engine.tower_graphs import TowerGraphs
from fovea.engine.tower_stream import TowerStream
from fovea.kernels import kv_pages
from fovea.kernels.batch import SOME_ROWS
from fovea.kernels.cpu.library import Crew
from fovea.kernels.fp8_weights import FP8
from fovea.kernels.kv_pages import KVPages
from fovea.models.generic import GenericModel
from fovea.models.vlm import VLM


@dataclass(slots=True)
class StepResult:
    """For each chunk that samples, in order: the token (BROKEN, NOT_FINITE: none) and its log-probabilities.

    `broken_pictures`: keys of pictures whose embeddings, made since the last forward, are not finite.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    broken_pictures: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Launched:
    """A forward that a device may still be running. `pictures`: keys of those whose `flags` say if they are finite."""

    sampled: Sampled | None = None  # known at once
    tokens: Tensor | None = None  # [rows], on their way to the host
    pictures: tuple[bytes, ...] = ()
    flags: Tensor | None = None
    arrived: torch.cuda.Event | None = None

    def wait(self) -> StepResult:
        """Raises what the device reports."""
        if self.arrived is not None:
            with outside_turn():
                self.arrived.synchronize()
        sampled = self.sampled
        if sampled is None:
            token_ids = [] if self.tokens is None else self.tokens.tolist()
            sampled = Sampled(token_ids, [None] * len(token_ids))
        flags = [] if self.flags is None else self.flags.tolist()
        broken = [key for key, is_finite in zip(self.pictures, flags, strict=True) if not is_finite]
        return StepResult(sampled.token_ids, sampled.logprobs, broken)


class StepRunner(Protocol):
    """What the engine needs of whatever runs a model."""

    model: Any  # a VLM, or a BridgedModel
    vocab_size: int
    num_graph_steps: int
    num_prompt_graph_steps: int
    num_eager_steps: int
    num_eager_decodes: int
    num_late_kernels: int

    def encode(self, items: list[MediaItem]) -> float: ...
    def clear(self, blocks: list[int]) -> None: ...
    def forward(self, chunks: list[Chunk]) -> Launched: ...
    def is_sound(self) -> bool: ...


class Runner:
    """`num_graph_steps` and `num_prompt_graph_steps` count steps by graphs of decoding and of prompts,
    `num_eager_steps` all others, `num_eager_decodes` those of them that only decode although there are graphs,
    `num_late_kernels` kernels that were compiled after the start."""

    def __init__(
        self,
        model: VLM | GenericModel,
        plan: MemoryPlan,
        encoder_cache: EncoderCache[Tensor],
        *,
        max_num_seqs: int,
        use_graphs: bool,
        max_num_batched_tokens: int = 0,
        crew: Crew | None = None,
    ) -> None:
        self.model: Any = model
        self.num_graph_steps = self.num_prompt_graph_steps = self.num_eager_steps = 0
        self.num_eager_decodes = 0
        self.num_late_kernels = 0
        self._encoder_cache = encoder_cache
        if isinstance(model, VLM):
            model.patches_at_once = plan.max_picture_patches
        self.vocab_size = model.spec.decoder.vocab_size
        self._block_size = plan.block_size
        self._crew = crew
        self._idle_block = plan.num_blocks  # nobody's: no sequence writes there
        self._unchecked: list[tuple[bytes, Tensor]] = []  # pictures encoded since the last forward; are they finite?
        self._rope = model.make_rope()
        self._pages = self._allocate(plan)
        # The last step's tokens by row: a step that is launched before they are known finds its inputs here.
        self._last = torch.zeros(max_num_seqs, dtype=torch.int64, device=model.device)
        # What attention counts arrivals in, see AttentionBatch.
        num_counters = max_num_seqs * model.spec.decoder.num_kv_heads
        self._arrivals = torch.zeros(num_counters, dtype=torch.int32, device=model.device)
        self._tower_stream = TowerStream(model.device)
        self._nothing = torch.zeros(1, dtype=torch.int64, device=model.device)
        self._graphs: DecodeGraphs | None = None
        self._prompt_graphs: PromptGraphs | None = None
        self._tower_graphs: TowerGraphs | None = None
        if use_graphs:
            self._prepare_graphs(plan, max_num_batched_tokens)

    @torch.inference_mode()
    def _prepare_graphs(self, plan: MemoryPlan, max_num_batched_tokens: int) -> None:
        model = self.model
        assert isinstance(model, VLM)
        logits = torch.empty(len(self._last), self.vocab_size, dtype=model.dtype, device=model.device)
        recorder = Recorder()
        self._recorders = [recorder]
        shared = Shared(
            model=model,
            rope=model.make_rope(),
            pages=self._pages,
            last=self._last,
            logits=logits,
            arrivals=self._arrivals,
            nothing=self._nothing,
            plan=plan,
            recorder=recorder,
        )
        self._graphs = DecodeGraphs(shared)
        self._prompt_graphs = PromptGraphs(shared, max_num_batched_tokens)
        if model.spec.takes_pictures:
            tower, own = model.encoder.tower, Recorder()  # these run beside the others: not in the same memory
            self._recorders.append(own)
            tower.graphs = self._tower_graphs = TowerGraphs(tower, model.device, own, plan.max_picture_patches)

    @torch.inference_mode()
    def rehearse_graphs(self) -> None:
        """Run what the graphs will hold, if there are to be any."""
        if self._graphs is not None:
            self._graphs.rehearse()
        if self._prompt_graphs is not None:
            self._prompt_graphs.rehearse()
        if self._tower_graphs is not None:
            self._tower_graphs.rehearse()

    @torch.inference_mode()
    def rehearse_draw(self) -> None:
        """Draw a token as requests with a temperature will."""
        params = SamplingParams(temperature=1.0, top_p=0.5)
        row = SamplingRow(params, (), (), generator=torch.Generator())
        choose(torch.zeros(1, self.vocab_size, device=self.model.device), [row])

    @torch.inference_mode()
    def rehearse_rows(self) -> None:
        """A layer with each number of rows that has a kernel of its own."""
        layer, spec = self.model.decoder.layers[0], self.model.spec.decoder
        if layer.is_usual and not layer.has_experts:
            for rows in (1 << exponent for exponent in range(SOME_ROWS.bit_length())):
                x = torch.zeros(rows, spec.hidden_size, dtype=self.model.dtype, device=self.model.device)
                ops.norm_gate_up(x, layer.mlp_norm, layer.gate_up)

    @torch.inference_mode()
    def capture_graphs(self) -> None:
        """Until then every step is eager."""
        if self._graphs is None or self._prompt_graphs is None:
            return
        started = time.perf_counter()
        self._graphs.capture()
        for recorder in self._recorders:
            recorder.is_on = True
        self._prompt_graphs.capture()
        torch.cuda.synchronize()
        logger.info("captured the first graphs in %.1f s", time.perf_counter() - started)

    def forget_counts(self) -> None:
        """What was run to warm up is nobody's."""
        self.num_graph_steps = self.num_prompt_graph_steps = self.num_eager_steps = self.num_eager_decodes = 0

    def count_late_kernel(self, name: str) -> None:
        """A kernel is compiled while requests wait: the warm-up has missed one."""
        self.num_late_kernels += 1
        logger.info("the kernel %s was compiled while requests wait", name)

    def _allocate(self, plan: MemoryPlan) -> list[KVPages]:
        spec = self.model.spec.decoder
        # One block more than the pool knows: padded rows of a graph write there.
        shape = (plan.num_blocks + 1, plan.block_size, spec.num_kv_heads, spec.head_dim)

        device, dtype = self.model.device, FP8 if plan.fp8_kv else self.model.dtype
        zeros = _lazy_zeros if device.type == "cpu" else torch.zeros
        keys, values = (
            [kv_pages.make_pages(zeros, shape, dtype, device) for _ in range(spec.num_layers)] for _ in range(2)
        )
        return list(zip(keys, values, strict=True))

    @torch.inference_mode()
    def encode(self, items: list[MediaItem]) -> float:
        """Run the tower on pictures and store their rows. Returns the seconds it took on the host's clock.

        Rows that are not finite are stored as zeros, and told by the next forward, which waits for the device anyway.
        """
        started = time.perf_counter()
        with self._tower_stream.encoding():
            for item, rows in zip(items, self.model.encode(items), strict=True):
                is_finite = torch.isfinite(rows).all()
                kept = torch.where(is_finite, rows, 0)
                self._encoder_cache.fill(item.key, kept)
                self._unchecked.append((item.key, is_finite))
                self._tower_stream.give(kept)
                self._tower_stream.give(is_finite)
        return time.perf_counter() - started

    @torch.inference_mode()
    def clear(self, blocks: list[int]) -> None:
        """Zeros into blocks nobody owns, where NaN may stand: attention on a CPU multiplies masked values by 0."""
        index = torch.tensor(blocks, dtype=torch.int64, device=self.model.device)
        for keys, values in self._pages:
            kv_pages.clear(keys, index)
            kv_pages.clear(values, index)

    @torch.inference_mode()
    def forward(self, chunks: list[Chunk]) -> Launched:
        """Launch one packed forward of all chunks, and a token for each that samples."""
        self._tower_stream.join()
        raw, likeliest = self._run(chunks)
        sequences = [chunk.sequence for chunk in chunks if chunk.samples]
        if not sequences:
            return self._launched(None, None)
        if likeliest is not None and all(_is_plain(sequence) for sequence in sequences):
            return self._launched(None, likeliest)  # the graph has noted them as the last
        logits, rows = self.model.decoder.finished(raw), [sampling_row(sequence) for sequence in sequences]
        if any(row.params.logprobs is not None for row in rows):
            sampled = sample(logits, rows)
            self._last[: len(rows)] = torch.tensor(sampled.token_ids)
            return self._launched(sampled, None)
        tokens = choose(logits, rows)
        self._last[: len(rows)] = tokens
        return self._launched(None, tokens)

    def _launched(self, sampled: Sampled | None, tokens: Tensor | None) -> Launched:
        """Results on their way to the host; on a CPU they are there."""
        pictures, flags = tuple(key for key, _ in self._unchecked), [flag for _, flag in self._unchecked]
        self._unchecked = []
        arrived = None
        found = torch.stack(flags) if flags else None
        if self.model.device.type == "cuda":
            tokens, found = (None if x is None else _to_host(x) for x in (tokens, found))
            arrived = torch.cuda.Event()
            arrived.record()
        return Launched(sampled, tokens, pictures, found, arrived)

    def is_sound(self) -> bool:
        """Whether the model makes finite numbers of one token, computed in the block that is nobody's."""
        num_rows = 1 if self.model.spec.decoder.rope.sections is None else 3
        params = SamplingParams(temperature=0.0, max_tokens=1)
        request = EngineRequest("check", (0,), params, frozenset(), positions=np.zeros((num_rows, 1), np.int32))
        sequence = Sequence(request, 0, None)
        sequence.blocks = [self._idle_block]
        return self.forward([Chunk(sequence, 0, 1, samples=True)]).wait().token_ids != [NOT_FINITE]

    def _is_decode(self, chunks: list[Chunk]) -> bool:
        if self._graphs is None or any(chunk.num_tokens > 1 for chunk in chunks):
            return False
        fits = self._graphs.fits(chunks)
        self.num_eager_decodes += not fits
        return fits

    def _run(self, chunks: list[Chunk]) -> tuple[Tensor, Tensor | None]:
        if self._is_decode(chunks):
            return self._replay(chunks)
        if self._prompt_graphs is not None and self._prompt_graphs.fits(chunks):
            return self._replay_prompts(chunks)
        return self._eager(chunks)

    def _replay(self, chunks: list[Chunk]) -> tuple[Tensor, Tensor | None]:
        """Raw logits of a decode step [len(chunks), vocabulary], and the likeliest tokens."""
        assert self._graphs is not None
        self.num_graph_steps += 1
        return self._graphs.run(chunks)

    def _replay_prompts(self, chunks: list[Chunk]) -> tuple[Tensor, Tensor | None]:
        """The same of the chunks that sample."""
        assert self._prompt_graphs is not None
        self.num_prompt_graph_steps += 1
        return self._prompt_graphs.run(chunks, self._encoder_cache)

    def _eager(self, chunks: list[Chunk]) -> tuple[Tensor, Tensor | None]:
        """Any mix of chunks; raw logits of those that sample, in order [rows, vocabulary]."""
        self.num_eager_steps += 1
        decoder, device = self.model.decoder, self.model.device
        batch = build_batch(
            *(chunks, self._rope, self._block_size, device),
            idle_block=self._idle_block,
            arrivals=self._arrivals,
            shared_len=self._nothing,
            crew=self._crew,
        )
        x = decoder.embed(fill_in(batch.token_ids, self._last))
        deepstack = insert_embeddings(x, chunks, self._encoder_cache)
        hidden = decoder(x, self._pages, batch.attention, deepstack, batch.last)
        if batch.last is None:
            self._score_prompts(hidden, chunks)
        return decoder.raw_logits(hidden[batch.logit_rows]), None

    def _score_prompts(self, hidden: Tensor, chunks: Rows[Chunk]) -> None:
        """Log-probabilities of the prompt's own tokens, for requests that asked."""
        first = 0
        for chunk in chunks:
            sequence = chunk.sequence
            last = min(chunk.end, sequence.num_prompt_tokens - 1)
            if scores_prompt(chunk):
                rows = hidden[first : first + last - chunk.start]
                self._score(sequence.prompt_logprobs, rows, sequence.token_ids[chunk.start + 1 : last + 1], chunk)
            first += chunk.num_tokens

    def _score(self, into: list[TokenLogprobs | None], rows: Tensor, next_ids: list[int], chunk: Chunk) -> None:
        top = chunk.sequence.request.params.prompt_logprobs or 0
        for i in range(0, len(rows), LOGIT_ROWS_AT_ONCE):
            logits = self.model.decoder.logits(rows[i : i + LOGIT_ROWS_AT_ONCE])
            into.extend(prompt_logprobs(logits, next_ids[i : i + LOGIT_ROWS_AT_ONCE], top))


def _to_host(tensor: Tensor) -> Tensor:
    """A pinned copy that is complete when an event recorded after this has happened."""
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def _is_plain(sequence: Sequence) -> bool:
    if sequence.sampling_row is None:
        sampling_row(sequence)
    return sequence.is_plain


def sampling_row(sequence: Sequence) -> SamplingRow:
    """Made once for a sequence: it refers to the list that grows."""
    if sequence.sampling_row is None:
        sequence.sampling_row = SamplingRow(
            params=sequence.request.params,
            prompt_token_ids=sequence.request.token_ids,
            output_token_ids=sequence.generated,
            stop_token_ids=sequence.request.stop_token_ids,
            bad_words=sequence.request.bad_words,
        )
        sequence.is_plain = is_plain(sequence.sampling_row)
    sequence.sampling_row.generator = sequence.generator
    return sequence.sampling_row


def _lazy_zeros(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros whose memory the system hands out when it is first written (calloc): unused pages cost nothing.

    They must be zeros and not just anything: attention multiplies masked values by 0, and 0 * NaN is NaN.
    """
    values = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(values).view(dtype).view(shape)
