"""The engine: requests in, tokens out, one step at a time. A step is plan, launch, settle.

An exception while a picture is encoded or a batch runs is narrowed down to the requests that cause it; they end with an
error, the others go on. So do numbers that are not finite. A device or a model that gives nothing right any more is an
EngineBrokenError: the process has to end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from torch import Tensor

from fovea.core.errors import (
    MediaLimitError,
    PromptError,
    PromptTooLongError,
    RequestError,
    RequestFailedError,
    SamplingError,
)
from fovea.core.log import logger
from fovea.core.types import EngineRequest, EngineTimings, FinishReason, MediaItem, TokenLogprobs, TokenOutput
from fovea.engine.encoder_cache import EncoderCache
from fovea.engine.failures import (
    EngineBrokenError,
    Trouble,
    divide,
    free_memory,
    judge,
    numerical_error,
    out_of_memory,
)
from fovea.engine.memory import MemoryPlan
from fovea.engine.runner import Runner, StepResult
from fovea.engine.sampler import NOT_FINITE, make_generator, skip_draws
from fovea.engine.scheduler import Chunk, Scheduler
from fovea.engine.sequence import Sequence
from fovea.models.vlm import VLM

Forward = Callable[[list[Chunk]], StepResult]

BAD_STEPS_BEFORE_CHECK = 3


@dataclass(slots=True)
class _Request:
    """The completions of one request that have not ended; `unborn` wait for the first one's prompt to be computed."""

    number: int
    live: list[Sequence]
    unborn: list[int]


@dataclass(slots=True)
class EngineStats:
    """What the engine has done so far."""

    num_steps: int = 0
    num_tokens: int = 0
    num_generated_tokens: int = 0
    num_pictures_encoded: int = 0
    num_failed_requests: int = 0
    num_retried_steps: int = 0
    num_numerical_errors: int = 0
    num_idle_repairs: int = 0


