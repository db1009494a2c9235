"""Phi-3-vision and Phi-3.5-vision: HD crops through CLIP, Phi-3 with long rope (arXiv:2404.14219).

transformers has no such model; this follows the code published with Phi-3.5-vision-instruct, none of which is run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from fovea.core.errors import EmbeddingsError, InvalidOptionError, MediaLimitError, UnsupportedModelError
from fovea.core.types import Box, ImagePlan, PixelBudget
from fovea.families.base import CLIP_MEAN, CLIP_STD, Family
from fovea.families.parts import (
    clip_tower,
    clip_unused,
    clip_weights,
    decoder_weights,
    llama_decoder,
    longrope_scale,
    same_names,
)
from fovea.families.spec import DecoderSpec, ModelSpec, ProjectorSpec, RopeRegime, RopeSpec, WeightMap, WeightSlot

TILE_PX = 336
TILE_SIDE = 12  # merged patches along a side of a crop: 336 / 14 / 2
MAX_CROPS = 64
CLIP_LAYERS, CLIP_MLP_WIDTH, CLIP_HEAD_DIM = 24, 4096, 64  # CLIP ViT-L/14-336, a constant of the published code
FEATURE_LAYER = -2


class Phi3V(Family):
    architectures = ("Phi3VForCausalLM",)
    placeholder = "<|image|>"
    image_tag = re.compile(r"<\|image_(\d{1,4})\|>")
    processor_options = frozenset({"num_crops"})

    def read_spec(self) -> ModelSpec:
        decoder = self._decoder()
        vision = self.config.section("img_processor")
        vision.expect("name", "clip_vision_model")
        layout = self.config.section("embd_layer")
        layout.expect("hd_transform_order", "sub_glb")
        layout.expect("projection_cls", "mlp")
        layout.expect("use_hd_transform", True)
        layout.expect("with_learnable_separator", True)
        width = vision.count("image_dim_out", 1024)
        self._total_layers = vision.count("num_hidden_layers", CLIP_LAYERS)
        tower = clip_tower(
            width=width,
            num_layers=self._total_layers + 1 + vision.get(int, "layer_idx", FEATURE_LAYER),
            num_heads=width // CLIP_HEAD_DIM,
            mlp_width=vision.count("intermediate_size", CLIP_MLP_WIDTH),
            patch_px=14,
            image_px=TILE_PX,
            eps=1e-5,
        )
        self.num_crops = self.preprocessor.count("num_crops", 1)
        return ModelSpec(
            decoder=decoder,
            tower=tower,
            projector=ProjectorSpec(
                merge=2, mid_width=decoder.hidden_size, out_width=decoder.hidden_size, separators=True
            ),
            encoder="hd_crops",
            image_mean=self.triple("image_mean", CLIP_MEAN),
            image_std=self.triple("image_std", CLIP_STD),
            dtype=self.dtype("bfloat16"),
            tile_px=TILE_PX,
        )

    def _decoder(self) -> DecoderSpec:
        config = self.config
        max_positions = config.count("max_position_embeddings", 131072)
        if config.get(int, "sliding_window", max_positions) < max_positions:
            raise UnsupportedModelError("config.json: 'sliding_window' is shorter than the context.")
        head_dim = config.count("hidden_size") // config.count("num_attention_heads")
        tied = config.get(bool, "tie_word_embeddings", False)
        return llama_decoder(config, self._rope(head_dim, max_positions), qkv_bias=False, tied_head=tied)

    def _rope(self, head_dim: int, max_positions: int) -> RopeSpec:
        """Two sets of frequencies; the long one once prompt and answer exceed the original context ("su" rope)."""
        theta = self.config.positive("rope_theta", 10000.0)
        original = self.config.count("original_max_position_embeddings", 4096)
        scaling = self.config.section("rope_scaling")
        scaling.expect("type", "su", "longrope")
        scaling.expect("rope_type", "su", "longrope")
        scale = longrope_scale(max_positions, original)
        factors = (scaling.floats("short_factor"), scaling.floats("long_factor"))
        if any(len(f) != head_dim // 2 for f in factors):
            raise UnsupportedModelError(f"config.json: rope factors must hold {head_dim // 2} numbers each.")
        regimes = tuple(RopeRegime(theta, f, scale) for f in factors)
        return RopeSpec(regimes=regimes, switch_tokens=original)

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        checked = super().check_options(options)
        if checked.get("num_crops", 1) > MAX_CROPS:
            raise InvalidOptionError(f"num_crops is {checked['num_crops']}; permitted: 1 to {MAX_CROPS}.")
        return checked

    def plan_image(self, width_px: int, height_px: int, options: Mapping[str, Any]) -> ImagePlan:
        """The HD transform: as many 336-pixel crops as `num_crops` and the aspect ratio allow, padded with white.

        The published code turns portrait pictures on their side first, so `resize` and `pad` are in that frame.
        """
        portrait = width_px < height_px
        long, short = max(width_px, height_px), min(width_px, height_px)
        ratio = long / short
        columns = crop_columns(ratio, options.get("num_crops", self.num_crops))
        width = columns * TILE_PX
        height = int(width / ratio)
        if height < 1:
            raise MediaLimitError(
                f"A picture of {width_px}x{height_px} pixels is too elongated for {self.name}: resized to {width} "
                "pixels it has no height left. Crop it.",
                code="above_max_value",
            )
        rows = math.ceil(height / TILE_PX)
        top = (rows * TILE_PX - height) // 2
        tiles = (columns, rows) if portrait else (rows, columns)
        return ImagePlan(
            resize_width_px=width,
            resize_height_px=height,
            resample="bilinear",
            transpose=portrait,
            pad=Box(0, top, 0, rows * TILE_PX - height - top),
            canvas_width_px=tiles[1] * TILE_PX,
            canvas_height_px=tiles[0] * TILE_PX,
            grid=(1, *tiles),
            num_patches=(rows * columns + 1) * (TILE_PX // self.spec.tower.patch_px) ** 2,
            num_tokens=num_tokens(*tiles),
        )

    def largest_picture(self, options: Mapping[str, Any]) -> int:
        crops = int(options.get("num_crops", self.num_crops))
        return (crops + 1) * (TILE_PX // self.spec.tower.patch_px) ** 2

    def token_grid(self, plan: ImagePlan) -> tuple[int, int]:
        """Of the crops; the global view and the separators are beside them."""
        return (plan.grid[1] * TILE_SIDE, plan.grid[2] * TILE_SIDE)

    def most_pixels(self, options: Mapping[str, Any]) -> int:
        return int(options.get("num_crops", self.num_crops)) * TILE_PX**2

    def budgeted(self, options: Mapping[str, Any], budget: PixelBudget | None) -> dict[str, Any]:
        """As many crops as fit; the global view of one crop, which every picture has, is not counted."""
        if budget is None:
            return dict(options)
        self._refuse_least(budget)
        most = self._promised(budget, TILE_PX**2, self.most_pixels(options))
        pixels = self._wished(budget, TILE_PX**2, most)
        return {**options, "num_crops": pixels // TILE_PX**2}

    def embeds_grid(self, num_rows: int, grid: tuple[int, int, int] | None) -> tuple[int, int, int]:
        super().embeds_grid(num_rows, grid)
        sides = [(r, c) for r in range(1, MAX_CROPS + 1) for c in range(1, MAX_CROPS // r + 1)]
        fitting = [side for side in sides if num_tokens(*side) == num_rows]
        if not fitting:
            raise EmbeddingsError(f"Image embeddings have {num_rows} rows; no picture has so many with {self.name}.")
        return (1, *fitting[0])

    def image_text(self, number: int) -> str:
        return f"<|image_{number}|>\n"

    def stop_strings(self) -> tuple[str, ...]:
        return ("<|end|>", "<|endoftext|>")  # a turn's end; the config only names </s>

    def weight_map(self) -> WeightMap:
        vision = "model.vision_embed_tokens."
        clip = f"{vision}img_processor.vision_model."
        slots = decoder_weights("model.", "lm_head", self.spec.decoder, fused=True)
        slots |= clip_weights(clip, self.spec.tower)
        slots[f"{vision}glb_GN"] = WeightSlot("encoder.projector.view_separator")
        slots[f"{vision}sub_GN"] = WeightSlot("encoder.projector.line_separator")
        slots |= same_names(f"{vision}img_projection.0", "encoder.projector.first")
        slots |= same_names(f"{vision}img_projection.2", "encoder.projector.second")
        # Fine-tunes may carry a second copy of the token embedding.
        ignored = (f"{vision}wte.weight", *clip_unused(clip, self.spec.tower.num_layers, self._total_layers))
        return WeightMap(slots, ignored)


def crop_columns(ratio: float, num_crops: int) -> int:
    """The widest row of crops: the last s for which s rows-by-columns at this ratio stay within `num_crops`."""
    columns = 1
    while columns * math.ceil(columns / ratio) <= num_crops:
        columns += 1
    return max(1, columns - 1)


def num_tokens(rows: int, columns: int) -> int:
    """Crop lines with a separator each, the view separator, then the global view with a separator each line."""
    side = TILE_SIDE
    return rows * side * (columns * side + 1) + 1 + side * (side + 1)
