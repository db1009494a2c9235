"""Ovis2: tiles as words of a visual vocabulary, mixed by a softmax from an embedding table (arXiv:2405.20797)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from fovea.core.errors import UnsupportedModelError
from fovea.families.base import CLIP_MEAN, CLIP_STD, Mark
from fovea.families.config_reader import Section
from fovea.families.internvl import TiledModel, fields, square
from fovea.families.parts import joined, same_names
from fovea.families.spec import ModelSpec, ProjectorSpec, TowerSpec, WeightMap, WeightSlot

# In the order of the table's last rows.
START, OVERVIEW_END, COLUMN_END, LINE_END, END = MARKS = tuple(
    Mark(token) for token in ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
)
ENOUGH_COVERED = 0.9


class Ovis2(TiledModel):
    architectures = ("Ovis2ForConditionalGeneration",)
    placeholder = "<IMG_ATOM>"
    text_placeholder = "<image>"
    layout_tokens = tuple(mark.token for mark in MARKS)
    encoder = "marked_tiles"

    def read_spec(self) -> ModelSpec:
        decoder = self.read_decoder()
        self.config.expect("hidden_size", decoder.hidden_size)
        vision = self.config.section("vision_config")
        tower = self._aim(vision)
        vision.expect("num_visual_indicator_tokens", len(MARKS))
        vision.expect("tokenize_function", "softmax")
        return ModelSpec(
            decoder=decoder,
            tower=tower,
            projector=ProjectorSpec(
                merge=vision.count("hidden_stride", 1),
                mid_width=0,
                out_width=decoder.hidden_size,
                norm_eps=1e-5,
                vocabulary=vision.count("vocab_size", 16384) - len(MARKS),
                marks=len(MARKS),
            ),
            encoder=self.encoder,
            image_mean=self.triple("image_mean", CLIP_MEAN),
            image_std=self.triple("image_std", CLIP_STD),
            dtype=self.dtype("bfloat16"),
            tile_px=self.read_tiles(square(vision, "image_size", 224)),
        )

    def read_tiles(self, tower_px: int) -> int:
        self.preprocessor.expect("use_covering_area_grid", True, False)
        self.covers = self.preprocessor.get(bool, "use_covering_area_grid", True)
        side = super().read_tiles(tower_px)
        if not self.preprocessor.get(bool, "crop_to_patches", False):
            self.min_patches = self.max_patches = 1
        return side

    def _aim(self, vision: Section) -> TowerSpec:
        """AIMv2 (arXiv:2411.14402); defaults are those of transformers' Ovis2VisionConfig."""
        vision.expect("num_channels", 3)
        vision.expect("hidden_act", "silu")
        patch_px, stride = square(vision, "patch_size", 14), vision.count("hidden_stride", 1)
        side = square(vision, "image_size", 224) // patch_px
        if side % stride:
            raise UnsupportedModelError(
                f"config.json.vision_config: 'hidden_stride' is {stride}; supported: one that divides {side} patches."
            )
        bias = vision.get(bool, "qkv_bias", False)
        if bias != vision.get(bool, "mlp_bias", False):
            raise UnsupportedModelError(
                "config.json.vision_config: 'qkv_bias' and 'mlp_bias' differ; supported: both or none."
            )
        return TowerSpec(
            num_layers=vision.count("num_hidden_layers", 24),
            width=vision.count("hidden_size", 1024),
            num_heads=vision.count("num_attention_heads", 8),
            mlp_width=vision.count("intermediate_size", 2816),
            activation="silu",
            norm_eps=vision.positive("rms_norm_eps", 1e-5),
            patch_px=patch_px,
            patch_bias=True,
            bias=bias,
            qkv_bias=bias,
            patch_norm=True,
            num_positions=side**2,
            norm="rms",
            gated=True,
            post_norm=True,
        )

    def field(self, width_px: int, height_px: int, low: int, high: int) -> tuple[int, int]:
        if self.covers:
            return covering_field(width_px, height_px, self.spec.tile_px, high)
        return super().field(width_px, height_px, low, high)

    def num_rows(self, rows: int, columns: int) -> int:
        tiles = rows * columns
        return super().num_rows(rows, columns) + 3 + (tiles - 1)

    # Embeddings handed in have the marks among them. Fields of as many tiles differ only in which marks' tokens stand
    # for these rows in the prompt: the first such field is taken.
    def image_layout(self, grid: tuple[int, int, int], num_rows: int) -> Sequence[int | str | Mark]:
        _, rows, columns = grid
        tile, layout = self._side**2, list[int | str | Mark]()
        if rows * columns > 1:
            for number in range(1, rows * columns + 1):
                layout += [tile, COLUMN_END if number % columns else LINE_END]
            layout.pop()
        return [START, tile, OVERVIEW_END, *layout, END]

    def largest_picture(self, options: Mapping[str, int]) -> int:
        """Marks counted too: room for a picture's rows is kept by this number."""
        return super().largest_picture(options) + self._range(options)[1] + 2

    def image_text(self, number: int) -> str:
        return f"{self.text_placeholder}\n"

    def weight_map(self) -> WeightMap:
        decoder, tower = self.spec.decoder, "model.vision_tower."
        slots = self.backbone.decoder_slots("model.language_model.", "lm_head", decoder)
        slots |= aim_weights(f"{tower}transformer.", self.spec.tower)
        slots[f"{tower}head_linear.weight"] = WeightSlot("encoder.projector.head.weight")
        slots |= same_names(f"{tower}head_norm", "encoder.projector.norm")
        slots["model.visual_embeddings_table.weight"] = WeightSlot("encoder.projector.table")
        renames = (
            ("vision_tower.", tower),
            ("visual_embeddings_table.", "model.visual_embeddings_table."),
            ("language_model.lm_head.", "lm_head."),
            ("language_model.model.", "model.language_model."),
        )
        return WeightMap(slots, ("lm_head.",) if decoder.tied_head else (), renames)