class Engine:
    def __init__(
        self, runner: Runner, scheduler: Scheduler, encoder_cache: EncoderCache[Tensor], plan: MemoryPlan, seed: int
    ) -> None:
        self.plan = plan
        self.scheduler = scheduler
        self.stats = EngineStats()
        self._runner = runner
        self._encoder_cache = encoder_cache
        self._seed = seed
        self._num_requests = 0
        self._requests: dict[str, _Request] = {}
        self._num_bad_steps = 0  # in a row, in which no row was finite
        self._forward: Forward = runner.forward

    @property
    def model(self) -> VLM:
        return self._runner.model

    def add(self, request: EngineRequest) -> None:
        """Queue a request. Raises RequestError if it could never run."""
        self._check(request)
        number, self._num_requests = self._num_requests, self._num_requests + 1
        self._requests[request.request_id] = _Request(number, [], list(range(1, request.params.n)))
        self._start(request, 0)

    def knows(self, request_id: str) -> bool:
        """Whether a request of this name is waiting or running."""
        return request_id in self._requests

    def abort(self, request_id: str) -> None:
        """Forget a request; unknown ones are fine. Its blocks are free when this returns."""
        entry = self._requests.pop(request_id, None)
        for sequence in entry.live if entry else ():
            self.scheduler.finish(sequence)

    def stop(self, request_id: str, index: int) -> EngineTimings | None:
        """End one completion early (a stop string was seen). Returns its timings if it was still running."""
        entry = self._requests.get(request_id)
        for sequence in list(entry.live) if entry else ():
            if sequence.index == index:
                self._retire(sequence)
                return sequence.clock.timings(sequence.num_preemptions)
        return None

    def has_work(self) -> bool:
        return self.scheduler.has_work()

    def step(self) -> list[TokenOutput]:
        """Run one step. Returns the new tokens and ends of this step. Raises EngineBrokenError."""
        if self._num_bad_steps >= BAD_STEPS_BEFORE_CHECK:
            self._check_model()
        plan = self.scheduler.plan()
        outputs: list[TokenOutput] = []
        broken = self._encode(plan.encode)
        self._fail_pictures(broken, outputs)
        chunks = [chunk for chunk in plan.chunks if chunk.sequence.is_running]
        if chunks:
            self.stats.num_steps += 1
            self.stats.num_tokens += sum(chunk.num_tokens for chunk in chunks)
            self._launch(chunks, outputs)
        elif not broken:
            self._fail_stalled(outputs)
        if not self.has_work():
            self._check_idle()
        return outputs

    def counters(self) -> dict[str, float]:
        """What was done since the start, and how full things are now, by name."""
        pool, cache = self.scheduler.pool, self._encoder_cache
        return {
            **asdict(self.stats),
            **asdict(self.scheduler.stats),
            "num_running": len(self.scheduler.running),
            "num_waiting": len(self.scheduler.waiting),
            "kv_blocks_total": pool.num_blocks,
            "kv_blocks_free": pool.num_free,
            "encoder_cache_bytes": cache.used_bytes,
            "encoder_cache_capacity_bytes": cache.capacity_bytes,
            "encoder_cache_hits": cache.num_hits,
            "encoder_cache_misses": cache.num_misses,
            "num_graph_steps": self._runner.num_graph_steps,
            "num_eager_decodes": self._runner.num_eager_decodes,
        }

    def wrap_forward(self, wrap: Callable[[Forward], Forward]) -> None:
        """Put something around every forward; tests let it go wrong."""
        self._forward = wrap(self._forward)

    def reset_caches(self) -> None:
        """Forget reusable KV blocks and embeddings; running requests keep theirs."""
        self.scheduler.pool.reset_cache()
        self._encoder_cache.clear_idle()

    def _check(self, request: EngineRequest) -> None:
        if not 0 <= min(request.token_ids) <= max(request.token_ids) < self._runner.vocab_size:
            raise PromptError(f"The prompt has a token id outside the vocabulary of {self._runner.vocab_size}.")
        if len(request.token_ids) >= self.plan.max_model_len:
            raise PromptTooLongError(
                f"The prompt has {len(request.token_ids)} tokens; max_model_len is {self.plan.max_model_len}, answer "
                "included. Shorten it, lower the pictures' pixels, or raise max_model_len."
            )
        for i, item in enumerate(request.media):
            needed_bytes = item.num_tokens * self.scheduler.budgets.embedding_bytes
            if item.embeds is None and needed_bytes > self._encoder_cache.capacity_bytes:
                raise MediaLimitError(
                    f"Picture {i + 1} makes {needed_bytes} bytes of embeddings; encoder_cache_bytes is "
                    f"{self._encoder_cache.capacity_bytes}. Lower its pixels or raise encoder_cache_bytes."
                )
            if item.num_patches > self.plan.max_picture_patches:
                raise MediaLimitError(
                    f"Picture {i + 1} has {item.num_patches} patches; memory is planned for "
                    f"{self.plan.max_picture_patches}. Lower its pixels or raise max_num_batched_patches."
                )

    def _start(self, request: EngineRequest, index: int) -> None:
        entry = self._requests[request.request_id]
        sequence = Sequence(request, index, make_generator(request.params, self._seed, entry.number, index))
        entry.live.append(sequence)
        self.scheduler.add(sequence)

    def _encode(self, items: list[MediaItem]) -> dict[bytes, RequestError]:
        """Encode all pictures together; if that fails, one by one. Returns why some can't be encoded, by their keys."""
        if not items:
            return {}
        trouble: Trouble | None = None
        try:
            elapsed_s = self._runner.encode(items)
        except Exception as error:  # the boundary between one picture and the rest
            trouble = judge(error, f"encoding {len(items)} pictures")
        if trouble is not None:
            self.stats.num_retried_steps += 1
            return self._encode_singly(items)
        self.stats.num_pictures_encoded += len(items)
        keys = {item.key for item in items}
        for sequence in self.scheduler.running:
            if any(sequence.request.media[i].key in keys for i in sequence.held_media):
                sequence.clock.encode_s += elapsed_s
        return {}

    def _encode_singly(self, items: list[MediaItem]) -> dict[bytes, RequestError]:
        broken: dict[bytes, RequestError] = {}
        free_memory()
        for item in items:
            try:
                self._runner.encode([item])
                self.stats.num_pictures_encoded += 1
            except Exception as error:  # the boundary of one picture
                is_memory = judge(error, "encoding a picture") == "memory"
                failed = RequestFailedError("A picture of this request could not be encoded.")
                broken[item.key] = out_of_memory() if is_memory else failed
        return broken

    def _fail_pictures(self, broken: dict[bytes, RequestError], outputs: list[TokenOutput]) -> None:
        for sequence in list(self.scheduler.running) if broken else ():
            keys = [sequence.request.media[i].key for i in sequence.held_media]
            error = next((broken[key] for key in keys if key in broken), None)
            if sequence.is_running and error is not None:
                self._fail(sequence, error, outputs)
        for key in broken:
            self._encoder_cache.discard(key)

    def _launch(self, chunks: list[Chunk], outputs: list[TokenOutput]) -> None:
        trouble: Trouble | None = None
        try:
            result = self._forward(chunks)
        except Exception as error:  # the boundary between one request and the rest
            trouble = judge(error, f"a step of {len(chunks)} sequences")
        if trouble is None:
            self._settle(chunks, result, outputs)
        else:  # outside of the except block, whose exception keeps the tensors of the step alive
            self._retry(chunks, trouble, outputs)

    def _retry(self, chunks: list[Chunk], trouble: Trouble, outputs: list[TokenOutput]) -> None:
        """Run a step that failed again in parts; what can't be divided fails."""
        free_memory()
        parts = divide(chunks, trouble)
        if not parts:
            failed = RequestFailedError("The model failed on this request.")
            self._fail(chunks[0].sequence, out_of_memory() if trouble == "memory" else failed, outputs)
            return
        self.stats.num_retried_steps += 1
        for part in parts:
            living = [chunk for chunk in part if chunk.sequence.is_running]
            for chunk in living:
                self._rewind(chunk)
            if living:
                self._launch(living, outputs)

    def _rewind(self, chunk: Chunk) -> None:
        """Undo what a failed forward may have left: a number drawn for the token, prompt tokens scored."""
        sequence, request = chunk.sequence, chunk.sequence.request
        del sequence.prompt_logprobs[chunk.start + 1 :]
        number = self._requests[request.request_id].number
        sequence.generator = make_generator(request.params, self._seed, number, sequence.index)
        if sequence.generator is not None:
            skip_draws(sequence.generator, sequence.num_generated)

    def _settle(self, chunks: list[Chunk], result: StepResult, outputs: list[TokenOutput]) -> None:
        """Take over what a forward produced: computed tokens, new tokens, ends."""
        self._fail_pictures(dict.fromkeys(result.broken_pictures, numerical_error()), outputs)
        self._count_bad_step(result)
        tokens = iter(zip(result.token_ids, result.logprobs, strict=True))
        for chunk in chunks:
            token = next(tokens) if chunk.samples else None
            if not chunk.sequence.is_running:
                continue  # another completion of its request failed a moment ago
            if token is not None and token[0] == NOT_FINITE:
                self._fail_number(chunk.sequence, outputs)
                continue
            self.scheduler.settle(chunk)
            if token is None:
                continue
            token_id, logprobs = token
            if token_id < 0:
                error = SamplingError(
                    "No token can be produced: allowed_token_ids, logit_bias, bad_words or min_tokens exclude all.",
                    code="unsupported_combination",
                )
                self._fail(chunk.sequence, error, outputs)
                continue
            chunk.sequence.append(token_id)
            self.stats.num_generated_tokens += 1
            self._emit(chunk.sequence, token_id, logprobs, outputs)

    def _fail_number(self, sequence: Sequence, outputs: list[TokenOutput]) -> None:
        """What the request computed must not be found again, and not lie where others will read."""
        self.stats.num_numerical_errors += 1
        entry = self._requests[sequence.request.request_id]
        blocks = {block for other in entry.live for block in other.blocks}
        self._fail(sequence, numerical_error(), outputs)
        self._runner.clear(self.scheduler.pool.forget(blocks))
        for item in sequence.request.media:
            self._encoder_cache.drop(item.key)

    def _count_bad_step(self, result: StepResult) -> None:
        if result.token_ids:
            is_bad = all(token_id == NOT_FINITE for token_id in result.token_ids)
            self._num_bad_steps = self._num_bad_steps + 1 if is_bad else 0

    def _check_model(self) -> None:
        """Nothing finite for a while: is it the requests, or can the model compute no more? One token tells."""
        self._num_bad_steps = 0
        if not self._runner.is_sound():
            raise EngineBrokenError("The model gives no finite numbers any more.")

    def _check_idle(self) -> None:
        """Nothing runs, so nothing is owned. If something is, we have a bug; what is right is known, so go on."""
        pool, cache = self.scheduler.pool, self._encoder_cache
        if pool.num_free == pool.num_blocks and not cache.is_held:
            return
        self.stats.num_idle_repairs += 1
        logger.error(
            "the idle engine still owned %d KV blocks%s: forgotten now, but this is a bug",
            pool.num_blocks - pool.num_free,
            " and pictures" if cache.is_held else "",
        )
        pool.repair()
        cache.repair()

    def _emit(
        self, sequence: Sequence, token_id: int, logprobs: TokenLogprobs | None, outputs: list[TokenOutput]
    ) -> None:
        request = sequence.request
        first = sequence.num_generated == 1
        if first:
            sequence.clock.first_token = sequence.clock.first_token or time.perf_counter()
            if sequence.index == 0:
                self._start_siblings(request)
        reason = self._end_reason(sequence, token_id)
        own_stop = reason == "stop" and token_id in (request.params.stop_token_ids or ())
        outputs.append(
            TokenOutput(
                request_id=request.request_id,
                index=sequence.index,
                token_id=token_id,
                logprobs=logprobs,
                prompt_logprobs=sequence.prompt_logprobs if first and sequence.wants_prompt_logprobs else None,
                finish_reason=reason,
                stop_token_id=token_id if own_stop else None,
                num_cached_tokens=sequence.num_cached_tokens,
                media_hits=tuple(sequence.media_hits),
                timings=sequence.clock.timings(sequence.num_preemptions) if reason or first else None,
            )
        )
        if reason:
            self._retire(sequence)

    def _end_reason(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        params = sequence.request.params
        if token_id in sequence.request.stop_token_ids and sequence.num_generated > params.min_tokens:
            return "stop"
        at_limit = params.max_tokens is not None and sequence.num_generated >= params.max_tokens
        return "length" if at_limit or sequence.num_tokens >= self.plan.max_model_len else None

    def _start_siblings(self, request: EngineRequest) -> None:
        """The prompt is computed now: the other completions find its blocks by their hashes."""
        entry = self._requests[request.request_id]
        unborn, entry.unborn = entry.unborn, []
        for index in unborn:
            self._start(request, index)

    def _retire(self, sequence: Sequence) -> None:
        self.scheduler.finish(sequence)
        entry = self._requests[sequence.request.request_id]
        entry.live.remove(sequence)
        if not entry.live and not entry.unborn:
            del self._requests[sequence.request.request_id]

    def _fail(self, sequence: Sequence, error: RequestError, outputs: list[TokenOutput]) -> None:
        """End all completions of the sequence's request with an error."""
        request_id = sequence.request.request_id
        self.stats.num_failed_requests += 1
        self.abort(request_id)
        outputs.append(TokenOutput(request_id, sequence.index, None, finish_reason="error", error=error))

    def _fail_stalled(self, outputs: list[TokenOutput]) -> None:
        """Nothing could be planned though there is work: the oldest request can never run here."""
        if self.has_work():
            oldest = self.scheduler.running[0] if self.scheduler.running else self.scheduler.waiting[0]
            logger.error("request %s cannot be scheduled and is failed", oldest.request.request_id)
            self._fail(oldest, RequestFailedError("The request does not fit the engine's memory."), outputs)
