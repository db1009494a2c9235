"""From pictures to rows for the decoder: canvas -> patches -> tower -> projector, seven layouts.

fixed        every picture is one tile of one size                        (LLaVA-1.5, VipLLaVA)
pooled       the same, patches averaged in squares                         (Gemma 3, PaliGemma)
anyres       a picture is an overview and a field of tiles with margins   (LLaVA-NeXT, -OneVision)
hd_crops     a picture is a global view and a grid of tiles               (Phi-3-vision)
merged_grid  a picture is a grid of patches, merged 2 x 2 after the tower  (Qwen2-VL, -2.5-VL, -3-VL, Mistral 3)
tiles        a picture is a field of merged tiles and, of several, an overview  (InternVL, Idefics3, Aya Vision)
marked_tiles the same, overview first, with rows between that mark the layout  (Ovis2)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fovea import kernels as ops
from fovea.families.parts import interpolated
from fovea.families.spec import ModelSpec
from fovea.models.projectors import GatedMerger, PooledProjector, Projector, VisualVocabulary
from fovea.models.vision import VisionTower, axis_weights

KNOWN_GRIDS = 32  # sizes whose patches' places are kept: less than a megabyte each at the very most


class ImageEncoder(nn.Module):
    """Tower, projector and the pixel arithmetic between uint8 and patches.

    The forward of each layout takes uint8 canvases [height, width, 3] (of a video, where the layout has those, [frames,
    height, width, 3]) on the model's device and their grids, and gives rows [num_tokens, row_width] for each.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.tower = VisionTower(spec.tower)
        levels, width = spec.projector.deepstack, spec.tower.out_width
        made: type[nn.Module] = GatedMerger if spec.projector.gated else Projector
        if spec.encoder == "pooled":
            made = PooledProjector
        if spec.projector.vocabulary:
            made = VisualVocabulary
        self.projector: Any = made(spec.projector, width // (1 + levels))
        if levels:
            own = replace(spec.projector, norm_joined=True)
            self.deepstack = nn.ModuleList(Projector(own, spec.tower.width) for _ in range(levels))
        self._levels: tuple[Tensor, Tensor] | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.tower.dtype

    def levels(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """What each value of a channel becomes, (x / 255 - mean) / std: [3, 256] in float32 and in the model's type.

        A table, made once, because it has the same bits on every device; a GPU divides by multiplying.
        """
        if self._levels is None:
            values = torch.arange(256, dtype=torch.float32, device="cpu") / 255
            mean, std = (torch.tensor(v, device="cpu")[:, None] for v in (self.spec.image_mean, self.spec.image_std))
            exact = ((values - mean) / std).to(device)
            self._levels = exact, exact.to(self.dtype)
        return self._levels

    def cut(self, canvases: Sequence[Tensor], side: int) -> Tensor:
        """Normalised patches of all canvases in the model's type [P, values], in blocks of `side` by `side`."""
        tower, (_, levels) = self.spec.tower, self.levels(canvases[0].device)
        if any(canvas.dim() == 4 for canvas in canvases):
            return torch.cat([self._cut_one(canvas, side) for canvas in canvases])
        return ops.cut_patches(canvases, levels, tower.patch_px, side, tower.temporal_patch, self.tower.crew)

    def _cut_one(self, canvas: Tensor, side: int) -> Tensor:
        """A picture, or a video [frames, height, width, 3], whose frames take turns in the slots of a patch."""
        tower, (_, levels) = self.spec.tower, self.levels(canvas.device)
        if canvas.dim() == 3:
            return ops.cut_patches([canvas], levels, tower.patch_px, side, tower.temporal_patch, self.tower.crew)
        slots, crew = tower.temporal_patch, self.tower.crew
        tall = [canvas[slot::slots].flatten(0, 1).contiguous() for slot in range(slots)]  # one frame below the other
        parts = [
            ops.cut_patches([part], levels, tower.patch_px, side, 1, crew).unflatten(1, (3, 1, -1)) for part in tall
        ]
        return torch.cat(parts, dim=2).flatten(1)

    def tile_patches(self, canvases: Sequence[Tensor]) -> Tensor:
        """Canvases made of square tiles to [tiles, patches, values], each canvas's tiles in reading order."""
        tile, px = self.spec.tile_px, self.spec.tower.patch_px
        side = tile // px
        if side * px != tile:  # what is left of a tile beyond its last patch is not seen
            tiles = [canvas.unflatten(1, (-1, tile)).unflatten(0, (-1, tile)) for canvas in canvases]
            canvases = [t[:, : side * px, :, : side * px].flatten(2, 3).flatten(0, 1).contiguous() for t in tiles]
        return self.cut(canvases, side).unflatten(0, (-1, side**2))

    def video(self, frames: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Rows of some steps of a video's time: its frames [frames, height, width, 3] and their part of the grid."""
        (rows,) = self([frames], [grid])
        return rows

    def behind_video(self) -> list[Tensor]:
        """Rows that stand once behind all of a video's."""
        return []

    def tile_rows(self, canvases: Sequence[Tensor]) -> Tensor:
        """The same tiles through tower and projector: [tiles, patches, hidden]."""
        features = self.tower.tiles(self.tile_patches(canvases))
        rows: Tensor = self.projector(self.projector.norm(features) if self.spec.projector.norm else features)
        return rows


class FixedEncoder(ImageEncoder):
    def forward(self, canvases: Sequence[Tensor], grids: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        return list(self.tile_rows(canvases))


class PooledEncoder(ImageEncoder):
    """Every picture is one tile; the means of squares of `merge` by `merge` patches are projected."""

    def forward(self, canvases: Sequence[Tensor], grids: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        x, merge = self.tower.tiles(self.tile_patches(canvases)), self.spec.projector.merge
        if merge > 1:
            side = self.spec.tile_px // self.spec.tower.patch_px // merge
            x = x.unflatten(1, (side, merge, side, merge)).mean(dim=(2, 4)).flatten(1, 2)
        rows: Tensor = self.projector(x)
        return list(rows)


class AnyResEncoder(ImageEncoder):
    """A canvas is the field of tiles with the overview below; a grid is (1, rows, columns) of the field's tokens
    without the margins that filled it up (LLaVA-NeXT's "spatial_unpad"). An overview alone has no field."""

    def forward(self, canvases: Sequence[Tensor], grids: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        tile = self.spec.tile_px
        parts = [part for canvas in canvases for part in (canvas[-tile:, :tile].contiguous(), canvas[:-tile])]
        fields = [(canvas.shape[0] // tile - 1, canvas.shape[1] // tile) for canvas in canvases]
        views = self.tile_rows([part for part in parts if len(part)]).split([1 + r * c for r, c in fields])
        return [self._arrange(*one) for one in zip(views, fields, grids, strict=True)]

    def video(self, frames: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """One tile a frame, and its side halved: of patches by averages, or of rows by interpolating."""
        side = self.spec.tile_px // self.spec.tower.patch_px
        if self.spec.video_pool == "average":
            features = self.tower.tiles(self.tile_patches(list(frames))).unflatten(1, (side, side))
            fewer = F.avg_pool2d(features.permute(0, 3, 1, 2), 2)
            rows: Tensor = self.projector(fewer.flatten(2).transpose(1, 2))
            return rows.flatten(0, 1)
        every = self.tile_rows(list(frames)).unflatten(1, (side, side)).permute(0, 3, 1, 2)
        return F.interpolate(every, size=grid[1:], mode="bilinear").permute(0, 2, 3, 1).flatten(0, 2)

    def behind_video(self) -> list[Tensor]:
        newline = self.projector.newline
        assert isinstance(newline, Tensor), "every projector of this layout has one"
        return [newline[None]] if self.spec.video_pool == "bilinear" else []

    def _arrange(self, views: Tensor, field: tuple[int, int], grid: tuple[int, int, int]) -> Tensor:
        """The overview, then the field's lines without its margins, each ended by the newline."""
        if not field[0]:
            return torch.cat((views[0], self.projector.newline[None]))
        side = self.spec.tile_px // self.spec.tower.patch_px
        tokens = views[1:].unflatten(0, field).unflatten(2, (side, side)).transpose(1, 2)  # [R, side, C, side, hidden]
        tokens = tokens.flatten(2, 3).flatten(0, 1)
        _, rows, columns = grid
        top, left = (tokens.shape[0] - rows) // 2, (tokens.shape[1] - columns) // 2
        kept = tokens[top : top + rows, left : left + columns]
        fewer = interpolated(rows, columns, side, self.spec.max_tiles)
        if fewer != (rows, columns):
            kept = F.interpolate(kept.permute(2, 0, 1)[None], size=fewer, mode="bilinear")[0].permute(1, 2, 0)
        newlines = self.projector.newline.expand(fewer[0], 1, -1)
        return torch.cat((views[0], torch.cat((kept, newlines), dim=1).flatten(0, 1)))


class HDCropsEncoder(ImageEncoder):
    def forward(self, canvases: Sequence[Tensor], grids: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        views = torch.cat([self._views(canvas) for canvas in canvases])
        features = self.tower.tiles(views).split([1 + rows * columns for _, rows, columns in grids])
        rows = [self._arrange(tiles, *grid[1:]) for tiles, grid in zip(features, grids, strict=True)]
        return list(self.projector(torch.cat(rows)).split([len(r) for r in rows]))

    def _views(self, canvas: Tensor) -> Tensor:
        """Patches of the global view and of the tiles in rows [1 + tiles, patches, values]."""
        return torch.cat((self._global_view(canvas), self.tile_patches([canvas])))

    def _global_view(self, canvas: Tensor) -> Tensor:
        """The whole picture as one tile, scaled in float32 after it is normalised: patches [1, patches, values]."""
        (levels, _), tile, px = self.levels(canvas.device), self.spec.tile_px, self.spec.tower.patch_px
        picture = torch.stack([levels[c].take(canvas[:, :, c].long()) for c in range(3)])
        view = F.interpolate(picture[None], size=(tile, tile), mode="bicubic", align_corners=False)
        patches = view.unfold(2, px, px).unfold(3, px, px)  # [1, 3, rows, columns, px, px]
        return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2).to(self.dtype)

    def _arrange(self, views: Tensor, rows: int, columns: int) -> Tensor:
        """Tile lines, view separator, global lines; a separator ends every line ("sub_glb")."""
        side = self.spec.tile_px // self.spec.tower.patch_px // self.spec.projector.merge
        merged = self._merge(views, side)  # [views, side, side, merged width]
        grid = merged[1:].unflatten(0, (rows, columns)).transpose(1, 2).reshape(rows * side, columns * side, -1)
        parts = (self._with_separators(grid), self.projector.view_separator[None], self._with_separators(merged[0]))
        return torch.cat(parts)

    def _merge(self, views: Tensor, side: int) -> Tensor:
        """Join each 2 x 2 block of patches: [views, patches, width] to [views, side, side, 4 * width]."""
        merge = self.spec.projector.merge
        blocks = views.unflatten(1, (side, merge, side, merge)).transpose(2, 3)
        return blocks.flatten(3)

    def _with_separators(self, lines: Tensor) -> Tensor:
        """[lines, columns, width] to [lines * (columns + 1), width]."""
        separator = self.projector.line_separator.expand(lines.shape[0], 1, -1)
        return torch.cat((lines, separator), dim=1).flatten(0, 1)


class TilesEncoder(ImageEncoder):
    """A canvas is a field of tiles and, if these are several, the overview below; a grid is (1, rows, columns)."""

    def forward(self, canvases: Sequence[Tensor], grids: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        tile = self.spec.tile_px
        parts: list[Tensor] = []
        for canvas, (_, rows, columns) in zip(canvases, grids, strict=True):
            parts.append(canvas[: rows * tile])
            if rows * columns > 1:
                parts.append(canvas[-tile:, :tile].contiguous())
        merged = self._merge(self.tower.tiles(self.tile_patches(parts)))
        norm = self.spec.projector.norm
        views = self.projector(self.projector.norm(merged) if norm else merged)
        counts = [rows * columns + (rows * columns > 1) for _, rows, columns in grids]
        return [self._arrange(*one) for one in zip(views.split(counts), grids, strict=True)]

    def video(self, frames: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """A frame is one tile without an overview."""
        merged = self._merge(self.tower.tiles(self.tile_patches(list(frames))))
        rows: Tensor = self.projector(self.projector.norm(merged) if self.spec.projector.norm else merged)
        return rows.flatten(0, 1)

    def _merge(self, views: Tensor) -> Tensor:
        """Join blocks of patches: [views, patches, width] to [views, rows, merged width]."""
        merge = self.spec.projector.merge
        side = self.spec.tile_px // self.spec.tower.patch_px // merge
        blocks = views.unflatten(1, (side, merge, side, merge)).transpose(2, 3)
        return blocks.flatten(3).flatten(1, 2)

    def _arrange(self, views: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """The tiles in reading order, then the overview."""
        return views.flatten(0, 1)


class MarkedTilesEncoder(TilesEncoder):
    """Marks, in their table's order: start; behind the overview; between tiles of a line; between lines; end."""

    def _arrange(self, views: Tensor, grid: tuple[int, int, int]) -> Tensor:
        _, rows, columns = grid
        begin, after_overview, column_end, line_end, end = self.projector.marks.unsqueeze(1).unbind()
        if rows * columns == 1:
            return torch.cat((begin, views[0], after_overview, end))
        parts = [begin, views[-1], after_overview]
        for number, tile in enumerate(views[:-1], 1):
            parts.append(tile)
            if number % columns:
                parts.append(column_end)
            elif number < rows * columns:
                parts.append(line_end)
        return torch.cat((*parts, end))


@dataclass(frozen=True, slots=True)
class Frame:
    """How the patches of one size lie in the tower. Without windows in merge-block order; else window by window."""

    places: Tensor  # (row, column) of each patch in the tower's order [patches, 2]
    order: Tensor | None  # the merge blocks in the tower's order [blocks]; None: as they are cut
    windows: list[int]  # patches of each window
    axes: tuple[Tensor, Tensor] | None  # see VisionTower.stretched; None: no learned positions


class MergedGridEncoder(ImageEncoder):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._known_frames: dict[tuple[int, int], Frame] = {}

    def forward(self, canvases: Sequence[Tensor], grids: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        merge = self.spec.projector.merge
        patches = self.cut(canvases, merge)
        frames = [self._frame(*grid[1:], device=patches.device) for grid in grids for _ in range(grid[0])]
        order = _joined_order(frames)
        if order is not None:
            patches = patches.unflatten(0, (-1, merge**2))[order].flatten(0, 1)
        places, lengths = torch.cat([frame.places for frame in frames]), [len(frame.places) for frame in frames]
        windows, learned = [n for frame in frames for n in frame.windows], self._learned(frames)
        merged = self._merged(self.tower.packed(patches, lengths, places, windows, learned))
        if order is not None:
            merged = torch.empty_like(merged).index_copy_(0, order, merged)
        return list(merged.split([t * h * w // merge**2 for t, h, w in grids]))

    def _merged(self, x: Tensor) -> Tensor:
        """[P, out width] to rows [P / merge**2, row width]; with deepstack the last layer's patches come first."""
        patches = self.spec.projector.merge**2
        if not self.spec.projector.deepstack:
            return self.projector.merged(x, patches)
        projectors = [self.projector, *self.deepstack]
        parts = zip(projectors, x.chunk(len(projectors), dim=1), strict=True)
        return torch.cat([projector.merged(part, patches) for projector, part in parts], dim=1)

    def _learned(self, frames: Sequence[Frame]) -> Tensor | None:
        """Learned positions of all patches [P, width] in the model's type, where the tower has any."""
        merge, parts = self.spec.projector.merge, []
        for frame in frames:
            if frame.axes is None:
                return None
            blocks = _in_blocks(self.tower.stretched(*frame.axes).to(self.dtype), merge)
            parts.append((blocks if frame.order is None else blocks[frame.order]).flatten(0, 1))
        return torch.cat(parts)

    def _frame(self, rows: int, columns: int, device: torch.device) -> Frame:
        """Kept for the latest sizes."""
        frame = self._known_frames.pop((rows, columns), None)
        if frame is None:
            frame = self._make_frame(rows, columns, device)
        self._known_frames[rows, columns] = frame
        if len(self._known_frames) > KNOWN_GRIDS:
            del self._known_frames[next(iter(self._known_frames))]
        return frame

    def _make_frame(self, rows: int, columns: int, device: torch.device) -> Frame:
        merge, window, kind = self.spec.projector.merge, self.spec.tower.window, self.spec.tower.interpolation
        blocks = _in_blocks(_places(rows, columns, device), merge).int()
        side = math.isqrt(self.spec.tower.num_positions)
        axes = (axis_weights(rows, side, kind, device), axis_weights(columns, side, kind, device)) if kind else None
        if not window:
            return Frame(blocks.flatten(0, 1), None, [], axes)
        order = window_order(rows // merge, columns // merge, window, device)
        windows = [n * merge**2 for n in window_sizes(rows // merge, columns // merge, window)]
        return Frame(blocks[order].flatten(0, 1), order, windows, axes)


def _in_blocks(cells: Tensor, merge: int) -> Tensor:
    """A grid [rows, columns, n] in blocks of merge x merge cells: [blocks, merge * merge, n]."""
    blocks = cells.unflatten(1, (-1, merge)).unflatten(0, (-1, merge)).transpose(1, 2)
    return blocks.flatten(2, 3).flatten(0, 1)


def window_order(rows: int, columns: int, window: int, device: torch.device) -> Tensor:
    """The cells of a grid window by window, in reading order inside each: [rows * columns]. Edge windows are cut."""
    places = _places(rows, columns, device)
    (top, left), (row, column) = (places // window).unbind(-1), (places % window).unbind(-1)
    across = -(-columns // window)
    return (((top * across + left) * window + row) * window + column).flatten().argsort()


def window_sizes(rows: int, columns: int, window: int) -> list[int]:
    """Cells of each window, in the order of `window_order`."""
    heights, widths = ([min(window, side - i) for i in range(0, side, window)] for side in (rows, columns))
    return [height * width for height in heights for width in widths]


def _places(rows: int, columns: int, device: torch.device) -> Tensor:
    """[rows, columns, 2]: each cell's own (row, column)."""
    sides = (torch.arange(rows, device=device), torch.arange(columns, device=device))
    return torch.stack(torch.meshgrid(*sides, indexing="ij"), -1)


def _joined_order(frames: Sequence[Frame]) -> Tensor | None:
    """The order of all frames behind one another."""
    parts, start = [], 0
    for frame in frames:
        if frame.order is None:
            return None
        parts.append(frame.order + start)
        start += len(frame.order)
    return torch.cat(parts)


ENCODERS: dict[str, type[ImageEncoder]] = {
    "fixed": FixedEncoder,
    "pooled": PooledEncoder,
    "anyres": AnyResEncoder,
    "hd_crops": HDCropsEncoder,
    "merged_grid": MergedGridEncoder,
    "tiles": TilesEncoder,
    "marked_tiles": MarkedTilesEncoder,
}
