"""Qwen2-VL: pictures of any size on a grid of merged patches, 3-row positions (arXiv:2409.12191)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from fovea.core.errors import InvalidOptionError, MediaError, MediaLimitError, UnsupportedModelError
from fovea.core.types import ImagePlan, MediaSpan, PixelBudget
from fovea.families.base import CLIP_MEAN, CLIP_STD, Family
from fovea.families.config_reader import Section
from fovea.families.parts import (
    decoder_weights,
    given_grid,
    joined,
    largest_fitting,
    llama_decoder,
    mrope_positions,
    plain_rope,
    resized_plan,
    same_names,
)
from fovea.families.spec import DecoderSpec, ModelSpec, ProjectorSpec, TowerSpec, WeightMap, WeightSlot
from fovea.families.video import VideoRule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BICUBIC = 3  # Pillow's number for it
MAX_ASPECT = 200  # the published processor refuses more
DEFAULT_MIN_PIXELS, DEFAULT_MAX_PIXELS = 56 * 56, 28 * 28 * 1280  # of transformers' Qwen2VLImageProcessor
VIDEO_MIN_PIXELS, VIDEO_MAX_PIXELS = 128 * 28 * 28, 768 * 28 * 28  # of a frame; Qwen2VLVideoProcessor, qwen-vl-utils
VIDEO_FPS, VIDEO_MIN_FRAMES = 2.0, 4  # of qwen-vl-utils, which the models were published with


# What a config leaves out, where transformers' Qwen2VLTextConfig differs from Llama's; Qwen2.5-VL's are the same.
TEXT_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 152064,
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
    }
)


class Qwen2VL(Family):
    architectures: ClassVar[tuple[str, ...]] = ("Qwen2VLForConditionalGeneration",)
    text_defaults: ClassVar[Mapping[str, Any]] = TEXT_DEFAULTS
    placeholder = "<|image_pad|>"
    video_placeholder: ClassVar[str | None] = "<|video_pad|>"
    processor_options = frozenset({"min_pixels", "max_pixels"})

    def read_spec(self) -> ModelSpec:
        """`text_config` holds the decoder where there is one; as first published, the config itself does."""
        nested = "text_config" in self.config
        values = self.config.get(dict, "text_config") if nested else self.files.config
        text = Section({**self.text_defaults, **values}, "config.json.text_config" if nested else "config.json")
        text.expect("use_sliding_window", False)
        _expect_full_attention(text)
        decoder = self.read_decoder(text)
        vision = self.config.section("vision_config")
        vision.expect("in_channels", 3)
        tower, merge = self.read_tower(vision, decoder.hidden_size), vision.count("spatial_merge_size", 2)
        self._read_preprocessor(tower, merge)
        return ModelSpec(
            decoder=decoder,
            tower=tower,
            projector=self.read_projector(vision, tower, merge, decoder.hidden_size),
            encoder="merged_grid",
            image_mean=self.triple("image_mean", CLIP_MEAN),
            image_std=self.triple("image_std", CLIP_STD),
            dtype=self.dtype("bfloat16"),
        )

    def read_decoder(self, text: Section) -> DecoderSpec:
        return llama_decoder(text, self._rope(text), qkv_bias=True, tied_head=self._tied(text))

    def read_projector(self, vision: Section, tower: TowerSpec, merge: int, out_width: int) -> ProjectorSpec:
        return ProjectorSpec(merge=merge, mid_width=tower.width * merge**2, out_width=out_width, norm=tower.norm)

    def read_tower(self, vision: Section, out_width: int) -> TowerSpec:
        """`out_width`: the decoder's."""
        vision.expect("hidden_act", "quick_gelu")
        vision.expect("hidden_size", out_width, default=3584)
        embed_dim = vision.count("embed_dim", 1280)
        return TowerSpec(
            num_layers=vision.count("depth", 32),
            width=embed_dim,
            num_heads=vision.count("num_heads", 16),
            mlp_width=int(embed_dim * vision.positive("mlp_ratio", 4.0)),
            activation="quick_gelu",
            norm_eps=1e-6,
            patch_px=vision.count("patch_size", 14),
            temporal_patch=vision.count("temporal_patch_size", 2),
            rope_theta=tower_theta(vision),
        )

    def _tied(self, text: Section) -> bool:
        """One of both places is enough, as in transformers 5."""
        where = self.config if "tie_word_embeddings" in self.config else text
        return where.get(bool, "tie_word_embeddings", False)

    def _rope(self, text: Section) -> Any:
        scaling = text.section("rope_scaling" if "rope_scaling" in text else "rope_parameters")
        scaling.expect("type", "mrope", "default")
        scaling.expect("rope_type", "mrope", "default")
        sections = tuple(int(n) for n in scaling.floats("mrope_section"))
        heads = text.count("num_attention_heads")
        head_dim = text.count("head_dim", text.count("hidden_size") // heads)
        if len(sections) != 3 or sum(sections) != head_dim // 2:
            raise UnsupportedModelError(
                f"config.json: 'mrope_section' is {list(sections)}; it must add up to {head_dim // 2}."
            )
        theta = text.positive("rope_theta", scaling.positive("rope_theta", 1e6))
        return plain_rope(theta, sections)

    def _read_preprocessor(self, tower: TowerSpec, merge: int) -> None:
        """The range of pixels; what else it says is what the model does."""
        said = self.preprocessor
        for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
            said.expect(key, True)
        for key, value in (("resample", BICUBIC), ("rescale_factor", 1 / 255), ("merge_size", merge)):
            said.expect(key, value)
        said.expect("patch_size", tower.patch_px)
        said.expect("temporal_patch_size", tower.temporal_patch)
        size = said.section("size") if "size" in said else said
        fallback_min = size.count("shortest_edge", DEFAULT_MIN_PIXELS)
        fallback_max = size.count("longest_edge", DEFAULT_MAX_PIXELS)
        self.min_pixels = said.count("min_pixels", fallback_min)
        self.max_pixels = said.count("max_pixels", fallback_max)
        self._read_video_processor(tower, merge)

    def _read_video_processor(self, tower: TowerSpec, merge: int) -> None:
        """The range of a frame's pixels. Without a file of its own: the video processor's, within that of pictures."""
        self.video_rule = VideoRule(tower.temporal_patch, fps=VIDEO_FPS, min_frames=VIDEO_MIN_FRAMES)
        said = Section(self.files.video, "the video processor's config")
        for key, value in (("patch_size", tower.patch_px), ("merge_size", merge)):
            said.expect(key, value)
        said.expect("temporal_patch_size", tower.temporal_patch)
        size = said.section("size") if "size" in said else said
        self.video_max_pixels = said.count(
            "max_pixels", size.count("longest_edge", min(VIDEO_MAX_PIXELS, self.max_pixels))
        )
        least = VIDEO_MIN_PIXELS
        if not self.files.video:
            least = max(self.min_pixels, min(least, self.video_max_pixels // 2))
        least = said.count("min_pixels", size.count("shortest_edge", least))
        self.video_min_pixels = min(least, self.video_max_pixels)

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        checked = super().check_options(options)
        cell = self._cell_px**2
        low, high = checked.get("min_pixels", self.min_pixels), checked.get("max_pixels", self.max_pixels)
        if high < cell or low > high:
            raise InvalidOptionError(
                f"min_pixels is {low} and max_pixels {high}; permitted: min_pixels <= max_pixels, max_pixels >= {cell}."
            )
        return checked

    def with_pixel_cap(self, most: int, options: Mapping[str, Any]) -> Family:
        most = max(most, self._cell_px**2, options.get("min_pixels", self.min_pixels))
        if "max_pixels" in options or self.max_pixels <= most:
            return self
        capped = copy.copy(self)
        capped.max_pixels = most
        capped.video_max_pixels = max(self.video_min_pixels, min(self.video_max_pixels, most))
        return capped

    def plan_image(self, width_px: int, height_px: int, options: Mapping[str, Any]) -> ImagePlan:
        """`smart_resize` of the published processor: multiples of the merged patch within the pixel range."""
        if max(width_px, height_px) > MAX_ASPECT * min(width_px, height_px):
            raise MediaLimitError(
                f"A picture of {width_px}x{height_px} pixels is more elongated than {MAX_ASPECT}:1, "
                f"the most that {self.name} takes. Crop it.",
                code="above_max_value",
            )
        low, high = options.get("min_pixels", self.min_pixels), options.get("max_pixels", self.max_pixels)
        return self._plan(*smart_resize(width_px, height_px, self._cell_px, low, high))

    @property
    def _cell_px(self) -> int:
        """The side of the square that becomes one token."""
        return self.spec.tower.patch_px * self.spec.projector.merge

    def _plan(self, width: int, height: int) -> ImagePlan:
        return resized_plan(width, height, self.spec.tower.patch_px, self.spec.projector.merge)

    def plan_video(
        self, num_frames: int, width_px: int, height_px: int, fps: float, options: Mapping[str, Any]
    ) -> ImagePlan:
        """Two frames at a time are one step of the grid's time; the last one stands twice if their number is odd."""
        limits = {"min_pixels": self.video_min_pixels, "max_pixels": self.video_max_pixels, **options}
        limits["min_pixels"] = min(limits["min_pixels"], limits["max_pixels"])
        return self._over_time(self.plan_image(width_px, height_px, limits), num_frames, fps)

    def plan_video_within(
        self,
        num_frames: int,
        width_px: int,
        height_px: int,
        fps: float,
        options: Mapping[str, Any],
        budget: PixelBudget | None,
    ) -> ImagePlan:
        limits = {"min_pixels": self.video_min_pixels, "max_pixels": self.video_max_pixels, **options}
        if budget is not None and budget.max_pixels is not None and budget.max_pixels > limits["max_pixels"]:
            limits["max_pixels"] = max(limits["max_pixels"], self.most_pixels(options))
        limits["min_pixels"] = min(limits["min_pixels"], limits["max_pixels"])
        return self._over_time(self.plan_within(width_px, height_px, limits, budget), num_frames, fps)

    def _over_time(self, frame: ImagePlan, num_frames: int, fps: float) -> ImagePlan:
        patch = self.spec.tower.temporal_patch
        steps = -(-num_frames // patch)
        return replace(
            frame,
            grid=(steps, *frame.grid[1:]),
            num_patches=steps * frame.num_patches,
            num_tokens=steps * frame.num_tokens,
            frames=num_frames,
            slots=steps * patch,
            step_s=patch / fps,
        )

    def largest_picture(self, options: Mapping[str, Any]) -> int:
        most = int(options.get("max_pixels", max(self.max_pixels, self.video_max_pixels)))
        return most // self.spec.tower.patch_px**2

    def token_grid(self, plan: ImagePlan) -> tuple[int, int]:
        merge = self.spec.projector.merge
        return (plan.grid[1] // merge, plan.grid[2] // merge)

    def most_pixels(self, options: Mapping[str, Any]) -> int:
        return int(options.get("max_pixels", self.max_pixels))

    def budgeted(self, options: Mapping[str, Any], budget: PixelBudget | None) -> dict[str, Any]:
        """The model's own least gives way to a lower max_pixels, and detail "low" to the least."""
        if budget is None:
            return dict(options)
        cell = self._cell_px**2
        most = self._promised(budget, cell, self.most_pixels(options))
        least = options.get("min_pixels", self.min_pixels) if budget.min_pixels is None else budget.min_pixels
        if budget.min_pixels is not None and least > most:
            raise MediaError(
                f"min_pixels is {least}; permitted here: 1 to {most}, the most pixels of this picture.",
                code="above_max_value",
            )
        most = min(most, max(least, self._wished(budget, cell, most)))
        return {**options, "min_pixels": min(least, most), "max_pixels": most}

    def plan_within(
        self, width_px: int, height_px: int, options: Mapping[str, Any], budget: PixelBudget | None
    ) -> ImagePlan:
        """The published processor goes over max_pixels for elongated pictures and narrow ranges; here that is kept."""
        plan = super().plan_within(width_px, height_px, options, budget)
        if budget is None:
            return plan
        most = self.budgeted(options, budget)["max_pixels"]
        if plan.canvas_width_px * plan.canvas_height_px <= most:
            return plan
        return self._plan(*largest_fitting(width_px, height_px, self._cell_px, most))

    def embeds_grid(self, num_rows: int, grid: tuple[int, int, int] | None) -> tuple[int, int, int]:
        return given_grid(self.name, self.spec.projector.merge, num_rows, grid)

    def positions(
        self,
        num_tokens: int,
        spans: Sequence[MediaSpan],
        grids: Sequence[tuple[int, int, int]],
        steps_s: Sequence[float] = (),
    ) -> tuple[NDArray[np.int32] | None, int]:
        merge = self.spec.projector.merge
        merged = [(t, h // merge, w // merge) for t, h, w in grids]
        return mrope_positions(num_tokens, spans, merged, self.intervals(steps_s))

    def intervals(self, steps_s: Sequence[float]) -> list[float]:
        """How far the positions of one step of time are from those of the next, for each medium."""
        return [1.0] * len(steps_s)

    def image_text(self, number: int) -> str:
        return "<|vision_start|><|image_pad|><|vision_end|>"

    def video_text(self, number: int) -> str:
        return "<|vision_start|><|video_pad|><|vision_end|>"

    def weight_map(self) -> WeightMap:
        tower = self.spec.tower
        slots = decoder_weights("model.", "lm_head", self.spec.decoder, fused=False)
        slots["visual.patch_embed.proj.weight"] = WeightSlot("encoder.tower.patch.weight")
        for i in range(tower.num_layers):
            slots |= _block_weights(f"visual.blocks.{i}.", f"encoder.tower.blocks.{i}.", tower)
        slots |= same_names("visual.merger.ln_q", "encoder.projector.norm", _norm_parts(tower))
        slots |= same_names("visual.merger.mlp.0", "encoder.projector.first")
        slots |= same_names("visual.merger.mlp.2", "encoder.projector.second")
        ignored = ("lm_head.",) if self.spec.decoder.tied_head else ()
        renames = (("model.language_model.", "model."), ("model.visual.", "visual."))
        return WeightMap(slots, ignored, renames)


def tower_theta(vision: Section) -> float:
    """Of the tower's rotary positions; transformers 5 saves what was a constant before."""
    rope = vision.section("rope_parameters")
    rope.expect("rope_type", "axial")
    return rope.positive("rope_theta", 10000.0)


def _expect_full_attention(text: Section) -> None:
    for kind in text.get(list, "layer_types", []):
        if kind != "full_attention":
            raise UnsupportedModelError(f"config.json: 'layer_types' has {kind!r}; supported: 'full_attention'.")


def _norm_parts(tower: TowerSpec) -> tuple[str, ...]:
    return ("weight", "bias") if tower.norm == "layer" else ("weight",)


def _block_weights(theirs: str, ours: str, tower: TowerSpec) -> dict[str, WeightSlot]:
    slots = same_names(f"{theirs}attn.qkv", f"{ours}qkv") | same_names(f"{theirs}attn.proj", f"{ours}out")
    for norm in ("norm1", "norm2"):
        slots |= same_names(theirs + norm, ours + norm, _norm_parts(tower))
    if not tower.gated:
        return slots | same_names(f"{theirs}mlp.fc1", f"{ours}up") | same_names(f"{theirs}mlp.fc2", f"{ours}down")
    rows = {"gate_proj": tower.mlp_width, "up_proj": tower.mlp_width}
    slots |= joined(f"{theirs}mlp.", f"{ours}up", rows, ("weight", "bias"))
    return slots | same_names(f"{theirs}mlp.down_proj", f"{ours}down")


def smart_resize(width_px: int, height_px: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Width and height nearest to the given as multiples of `factor` within the pixel range (halves round to even).

    A side that rounds to 0 makes the area 0, so that the lower bound lifts it to at least `factor`.
    """
    width, height = (round(side / factor) * factor for side in (width_px, height_px))
    if width * height > max_pixels:
        beta = math.sqrt(width_px * height_px / max_pixels)
        width, height = (max(factor, math.floor(s / beta / factor) * factor) for s in (width_px, height_px))
    elif width * height < min_pixels:
        beta = math.sqrt(min_pixels / (width_px * height_px))
        width, height = (math.ceil(side * beta / factor) * factor for side in (width_px, height_px))
    return width, height
