"""LLaVA-1.5: CLIP (or SigLIP) at one fixed size, a two-layer projector, Llama or another decoder (arXiv:2310.03744)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fovea.core.errors import EmbeddingsError, ModelError, UnsupportedModelError
from fovea.core.types import Box, ImagePlan, PixelBudget
from fovea.families.backbones import text_backbone
from fovea.families.base import CLIP_MEAN, CLIP_STD, Family
from fovea.families.config_reader import Section
from fovea.families.parts import (
    VLM_RENAMES,
    clip_tower,
    clip_unused,
    clip_weights,
    same_names,
    siglip_tower,
    siglip_unused,
    siglip_weights,
)
from fovea.families.spec import EncoderKind, ModelSpec, ProjectorSpec, TowerSpec, WeightMap, WeightSlot

CROP_SHAPES = (("",), ("height", "width"))
PROCESSOR_STEPS = ("do_resize", "do_rescale", "do_normalize")
TOWERS = ("clip_vision_model", "siglip_vision_model")


class Llava(Family):
    architectures = ("LlavaForConditionalGeneration",)
    placeholder = "<image>"
    encoder: ClassVar[EncoderKind] = "fixed"
    default_layers: ClassVar[int | tuple[int, ...]] = -2
    default_strategy: ClassVar[str] = "default"
    usual_tower: ClassVar[Mapping[str, Any]] = {}  # where the config describes none
    layer_keys: ClassVar[tuple[str, ...]] = ("vision_feature_layer",)
    usual_text: ClassVar[str] = "llama"
    text_ties: ClassVar[bool] = True
    size_shapes: ClassVar[tuple[tuple[str, ...], ...]] = (("",), ("shortest_edge",))

    def read_spec(self) -> ModelSpec:
        self.config.expect("projector_hidden_act", "gelu")
        self.config.expect("multimodal_projector_bias", True)
        self.backbone, text = text_backbone(self.files.config, self.usual_text)
        decoder = self.backbone.read_decoder(text, tied_head=self._tied(text))
        vision = Section(self.config.get(dict, "vision_config", {}) or self.usual_tower, "config.json.vision_config")
        return ModelSpec(
            decoder=decoder,
            tower=self._tower(vision),
            projector=self.projector(decoder.hidden_size),
            encoder=self.encoder,
            image_mean=self.triple("image_mean", CLIP_MEAN),
            image_std=self.triple("image_std", CLIP_STD),
            dtype=self.dtype("float16"),
            tile_px=self._image_px(vision),
        )

    def _tied(self, text: Section) -> bool:
        """Said beside or inside the text config, as far as the class of transformers listens to either."""
        tied = self.config.get(bool, "tie_word_embeddings", False)
        return tied or (self.text_ties and text.get(bool, "tie_word_embeddings", False))

    def projector(self, width: int) -> ProjectorSpec:
        return ProjectorSpec(merge=1, mid_width=width, out_width=width)

    def _tower(self, vision: Section) -> TowerSpec:
        """CLIP without its class token's row, or SigLIP, which has none, with every row."""
        vision.expect("model_type", *TOWERS)
        if vision.get(str, "model_type", TOWERS[0]) == TOWERS[1]:
            self.config.expect("vision_feature_select_strategy", "full", default=self.default_strategy)
            self._total_layers = vision.count("num_hidden_layers", 12)
            layers = self._feature_layers()
            return siglip_tower(vision, num_layers=max(layers), feature_layers=layers if len(layers) > 1 else ())
        self.config.expect("vision_feature_select_strategy", "default", default=self.default_strategy)
        vision.expect("hidden_act", "quick_gelu")
        vision.expect("num_channels", 3)
        self._total_layers = vision.count("num_hidden_layers", 24)
        layers = self._feature_layers()
        return clip_tower(
            width=vision.count("hidden_size", 1024),
            num_layers=max(layers),
            feature_layers=layers if len(layers) > 1 else (),
            num_heads=vision.count("num_attention_heads", 16),
            mlp_width=vision.count("intermediate_size", 4096),
            patch_px=vision.count("patch_size", 14),
            image_px=vision.count("image_size", 336),
            eps=vision.positive("layer_norm_eps", 1e-5),
        )

    def _feature_layers(self) -> tuple[int, ...]:
        """The layers whose outputs the projector sees, counted from the first; the config counts from either end."""
        given = [self.files.config.get(key) for key in self.layer_keys]
        listed: Any = next((value for value in given if value is not None), self.default_layers)
        states, layers = self._total_layers + 1, listed if isinstance(listed, (list, tuple)) else [listed]
        if any(isinstance(n, bool) or not isinstance(n, int) or not -states <= n < states for n in layers):
            raise ModelError(
                f"config.json: 'vision_feature_layer' is {listed!r}; permitted: {-states} to {states - 1}."
            )
        found = tuple(n % states for n in layers)
        if max(found, default=0) < 1:
            raise UnsupportedModelError(f"config.json: 'vision_feature_layer' is {listed!r}; no layer would run.")
        return found

    def _image_px(self, vision: Section) -> int:
        """The side of the square that is seen; it must be what the tower's position table was made for.

        CLIP's processor cuts the middle out, SigLIP's presses the picture into shape.
        """
        siglip = vision.get(str, "model_type", TOWERS[0]) == TOWERS[1]
        tower_px = vision.count("image_size", 224 if siglip else 336)
        for step in PROCESSOR_STEPS:
            self.preprocessor.expect(step, True)
        self.preprocessor.expect("resample", 3)
        self._crops = self.preprocessor.get(bool, "do_center_crop", not siglip)
        shapes = {"size": self.size_shapes if self._crops or self.encoder == "anyres" else (("height", "width"),)}
        if self._crops:
            shapes["crop_size"] = CROP_SHAPES
        for key, permitted in shapes.items():
            given = self.files.preprocessor.get(key) or tower_px
            sides = {k: v for k, v in given.items() if v is not None} if isinstance(given, dict) else {"": given}
            shape = tuple(sorted(sides)) if self.files.preprocessor.get(key) else permitted[0]
            if shape not in permitted or any(side != tower_px for side in sides.values()):
                raise UnsupportedModelError(
                    f"preprocessor_config.json: {key!r} is {given!r}, the tower takes {tower_px}."
                )
        return tower_px

    def plan_image(self, width_px: int, height_px: int, options: Mapping[str, Any]) -> ImagePlan:
        """Bicubic to the tower's size: the shortest edge, and then the middle square, as CLIPImageProcessor does; or
        each edge, as SiglipImageProcessor does."""
        tile = self.spec.tile_px
        short, long = sorted((width_px, height_px))
        scaled = int(tile * long / short) if self._crops else tile
        width, height = (tile, scaled) if width_px <= height_px else (scaled, tile)
        left, top = (width - tile) // 2, (height - tile) // 2
        side = tile // self.spec.tower.patch_px
        return ImagePlan(
            resize_width_px=width,
            resize_height_px=height,
            resample="bicubic",
            crop=Box(left, top, left + tile, top + tile) if self._crops else None,
            canvas_width_px=tile,
            canvas_height_px=tile,
            grid=(1, side, side),
            num_patches=side * side,
            num_tokens=side * side,
        )

    def largest_picture(self, options: Mapping[str, Any]) -> int:
        return (self.spec.tile_px // self.spec.tower.patch_px) ** 2

    def token_grid(self, plan: ImagePlan) -> tuple[int, int]:
        return (plan.grid[1], plan.grid[2])

    def most_pixels(self, options: Mapping[str, Any]) -> int:
        return self.spec.tile_px**2

    def budgeted(self, options: Mapping[str, Any], budget: PixelBudget | None) -> dict[str, Any]:
        """Every picture has the one size there is: a promise of less is refused, a wish changes nothing."""
        if budget is not None:
            self._refuse_least(budget)
            self._promised(budget, self.spec.tile_px**2, self.spec.tile_px**2)
        return dict(options)

    def embeds_grid(self, num_rows: int, grid: tuple[int, int, int] | None) -> tuple[int, int, int]:
        super().embeds_grid(num_rows, grid)
        side = self.spec.tile_px // self.spec.tower.patch_px
        if num_rows != side * side:
            raise EmbeddingsError(f"Image embeddings have {num_rows} rows; {self.name} takes {side * side}.")
        return (1, side, side)

    def image_text(self, number: int) -> str:
        return f"{self.placeholder}\n"

    def weight_map(self) -> WeightMap:
        slots = self.backbone.decoder_slots("language_model.model.", "language_model.lm_head", self.spec.decoder)
        tower, unused = self._tower_weights("vision_tower.vision_model.")
        slots |= tower
        slots |= same_names("multi_modal_projector.linear_1", "encoder.projector.first")
        slots |= same_names("multi_modal_projector.linear_2", "encoder.projector.second")
        return WeightMap(
            slots,
            ignored=(*self._unused_head(), *unused),
            renames=VLM_RENAMES,
        )

    def _unused_head(self) -> tuple[str, ...]:
        return ("language_model.lm_head.",) if self.spec.decoder.tied_head else ()

    def _tower_weights(self, prefix: str) -> tuple[dict[str, WeightSlot], tuple[str, ...]]:
        """The names below `prefix` that are used, and beginnings of those that are not."""
        tower = self.spec.tower
        if tower.class_token:
            return clip_weights(prefix, tower), clip_unused(prefix, tower.num_layers, self._total_layers)
        return siglip_weights(prefix, tower), siglip_unused(prefix, tower, self._total_layers)
