"""A PromptForm becomes an EngineRequest.

The order is the policy: count, tokenise, size, judge, then decode. Nothing is paid for before it is judged.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fovea.core.config import EngineConfig
from fovea.core.errors import (
    InvalidOptionError,
    MediaError,
    MediaLimitError,
    PromptTooLongError,
    SamplingError,
)
from fovea.core.params import SamplingParams
from fovea.core.server_config import ServerConfig
from fovea.core.types import EngineRequest, MediaReport, MediaSpan
from fovea.families.base import Family
from fovea.families.video import SAMPLING_KEYS
from fovea.media.load import Fetched
from fovea.pipeline.decode_threads import DecodeThreads
from fovea.pipeline.pictures import Opened, Pictures, SharedDecodes
from fovea.prompt.build import PictureRun, SlottedPrompt, expand, picture_run, placeholder_token, row_runs, tokenize
from fovea.prompt.forms import PromptForm
from fovea.prompt.template import ChatTemplate
from fovea.prompt.token_floor import MAX_CHARS_PER_TOKEN
from fovea.prompt.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COUNT_FACTOR = 4  # a text that is only counted may be so many times as long as a prompt


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready for the engine, and what its answer will say about its pictures.

    `prompt_s` is the time tokenising took; who rendered the chat template adds that.
    """

    request: EngineRequest
    text: str | None
    reports: tuple[MediaReport, ...]
    arrived: float  # time.perf_counter
    prompt_s: float
    media_s: float


@dataclass(frozen=True, slots=True)
class Counted:
    """A prompt as tokens, and what its pictures would become. Nothing was decoded, so nothing is timed."""

    token_ids: tuple[int, ...]
    spans: tuple[MediaSpan, ...]
    reports: tuple[MediaReport, ...]


