"""From pictures to rows for the decoder: canvas -> patches -> tower -> projector, three layouts.

fixed        every picture is one tile of one size                        (LLaVA-1.5)
hd_crops     a picture is a global view and a grid of tiles               (Phi-3-vision)
merged_grid  a picture is a grid of patches, merged 2 x 2 after the tower  (Qwen2-VL)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fovea.families.spec import ModelSpec, ProjectorSpec
from fovea.models.vision import VisionTower


class Projector(nn.Module):
    """See ProjectorSpec."""

    def __init__(self, spec: ProjectorSpec, width: int) -> None:
        super().__init__()
        joined = width * spec.merge**2
        if spec.norm:
            self.norm = nn.LayerNorm(width, eps=1e-6)
        if spec.separators:
            self.line_separator = nn.Parameter(torch.empty(joined))
            self.view_separator = nn.Parameter(torch.empty(joined))
        self.first = nn.Linear(joined, spec.mid_width)
        self.second = nn.Linear(spec.mid_width, spec.out_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(x)))


class ImageEncoder(nn.Module):
    """Tower, projector and the pixel arithmetic between uint8 and patches.

    The forward of each layout takes uint8 canvases [height, width, 3] on the model's device and their grids, and gives
    rows [num_tokens, hidden] for each picture.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.tower = VisionTower(spec.tower)
        self.projector = Projector(spec.projector, spec.tower.width)

    @property
    def dtype(self) -> torch.dtype:
        return self.tower.dtype

    def normalise(self, canvas: Tensor) -> Tensor:
        """uint8 [height, width, 3] to float32 [3, height, width]: (x / 255 - mean) / std."""
        mean, std = (torch.tensor(v, device=canvas.device) for v in (self.spec.image_mean, self.spec.image_std))
        return ((canvas.float() / 255 - mean) / std).permute(2, 0, 1)

    def tile_features(self, tiles: Tensor) -> Tensor:
        """Normalised tiles [tiles, 3, side, side] to [tiles, patches, width]."""
        px = self.spec.tower.patch_px
        patches = tiles.unfold(2, px, px).unfold(3, px, px)  # [tiles, 3, rows, columns, px, px]
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return self.tower.tiles(patches.to(self.dtype))


class FixedEncoder(ImageEncoder):
    def forward(self, canvases: Sequence[Tensor], grids: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        tiles = torch.stack([self.normalise(canvas) for canvas in canvases])
        return list(self.projector(self.tile_features(tiles)))


class HDCropsEncoder(ImageEncoder):
    def forward(self, canvases: Sequence[Tensor], grids: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        tiles = torch.cat([self._views(self.normalise(canvas)) for canvas in canvases])
        features = self.tile_features(tiles).split([1 + rows * columns for _, rows, columns in grids])
        rows = [self._arrange(views, *grid[1:]) for views, grid in zip(features, grids, strict=True)]
        return list(self.projector(torch.cat(rows)).split([len(r) for r in rows]))

    def _views(self, picture: Tensor) -> Tensor:
        """A normalised picture [3, height, width] to its global view and tiles in rows [1 + tiles, 3, side, side]."""
        px = self.spec.tile_px
        view = F.interpolate(picture[None], size=(px, px), mode="bicubic", align_corners=False)
        tiles = picture.unfold(1, px, px).unfold(2, px, px).permute(1, 2, 0, 3, 4).flatten(0, 1)
        return torch.cat((view, tiles))

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


class MergedGridEncoder(ImageEncoder):
    def forward(self, canvases: Sequence[Tensor], grids: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        merge = self.spec.projector.merge
        patches = torch.cat([self._patches(self.normalise(canvas)) for canvas in canvases])
        places = torch.cat([self._places(*grid[1:], device=patches.device).repeat(grid[0], 1) for grid in grids])
        lengths = [rows * columns for frames, rows, columns in grids for _ in range(frames)]
        x = self.tower.packed(patches.to(self.dtype), lengths, places)
        merged = self.projector(self.projector.norm(x).unflatten(0, (-1, merge**2)).flatten(1))
        return list(merged.split([t * h * w // merge**2 for t, h, w in grids]))

    def _patches(self, picture: Tensor) -> Tensor:
        """[3, height, width] to [P, 3 * time * px * px], patches in merge blocks, a still repeated in time."""
        tower, merge = self.spec.tower, self.spec.projector.merge
        px = tower.patch_px
        blocks = picture.unfold(1, merge * px, merge * px).unfold(2, merge * px, merge * px)  # [3, R, C, m*px, m*px]
        cells = blocks.unflatten(4, (merge, px)).unflatten(3, (merge, px))  # [3, R, C, m, px, m, px]
        cells = cells.permute(1, 2, 3, 5, 0, 4, 6).flatten(0, 3)  # [P, 3, px, px]
        return cells[:, :, None].expand(-1, -1, tower.temporal_patch, -1, -1).flatten(1)

    def _places(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """(row, column) of each patch in merge-block order [rows * columns, 2]."""
        merge = self.spec.projector.merge
        places = torch.stack(
            torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"), -1
        )
        blocks = places.unflatten(1, (-1, merge)).unflatten(0, (-1, merge)).transpose(1, 2)  # [R, C, m, m, 2]
        return blocks.flatten(0, 3)


ENCODERS: dict[str, type[ImageEncoder]] = {
    "fixed": FixedEncoder,
    "hd_crops": HDCropsEncoder,
    "merged_grid": MergedGridEncoder,
}
