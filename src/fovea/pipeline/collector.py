"""The tokens of one request become its answer: text, stop strings, log-probabilities, metrics.

Contract: `add` is cheap (no clock, no copies, text only if it is wanted while tokens come), because a server calls it
in its event loop for thousands of tokens a second. The texts of the deltas joined are the text of the output.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from fovea.core.errors import FoveaError
from fovea.core.types import (
    CompletionOutput,
    Delta,
    EngineTimings,
    FinishReason,
    Logprob,
    RequestMetrics,
    RequestOutput,
    TokenLogprobs,
    TokenOutput,
)
from fovea.pipeline.preparer import Prepared
from fovea.prompt.detokenizer import TAIL_TOKENS, Detokenizer
from fovea.prompt.tokenizer import Tokenizer

AHEAD_TOKENS = 16  # whose text is made at once, before it is wanted

Stop = Callable[[str, int], EngineTimings | None]


@dataclass(slots=True)
class _Completion:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    detokenizer: Detokenizer | None = None  # is told of each token as it comes
    ahead: Detokenizer | None = None  # has the text of the first `num_ahead` tokens
    num_ahead: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    new_texts: list[str] = field(default_factory=list)  # since the last delta
    num_given: int = 0  # tokens in deltas so far


class Collector:
    """Puts the tokens of one request together."""

    def __init__(self, prepared: Prepared, tokenizer: Tokenizer, stop: Stop, *, live: bool) -> None:
        """
        stop: ends a completion in the engine when its stop string appears. It may give the request's timings; where it
            does not, because the engine is elsewhere, they are made from those that came with the first token.
        live: text is wanted while tokens arrive, not just at the end.
        """
        self._prepared = prepared
        self._params = prepared.request.params
        self._tokenizer = tokenizer
        self._stop = stop
        self._incremental = self._params.detokenize and (live or bool(self._params.stop_strings))
        self._writes_at_end = self._params.detokenize and not self._incremental
        self._completions = [self._completion() for _ in range(self._params.n)]
        self._num_unwritten = 0
        self._news: dict[int, None] = {}  # completions that the next deltas are about, in the order of their tokens
        self._num_live = self._params.n
        self._prompt_logprobs: list[TokenLogprobs | None] | None = None
        self._num_cached_tokens = 0
        self._hits: tuple[bool, ...] = ()
        self._timings: EngineTimings | None = None
        self._first_token_at: float | None = None
        self._ended_at: float | None = None

    @property
    def finished(self) -> bool:
        return self._num_live == 0

    @property
    def is_behind(self) -> bool:
        """Whether `write_ahead` has something to do."""
        return self._num_unwritten >= AHEAD_TOKENS and self._writes_at_end

    def write_ahead(self) -> None:
        """Text that nobody wants yet, at a time when a device is waited for anyway."""
        self._num_unwritten = 0
        for completion in self._completions:
            try:
                self._write(completion, len(completion.token_ids) // AHEAD_TOKENS * AHEAD_TOKENS)
            except FoveaError:  # `output` starts anew, and raises it where it is the request's own
                completion.ahead, completion.num_ahead = None, 0

    def add(self, output: TokenOutput) -> None:
        """Take a token. Raises the request's own error if the engine ended it with one."""
        if output.error is not None:
            raise output.error
        completion = self._completions[output.index]
        if completion.finish_reason is not None:
            return
        if output.index == 0 and not completion.token_ids:
            self._num_cached_tokens, self._hits = output.num_cached_tokens, output.media_hits
            self._prompt_logprobs = output.prompt_logprobs
        if output.token_id is not None:
            completion.token_ids.append(output.token_id)
            self._num_unwritten += 1
            if output.logprobs is not None:
                completion.logprobs.append(self._named(output.logprobs))
            if self._first_token_at is None:
                self._first_token_at = time.perf_counter()
        self._news[output.index] = None
        completion.finish_reason, completion.stop_reason = output.finish_reason, output.stop_token_id
        if output.timings is not None:
            self._timings = output.timings
        if completion.detokenizer is not None:
            self._push(completion, completion.detokenizer, output)
        if completion.finish_reason is not None:
            self._num_live -= 1
            if self._num_live == 0:
                self._ended_at = time.perf_counter()

    def _push(self, completion: _Completion, detokenizer: Detokenizer, output: TokenOutput) -> None:
        if output.token_id is not None:
            may_stop = len(completion.token_ids) > self._params.min_tokens
            text = detokenizer.push(output.token_id, check_stop=may_stop)
            if text:
                completion.new_texts.append(text)
        if completion.finish_reason is not None:
            completion.new_texts.append(detokenizer.finish())
        if detokenizer.stopped is not None:
            completion.stop_reason = detokenizer.stopped
            if completion.finish_reason is None:
                self._timings = self._stop(output.request_id, output.index) or self._timings_by_clock()
            completion.finish_reason = "stop"

    def deltas(self) -> list[Delta]:
        """What is new since the last call, one for each completion with news.

        Without `live`, text may come with the last delta of a completion only.
        """
        news = [self._delta(index) for index in self._news]
        self._news.clear()
        return news

    def _delta(self, index: int) -> Delta:
        completion = self._completions[index]
        start, completion.num_given = completion.num_given, len(completion.token_ids)
        if completion.detokenizer is None and completion.finish_reason is not None:
            completion.new_texts.append(self._text(completion))
        text = "".join(completion.new_texts)
        completion.new_texts.clear()
        return Delta(
            index=index,
            text=text,
            token_ids=tuple(completion.token_ids[start:]),
            logprobs=completion.logprobs[start:] if self._params.logprobs is not None else None,
            finish_reason=completion.finish_reason,
            stop_reason=completion.stop_reason,
        )

    def output(self) -> RequestOutput:
        """The answer so far."""
        request = self._prepared.request
        reports = self._prepared.reports
        hits = self._hits if len(self._hits) == len(reports) else (False,) * len(reports)
        prompt_logprobs = self._prompt_logprobs
        if prompt_logprobs is not None:
            prompt_logprobs = [None if entry is None else self._named(entry) for entry in prompt_logprobs]
        return RequestOutput(
            request_id=request.request_id,
            prompt=self._prepared.text,
            prompt_token_ids=request.token_ids,
            outputs=[self._completion_output(i) for i in range(len(self._completions))],
            finished=self.finished,
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=self._num_cached_tokens,
            media=tuple(replace(r, cache_hit=hit) for r, hit in zip(reports, hits, strict=True)),
            metrics=self._metrics(),
        )

    def _completion(self) -> _Completion:
        return _Completion(detokenizer=self._detokenizer() if self._incremental else None)

    def _detokenizer(self) -> Detokenizer:
        return Detokenizer(
            self._tokenizer,
            prompt_token_ids_tail=self._prepared.request.token_ids[-TAIL_TOKENS:],
            skip_special_tokens=self._params.skip_special_tokens,
            stop=self._params.stop_strings,
            include_stop=self._params.include_stop_str_in_output,
        )

    def _completion_output(self, index: int) -> CompletionOutput:
        completion = self._completions[index]
        wants_logprobs = self._params.logprobs is not None
        return CompletionOutput(
            index=index,
            text=self._text(completion),
            token_ids=tuple(completion.token_ids),
            cumulative_logprob=_cumulative(completion) if wants_logprobs else None,
            logprobs=list(completion.logprobs) if wants_logprobs else None,
            finish_reason=completion.finish_reason,
            stop_reason=completion.stop_reason,
        )

    def _text(self, completion: _Completion) -> str:
        if not self._params.detokenize:
            return ""
        if completion.detokenizer is not None:
            return completion.detokenizer.text
        if completion.finish_reason is None:  # asked before its end, and will be again
            completion = replace(completion, ahead=None, num_ahead=0)
        detokenizer = self._write(completion, len(completion.token_ids))
        detokenizer.finish()
        return detokenizer.text

    def _write(self, completion: _Completion, until: int) -> Detokenizer:
        """Bring the text to so many tokens: in the same parts whenever it happens, because broken bytes may show it."""
        if completion.ahead is None:
            completion.ahead = self._detokenizer()
        for start in range(completion.num_ahead, until, AHEAD_TOKENS):
            completion.ahead.push_all(completion.token_ids[start : min(until, start + AHEAD_TOKENS)])
        completion.num_ahead = until
        return completion.ahead

    def _named(self, entry: TokenLogprobs) -> TokenLogprobs:
        texts = {token_id: self._tokenizer.token_text(token_id) for token_id in entry}
        return {token_id: Logprob(value.logprob, value.rank, texts[token_id]) for token_id, value in entry.items()}

    def _timings_by_clock(self) -> EngineTimings | None:
        if self._timings is None or self._first_token_at is None:
            return self._timings
        return replace(self._timings, decode_s=time.perf_counter() - self._first_token_at)

    def _metrics(self) -> RequestMetrics | None:
        timings, first_token_at = self._timings, self._first_token_at
        if timings is None:
            return None
        ended_at = time.perf_counter() if self._ended_at is None else self._ended_at
        arrived = self._prepared.arrived
        return RequestMetrics(
            prompt_s=self._prepared.prompt_s,
            media_s=self._prepared.media_s,
            queue_s=timings.queue_s,
            encode_s=timings.encode_s,
            prefill_s=timings.prefill_s,
            decode_s=timings.decode_s,
            ttft_s=(ended_at if first_token_at is None else first_token_at) - arrived,
            total_s=ended_at - arrived,
            num_preemptions=timings.num_preemptions,
        )


def _cumulative(completion: _Completion) -> float:
    return sum(
        entry[token_id].logprob for token_id, entry in zip(completion.token_ids, completion.logprobs, strict=True)
    )