def aim_weights(prefix: str, spec: TowerSpec) -> dict[str, WeightSlot]:
    """Published names of Ovis2's tower below `prefix`."""
    slots = same_names(f"{prefix}embeddings.patch_embedding", "encoder.tower.patch")
    slots[f"{prefix}embeddings.position_embedding.weight"] = WeightSlot("encoder.tower.positions")
    slots[f"{prefix}embeddings.rms_norm.weight"] = WeightSlot("encoder.tower.patch_norm.weight")
    slots[f"{prefix}rms_norm.weight"] = WeightSlot("encoder.tower.post_norm.weight")
    kinds = ("weight", "bias") if spec.bias else ("weight",)
    for i in range(spec.num_layers):
        theirs, ours = f"{prefix}encoder.layers.{i}.", f"encoder.tower.blocks.{i}."
        rows = {"q_proj": spec.width, "k_proj": spec.width, "v_proj": spec.width}
        slots |= joined(f"{theirs}attention.", f"{ours}qkv", rows, kinds)
        slots |= joined(f"{theirs}ffn.", f"{ours}up", dict.fromkeys(("gate_proj", "up_proj"), spec.mlp_width), kinds)
        slots |= same_names(f"{theirs}attention.out_proj", f"{ours}out", kinds)
        slots |= same_names(f"{theirs}ffn.down_proj", f"{ours}down", kinds)
        for number in (1, 2):
            slots[f"{theirs}rms_norm{number}.weight"] = WeightSlot(f"{ours}norm{number}.weight")
    return slots


@lru_cache(maxsize=100)
def covering_field(width_px: int, height_px: int, tile: int, high: int) -> tuple[int, int]:
    """(columns, rows) of the fewest tiles that show nearly all of the picture at its own size; else the most of it.

    transformers' get_min_tile_covering_grid, which cuts the picture into rows by the number that it then takes for
    columns: that is kept, floats and ties included.
    """
    judged = []
    for field in fields(1, high):
        covered = sum(_shown(*part, tile) for part in _parts(width_px, height_px, *field)) / (width_px * height_px)
        judged.append((field, covered))
    enough = [one for one in judged if one[1] > ENOUGH_COVERED]
    if enough:
        return min(enough, key=lambda one: (one[0][0] * one[0][1], -one[1]))[0]
    return min(judged, key=lambda one: (-one[1], one[0][0] * one[0][1]))[0]


def _parts(width_px: int, height_px: int, rows: int, columns: int) -> list[tuple[int, int]]:
    """(width, height) of the parts of a picture cut into a grid; the last ones have what is left over."""
    width, height = width_px // columns, height_px // rows
    return [
        (width_px - c * width if c == columns - 1 else width, height_px - r * height if r == rows - 1 else height)
        for r in range(rows)
        for c in range(columns)
    ]


def _shown(width: int, height: int, tile: int) -> float:
    """The area of a part that a tile shows without shrinking its shorter side beyond the longer one's."""
    long, short = max(width, height), min(width, height)
    if long > tile:
        return tile * (short / long * tile)
    return long * short
