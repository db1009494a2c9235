"""LLaVA-1.5: CLIP at one fixed size, a two-layer projector, Llama (arXiv:2310.03744)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fovea.core.errors import EmbeddingsError, ModelError, UnsupportedModelError
from fovea.core.types import Box, ImagePlan, PixelBudget
from fovea.families.backbones import text_backbone
from fovea.families.base import CLIP_MEAN, CLIP_STD, Family
from fovea.families.config_reader import Section
from fovea.families.parts import clip_tower, clip_unused, clip_weights, same_names
from fovea.families.spec import EncoderKind, ModelSpec, ProjectorSpec, TowerSpec, WeightMap

CROP_SHAPES = (("",), ("height", "width"))
PROCESSOR_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")


class Llava(Family):
    architectures = ("LlavaForConditionalGeneration",)
    placeholder = "<image>"
    encoder: ClassVar[EncoderKind] = "fixed"
    default_layers: ClassVar[int | tuple[int, ...]] = -2
    layer_keys: ClassVar[tuple[str, ...]] = ("vision_feature_layer",)
    usual_text: ClassVar[str] = "llama"
    text_ties: ClassVar[bool] = True
    size_shapes: ClassVar[tuple[tuple[str, ...], ...]] = (("",), ("shortest_edge",))

    def read_spec(self) -> ModelSpec:
        self.config.expect("projector_hidden_act", "gelu")
        self.config.expect("multimodal_projector_bias", True)
        self.config.expect("vision_feature_select_strategy", "default")
        self.backbone, text = text_backbone(self.files.config, self.usual_text)
        decoder = self.backbone.read_decoder(text, tied_head=self._tied(text))
        vision = self.config.section("vision_config")
        return ModelSpec(
            decoder=decoder,
            tower=self._tower(vision),
            projector=self.projector(decoder.hidden_size),
            encoder=self.encoder,
            image_mean=self.triple("image_mean", CLIP_MEAN),
            image_std=self.triple("image_std", CLIP_STD),
            dtype=self.dtype("float16"),
            tile_px=self._image_px(vision.count("image_size", 336)),
        )

    def _tied(self, text: Section) -> bool:
        """Said beside or inside the text config, as far as the class of transformers listens to either."""
        tied = self.config.get(bool, "tie_word_embeddings", False)
        return tied or (self.text_ties and text.get(bool, "tie_word_embeddings", False))

    def projector(self, width: int) -> ProjectorSpec:
        return ProjectorSpec(merge=1, mid_width=width, out_width=width)

    def _tower(self, vision: Section) -> TowerSpec:
        vision.expect("model_type", "clip_vision_model")
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

    def _image_px(self, tower_px: int) -> int:
        """The side of the square crop; it must be what the tower's position table was made for."""
        for step in PROCESSOR_STEPS:
            self.preprocessor.expect(step, True)
        self.preprocessor.expect("resample", 3)
        for key, shapes in (("size", self.size_shapes), ("crop_size", CROP_SHAPES)):
            given = self.files.preprocessor.get(key) or tower_px
            sides = {k: v for k, v in given.items() if v is not None} if isinstance(given, dict) else {"": given}
            if tuple(sorted(sides)) not in shapes or any(side != tower_px for side in sides.values()):
                raise UnsupportedModelError(
                    f"preprocessor_config.json: {key!r} is {given!r}, the tower takes {tower_px}."
                )
        return tower_px

    def plan_image(self, width_px: int, height_px: int, options: Mapping[str, Any]) -> ImagePlan:
        """Shortest edge to the tower's size, bicubic, then the middle square, as CLIPImageProcessor does."""
        tile = self.spec.tile_px
        short, long = sorted((width_px, height_px))
        scaled = int(tile * long / short)
        width, height = (tile, scaled) if width_px <= height_px else (scaled, tile)
        left, top = (width - tile) // 2, (height - tile) // 2
        side = tile // self.spec.tower.patch_px
        return ImagePlan(
            resize_width_px=width,
            resize_height_px=height,
            resample="bicubic",
            crop=Box(left, top, left + tile, top + tile),
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
        clip = "vision_tower.vision_model."
        decoder = self.spec.decoder
        slots = self.backbone.decoder_slots("language_model.model.", "language_model.lm_head", decoder)
        slots |= clip_weights(clip, self.spec.tower)
        slots |= same_names("multi_modal_projector.linear_1", "encoder.projector.first")
        slots |= same_names("multi_modal_projector.linear_2", "encoder.projector.second")
        return WeightMap(
            slots,
            ignored=(*self._unused_head(), *clip_unused(clip, self.spec.tower.num_layers, self._total_layers)),
            renames=(
                ("model.language_model.", "language_model.model."),
                ("lm_head.", "language_model.lm_head."),
                ("model.multi_modal_projector.", "multi_modal_projector."),
                ("model.vision_tower.", "vision_tower."),
            ),
        )

    def _unused_head(self) -> tuple[str, ...]:
        return ("language_model.lm_head.",) if self.spec.decoder.tied_head else ()
