"""LLaVA-OneVision: LLaVA-NeXT's fields of tiles up to 6 x 6, interpolated where there are many; SigLIP, Qwen2
(arXiv:2408.03326). Several pictures in one prompt are seen as one tile each.

Followed step by step: transformers' LlavaOnevisionImageProcessor and LlavaOnevisionModel, which are told how many
pictures a prompt has by a list of lists.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fovea.core.errors import UnsupportedModelError
from fovea.core.types import Box, ImagePlan
from fovea.families.llava_next import LlavaNext
from fovea.families.spec import ModelSpec

SEVERAL = "several_pictures"


class LlavaOnevision(LlavaNext):
    architectures = ("LlavaOnevisionForConditionalGeneration",)
    text_ties = True
    video_placeholder = "<video>"
    usual_text = "qwen2"
    usual_tower = {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "patch_size": 14,
        "image_size": 384,
        "num_hidden_layers": 26,
        "num_attention_heads": 16,
    }
    default_layers = -1
    default_strategy = "full"
    default_pinpoints = tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7))

    def read_spec(self) -> ModelSpec:
        limit = self.config.get(str, "vision_aspect_ratio", "anyres_max_9")
        found = re.fullmatch(r"anyres_max_([1-9]\d{0,2})", limit)
        if found is None:
            raise UnsupportedModelError(
                f"config.json: 'vision_aspect_ratio' is {limit!r}; supported: 'anyres_max_' and a number."
            )
        return replace(super().read_spec(), max_tiles=int(found[1]), video_pool="bilinear")

    def plan_video(
        self, num_frames: int, width_px: int, height_px: int, fps: float, options: Mapping[str, Any]
    ) -> ImagePlan:
        """Rows of a frame are interpolated to half a tile's side; a newline behind the last."""
        return self._video_plan(num_frames, width_px, height_px, fps, crops=False)

    def for_pictures(self, options: Mapping[str, Any], count: int) -> dict[str, Any]:
        return {**options, SEVERAL: True} if count > 1 else dict(options)

    def plan_image(self, width_px: int, height_px: int, options: Mapping[str, Any]) -> ImagePlan:
        """One of several: a square with margins of the mean colour, pressed into one tile; a newline behind it."""
        if not options.get(SEVERAL):
            return super().plan_image(width_px, height_px, options)
        tile, side, long = self.spec.tile_px, self._side, max(width_px, height_px)
        left, top = (long - width_px) // 2, (long - height_px) // 2
        red, green, blue = (int(mean * 255) for mean in self.spec.image_mean)
        return ImagePlan(
            border=Box(left, top, long - width_px - left, long - height_px - top),
            border_value=(red, green, blue),
            resize_width_px=tile,
            resize_height_px=tile,
            resample="bicubic",
            canvas_width_px=tile,
            canvas_height_px=tile,
            grid=(1, 0, 0),
            num_patches=side**2,
            num_tokens=side**2 + 1,
        )

    def token_grid(self, plan: ImagePlan) -> tuple[int, int]:
        rows, columns = super().token_grid(plan)
        return (rows, columns) if plan.view or plan.frames else (self._side, self._side)

    def _possible_counts(self) -> set[int]:
        return super()._possible_counts() | {self._side**2 + 1}
