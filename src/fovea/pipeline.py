"""The one door: a prompt goes in here and becomes an EngineRequest; tokens come back and become a RequestOutput.

`Preparer` runs in media threads, so decoding and resizing pictures never holds up the engine. `Collector` runs beside
the step loop. Neither knows torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fovea.core.config import EngineConfig
from fovea.core.errors import (
    EmbeddingsError,
    InvalidOptionError,
    MediaError,
    MediaLimitError,
    PromptTooLongError,
    SamplingError,
)
from fovea.core.params import SamplingParams
from fovea.core.types import (
    CompletionOutput,
    EngineRequest,
    EngineTimings,
    FinishReason,
    ImagePlan,
    Logprob,
    MediaItem,
    MediaReport,
    RequestMetrics,
    RequestOutput,
    TokenLogprobs,
    TokenOutput,
)
from fovea.families.base import Family
from fovea.media.decode import decode
from fovea.media.digest import array_digest, media_key
from fovea.media.fetch import FetchPolicy
from fovea.media.load import open_source
from fovea.media.probe import MediaLimits, Probe, probe
from fovea.media.source import MemorySource, parse_image, parse_url
from fovea.media.transform import apply_plan
from fovea.prompt.build import expand, placeholder_token, tokenize
from fovea.prompt.detokenizer import Detokenizer
from fovea.prompt.forms import MediaInput, PromptForm
from fovea.prompt.template import ChatTemplate
from fovea.prompt.tokenizer import Tokenizer

DETOKENIZER_TAIL_TOKENS = 8
MAX_CHARS_PER_TOKEN = 256  # the longest runs of blanks in published vocabularies are half of this


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready for the engine, and what its answer will say about its pictures."""

    request: EngineRequest
    text: str | None
    reports: tuple[MediaReport, ...]
    arrived: float  # time.perf_counter
    media_s: float


@dataclass(frozen=True, slots=True)
class _Opened:
    """A picture whose size is known and planned for, not decoded yet."""

    media: MediaInput
    source: MemorySource | None
    probe: Probe | None
    plan: ImagePlan | None
    num_tokens: int
    grid: tuple[int, int, int]