class Preparer:
    """Everything between a user's prompt and the engine. Immutable; used by many threads.

    num_threads, num_helpers: see DecodeThreads.
    resize_on_device: the engine resizes pictures itself; what is too large to be sent there is resized here even so.
    """

    def __init__(
        self,
        config: EngineConfig,
        family: Family,
        folder: Path,
        tokenizer_folder: Path,
        max_model_len: int,
        *,
        num_threads: int = 1,
        num_helpers: int = 1,
        resize_on_device: bool = False,
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
        self._resize_on_device = resize_on_device
        self._options = family.check_options(config.mm_processor_kwargs)
        self._pictures = Pictures(config, family, DecodeThreads(num_threads, num_helpers))
        self._capped: dict[int, Preparer] = {}
        self._end_ids = family.stop_tokens() | self._end_ids_by_text()
        placeholder_token(family, self.tokenizer)

    def for_engine(self, max_model_len: int, *, resize_on_device: bool = False, pixel_cap: int = 0) -> Preparer:
        """The same for what an engine turned out to be, sharing all that takes long to load."""
        if pixel_cap and pixel_cap not in self._capped:
            self._capped[pixel_cap] = self._with_pixel_cap(pixel_cap)
        other = copy.copy(self._capped.get(pixel_cap, self))
        other._max_model_len = max_model_len
        other._resize_on_device = resize_on_device
        return other

    def _with_pixel_cap(self, most: int) -> Preparer:
        family = self.family.with_pixel_cap(most, self._config.mm_processor_kwargs)
        if family is self.family:
            return self
        other = copy.copy(self)
        other.family = family
        other._pictures = self._pictures.of_family(family)
        return other

    def prepare(
        self,
        form: PromptForm,
        params: SamplingParams,
        request_id: str,
        arrived: float,
        *,
        fetched: Mapping[str, Fetched] | None = None,
        shared: SharedDecodes | None = None,
    ) -> Prepared:
        """Raises RequestError.

        fetched: what the web addresses among the pictures gave. If it is given, nothing is dialled here.
        shared: see Pictures.make.
        """
        self._check_params(params)
        started = time.perf_counter()
        slotted = self._slotted(form, self._max_model_len)
        self._check_length(len(slotted.token_ids))
        tokenised = time.perf_counter()
        opened, runs = self._opened(form, slotted, fetched)
        token_ids, spans = expand(slotted, runs)
        self._check_length(len(token_ids))
        self._check_room(params, len(token_ids))
        made = self._pictures.make(opened, form.salt, resize_on_device=self._resize_on_device, shared=shared)
        media_s = time.perf_counter() - tokenised
        items = tuple(item for item, _ in made)
        positions, delta = self._positions(len(token_ids), spans, opened)
        request = EngineRequest(
            request_id=request_id,
            token_ids=token_ids,
            params=params,
            stop_token_ids=self._stop_ids(params),
            spans=spans,
            media=items,
            positions=positions,
            position_delta=delta,
            bad_words=self._bad_words(params),
            salt=form.salt.encode(),
            open_spans=self.family.open_spans(len(token_ids), spans),
        )
        reports = tuple(report for _, report in made)
        return Prepared(request, form.text, reports, arrived, prompt_s=tokenised - started, media_s=media_s)

    def _positions(
        self, num_tokens: int, spans: Sequence[MediaSpan], opened: Sequence[Opened]
    ) -> tuple[NDArray[np.int32] | None, int]:
        """Steps of a video that have text between them count as so many pictures."""
        places: list[MediaSpan] = []
        grids: list[tuple[int, int, int]] = []
        steps_s: list[float] = []
        for span, one in zip(spans, opened, strict=True):
            step_s = one.video.plan.step_s if one.video else 0.0
            if one.video is None or one.ids is None:
                places.append(span)
                grids.append(one.grid)
                steps_s.append(step_s)
                continue
            steps = row_runs(span, one.ids)
            places += steps
            grids += [(1, *one.grid[1:])] * len(steps)
            steps_s += [step_s] * len(steps)
        return self.family.positions(num_tokens, places, grids, steps_s if any(steps_s) else ())

    def count(self, form: PromptForm, *, fetched: Mapping[str, Fetched] | None = None) -> Counted:
        """Sizes and lengths, judged like a request's, except that the prompt may be longer than max_model_len.

        Only a text that has more than COUNT_FACTOR times as many tokens at the very least is refused.
        """
        slotted = self._slotted(form, COUNT_FACTOR * self._max_model_len)
        opened, runs = self._opened(form, slotted, fetched)
        token_ids, spans = expand(slotted, runs)
        return Counted(token_ids, spans, tuple(self._pictures.report(picture) for picture in opened))

    def _opened(
        self, form: PromptForm, slotted: SlottedPrompt, fetched: Mapping[str, Fetched] | None
    ) -> tuple[list[Opened], list[PictureRun]]:
        """The pictures and videos with their tokens counted, text between their rows included."""
        opened = self._pictures.open(slotted.media, self._request_options(form), fetched)
        runs = [picture_run(self.family, self.tokenizer, one.grid, one.num_tokens, one.times_s) for one in opened]
        counted = [replace(o, num_tokens=r.length, ids=r.inside) for o, r in zip(opened, runs, strict=True)]
        return counted, runs

    def _slotted(self, form: PromptForm, most_tokens: int) -> SlottedPrompt:
        num_videos = sum(one.video is not None for one in form.media)
        for kind, count, limit in (
            ("images", len(form.media) - num_videos, self._config.image_limit()),
            ("videos", num_videos, self._config.video_limit()),
        ):
            if count > limit:
                raise MediaLimitError(
                    f"The prompt has {count} {kind}; limit_mm_per_prompt allows {limit}.", code="too_many_media_items"
                )
        self._check_text(form.text or "", most_tokens)
        return tokenize(form, self.family, self.tokenizer)

    def _stop_ids(self, params: SamplingParams) -> frozenset[int]:
        return frozenset(params.stop_token_ids or ()) | (frozenset() if params.ignore_eos else self._end_ids)

    def _end_ids_by_text(self) -> frozenset[int]:
        ids = (self.tokenizer.token_id(text) for text in self.family.stop_strings())
        return frozenset(token_id for token_id in ids if token_id is not None)

    def _request_options(self, form: PromptForm) -> dict[str, Any]:
        """A client of a server may lower what its operator set, not raise it."""
        place = "mm_processor_kwargs"
        operators = dict(self._options)
        if set(form.processor_kwargs) & set(SAMPLING_KEYS):  # one of these stands for all of them
            operators = {key: value for key, value in operators.items() if key not in SAMPLING_KEYS}
        try:
            options = self.family.check_options({**operators, **form.processor_kwargs})
        except InvalidOptionError as error:  # of one request: it must be caught as a RequestError
            unknown = set(form.processor_kwargs) - self.family.processor_options
            code = "unsupported_value" if unknown else "invalid_value"
            raise MediaError(str(error), code=code, param=place) from None
        most = self.family.most_pixels(self._options)
        if isinstance(self._config, ServerConfig) and self.family.most_pixels(options) > most:
            raise MediaError(
                f"mm_processor_kwargs asks for pictures of {self.family.most_pixels(options):,} pixels; this server "
                f"permits up to {most:,}.",
                code="above_max_value",
                param=place,
            )
        return options

    def _check_params(self, params: SamplingParams) -> None:
        vocab_size = self.family.spec.decoder.vocab_size
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            wrong = next((t for t in getattr(params, name) or () if t >= vocab_size), None)
            if wrong is not None:
                raise SamplingError(
                    f"{name} has {wrong}; the vocabulary ends at {vocab_size - 1}.",
                    code="above_max_value",
                    param=name,
                )

    def _check_text(self, text: str, most_tokens: int) -> None:
        """Before tokenising, which for a text far too long takes seconds and hundreds of megabytes."""
        tag = self.family.image_tag
        fewest = self.tokenizer.fewest_tokens(text if tag is None else tag.sub("", text))
        fewest = max(fewest, len(text) // MAX_CHARS_PER_TOKEN)  # blanks that a special token may swallow
        if fewest > most_tokens:
            raise PromptTooLongError(
                f"The prompt has {len(text):,} characters, which are {fewest:,} tokens or more; max_model_len "
                f"{self._max_model_len:,} allows {most_tokens:,} here. Shorten it."
            )

    def _check_room(self, params: SamplingParams, num_tokens: int) -> None:
        room = self._max_model_len - num_tokens
        if params.min_tokens > room:
            raise SamplingError(
                f"min_tokens is more than the {room} tokens of room that the prompt's {num_tokens} tokens leave in "
                f"max_model_len {self._max_model_len}.",
                code="above_max_value",
                param="min_tokens",
            )

    def _check_length(self, num_tokens: int) -> None:
        if num_tokens >= self._max_model_len:
            raise PromptTooLongError(
                f"The prompt has {num_tokens} tokens; max_model_len is {self._max_model_len}, answer included. Shorten "
                "it, lower the pictures' pixels (mm_processor_kwargs), or raise max_model_len."
            )

    def _bad_words(self, params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        """Each word as the tokens it has at the start of a text and after a space."""
        forms = set()
        for word in params.bad_words or ():
            for text in (word, f" {word.lstrip()}"):
                forms.add(tuple(self.tokenizer.encode(text, add_special_tokens=False, parse_special=False)))
        return tuple(sorted(form for form in forms if form))
