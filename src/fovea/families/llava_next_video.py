"""LLaVA-NeXT-Video: LLaVA-NeXT that was taught videos too; pictures are LLaVA-NeXT's.

Source: https://llava-vl.github.io/blog/2024-04-30-llava-next-video/ and transformers' LlavaNextVideoModel: a frame is
one tile, and two by two of its patches are averaged before the projector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fovea.core.errors import UnsupportedModelError
from fovea.core.types import ImagePlan
from fovea.families.llava_next import LlavaNext
from fovea.families.spec import ModelSpec
from fovea.families.video import VideoRule


class LlavaNextVideo(LlavaNext):
    architectures = ("LlavaNextVideoForConditionalGeneration",)
    text_ties = True
    video_placeholder = "<video>"
    video_rule = VideoRule(num_frames=8)  # what the model was published with

    def read_spec(self) -> ModelSpec:
        self.config.expect("spatial_pool_mode", "average")
        self.config.expect("spatial_pool_stride", 2)
        spec = replace(super().read_spec(), video_pool="average")
        if spec.tile_px // spec.tower.patch_px % 2:
            raise UnsupportedModelError("config.json.vision_config: a tile must have an even number of patches a side.")
        return spec

    def plan_video(
        self, num_frames: int, width_px: int, height_px: int, fps: float, options: Mapping[str, Any]
    ) -> ImagePlan:
        return self._video_plan(num_frames, width_px, height_px, fps, crops=True)
