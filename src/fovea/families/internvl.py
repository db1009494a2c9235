"""InternVL (the "-hf" checkpoints): a field of tiles whose shape is nearest the picture's, and an overview
(arXiv:2404.16821).

The tower is a ViT with a factor on each branch; 2 x 2 of its patches are one token ("pixel shuffle").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fovea.core.errors import EmbeddingsError, InvalidOptionError, UnsupportedModelError
from fovea.core.types import ImagePlan, PixelBudget
from fovea.families.backbones import text_backbone
from fovea.families.base import CLIP_MEAN, CLIP_STD, Family, Mark
from fovea.families.config_reader import Section
from fovea.families.llava import Llava
from fovea.families.parts import joined, same_names, tied_unless_published
from fovea.families.spec import DecoderSpec, ModelSpec, ProjectorSpec, TowerSpec, WeightMap, WeightSlot
from fovea.families.video import VideoRule

MAX_TILES = 64  # of a picture, beside the overview
STEPS = ("do_resize", "do_rescale", "do_normalize")


class TiledModel(Llava):
    """Pictures as fields of tiles, resized to fill them, and of several tiles an overview of one more."""

    processor_options = frozenset({"min_patches", "max_patches"})
    tile_default: ClassVar[int] = 384  # of the image processor's class
    usual_text = "qwen2"

    @property
    def _side(self) -> int:
        """Tokens along a side of a tile."""
        return self.spec.tile_px // self.spec.tower.patch_px // self.spec.projector.merge

    def read_tiles(self, tower_px: int) -> int:
        """The side of a tile, which must be the tower's; how many of them a picture has."""
        said = self.preprocessor
        for step in STEPS:
            said.expect(step, True)
        said.expect("do_center_crop", False)
        said.expect("resample", 3)
        said.expect("rescale_factor", 1 / 255)
        size = said.section("size")
        size.only("height", "width")
        sides = {size.count(key, self.tile_default) for key in ("height", "width")}
        if sides != {tower_px}:
            raise UnsupportedModelError(
                f"preprocessor_config.json: 'size' is {sorted(sides)}; the tower takes {tower_px}."
            )
        self.min_patches, self.max_patches = said.count("min_patches", 1), said.count("max_patches", 12)
        self._check_tiles(self.min_patches, self.max_patches, UnsupportedModelError)
        return tower_px

    def _check_tiles(self, low: int, high: int, error: type[UnsupportedModelError | InvalidOptionError]) -> None:
        if not low <= high <= MAX_TILES:
            raise error(
                f"min_patches is {low} and max_patches {high}; permitted: min_patches <= max_patches <= {MAX_TILES}."
            )

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        checked = super().check_options(options)
        self._check_tiles(*self._range(checked), InvalidOptionError)
        return checked

    def _range(self, options: Mapping[str, Any]) -> tuple[int, int]:
        return options.get("min_patches", self.min_patches), options.get("max_patches", self.max_patches)

    def field(self, width_px: int, height_px: int, low: int, high: int) -> tuple[int, int]:
        """(columns, rows) of the field for a picture of this size."""
        return nearest_field(width_px, height_px, self.spec.tile_px, low, high)

    def plan_image(self, width_px: int, height_px: int, options: Mapping[str, Any]) -> ImagePlan:
        tile, side = self.spec.tile_px, self.spec.tile_px // self.spec.tower.patch_px
        low, high = self._range(options)
        columns, rows = self.field(width_px, height_px, low, high) if high > 1 else (1, 1)
        views = rows * columns + (rows * columns > 1)
        overview = ImagePlan(tile, tile, "bicubic", tile, tile, (1, side, side), side**2, self._side**2)
        return ImagePlan(
            resize_width_px=columns * tile,
            resize_height_px=rows * tile,
            resample="bicubic",
            canvas_width_px=columns * tile,
            canvas_height_px=rows * tile,
            grid=(1, rows, columns),
            num_patches=views * side**2,
            num_tokens=self.num_rows(rows, columns),
            view=overview if views > 1 else None,
        )

    def num_rows(self, rows: int, columns: int) -> int:
        """Rows of embeddings of a picture with such a field."""
        return (rows * columns + (rows * columns > 1)) * self._side**2

    def largest_picture(self, options: Mapping[str, Any]) -> int:
        high = self._range(options)[1]
        return (high + (high > 1)) * (self.spec.tile_px // self.spec.tower.patch_px) ** 2

    def token_grid(self, plan: ImagePlan) -> tuple[int, int]:
        """Of the field; the overview is beside it."""
        return (plan.grid[1] * self._side, plan.grid[2] * self._side)

    def most_pixels(self, options: Mapping[str, Any]) -> int:
        return int(self._range(options)[1]) * self.spec.tile_px**2

    def budgeted(self, options: Mapping[str, Any], budget: PixelBudget | None) -> dict[str, Any]:
        """As many tiles as fit; the overview of one tile is not counted."""
        if budget is None:
            return dict(options)
        self._refuse_least(budget)
        tile = self.spec.tile_px**2
        most = self._wished(budget, tile, self._promised(budget, tile, self.most_pixels(options))) // tile
        return {**options, "max_patches": most, "min_patches": min(self._range(options)[0], most)}

    def embeds_grid(self, num_rows: int, grid: tuple[int, int, int] | None) -> tuple[int, int, int]:
        Family.embeds_grid(self, num_rows, grid)
        sides = [(r, c) for r in range(1, MAX_TILES + 1) for c in range(1, MAX_TILES // r + 1)]
        fitting = [side for side in sides if self.num_rows(*side) == num_rows]
        if not fitting:
            raise EmbeddingsError(f"Image embeddings have {num_rows} rows; no picture has so many with {self.name}.")
        return (1, *fitting[0])

    def read_decoder(self) -> DecoderSpec:
        self.backbone, text = text_backbone(self.files.config, self.usual_text)
        return self.backbone.read_decoder(text, tied_head=self._tied(text))

    def _tied(self, text: Section) -> bool:
        return tied_unless_published(self.config, self.files.folder)


class InternVL(TiledModel):
    architectures = ("InternVLForConditionalGeneration",)
    placeholder = "<IMG_CONTEXT>"
    video_placeholder: ClassVar[str | None] = "<video>"
    video_rule = VideoRule(num_frames=8, middles=True)
    layout_tokens = ("<img>", "</img>")
    encoder = "tiles"
    default_layers = -1
    tower_kind: ClassVar[str] = "internvl_vision"
    tower_bias: ClassVar[bool] = False
    tower_layers: ClassVar[str] = "encoder.layer"

    def read_spec(self) -> ModelSpec:
        self.config.expect("projector_hidden_act", "gelu")
        self.config.expect("vision_feature_select_strategy", "default")
        decoder = self.read_decoder()
        vision = self.config.section("vision_config")
        tower_px, patch_px = square(vision, "image_size", 448), square(vision, "patch_size", 14)
        ratio = self.config.positive("downsample_ratio", 0.5)
        merge = round(1 / ratio)
        if merge * ratio != 1.0 or tower_px // patch_px % merge:
            raise UnsupportedModelError(
                f"config.json: 'downsample_ratio' is {ratio}; supported: one part of {tower_px // patch_px} patches."
            )
        return ModelSpec(
            decoder=decoder,
            tower=self._vit(vision, tower_px, patch_px),
            projector=ProjectorSpec(
                merge=merge,
                mid_width=decoder.hidden_size,
                out_width=decoder.hidden_size,
                norm="layer",
                norm_eps=1e-5,
                norm_joined=True,
            ),
            encoder=self.encoder,
            image_mean=self.triple("image_mean", CLIP_MEAN),
            image_std=self.triple("image_std", CLIP_STD),
            dtype=self.dtype("bfloat16"),
            tile_px=self.read_tiles(tower_px),
        )

    def _vit(self, vision: Section, tower_px: int, patch_px: int) -> TowerSpec:
        """Defaults are those of transformers' InternVLVisionConfig."""
        vision.expect("model_type", self.tower_kind)
        vision.expect("num_channels", 3)
        vision.expect("hidden_act", "gelu")
        vision.expect("use_mean_pooling", True)  # else there is a norm behind the last layer
        vision.expect("use_absolute_position_embeddings", True)
        vision.expect("norm_type", "layer_norm", "rms_norm")
        self._total_layers = vision.count("num_hidden_layers", 24)
        (num_layers,) = self._feature_layers()[:1]
        if len(self._feature_layers()) > 1:
            raise UnsupportedModelError("config.json: 'vision_feature_layer' has several layers; supported: one.")
        return TowerSpec(
            num_layers=num_layers,
            width=vision.count("hidden_size", 1024),
            num_heads=vision.count("num_attention_heads", 16),
            mlp_width=vision.count("intermediate_size", 4096),
            activation="gelu",
            norm_eps=vision.positive("layer_norm_eps", 1e-6),
            patch_px=patch_px,
            class_token=True,
            patch_bias=True,
            num_positions=(tower_px // patch_px) ** 2 + 1,
            norm="rms" if vision.get(str, "norm_type", "layer_norm") == "rms_norm" else "layer",
            qkv_bias=vision.get(bool, "attention_bias", self.tower_bias),
            qk_norm=vision.get(bool, "use_qk_norm", False),
            layer_scale=True,
        )

    def image_layout(self, grid: tuple[int, int, int], num_rows: int) -> Sequence[int | str | Mark]:
        return ["<img>", num_rows, "</img>"]

    def image_text(self, number: int) -> str:
        return f"{self.placeholder}\n"

    def plan_video(
        self, num_frames: int, width_px: int, height_px: int, fps: float, options: Mapping[str, Any]
    ) -> ImagePlan:
        """Each frame is pressed into one tile, without an overview."""
        tile = self.spec.tile_px
        return ImagePlan(
            resize_width_px=tile,
            resize_height_px=tile,
            resample="bicubic",
            canvas_width_px=tile,
            canvas_height_px=tile,
            grid=(num_frames, 1, 1),
            num_patches=num_frames * (tile // self.spec.tower.patch_px) ** 2,
            num_tokens=num_frames * self._side**2,
            frames=num_frames,
            slots=num_frames,
            step_s=1 / fps,
        )

    def video_layout(
        self, grid: tuple[int, int, int], num_rows: int, times_s: Sequence[float]
    ) -> Sequence[int | str | Mark]:
        """Frames are numbered, and their rows stand at the token of pictures."""
        rows: list[int | str | Mark] = [Mark(self.placeholder)] * (num_rows // grid[0])
        layout: list[int | str | Mark] = []
        for number in range(1, grid[0] + 1):
            layout += ["\n" * (number > 1) + f"Frame{number}: <img>", *rows, "</img>"]
        return layout

    def video_text(self, number: int) -> str:
        return "<video>\n"

    def weight_map(self) -> WeightMap:
        decoder, tower, projector = self.spec.decoder, "vision_tower.", "multi_modal_projector."
        slots = self.backbone.decoder_slots("language_model.model.", "language_model.lm_head", decoder)
        slots |= self._vit_weights(tower)
        slots |= same_names(f"{projector}layer_norm", "encoder.projector.norm")
        slots |= same_names(f"{projector}linear_1", "encoder.projector.first")
        slots |= same_names(f"{projector}linear_2", "encoder.projector.second")
        beyond = range(self.spec.tower.num_layers, self._total_layers)
        unused = [f"{tower}{self.tower_layers}.{i}." for i in beyond]
        renames = (
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("model.multi_modal_projector.", projector),
            ("model.vision_tower.", tower),
        )
        tied = ["language_model.lm_head."] if decoder.tied_head else []
        return WeightMap(slots, (*tied, *unused, f"{tower}embeddings.mask_token"), renames)

    def _vit_weights(self, prefix: str) -> dict[str, WeightSlot]:
        spec = self.spec.tower
        slots = {
            f"{prefix}embeddings.cls_token": WeightSlot("encoder.tower.class_token"),
            f"{prefix}embeddings.position_embeddings": WeightSlot("encoder.tower.positions"),
        }
        slots |= same_names(f"{prefix}embeddings.patch_embeddings.projection", "encoder.tower.patch")
        kinds = ("weight", "bias") if spec.norm == "layer" else ("weight",)
        for i in range(spec.num_layers):
            theirs, ours = f"{prefix}{self.tower_layers}.{i}.", f"encoder.tower.blocks.{i}."
            rows = {"q_proj": spec.width, "k_proj": spec.width, "v_proj": spec.width}
            slots |= joined(f"{theirs}attention.", f"{ours}qkv", rows, ("weight", "bias")[: 1 + spec.qkv_bias])
            if spec.qk_norm:
                slots[f"{theirs}attention.q_norm.weight"] = WeightSlot(f"{ours}q_norm.weight")
                slots[f"{theirs}attention.k_norm.weight"] = WeightSlot(f"{ours}k_norm.weight")
            slots |= same_names(f"{theirs}attention.projection_layer", f"{ours}out")
            slots |= same_names(f"{theirs}layernorm_before", f"{ours}norm1", kinds)
            slots |= same_names(f"{theirs}layernorm_after", f"{ours}norm2", kinds)
            slots |= same_names(f"{theirs}mlp.fc1", f"{ours}up") | same_names(f"{theirs}mlp.fc2", f"{ours}down")
            slots[f"{theirs}lambda_1"] = WeightSlot(f"{ours}scale1")
            slots[f"{theirs}lambda_2"] = WeightSlot(f"{ours}scale2")
        return slots


def square(section: Section, key: str, default: int) -> int:
    """A side that the config gives alone or twice."""
    value: Any = section.get(object, key, default)
    sides: list[Any] = value if isinstance(value, list) else [value]
    wrong = any(isinstance(s, bool) or not isinstance(s, int) or s < 1 or s != sides[0] for s in sides)
    if wrong or not 1 <= len(sides) <= 2:
        raise UnsupportedModelError(f"config.json.vision_config: {key!r} is {value!r}; supported: a square.")
    return int(sides[0])


def fields(low: int, high: int) -> list[tuple[int, int]]:
    """(columns, rows) of every field of so many tiles, the smaller ones first."""
    sides = range(1, high + 1)
    return sorted(((c, r) for c in sides for r in sides if low <= c * r <= high), key=lambda field: field[0] * field[1])


def nearest_field(width_px: int, height_px: int, tile: int, low: int, high: int) -> tuple[int, int]:
    """(columns, rows) of the field whose shape is nearest the picture's; of equals a larger one, unless it has twice
    the picture's area or more."""
    shape, best, least = width_px / height_px, (1, 1), float("inf")
    for columns, rows in fields(low, high):
        away = abs(shape - columns / rows)
        if away < least:
            best, least = (columns, rows), away
        elif away == least and width_px * height_px > 0.5 * tile * tile * columns * rows:
            best = (columns, rows)
    return best
