"""PaliGemma and PaliGemma 2: SigLIP, one linear layer, Gemma; all of a prompt sees itself (arXiv:2407.07726)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fovea.core.types import MediaSpan
from fovea.families.config_reader import read_json
from fovea.families.gemma3 import PooledSiglip
from fovea.families.parts import same_names
from fovea.families.spec import ModelSpec, WeightSlot

if TYPE_CHECKING:
    from numpy.typing import NDArray


class PaliGemma(PooledSiglip):
    """A prompt is pictures, BOS, text and a newline. The first position is 1."""

    architectures = ("PaliGemmaForConditionalGeneration",)
    placeholder = "<image>"
    bos: str = "<bos>"
    adds_bos = False
    usual_backbone = "gemma"
    text_ignored = ("use_bidirectional_attention",)  # the prompt always sees all of itself
    resample = "bicubic"
    resample_code = 3

    def read_spec(self) -> ModelSpec:
        spec = super().read_spec()
        named = read_json(self.files.folder, "tokenizer_config.json").get("bos_token", self.bos)
        self.bos = str(named["content"] if isinstance(named, dict) and "content" in named else named)
        self.config.expect("projection_dim", spec.decoder.hidden_size)
        # PaliGemma 2: the prompt sees all of itself in layers with a window, too.
        return replace(spec, decoder=replace(spec.decoder, spans_exceed_window=True))

    def markup(self, texts: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
        """BOS behind the last picture, or in front, and a newline at the end."""
        last = max((i for i, (text, trusted) in enumerate(texts) if trusted and self.placeholder in text), default=-1)
        if last < 0:
            return [(self.bos, True), *texts, ("\n", True)]
        before, _, after = texts[last][0].rpartition(self.placeholder)
        parted = [(before + self.placeholder + self.bos, True), (after, True)]
        return [*texts[:last], *parted, *texts[last + 1 :], ("\n", True)]

    def positions(
        self,
        num_tokens: int,
        spans: Sequence[MediaSpan],
        grids: Sequence[tuple[int, int, int]],
        steps_s: Sequence[float] = (),
    ) -> tuple[NDArray[np.int32] | None, int]:
        return np.arange(1, num_tokens + 1, dtype=np.int32)[None], 1

    def image_text(self, number: int) -> str:
        return self.placeholder

    def open_spans(self, num_tokens: int, spans: Sequence[MediaSpan]) -> tuple[MediaSpan, ...]:
        return (MediaSpan(0, num_tokens),)

    def projector_slots(self) -> dict[str, WeightSlot]:
        return same_names("multi_modal_projector.linear", "encoder.projector.first")
