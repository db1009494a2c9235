"""Mistral 3 and Pixtral: pictures of any size in rows of tokens, each ended by one of text (arXiv:2410.07073).

The tower is a Llama-like transformer over patches with rotary positions in two dimensions. Pixtral itself is published
as a LLaVA with that tower, where every patch is a token; Mistral 3 merges 2 x 2 of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fovea.core.errors import InvalidOptionError, MediaLimitError
from fovea.core.types import ImagePlan, PixelBudget
from fovea.families.backbones import text_backbone
from fovea.families.base import CLIP_MEAN, CLIP_STD, Family
from fovea.families.config_reader import Section
from fovea.families.llava import Llava
from fovea.families.parts import given_grid, joined, largest_fitting, resized_plan, same_names, tied_unless_published
from fovea.families.spec import DecoderSpec, ModelSpec, ProjectorSpec, TowerSpec, WeightMap, WeightSlot

DEFAULT_LONGEST_EDGE = 1024  # of transformers' PixtralImageProcessor
BREAK, END = "[IMG_BREAK]", "[IMG_END]"


class Mistral3(Llava):
    architectures = ("Mistral3ForConditionalGeneration",)
    placeholder = "[IMG]"
    layout_tokens = (BREAK, END)
    encoder = "merged_grid"
    default_layers = -1
    usual_text = "mistral"
    processor_options = frozenset({"longest_edge", "max_pixels"})

    def read_spec(self) -> ModelSpec:
        self.config.expect("projector_hidden_act", "gelu")
        self.backbone, text = text_backbone(self.files.config, self.usual_text)
        decoder = self.backbone.read_decoder(text, tied_head=self._tied(text))
        tower = self._pixtral()
        self._read_size()
        return ModelSpec(
            decoder=decoder,
            tower=tower,
            projector=self.joining(decoder),
            encoder=self.encoder,
            image_mean=self.triple("image_mean", CLIP_MEAN),
            image_std=self.triple("image_std", CLIP_STD),
            dtype=self.dtype("bfloat16"),
        )

    def _tied(self, text: Section) -> bool:
        return tied_unless_published(self.config, self.files.folder)

    def joining(self, decoder: DecoderSpec) -> ProjectorSpec:
        return ProjectorSpec(
            merge=self.config.count("spatial_merge_size", 2),
            mid_width=decoder.hidden_size,
            out_width=decoder.hidden_size,
            norm="rms",
            norm_eps=decoder.norm_eps,
            merge_linear=True,
            bias=self.config.get(bool, "multimodal_projector_bias", False),
        )

    def _pixtral(self) -> TowerSpec:
        """Defaults are those of transformers' PixtralVisionConfig."""
        vision = self.config.section("vision_config")
        vision.expect("model_type", "pixtral")
        vision.expect("num_channels", 3)
        vision.expect("hidden_act", "gelu", "silu")
        rope = vision.section("rope_parameters")
        rope.expect("rope_type", "axial", "default")
        width, num_heads = vision.count("hidden_size", 1024), vision.count("num_attention_heads", 16)
        vision.expect("head_dim", width // num_heads)
        self._total_layers = vision.count("num_hidden_layers", 24)
        layers = self._feature_layers()
        return TowerSpec(
            num_layers=max(layers),
            feature_layers=layers if len(layers) > 1 else (),
            width=width,
            num_heads=num_heads,
            mlp_width=vision.count("intermediate_size", 4096),
            activation="silu" if vision.get(str, "hidden_act", "gelu") == "silu" else "gelu",
            norm_eps=1e-5,
            patch_px=vision.count("patch_size", 16),
            pre_norm=True,
            bias=False,
            qkv_bias=False,
            rope_theta=rope.positive("rope_theta", vision.positive("rope_theta", 10000.0)),
            rope_between=True,
            norm="rms",
            gated=True,
        )

    def _read_size(self) -> None:
        said = self.preprocessor
        for step in ("do_resize", "do_rescale", "do_normalize"):
            said.expect(step, True)
        said.expect("do_center_crop", False)
        for key, value in (("resample", 3), ("rescale_factor", 1 / 255)):
            said.expect(key, value)
        size = said.section("size")
        size.only("longest_edge")
        self.longest_edge = size.count("longest_edge", DEFAULT_LONGEST_EDGE)
        self.pixel_cap: int | None = None

    @property
    def _cell_px(self) -> int:
        """The side of the square that becomes one row of embeddings."""
        return self.spec.tower.patch_px * self.spec.projector.merge

    def _cells(self, options: Mapping[str, Any]) -> int:
        """Rows of embeddings along the longest side that a picture may have."""
        return -(-int(options.get("longest_edge", self.longest_edge)) // self._cell_px)

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        checked = super().check_options(options)
        least = self._cell_px**2
        if checked.get("max_pixels", least) < least:
            raise InvalidOptionError(f"max_pixels is {checked['max_pixels']}; permitted: {least} or more.")
        return checked

    def with_pixel_cap(self, most: int, options: Mapping[str, Any]) -> Family:
        most = max(most, self._cell_px**2)
        if {"max_pixels", "longest_edge"} & set(options) or self.most_pixels({}) <= most:
            return self
        capped = copy.copy(self)
        capped.pixel_cap = most
        return capped

    def plan_image(self, width_px: int, height_px: int, options: Mapping[str, Any]) -> ImagePlan:
        """Shrunk until its longer side is `longest_edge`, then each side enlarged to a multiple of the merged patch.

        max_pixels, which the published processor does not know, makes it smaller still.
        """
        longest, cell = options.get("longest_edge", self.longest_edge), self._cell_px
        ratio = max(height_px / longest, width_px / longest)
        width, height = width_px, height_px
        if ratio > 1:
            width, height = math.floor(width_px / ratio), math.floor(height_px / ratio)
        if not width or not height:
            raise MediaLimitError(
                f"A picture of {width_px}x{height_px} pixels is too elongated for {self.name}: resized to {longest} "
                "pixels nothing is left of its shorter side. Crop it.",
                code="above_max_value",
            )
        width, height = (-(-side // cell) * cell for side in (width, height))
        most = options.get("max_pixels", self.pixel_cap or width * height)
        if width * height > most:
            width, height = largest_fitting(width_px, height_px, cell, most)
        return resized_plan(width, height, self.spec.tower.patch_px, self.spec.projector.merge)

    def image_layout(self, grid: tuple[int, int, int], num_rows: int) -> Sequence[int | str]:
        lines, columns = (side // self.spec.projector.merge for side in grid[1:])
        layout: list[int | str] = [columns, BREAK] * lines
        return [*layout[:-1], END]

    def largest_picture(self, options: Mapping[str, Any]) -> int:
        """Ends of lines counted too: room for a picture's tokens is kept by this number."""
        return self.most_pixels(options) // self.spec.tower.patch_px**2 + self._cells(options)

    def token_grid(self, plan: ImagePlan) -> tuple[int, int]:
        """The ends of the lines are beside them."""
        merge = self.spec.projector.merge
        return (plan.grid[1] // merge, plan.grid[2] // merge)

    def most_pixels(self, options: Mapping[str, Any]) -> int:
        side = self._cells(options) * self._cell_px
        return min(side**2, int(options.get("max_pixels", self.pixel_cap or side**2)))

    def budgeted(self, options: Mapping[str, Any], budget: PixelBudget | None) -> dict[str, Any]:
        if budget is None:
            return dict(options)
        self._refuse_least(budget)
        least = self._cell_px**2
        most = self._promised(budget, least, self.most_pixels(options))
        return {**options, "max_pixels": self._wished(budget, least, most)}

    def embeds_grid(self, num_rows: int, grid: tuple[int, int, int] | None) -> tuple[int, int, int]:
        return given_grid(self.name, self.spec.projector.merge, num_rows, grid, still=True)

    def image_text(self, number: int) -> str:
        return self.placeholder

    def weight_map(self) -> WeightMap:
        tower, projector = self.spec.tower, "multi_modal_projector."
        decoder = self.spec.decoder
        slots = self.backbone.decoder_slots("language_model.model.", "language_model.lm_head", decoder)
        slots |= pixtral_weights("vision_tower.", tower)
        kinds = ("weight", "bias") if self.spec.projector.bias else ("weight",)
        slots |= same_names(f"{projector}linear_1", "encoder.projector.first", kinds)
        slots |= same_names(f"{projector}linear_2", "encoder.projector.second", kinds)
        if self.spec.projector.merge_linear:
            slots[f"{projector}norm.weight"] = WeightSlot("encoder.projector.norm.weight")
            slots[f"{projector}patch_merger.merging_layer.weight"] = WeightSlot("encoder.projector.merging.weight")
        unused = tuple(f"vision_tower.transformer.layers.{i}." for i in range(tower.num_layers, self._total_layers))
        tied = ("language_model.lm_head.",) if decoder.tied_head else ()
        renames = (
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("model.multi_modal_projector.", projector),
            ("model.vision_tower.", "vision_tower."),
        )
        return WeightMap(slots, (*unused, *tied), renames)


class Pixtral(Mistral3):
    """LLaVA's class and projector, Pixtral's tower and layout: every patch is a token."""

    architectures = ("LlavaForConditionalGeneration",)
    default_layers = -2
    usual_text = "llama"

    @classmethod
    def describes(cls, config: Mapping[str, Any]) -> bool:
        vision = config.get("vision_config")
        return isinstance(vision, dict) and vision.get("model_type") == "pixtral"

    def joining(self, decoder: DecoderSpec) -> ProjectorSpec:
        self.config.expect("vision_feature_select_strategy", "full", default="default")
        width, bias = decoder.hidden_size, self.config.get(bool, "multimodal_projector_bias", True)
        return ProjectorSpec(merge=1, mid_width=width, out_width=width, bias=bias)


def pixtral_weights(prefix: str, spec: TowerSpec) -> dict[str, WeightSlot]:
    """Published names of a Pixtral tower below `prefix`."""
    slots = {f"{prefix}patch_conv.weight": WeightSlot("encoder.tower.patch.weight")}
    slots[f"{prefix}ln_pre.weight"] = WeightSlot("encoder.tower.pre_norm.weight")
    for i in range(spec.num_layers):
        theirs, ours = f"{prefix}transformer.layers.{i}.", f"encoder.tower.blocks.{i}."
        rows = {"q_proj": spec.width, "k_proj": spec.width, "v_proj": spec.width}
        slots |= joined(f"{theirs}attention.", f"{ours}qkv", rows, ("weight",))
        rows = {"gate_proj": spec.mlp_width, "up_proj": spec.mlp_width}
        slots |= joined(f"{theirs}feed_forward.", f"{ours}up", rows, ("weight",))
        names = {"attention_norm": "norm1", "ffn_norm": "norm2", "attention.o_proj": "out"}
        for name, own in {**names, "feed_forward.down_proj": "down"}.items():
            slots[f"{theirs}{name}.weight"] = WeightSlot(f"{ours}{own}.weight")
    return slots
