"""Requests for models that transformers runs: the same policy and order as for ours, but for who makes the tokens.

The model's own processor sees the whole text, so it could read a picture or a special token where a user typed one. A
text that spells one outside of what the chat template or the caller wrote is refused.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fovea.core.config import EngineConfig
from fovea.core.errors import MediaLimitError, ModelError, PlaceholderError, PromptError, SamplingError
from fovea.core.params import SamplingParams
from fovea.core.types import ROW, EngineRequest, MediaItem, MediaReport, MediaSpan
from fovea.families.base import Family
from fovea.families.bridged import Bridged
from fovea.media.digest import media_key
from fovea.media.load import Fetched
from fovea.pipeline.pictures import Opened, SharedDecodes
from fovea.pipeline.preparer import Counted, Prepared, Preparer
from fovea.pipeline.processor import Inputs, Processor
from fovea.prompt.forms import PromptForm


def make_preparer(
    config: EngineConfig, family: Family, folder: Path, tokenizer_folder: Path, max_model_len: int, **options: Any
) -> Preparer:
    """The one that the family needs; arguments as Preparer has them."""
    if isinstance(family, Bridged):
        return BridgedPreparer(config, family, folder, tokenizer_folder, max_model_len, **options)
    return Preparer(config, family, folder, tokenizer_folder, max_model_len, **options)


class BridgedPreparer(Preparer):
    """See the module's docstring. Pictures are decoded here, whatever `resize_on_device` says."""

    family: Bridged

    def __init__(
        self, config: EngineConfig, family: Bridged, folder: Path, tokenizer_folder: Path, *rest: Any, **options: Any
    ) -> None:
        if tokenizer_folder != folder:
            raise ModelError(f"transformers runs {family.name}, and takes the tokenizer of the model's own folder.")
        self._processor = Processor(folder, family.name, wants_token_types=family.wants_token_types())
        family = copy.copy(family)
        family.placeholder = self._processor.image_token
        super().__init__(config, family, folder, tokenizer_folder, *rest, **options)

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
        """Raises RequestError; see Preparer.prepare."""
        self._check_params(params)
        self._check_path(params)
        started = time.perf_counter()
        opened = self._open(form, self._max_model_len, fetched)
        made = self._pictures.make(opened, form.salt, resize_on_device=False, shared=shared)
        decoded = time.perf_counter()
        canvases = [item.canvas for item, _ in made if item.canvas is not None]
        inputs = self._inputs(form, canvases)
        self._check_length(len(inputs.token_ids))
        self._check_room(params, len(inputs.token_ids))
        span, ids = self._place(inputs) if made else (MediaSpan(0, 0), None)
        between = np.asarray(ids or (), np.int64).tobytes()  # text whose rows stand among those of the pictures
        key = media_key(between, self.family.name, form.salt, *(item.key for item, _ in made))
        bundle = MediaItem(key, span.length, 0, (1, 1, 1), arrays=inputs.arrays, ids=ids)
        positions, delta = self.family.grid_positions(inputs.token_ids, inputs.arrays.get("image_grid_thw"))
        request = EngineRequest(
            request_id=request_id,
            token_ids=inputs.token_ids,
            params=params,
            stop_token_ids=self._stop_ids(params),
            spans=(span,),
            media=(bundle,),
            positions=positions,
            position_delta=delta,
            bad_words=self._bad_words(params),
            salt=form.salt.encode(),
        )
        reports = self._counted([report for _, report in made], inputs)
        prompt_s = time.perf_counter() - decoded
        return Prepared(request, form.text, reports, arrived, prompt_s=prompt_s, media_s=decoded - started)

    def count(self, form: PromptForm, *, fetched: Mapping[str, Fetched] | None = None) -> Counted:
        """By a picture of the same size without content: nothing is decoded."""
        opened = self._open(form, self._max_model_len, fetched)
        blank = [
            np.zeros((one.plan.canvas_height_px, one.plan.canvas_width_px, 3), np.uint8)
            for one in opened
            if one.plan is not None
        ]
        inputs = self._inputs(form, blank)
        reports = self._counted([self._pictures.report(picture) for picture in opened], inputs)
        return Counted(inputs.token_ids, (), reports)

    def _open(self, form: PromptForm, most_tokens: int, fetched: Mapping[str, Fetched] | None) -> list[Opened]:
        """Everything that can be judged before a picture is decoded."""
        if len(form.media) > self._config.image_limit():
            raise MediaLimitError(
                f"The prompt has {len(form.media)} images; limit_mm_per_prompt allows {self._config.image_limit()}.",
                code="too_many_media_items",
            )
        if form.media and not self._processor.sees:
            raise self.family.no_pictures()
        if any(one.video is not None for one in form.media):
            raise self.family.no_videos()
        if form.token_ids is not None and form.media:
            raise PlaceholderError(
                f"{self.family.name} runs by transformers: give its prompts with pictures as text, not as token ids."
            )
        self._check_text(form.text or "", most_tokens)
        self._refuse_typed_tokens(form)
        opened = self._pictures.open(form.media, self._request_options(form), fetched)
        plans = [one.plan for one in opened if one.plan is not None]
        sizes = [(plan.canvas_width_px, plan.canvas_height_px) for plan in plans]
        self._check_length(self._processor.fewest_tokens(sizes))
        return opened

    def _inputs(self, form: PromptForm, canvases: list[np.ndarray]) -> Inputs:
        if form.token_ids is not None:
            ids = np.asarray([form.token_ids], np.int64)
            return Inputs(form.token_ids, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        bos = self.tokenizer.bos_token
        brings_bos = bos is not None and (form.text or "").startswith(bos)
        inputs = self._processor(
            form.text or "", canvases, add_special_tokens=form.add_special_tokens and not brings_bos
        )
        if inputs.token_ids:
            return inputs
        if not form.media:
            raise PromptError("The prompt is empty.", code="invalid_value")
        return replace(inputs, token_ids=(self.family.start_token_id,))

    def _place(self, inputs: Inputs) -> tuple[MediaSpan, tuple[int, ...] | None]:
        """From the first row of the first picture to the last row of the last, and the tokens there.

        Where transformers keeps keys and values itself, nothing has a place.
        """
        if self.family.path == "compatible":
            return MediaSpan(0, 0), None
        rows = [i for i, token in enumerate(inputs.token_ids) if token == self.family.image_token_id]
        if not rows:
            raise PlaceholderError(f"The processor of {self.family.name} made no place for a picture.")
        span = MediaSpan(rows[0], rows[-1] + 1 - rows[0])
        inside = inputs.token_ids[span.start : span.end]
        return span, tuple(ROW if token == self.family.image_token_id else token for token in inside)

    def _counted(self, reports: list[MediaReport], inputs: Inputs) -> tuple[MediaReport, ...]:
        """With the tokens that each picture takes; their sum is exact, the shares of several are even ones."""
        total = inputs.token_ids.count(self.family.image_token_id)
        least, more = divmod(total, max(1, len(reports)))
        return tuple(replace(report, num_tokens=least + (i < more)) for i, report in enumerate(reports))

    def _refuse_typed_tokens(self, form: PromptForm) -> None:
        typed = "\n".join(piece.text for piece in form.pieces or () if not piece.trusted)
        tokens = (*self.tokenizer.special_tokens, self._processor.image_token)
        found = next((token for token in tokens if token and token in typed), None)
        if found is not None:
            raise PromptError(
                f"The text spells the special token {found!r}, and {self.family.name}'s processor would take it for "
                "one. Remove it.",
                code="invalid_value",
            )

    def _check_path(self, params: SamplingParams) -> None:
        if self.family.path == "compatible" and params.prompt_logprobs is not None:
            raise SamplingError(
                f"{self.family.name} takes the compatible path, which has no prompt_logprobs. Leave them out.",
                code="unsupported_value",
                param="prompt_logprobs",
            )
