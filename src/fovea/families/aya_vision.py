"""Aya Vision: InternVL's fields of tiles, seen by SigLIP and named in the text, and Cohere 2 (arXiv:2505.08751).

2 x 2 patches are joined, normed and pass a gated projector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fovea.core.errors import UnsupportedModelError
from fovea.families.base import Mark
from fovea.families.config_reader import Section
from fovea.families.gemma3 import HALF
from fovea.families.internvl import TiledModel
from fovea.families.parts import same_names, siglip_tower, siglip_unused, siglip_weights
from fovea.families.spec import ModelSpec, ProjectorSpec, WeightMap

USUAL_TOWER = {
    "hidden_size": 1152,
    "image_size": 384,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 14,
    "num_hidden_layers": 26,
    "patch_size": 14,
}


class AyaVision(TiledModel):
    architectures = ("AyaVisionForConditionalGeneration",)
    placeholder = "<|IMG_PATCH|>"
    text_placeholder = "<image>"
    layout_tokens = ("<|START_OF_IMG|>", "<|END_OF_IMG|>")
    encoder = "tiles"
    default_layers = -1
    usual_text = "cohere2"

    def read_spec(self) -> ModelSpec:
        self.config.expect("vision_feature_select_strategy", "full")
        self.config.expect("vision_feature_layer", -1)
        # transformers' class leaves out the factor on logits, which Cohere 2 alone has.
        decoder = replace(self.read_decoder(), logit_scale=1.0)
        vision = Section(self.config.get(dict, "vision_config", {}) or USUAL_TOWER, "config.json.vision_config")
        vision.expect("model_type", "siglip_vision_model")
        tower, merge = siglip_tower(vision), self.config.count("downsample_factor", 2)
        tower_px = vision.count("image_size", 224)
        if tower_px // tower.patch_px % merge:
            raise UnsupportedModelError(
                f"config.json: 'downsample_factor' is {merge}; it must divide {tower_px // tower.patch_px} patches."
            )
        return ModelSpec(
            decoder=decoder,
            tower=tower,
            projector=ProjectorSpec(
                merge=merge,
                mid_width=self.config.count("alignment_intermediate_size", decoder.hidden_size),
                out_width=decoder.hidden_size,
                norm="layer",
                norm_eps=self.config.positive("adapter_layer_norm_eps", 1e-6),
                norm_joined=True,
                swiglu=True,
            ),
            encoder=self.encoder,
            image_mean=self.triple("image_mean", HALF),
            image_std=self.triple("image_std", HALF),
            dtype=self.dtype("bfloat16"),
            tile_px=self.read_tiles(tower_px),
        )

    def image_layout(self, grid: tuple[int, int, int], num_rows: int) -> Sequence[int | str | Mark]:
        """The tiles by number, then the overview; a single tile is an overview."""
        num_tiles, rows = grid[1] * grid[2], self._side**2
        parts: list[int | str | Mark] = ["<|START_OF_IMG|>"]
        for number in range(1, num_tiles + 1 if num_tiles > 1 else 1):
            parts += [f"TILE_{number}", rows]
        return [*parts, "TILE_GLOBAL", rows, "<|END_OF_IMG|>"]

    def image_text(self, number: int) -> str:
        return "<image>"

    def weight_map(self) -> WeightMap:
        decoder, tower, projector = self.spec.decoder, "vision_tower.vision_model.", "multi_modal_projector."
        slots = self.backbone.decoder_slots("language_model.model.", "language_model.lm_head", decoder)
        slots |= siglip_weights(tower, self.spec.tower)
        for theirs, ours in (("layernorm", "norm"), ("linear_1", "first"), ("linear_2", "second")):
            slots |= same_names(projector + theirs, f"encoder.projector.{ours}")
        unused = siglip_unused(tower, self.spec.tower, self.spec.tower.num_layers)
        renames = (
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("model.multi_modal_projector.", projector),
            ("model.vision_tower.", "vision_tower."),
        )
        return WeightMap(slots, (*unused, "language_model.lm_head.") if decoder.tied_head else unused, renames)
