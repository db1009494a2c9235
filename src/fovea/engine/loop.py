"""The engine: requests in, tokens out, one step at a time. A step is plan, launch, settle.

Where the device works on its own (overlap), a step is planned and launched before the one before it is settled: the
tokens in between stay on the device, and the sequences carry numbers in their place. Whatever needs those tokens on the
host (penalties, log-probabilities), or would take something back from a running sequence, waits for them first.

An exception while a picture is encoded or a batch runs is narrowed down to the requests that cause it; they end with an
error, the others go on. So do numbers that are not finite. A device or a model that gives nothing right any more is an
EngineBrokenError: the process has to end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fovea.core.errors import RequestError, RequestFailedError, SamplingError
from fovea.core.log import logger
from fovea.core.types import EngineRequest, EngineTimings, FinishReason, MediaItem, TokenLogprobs, TokenOutput
from fovea.engine.admission import check_request
from fovea.engine.encode import encode_pictures
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
from fovea.engine.runner import Launched, StepResult, StepRunner
from fovea.engine.sampler import NOT_FINITE, make_generator, needs_output, skip_draws
from fovea.engine.scheduler import Chunk, Scheduler, SchedulerStats
from fovea.engine.sequence import Sequence
from fovea.engine.stats import EngineStats, counters

Forward = Callable[[list[Chunk]], Launched]

BAD_STEPS_BEFORE_CHECK = 3


@dataclass(slots=True)
class _Request:
    """The completions of one request that have not ended; `unborn` wait for the first one's prompt to be computed."""

    number: int
    live: list[Sequence]
    unborn: list[int]


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that was launched and is not settled."""

    chunks: list[Chunk]
    launched: Launched


class Engine:
    def __init__(
        self,
        runner: StepRunner,
        scheduler: Scheduler,
        encoder_cache: EncoderCache[Tensor],
        plan: MemoryPlan,
        seed: int,
        *,
        overlap: bool = False,
    ) -> None:
        self.plan = plan
        self.scheduler = scheduler
        self.stats = EngineStats()
        self._runner = runner
        self._encoder_cache = encoder_cache
        self._seed = seed
        self._overlap = overlap
        self._flight: _Flight | None = None
        self._num_requests = 0
        self._requests: dict[str, _Request] = {}
        self._num_bad_steps = 0  # in a row, in which no row was finite
        self._forward: Forward = runner.forward

    @property
    def model(self) -> Any:
        """A VLM, or a BridgedModel."""
        return self._runner.model

    def add(self, request: EngineRequest) -> None:
        """Queue a request. Raises RequestError if it could never run."""
        check_request(request, self.plan, self._runner.vocab_size, self.scheduler)
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
        return self.scheduler.has_work() or self._flight is not None

    def step(self) -> list[TokenOutput]:
        """Launch a step, and settle the one before it or, without overlap, itself.

        Returns the new tokens and ends of what was settled. Raises EngineBrokenError.
        """
        outputs: list[TokenOutput] = []
        if self._num_bad_steps >= BAD_STEPS_BEFORE_CHECK or not self.scheduler.takes_nothing_back():
            self._land(outputs)
        if self._num_bad_steps >= BAD_STEPS_BEFORE_CHECK:
            self._check_model()
        plan = self.scheduler.plan()
        broken = self._encode(plan.encode)
        self._fail_pictures(broken, outputs)
        chunks = [chunk for chunk in plan.chunks if chunk.sequence.is_running]
        if chunks:
            self.stats.num_steps += 1
            self.stats.num_tokens += sum(chunk.num_tokens for chunk in chunks)
            self._launch(chunks, outputs)
        elif self._flight is not None:
            self._land(outputs)
        elif not broken and not plan.encode:  # what waits for several pictures at once may only have some encoded
            self._fail_stalled(outputs)
        if not self.has_work():
            self._check_idle()
        return outputs

    def has_waiting(self) -> bool:
        """Whether requests wait for their first step."""
        return bool(self.scheduler.waiting)

    def counters(self) -> dict[str, float]:
        """What was done since the start, and how full things are now, by name."""
        return counters(self.stats, self.scheduler, self._encoder_cache, self._runner)

    def wrap_forward(self, wrap: Callable[[Forward], Forward]) -> None:
        """Put something around every forward; tests let it go wrong."""
        self._forward = wrap(self._forward)

    def reset_caches(self) -> None:
        """Forget reusable KV blocks and embeddings; running requests keep theirs."""
        self.scheduler.pool.reset_cache()
        self._encoder_cache.clear_idle()

    def forget_past(self) -> None:
        """As if nothing had run; nothing may be running."""
        self.reset_caches()
        self.stats, self.scheduler.stats = EngineStats(), SchedulerStats()
        self._encoder_cache.num_hits = self._encoder_cache.num_misses = self._num_bad_steps = 0

    def _start(self, request: EngineRequest, index: int) -> None:
        entry = self._requests[request.request_id]
        generator = make_generator(request.params, self._seed, entry.number, index)
        sequence = Sequence(request, index, generator, self.plan.max_model_len)
        sequence.needs_output = needs_output(request)
        entry.live.append(sequence)
        self.scheduler.add(sequence)

    def _encode(self, items: list[MediaItem]) -> dict[bytes, RequestError]:
        """Returns why some pictures can't be encoded, by their keys."""
        if not items:
            return {}
        elapsed_s, broken = encode_pictures(items, self._runner, self.stats)
        keys = {item.key for item in items}
        for sequence in self.scheduler.running:
            if any(sequence.request.media[i].key in keys for i in sequence.held_media):
                sequence.clock.encode_s += elapsed_s
        return broken

    def _fail_pictures(self, broken: dict[bytes, RequestError], outputs: list[TokenOutput]) -> None:
        # What waits with an open span lets its pictures go until all are there.
        waiting = (sequence for sequence in self.scheduler.waiting if sequence.request.open_spans)
        for sequence in [*self.scheduler.running, *waiting] if broken else ():
            media = sequence.request.media
            keys = [media[i].key for i in (sequence.held_media if sequence.is_running else range(len(media)))]
            error = next((broken[key] for key in keys if key in broken), None)
            if self.knows(sequence.request.request_id) and error is not None:
                self._fail(sequence, error, outputs)
        for key in broken:
            self._encoder_cache.discard(key)

    def _launch(self, chunks: list[Chunk], outputs: list[TokenOutput]) -> None:
        """Launch a step; then settle the one before it, and this one too unless the next can be planned without."""
        trouble: Trouble | None = None
        try:
            launched = self._forward(chunks)
        except Exception as error:  # the boundary between one request and the rest
            trouble = judge(error, f"a step of {len(chunks)} sequences")
        if trouble is not None:  # outside of the except block, whose exception keeps the tensors of the step alive
            self._land(outputs)
            self._retry(chunks, trouble, outputs)
            return
        self._expect(chunks)
        before, self._flight = self._flight, _Flight(chunks, launched)
        if before is not None:
            self.stats.num_overlapped_steps += 1
            self._settle(before, outputs)
        if not self._overlap or any(chunk.sequence.needs_output for chunk in chunks):
            self._land(outputs)

    def _expect(self, chunks: list[Chunk]) -> None:
        row = 0
        for chunk in chunks:
            self.scheduler.launch(chunk)
            if chunk.samples:
                chunk.sequence.expect(row)
                row += 1

    def _land(self, outputs: list[TokenOutput]) -> None:
        """Wait for the step in flight and settle it."""
        flight, self._flight = self._flight, None
        if flight is not None:
            self._settle(flight, outputs)

    def _retry(self, chunks: list[Chunk], trouble: Trouble, outputs: list[TokenOutput]) -> None:
        """Run a step that failed again in parts; what can't be divided fails."""
        free_memory()
        chunks = [chunk for chunk in chunks if chunk.sequence.is_running]
        parts = divide(chunks, trouble) if chunks else []
        if chunks and not parts:
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
                self._land(outputs)

    def _rewind(self, chunk: Chunk) -> None:
        """Undo what a failed forward may have left: a number drawn for the token, prompt tokens scored."""
        sequence, request = chunk.sequence, chunk.sequence.request
        del sequence.prompt_logprobs[chunk.start + 1 :]
        number = self._requests[request.request_id].number
        sequence.generator = make_generator(request.params, self._seed, number, sequence.index)
        if sequence.generator is not None:
            skip_draws(sequence.generator, sequence.num_generated)

    def _settle(self, flight: _Flight, outputs: list[TokenOutput]) -> None:
        """Take over what a forward produced: computed tokens, new tokens, ends."""
        result = self._wait(flight)
        self._fail_pictures(dict.fromkeys(result.broken_pictures, numerical_error()), outputs)
        self._count_bad_step(result)
        tokens = iter(zip(result.token_ids, result.logprobs, strict=True))
        for chunk in flight.chunks:
            token = next(tokens) if chunk.samples else None
            if not chunk.sequence.is_running:
                continue  # it ended, or another completion of its request failed, after this was launched
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
            chunk.sequence.learn(token_id)
            self.stats.num_generated_tokens += 1
            self._emit(chunk.sequence, token_id, logprobs, outputs)

    def _wait(self, flight: _Flight) -> StepResult:
        """Raises EngineBrokenError: what fails while the device runs can't be told apart by request."""
        try:
            return flight.launched.wait()
        except Exception as error:  # whatever the device reports
            judge(error, f"a step of {len(flight.chunks)} sequences")
            raise EngineBrokenError("A step failed on the device.") from error

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
        output = TokenOutput(request.request_id, sequence.index, token_id, logprobs)
        outputs.append(output)
        if len(sequence.generated) == 1:
            self._describe_first(sequence, output)
        reason = self._end_reason(sequence, token_id)
        if reason is not None:
            output.finish_reason = reason
            if reason == "stop" and token_id in (request.params.stop_token_ids or ()):
                output.stop_token_id = token_id
            output.timings = sequence.clock.timings(sequence.num_preemptions)
            self._retire(sequence)

    def _describe_first(self, sequence: Sequence, output: TokenOutput) -> None:
        """What is told with a completion's first token only."""
        sequence.clock.first_token = sequence.clock.first_token or time.perf_counter()
        if sequence.index == 0:
            self._start_siblings(sequence.request)
        if sequence.wants_prompt_logprobs:
            output.prompt_logprobs = sequence.prompt_logprobs
        output.num_cached_tokens = sequence.num_cached_tokens
        output.media_hits = tuple(sequence.media_hits)
        output.timings = sequence.clock.timings(sequence.num_preemptions)

    def _end_reason(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        params = sequence.request.params
        if token_id in sequence.request.stop_token_ids and len(sequence.generated) > params.min_tokens:
            return "stop"
        num_known = sequence.num_prompt_tokens + len(sequence.generated)
        return "length" if num_known >= sequence.most_tokens else None

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
