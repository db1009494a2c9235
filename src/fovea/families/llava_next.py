"""LLaVA-NeXT (LLaVA-1.6): an overview and as many tiles as the picture's shape calls for, at CLIP's one size.

Source: https://llava-vl.github.io/blog/2024-01-30-llava-next/ and transformers' LlavaNextImageProcessor and
LlavaNextModel, whose arithmetic (floats, rounding and ties included) is followed step by step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from fovea.core.errors import EmbeddingsError, MediaError, UnsupportedModelError
from fovea.core.types import Box, ImagePlan, PixelBudget
from fovea.families.base import Family
from fovea.families.llava import Llava
from fovea.families.parts import interpolated
from fovea.families.spec import ModelSpec, ProjectorSpec, WeightMap, WeightSlot

DEFAULT_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
MAX_TILES = 64  # of a picture


class LlavaNext(Llava):
    architectures = ("LlavaNextForConditionalGeneration",)
    text_ties = False
    encoder = "anyres"
    default_pinpoints: ClassVar[tuple[tuple[int, int], ...]] = DEFAULT_PINPOINTS
    size_shapes = (("",), ("shortest_edge",), ("height", "width"))

    def read_spec(self) -> ModelSpec:
        self.config.expect("use_image_newline_parameter", True)
        self.preprocessor.expect("do_pad", True)
        spec = super().read_spec()
        self.pinpoints = self._read_pinpoints(spec.tile_px)
        return spec

    def projector(self, width: int) -> ProjectorSpec:
        return replace(super().projector(width), newline=True)

    def _read_pinpoints(self, tile: int) -> tuple[tuple[int, int], ...]:
        """(height, width) of each permitted field of tiles, in order, which decides between equals."""
        listed = [files.get("image_grid_pinpoints") for files in (self.files.config, self.files.preprocessor)]
        chosen, other = (self.default_pinpoints if value is None else _pairs(value) for value in listed)
        if self.files.preprocessor and chosen != other:
            raise UnsupportedModelError(
                "'image_grid_pinpoints' differs between config.json and preprocessor_config.json."
            )
        for height, width in chosen:
            if height % tile or width % tile or not 1 <= height * width // tile**2 <= MAX_TILES:
                raise UnsupportedModelError(
                    f"config.json: 'image_grid_pinpoints' has {[height, width]}; supported: multiples of the tower's "
                    f"{tile}, at most {MAX_TILES} tiles."
                )
        return chosen

    def plan_image(self, width_px: int, height_px: int, options: Mapping[str, Any]) -> ImagePlan:
        """The picture in the middle of a black field of tiles, and the whole picture pressed into one tile."""
        tile, side = self.spec.tile_px, self._side
        most = options.get("max_pixels", self.most_pixels(options))
        height, width = best_resolution(width_px, height_px, [p for p in self.pinpoints if math.prod(p) <= most])
        new_width, new_height = inner_size(width_px, height_px, width, height)
        left, top = (width - new_width) // 2, (height - new_height) // 2
        rows, columns = unpadded(width_px, height_px, side * (height // tile), side * (width // tile))
        num_patches = (1 + height * width // tile**2) * side**2
        overview = ImagePlan(tile, tile, "bicubic", tile, tile, (1, side, side), side**2, side**2)
        return ImagePlan(
            resize_width_px=new_width,
            resize_height_px=new_height,
            resample="bicubic",
            pad=Box(left, top, width - new_width - left, height - new_height - top),
            pad_value=0,
            canvas_width_px=width,
            canvas_height_px=height,
            grid=(1, rows, columns),
            num_patches=num_patches,
            num_tokens=self._count(rows, columns),
            view=overview,
        )

    def _video_plan(self, num_frames: int, width_px: int, height_px: int, fps: float, *, crops: bool) -> ImagePlan:
        """Frames of one tile each: the middle square, or the whole frame pressed into one."""
        self._check_video_processor()
        tile, side = self.spec.tile_px, -(-self._side // 2)
        width, height = tile, tile
        if crops:
            scaled = int(tile * max(width_px, height_px) / min(width_px, height_px))
            width, height = (tile, scaled) if width_px <= height_px else (scaled, tile)
        left, top = (width - tile) // 2, (height - tile) // 2
        return ImagePlan(
            resize_width_px=width,
            resize_height_px=height,
            resample="bicubic",
            crop=Box(left, top, left + tile, top + tile) if crops else None,
            canvas_width_px=tile,
            canvas_height_px=tile,
            grid=(num_frames, side, side),
            num_patches=num_frames * self._side**2,
            num_tokens=num_frames * side**2 + int(not crops),
            frames=num_frames,
            slots=num_frames,
            step_s=1 / fps,
        )

    def _check_video_processor(self) -> None:
        """Where it has a file of its own, its frames must become what the tower takes."""
        said, tile = self.files.video, self.spec.tile_px
        sizes = said.get("size") or {}
        alike = all(value == tile for value in sizes.values() if value is not None) and all(
            list(said.get(key) or want) == list(want)
            for key, want in (("image_mean", self.spec.image_mean), ("image_std", self.spec.image_std))
        )
        if not alike:
            raise MediaError(
                "This checkpoint's video processor has another size or other colours than its image processor, which "
                "Fovea does not run. Give the frames you mean as several images.",
                code="unsupported_value",
            )

    def _count(self, rows: int, columns: int) -> int:
        """Tokens of a picture with so many of its field's: the overview, and the field's lines with a newline each."""
        rows, columns = interpolated(rows, columns, self._side, self.spec.max_tiles)
        return self._side**2 + rows * (columns + 1)

    @property
    def _side(self) -> int:
        """Tokens along a side of a tile."""
        return self.spec.tile_px // self.spec.tower.patch_px

    def largest_picture(self, options: Mapping[str, Any]) -> int:
        """Newlines counted too: room for a picture's rows is kept by this number."""
        side, tile = self._side, self.spec.tile_px
        return max((1 + h * w // tile**2) * side**2 + h // tile * side for h, w in self.pinpoints)

    def token_grid(self, plan: ImagePlan) -> tuple[int, int]:
        """Of the field without its margins; the overview and the newlines are beside them."""
        return (plan.grid[1], plan.grid[2])

    def most_pixels(self, options: Mapping[str, Any]) -> int:
        return max(math.prod(pinpoint) for pinpoint in self.pinpoints)

    def budgeted(self, options: Mapping[str, Any], budget: PixelBudget | None) -> dict[str, Any]:
        """The fields that are small enough; the overview of one tile, which every picture has, is not counted."""
        if budget is None:
            return dict(options)
        self._refuse_least(budget)
        least = min(math.prod(pinpoint) for pinpoint in self.pinpoints)
        most = self._promised(budget, least, self.most_pixels(options))
        return {**options, "max_pixels": self._wished(budget, least, most)}

    def embeds_grid(self, num_rows: int, grid: tuple[int, int, int] | None) -> tuple[int, int, int]:
        found = Family.embeds_grid(self, num_rows, grid)
        if num_rows not in self._possible_counts():
            raise EmbeddingsError(f"Image embeddings have {num_rows} rows; no picture has so many with {self.name}.")
        return found

    def _possible_counts(self) -> set[int]:
        """Every number of tokens that a picture of some size has: margins lie above and below, or on both sides."""
        side, tile, counts = self._side, self.spec.tile_px, set[int]()
        for height, width in self.pinpoints:
            lines, cells = side * (height // tile), side * (width // tile)
            counts |= {self._count(lines - 2 * margin, cells) for margin in range(lines // 2 + 1)}
            counts |= {self._count(lines, cells - 2 * margin) for margin in range(cells // 2 + 1)}
        return counts

    def weight_map(self) -> WeightMap:
        known = super().weight_map()
        newline = {"image_newline": WeightSlot("encoder.projector.newline")}
        return replace(
            known, slots=known.slots | newline, renames=(*known.renames, ("model.image_newline", "image_newline"))
        )


def _pairs(value: Any) -> tuple[tuple[int, int], ...]:
    pairs = value if isinstance(value, list) else []
    numbers = [n for pair in pairs for n in (pair if isinstance(pair, list) and len(pair) == 2 else [None])]
    if not pairs or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
        raise UnsupportedModelError(f"'image_grid_pinpoints' is {value!r}; supported: a list of [height, width].")
    return tuple((height, width) for height, width in pairs)


def best_resolution(width_px: int, height_px: int, pinpoints: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """(height, width) of the field that shows most of the picture and, of equals, wastes least (the first of these)."""
    best, most_shown, least_wasted = (0, 0), 0, math.inf
    for height, width in pinpoints:
        scale = min(width / width_px, height / height_px)
        shown = min(int(width_px * scale) * int(height_px * scale), width_px * height_px)
        wasted = height * width - shown
        if shown > most_shown or (shown == most_shown and wasted < least_wasted):
            best, most_shown, least_wasted = (height, width), shown, wasted
    return best


def inner_size(width_px: int, height_px: int, width: int, height: int) -> tuple[int, int]:
    """Width and height of the picture scaled into a field of this size."""
    scale_w, scale_h = width / width_px, height / height_px
    if scale_w < scale_h:
        return width, min(math.ceil(height_px * scale_w), height)
    return min(math.ceil(width_px * scale_h), width), height


def unpadded(width_px: int, height_px: int, rows: int, columns: int) -> tuple[int, int]:
    """(rows, columns) of a field's tokens that show the picture: what is taken away is the same on both sides.

    It may be nothing at all that is left, of a picture much more elongated than its field.
    """
    if width_px / height_px > columns / rows:
        new_rows = int(round(height_px * (columns / width_px), 7))
        return rows - (rows - new_rows) // 2 * 2, columns
    new_columns = int(round(width_px * (rows / height_px), 7))
    return rows, columns - (columns - new_columns) // 2 * 2
