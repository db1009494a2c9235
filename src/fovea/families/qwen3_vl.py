"""Qwen3-VL: a norm on query and key heads, positions that take turns, a tower with both kinds of positions, deepstack.

Technical report: arXiv:2511.21631; names and defaults are those of transformers' Qwen3VLConfig.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

from fovea.core.errors import MediaLimitError, UnsupportedModelError
from fovea.core.types import ImagePlan, PixelBudget
from fovea.families.config_reader import Section
from fovea.families.parts import decoder_weights, largest_fitting, llama_decoder, plain_rope, same_names
from fovea.families.qwen2_vl import MAX_ASPECT, Qwen2VL, tower_theta
from fovea.families.spec import DecoderSpec, ProjectorSpec, RopeSpec, TowerSpec, WeightMap, WeightSlot
from fovea.families.video import UNKNOWN_FPS

TEXT_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 128000,
    }
)
SECTIONS = (24.0, 20.0, 20.0)


class Qwen3VL(Qwen2VL):
    architectures = ("Qwen3VLForConditionalGeneration",)
    text_defaults = TEXT_DEFAULTS
    video_frame = ("<|vision_start|>", "<|vision_end|>")
    layout_tokens = video_frame
    stacked_experts: ClassVar[bool] = False

    def read_decoder(self, text: Section) -> DecoderSpec:
        bias = text.get(bool, "attention_bias", False)
        plain = llama_decoder(text, plain_rope(1.0), qkv_bias=bias, tied_head=self._tied(text))
        return replace(plain, rope=self._turning_rope(text, plain.head_dim), qk_norm=True, out_bias=bias)

    def _turning_rope(self, text: Section, head_dim: int) -> RopeSpec:
        scaling = text.section("rope_scaling" if "rope_scaling" in text else "rope_parameters")
        scaling.expect("type", "mrope", "default")
        scaling.expect("rope_type", "mrope", "default")
        scaling.expect("mrope_interleaved", True)
        scaling.expect("partial_rotary_factor", 1.0)
        said = scaling.floats("mrope_section") if "mrope_section" in scaling else SECTIONS
        sections = tuple(int(n) for n in said)
        if len(sections) != 3 or min(sections) < 0 or sum(sections) != head_dim // 2:
            raise UnsupportedModelError(
                f"config.json: 'mrope_section' is {list(sections)}; it must add up to {head_dim // 2}."
            )
        theta = text.positive("rope_theta", scaling.positive("rope_theta", 5e5))
        return replace(plain_rope(theta, sections), interleaved=True)

    def read_tower(self, vision: Section, out_width: int) -> TowerSpec:
        vision.expect("hidden_act", "gelu_pytorch_tanh")
        vision.expect("out_hidden_size", out_width, default=3584)
        num_layers, num_positions = vision.count("depth", 27), vision.count("num_position_embeddings", 2304)
        if math.isqrt(num_positions) ** 2 != num_positions:
            raise UnsupportedModelError(
                f"config.json.vision_config: 'num_position_embeddings' is {num_positions}; it must be a square."
            )
        levels = _levels(vision, num_layers)
        return TowerSpec(
            num_layers=num_layers,
            width=vision.count("hidden_size", 1152),
            num_heads=vision.count("num_heads", 16),
            mlp_width=vision.count("intermediate_size", 4304),
            activation="gelu_tanh",
            norm_eps=1e-6,
            patch_px=vision.count("patch_size", 16),
            temporal_patch=vision.count("temporal_patch_size", 2),
            patch_bias=True,
            num_positions=num_positions,
            rope_theta=tower_theta(vision),
            feature_layers=(num_layers, *(level + 1 for level in levels)) if levels else (),
            interpolation="bilinear",
        )

    def read_projector(self, vision: Section, tower: TowerSpec, merge: int, out_width: int) -> ProjectorSpec:
        plain = super().read_projector(vision, tower, merge, out_width)
        return replace(plain, deepstack=max(0, len(tower.feature_layers) - 1))

    def _read_video_processor(self, tower: TowerSpec, merge: int) -> None:
        """Its range of pixels is that of all frames together, as in transformers' Qwen3VLVideoProcessor."""
        super()._read_video_processor(tower, merge)
        self.video_rule = replace(self.video_rule, to_the_end=True)
        said = Section(self.files.video, "the video processor's config")
        size, cell = said.section("size") if "size" in said else said, (tower.patch_px * merge) ** 2
        self.video_pixels = (size.count("shortest_edge", 128 * cell), size.count("longest_edge", 768 * cell))

    def plan_video(
        self, num_frames: int, width_px: int, height_px: int, fps: float, options: Mapping[str, Any]
    ) -> ImagePlan:
        return self.plan_video_within(num_frames, width_px, height_px, fps, options, None)

    def plan_video_within(
        self,
        num_frames: int,
        width_px: int,
        height_px: int,
        fps: float,
        options: Mapping[str, Any],
        budget: PixelBudget | None,
    ) -> ImagePlan:
        """max_pixels of an option or a budget is that of one frame, as for other families."""
        shown, patch = max(num_frames, self.spec.tower.temporal_patch), self.spec.tower.temporal_patch
        low, high = (pixels / (round(shown / patch) * patch) for pixels in self.video_pixels)
        most = self.most_pixels(options)
        if budget is not None and budget.max_pixels is not None:
            high = min(high, self._promised(budget, self._cell_px**2, most))
        elif "max_pixels" in options:
            high = min(high, most)
        if budget is not None and budget.min_pixels is not None:
            low = budget.min_pixels
        width, height = self._frame_size(shown, width_px, height_px, low, high)
        if budget is not None and budget.max_pixels is not None and width * height > budget.max_pixels:
            width, height = largest_fitting(width_px, height_px, self._cell_px, budget.max_pixels)
        return self._over_time(self._plan(width, height), num_frames, fps)

    def _frame_size(self, frames: int, width_px: int, height_px: int, low: float, high: float) -> tuple[int, int]:
        """`smart_resize` of transformers' video_processing_qwen3_vl; bounds for one frame."""
        cell, patch = self._cell_px, self.spec.tower.temporal_patch
        if min(width_px, height_px) < cell:
            scale = max(cell / width_px, cell / height_px)
            width_px, height_px = int(width_px * scale), int(height_px * scale)
        if max(width_px, height_px) > MAX_ASPECT * min(width_px, height_px):
            raise MediaLimitError(
                f"A video of {width_px}x{height_px} pixels is more elongated than {MAX_ASPECT}:1. Crop it.",
                code="above_max_value",
            )
        width, height = (round(side / cell) * cell for side in (width_px, height_px))
        ratio = frames / (round(frames / patch) * patch)
        if width * height > high:
            beta = math.sqrt(ratio * width_px * height_px / high)
            return tuple_of(max(cell, math.floor(side / beta / cell) * cell) for side in (width_px, height_px))
        if width * height < low:
            beta = math.sqrt(low / (ratio * width_px * height_px))
            return tuple_of(math.ceil(side * beta / cell) * cell for side in (width_px, height_px))
        return width, height

    def video_layout(self, grid: tuple[int, int, int], num_rows: int, times_s: Sequence[float]) -> Sequence[int | str]:
        """The second in front of each step: the middle between its first frame and its last."""
        steps, patch = grid[0], self.spec.tower.temporal_patch
        times = list(times_s) or [number / UNKNOWN_FPS for number in range(steps * patch)]
        times += times[-1:] * (steps * patch - len(times))
        layout: list[int | str] = []
        for step in range(steps):
            middle = (times[step * patch] + times[(step + 1) * patch - 1]) / 2
            layout += [f"<{middle:.1f} seconds><|vision_start|>", num_rows // steps, "<|vision_end|>"]
        return layout

    def weight_map(self) -> WeightMap:
        spec = self.spec
        slots = decoder_weights(
            "model.language_model.", "lm_head", spec.decoder, fused=False, stacked_experts=self.stacked_experts
        )
        slots |= same_names("model.visual.patch_embed.proj", "encoder.tower.patch")
        slots["model.visual.pos_embed.weight"] = WeightSlot("encoder.tower.positions")
        for i in range(spec.tower.num_layers):
            theirs, ours = f"model.visual.blocks.{i}.", f"encoder.tower.blocks.{i}."
            pairs = {"attn.qkv": "qkv", "attn.proj": "out", "norm1": "norm1", "norm2": "norm2"}
            for name, our_name in {**pairs, "mlp.linear_fc1": "up", "mlp.linear_fc2": "down"}.items():
                slots |= same_names(theirs + name, ours + our_name)
        mergers = {"merger.": "projector."}
        mergers |= {f"deepstack_merger_list.{i}.": f"deepstack.{i}." for i in range(spec.projector.deepstack)}
        for theirs, ours in mergers.items():
            for name, our_name in {"norm": "norm", "linear_fc1": "first", "linear_fc2": "second"}.items():
                slots |= same_names(f"model.visual.{theirs}{name}", f"encoder.{ours}{our_name}")
        ignored = ("lm_head.",) if spec.decoder.tied_head else ()
        return WeightMap(slots, ignored)


def tuple_of(sides: Iterable[int]) -> tuple[int, int]:
    width, height = sides
    return width, height


def _levels(vision: Section, num_layers: int) -> tuple[int, ...]:
    """The tower's layers, from 0, whose outputs are added behind the decoder's first layers."""
    key = "deepstack_visual_indexes"
    said = vision.floats(key) if key in vision else (8.0, 16.0, 24.0)
    levels = tuple(int(level) for level in said)
    if levels != said or list(levels) != sorted(set(levels)) or any(not 0 <= n < num_layers for n in levels):
        raise UnsupportedModelError(
            f"config.json.vision_config: {key!r} is {list(said)}; it must hold layers from 0 to {num_layers - 1}, each "
            "once and in order."
        )
    return levels
