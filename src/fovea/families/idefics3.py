"""Idefics3 and SmolVLM: a field of tiles with their names between them and an overview behind; SigLIP, Llama
(arXiv:2408.12637, arXiv:2504.05299).

Followed step by step: transformers' Idefics3ImageProcessor, its floats and its two resizes in a row included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fovea.core.errors import EmbeddingsError, UnsupportedModelError
from fovea.core.types import ImagePlan, PixelBudget, Resample
from fovea.families.backbones import text_backbone
from fovea.families.base import Family
from fovea.families.config_reader import Section
from fovea.families.parts import siglip_tower, siglip_weights, tied_unless_published
from fovea.families.spec import ModelSpec, ProjectorSpec, WeightMap, WeightSlot

TOWER_DEFAULTS = {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32}  # where they are not SigLIP's
HALVES = (0.5, 0.5, 0.5)
MAX_SIDE_PX = 4096  # of a resized picture, in the published processor
MAX_TILES = 64  # of a picture
RESAMPLES: Mapping[int, Resample] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers for them
FRAME, OVERVIEW = "<fake_token_around_image>", "<global-img>"


class Idefics3(Family):
    architectures = ("Idefics3ForConditionalGeneration",)
    placeholder = "<image>"
    layout_tokens = (FRAME, OVERVIEW)

    def read_spec(self) -> ModelSpec:
        self.backbone, text = text_backbone(self.files.config, defaults={"rms_norm_eps": 1e-5})
        tied = self.config.get(bool, "tie_word_embeddings", False)
        tied = tied and tied_unless_published(self.config, self.files.folder)
        decoder = self.backbone.read_decoder(text, tied_head=tied)
        vision = Section({**TOWER_DEFAULTS, **self.config.get(dict, "vision_config", {})}, "config.json.vision_config")
        merge, tile = self.config.count("scale_factor", 2), self._read_preprocessor()
        tower = siglip_tower(vision, post_norm=True, by_place=True)
        if tile // tower.patch_px % merge:
            raise UnsupportedModelError(
                f"config.json: 'scale_factor' is {merge} and does not divide a tile's {tile // tower.patch_px} patches."
            )
        return ModelSpec(
            decoder=decoder,
            tower=tower,
            projector=ProjectorSpec(merge=merge, mid_width=0, out_width=decoder.hidden_size, bias=False),
            encoder="tiles",
            image_mean=self.triple("image_mean", HALVES),
            image_std=self.triple("image_std", HALVES),
            dtype=self.dtype("bfloat16"),
            tile_px=tile,
        )

    def _read_preprocessor(self) -> int:
        """How pictures are resized and split; the side of a tile."""
        said = self.preprocessor
        for key in ("do_resize", "do_rescale", "do_normalize", "do_pad"):
            said.expect(key, True)
        said.expect("resample", *RESAMPLES)
        self.resample = RESAMPLES[said.get(int, "resample", 1)]
        self.splits = said.get(bool, "do_image_splitting", True)
        sides = []
        for key, default in (("size", 4 * 364), ("max_image_size", 364)):
            size = said.section(key)
            size.only("longest_edge")
            sides.append(size.count("longest_edge", default))
        self.longest_px, tile = sides
        if self.splits and math.ceil(self.longest_px / tile) ** 2 > MAX_TILES:
            raise UnsupportedModelError(
                f"preprocessor_config.json: 'size' is {self.longest_px} and tiles have {tile} pixels; supported are at "
                f"most {MAX_TILES} tiles."
            )
        return tile

    def plan_image(self, width_px: int, height_px: int, options: Mapping[str, Any]) -> ImagePlan:
        """The longest edge to the size, then both to whole tiles, and that once more pressed into one tile."""
        tile, longest = self.spec.tile_px, self._longest(options)
        width, height = resized(width_px, height_px, longest)
        columns, rows = tiles_of(width, height, tile) if self.splits else (1, 1)
        several = rows * columns > 1
        side = tile // self.spec.tower.patch_px
        count = rows * columns + several
        overview = ImagePlan(tile, tile, self.resample, tile, tile, (1, side, side), side**2, self._rows)
        return ImagePlan(
            first_resize_px=(width, height),
            resize_width_px=columns * tile,
            resize_height_px=rows * tile,
            resample=self.resample,
            canvas_width_px=columns * tile,
            canvas_height_px=rows * tile,
            grid=(1, rows, columns),
            num_patches=count * side**2,
            num_tokens=count * self._rows,
            view=overview if several else None,
            view_of_canvas=several,
        )

    @property
    def _rows(self) -> int:
        """Rows of embeddings of one tile."""
        return (self.spec.tile_px // self.spec.tower.patch_px // self.spec.projector.merge) ** 2

    def _longest(self, options: Mapping[str, Any]) -> int:
        """The longest edge: no field has more pixels than are permitted, whatever the picture's shape."""
        most = options.get("max_pixels")
        if most is None:
            return self.longest_px
        side = max(1, math.isqrt(most) // self.spec.tile_px) * self.spec.tile_px
        return min(self.longest_px, side - side % 2)  # the other edge may become even by growing

    def _most_tiles(self, options: Mapping[str, Any]) -> int:
        longest = self._longest(options)
        return math.ceil(min(longest + longest % 2, MAX_SIDE_PX) / self.spec.tile_px) ** 2 if self.splits else 1

    def largest_picture(self, options: Mapping[str, Any]) -> int:
        tiles = self._most_tiles(options)
        return (tiles + (tiles > 1)) * (self.spec.tile_px // self.spec.tower.patch_px) ** 2

    def token_grid(self, plan: ImagePlan) -> tuple[int, int]:
        """Of the field; the overview is beside it."""
        side = math.isqrt(self._rows)
        return (plan.grid[1] * side, plan.grid[2] * side)

    def most_pixels(self, options: Mapping[str, Any]) -> int:
        return self._most_tiles(options) * self.spec.tile_px**2

    def budgeted(self, options: Mapping[str, Any], budget: PixelBudget | None) -> dict[str, Any]:
        """A smaller longest edge; the overview of one tile, which every field has, is not counted."""
        if budget is None:
            return dict(options)
        self._refuse_least(budget)
        least = self.spec.tile_px**2
        most = self._promised(budget, least, self.most_pixels(options))
        return {**options, "max_pixels": self._wished(budget, least, most)}

    def embeds_grid(self, num_rows: int, grid: tuple[int, int, int] | None) -> tuple[int, int, int]:
        """One tile, or the square of the most tiles: of others the number of rows doesn't tell lines from columns."""
        super().embeds_grid(num_rows, grid)
        side = math.isqrt(self._most_tiles({}))
        known = {self._rows: (1, 1, 1)} | ({(side**2 + 1) * self._rows: (1, side, side)} if side > 1 else {})
        if num_rows not in known:
            raise EmbeddingsError(
                f"Image embeddings have {num_rows} rows; {self.name} takes {' or '.join(map(str, known))}, since the "
                "names of tiles stand between them and other numbers don't tell lines from columns. Pass the picture."
            )
        return known[num_rows]

    def image_layout(self, grid: tuple[int, int, int], num_rows: int) -> Sequence[int | str] | None:
        _, rows, columns = grid
        overview: list[int | str] = [f"{FRAME}{OVERVIEW}", self._rows, FRAME]
        if rows * columns == 1:
            return overview
        layout: list[int | str] = []
        for row in range(1, rows + 1):
            for column in range(1, columns + 1):
                layout += [f"{FRAME}<row_{row}_col_{column}>", self._rows]
            layout.append("\n")
        return [*layout, "\n", *overview]

    def weight_map(self) -> WeightMap:
        decoder = self.spec.decoder
        slots = self.backbone.decoder_slots("model.text_model.", "lm_head", decoder)
        slots |= siglip_weights("model.vision_model.", self.spec.tower)
        slots["model.connector.modality_projection.proj.weight"] = WeightSlot("encoder.projector.first.weight")
        return WeightMap(slots, ignored=("lm_head.",) if decoder.tied_head else ())


class SmolVLM(Idefics3):
    architectures = ("SmolVLMForConditionalGeneration",)


def resized(width_px: int, height_px: int, longest_px: int) -> tuple[int, int]:
    """Width and height with that longest edge, the other one even, and none above MAX_SIDE_PX."""
    width, height = width_px, height_px
    for most, even in ((longest_px, True), (MAX_SIDE_PX, False)):
        aspect = width / height
        if not even and max(width, height) <= most:
            break
        if width >= height:
            width, height = most, int(most / aspect)
            height += height % 2 if even else 0
        else:
            width, height = int(most * aspect), most
            width += width % 2 if even else 0
        width, height = max(width, 1), max(height, 1)
    return width, height


def tiles_of(width: int, height: int, tile: int) -> tuple[int, int]:
    """(columns, rows) of tiles that a picture of this size is stretched over."""
    aspect = width / height
    if width >= height:
        columns = math.ceil(width / tile)
        return columns, math.ceil(int(columns * tile / aspect) / tile)
    rows = math.ceil(height / tile)
    return math.ceil(int(rows * tile * aspect) / tile), rows