class Preparer:
    """Everything between a user's prompt and the engine. Immutable; used by many threads."""

    def __init__(
        self, config: EngineConfig, family: Family, folder: Path, tokenizer_folder: Path, max_model_len: int
    ) -> None:
        self.family = family
        self.tokenizer = Tokenizer.load(tokenizer_folder)
        self.template = ChatTemplate.load(
            folder,
            config.chat_template,
            tokens=self.tokenizer.special_token_strings,
            special_tokens=self.tokenizer.special_tokens,
        )
        self._config = config
        self._max_model_len = max_model_len
        self._limits = MediaLimits.from_config(config)
        self._fetch_policy = FetchPolicy.from_config(config)
        self._options = family.check_options(config.mm_processor_kwargs)
        self._end_ids = family.stop_tokens() | self._end_ids_by_text()
        placeholder_token(family, self.tokenizer)

    def _end_ids_by_text(self) -> frozenset[int]:
        ids = (self.tokenizer.token_id(text) for text in self.family.stop_strings())
        return frozenset(token_id for token_id in ids if token_id is not None)

    def prepare(self, form: PromptForm, params: SamplingParams, request_id: str, arrived: float) -> Prepared:
        """Count, tokenise, size, judge, then decode. Raises RequestError; nothing is paid for before it is judged."""
        self._check_params(params)
        if len(form.media) > self._config.image_limit():
            raise MediaLimitError(
                f"The prompt has {len(form.media)} images; limit_mm_per_prompt allows {self._config.image_limit()}."
            )
        self._check_text(form.text or "")
        slotted = tokenize(form, self.family, self.tokenizer)
        self._check_length(len(slotted.token_ids))
        started = time.perf_counter()
        options = self._request_options(form)
        known: dict[str, MemorySource] = {}
        opened = [self._open(media, i, options, known) for i, media in enumerate(form.media)]
        token_ids, spans = expand(slotted, [picture.num_tokens for picture in opened])
        self._check_length(len(token_ids))
        items = tuple(self._item(picture, form.salt) for picture in opened)
        positions, delta = self.family.positions(len(token_ids), spans, [item.grid for item in items])
        request = EngineRequest(
            request_id=request_id,
            token_ids=token_ids,
            params=params,
            stop_token_ids=frozenset(params.stop_token_ids or ())
            | (frozenset() if params.ignore_eos else self._end_ids),
            spans=spans,
            media=items,
            positions=positions,
            position_delta=delta,
            bad_words=self._bad_words(params),
            salt=form.salt.encode(),
        )
        reports = tuple(_report(picture) for picture in opened)
        return Prepared(request, form.text, reports, arrived, time.perf_counter() - started)

    def _request_options(self, form: PromptForm) -> dict[str, Any]:
        try:
            return self.family.check_options({**self._options, **form.processor_kwargs})
        except InvalidOptionError as error:  # of one request: it must be caught as a RequestError
            raise MediaError(str(error)) from None

    def _check_params(self, params: SamplingParams) -> None:
        vocab_size = self.family.spec.decoder.vocab_size
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            wrong = next((t for t in getattr(params, name) or () if t >= vocab_size), None)
            if wrong is not None:
                raise SamplingError(f"{name} has {wrong}; the vocabulary ends at {vocab_size - 1}.")

    def _check_text(self, text: str) -> None:
        """Before tokenising: no token stands for more characters than this."""
        most = MAX_CHARS_PER_TOKEN * self._max_model_len
        if len(text) > most:
            raise PromptTooLongError(
                f"The prompt has {len(text)} characters; max_model_len {self._max_model_len} allows at most {most}."
            )

    def _check_length(self, num_tokens: int) -> None:
        if num_tokens >= self._max_model_len:
            raise PromptTooLongError(
                f"The prompt has {num_tokens} tokens; max_model_len is {self._max_model_len}, answer included. Shorten "
                "it, lower the pictures' pixels (mm_processor_kwargs), or raise max_model_len."
            )

    def _open(self, media: MediaInput, number: int, options: dict[str, Any], known: dict[str, MemorySource]) -> _Opened:
        if media.kind == "embeds":
            return self._open_embeds(media, number)
        source = self._source(media, known)
        size = probe(source, self._limits)
        plan = self.family.plan_image(size.width_px, size.height_px, options)
        return _Opened(media, source, size, plan, plan.num_tokens, plan.grid)

    def _source(self, media: MediaInput, known: dict[str, MemorySource]) -> MemorySource:
        """`known`: what the addresses of this request gave already; each is fetched once."""
        if media.kind == "picture":
            return open_source(parse_image(media.value), self._limits)
        if media.value not in known:
            root = self._config.allowed_local_media_path
            source = parse_url(media.value, allowed_local_media_path=root, max_bytes=self._limits.max_bytes)
            known[media.value] = open_source(source, self._limits, self._fetch_policy)
        return known[media.value]

    def _open_embeds(self, media: MediaInput, number: int) -> _Opened:
        rows, hidden = media.value.shape
        if hidden != self.family.spec.decoder.hidden_size:
            raise EmbeddingsError(
                f"Image embeddings {number + 1} are {hidden} wide; the model's hidden size is "
                f"{self.family.spec.decoder.hidden_size}."
            )
        grid = self.family.embeds_grid(rows, media.grid)
        if not np.isfinite(media.value).all():
            raise EmbeddingsError(f"Image embeddings {number + 1} hold NaN or infinite values.")
        return _Opened(media, None, None, None, rows, grid)

    def _item(self, opened: _Opened, salt: str) -> MediaItem:
        """Decode and resize. The key covers pixels, plan, family and its version, the client's id and the salt."""
        owner = (self.family.name, self.family.version, opened.media.uuid, salt)
        if opened.plan is None or opened.source is None:
            key = media_key(array_digest(opened.media.value), *owner, repr(opened.grid))
            return MediaItem(key, opened.num_tokens, 0, opened.grid, embeds=opened.media.value)
        picture = decode(opened.source)
        key = media_key(picture.digest, *owner, repr(opened.plan))
        canvas = apply_plan(picture, opened.plan)
        return MediaItem(key, opened.num_tokens, opened.plan.num_patches, opened.grid, canvas=canvas)

    def _bad_words(self, params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        """Each word as the tokens it has at the start of a text and after a space."""
        forms = set()
        for word in params.bad_words or ():
            for text in (word, f" {word.lstrip()}"):
                forms.add(tuple(self.tokenizer.encode(text, add_special_tokens=False, parse_special=False)))
        return tuple(sorted(form for form in forms if form))


def _report(opened: _Opened) -> MediaReport:
    """`cache_hit` is filled in when the engine tells."""
    if opened.plan is None or opened.probe is None:
        return MediaReport(0, 0, 0, 0, opened.num_tokens, cache_hit=False)
    return MediaReport(
        original_width_px=opened.probe.width_px,
        original_height_px=opened.probe.height_px,
        width_px=opened.plan.canvas_width_px,
        height_px=opened.plan.canvas_height_px,
        num_tokens=opened.num_tokens,
        cache_hit=False,
    )


@dataclass(slots=True)
class _Completion:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    detokenizer: Detokenizer | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


class Collector:
    """Puts the tokens of one request together. `stop` ends a completion in the engine when its stop string appears."""

    def __init__(
        self, prepared: Prepared, tokenizer: Tokenizer, stop: Callable[[str, int], EngineTimings | None], *, live: bool
    ) -> None:
        """`live`: text is wanted while tokens arrive, not just at the end."""
        self._prepared = prepared
        self._params = prepared.request.params
        self._tokenizer = tokenizer
        self._stop = stop
        self._incremental = self._params.detokenize and (live or bool(self._params.stop_strings))
        self._completions = [self._completion() for _ in range(self._params.n)]
        self._num_live = self._params.n
        self._prompt_logprobs: list[TokenLogprobs | None] | None = None
        self._num_cached_tokens = 0
        self._hits: tuple[bool, ...] = ()
        self._timings: EngineTimings | None = None

    @property
    def finished(self) -> bool:
        return self._num_live == 0

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
            if output.logprobs is not None:
                completion.logprobs.append(self._named(output.logprobs))
        completion.finish_reason, completion.stop_reason = output.finish_reason, output.stop_token_id
        self._timings = output.timings or self._timings
        self._look_for_stop(completion, output)
        self._num_live -= completion.finish_reason is not None

    def _look_for_stop(self, completion: _Completion, output: TokenOutput) -> None:
        if completion.detokenizer is None or output.token_id is None:
            return
        may_stop = len(completion.token_ids) > self._params.min_tokens
        completion.detokenizer.push(output.token_id, check_stop=may_stop)
        if completion.detokenizer.stopped is not None:
            completion.stop_reason = completion.detokenizer.stopped
            if completion.finish_reason is None:
                self._timings = self._stop(output.request_id, output.index) or self._timings
            completion.finish_reason = "stop"
        elif completion.finish_reason is not None:
            completion.detokenizer.finish()

    def output(self) -> RequestOutput:
        """The answer so far."""
        request = self._prepared.request
        hits = self._hits or (False,) * len(self._prepared.reports)
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
            media=tuple(replace(r, cache_hit=hit) for r, hit in zip(self._prepared.reports, hits, strict=True)),
            metrics=self._metrics(),
        )

    def _completion(self) -> _Completion:
        return _Completion(detokenizer=self._detokenizer() if self._incremental else None)

    def _detokenizer(self) -> Detokenizer:
        return Detokenizer(
            self._tokenizer,
            prompt_token_ids_tail=self._prepared.request.token_ids[-DETOKENIZER_TAIL_TOKENS:],
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
        # The same way as while streaming: decoding all at once differs where tokens make up broken UTF-8.
        detokenizer = self._detokenizer()
        for token_id in completion.token_ids:
            detokenizer.push(token_id)
        detokenizer.finish()
        return detokenizer.text

    def _named(self, entry: TokenLogprobs) -> TokenLogprobs:
        texts = {token_id: self._tokenizer.token_text(token_id) for token_id in entry}
        return {token_id: Logprob(value.logprob, value.rank, texts[token_id]) for token_id, value in entry.items()}

    def _metrics(self) -> RequestMetrics | None:
        timings = self._timings
        if timings is None:
            return None
        total_s = time.perf_counter() - self._prepared.arrived
        engine_s = timings.first_token_s + timings.decode_s
        return RequestMetrics(
            media_s=self._prepared.media_s,
            queue_s=timings.queue_s,
            encode_s=timings.encode_s,
            prefill_s=timings.prefill_s,
            decode_s=timings.decode_s,
            ttft_s=max(0.0, total_s - engine_s) + timings.first_token_s,
            total_s=total_s,
            num_preemptions=timings.num_preemptions,
        )


def _cumulative(completion: _Completion) -> float:
    return sum(
        entry[token_id].logprob for token_id, entry in zip(completion.token_ids, completion.logprobs, strict=True)
    )
