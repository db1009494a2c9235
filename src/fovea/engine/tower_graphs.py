"""CUDA graphs of a vision tower's blocks: one launch instead of some ten for each block.

The patches are padded to one of some dozen numbers; padded ones belong to no segment. A graph is made when its size is
wanted for the second time.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fovea.engine.graphs import Recorded, Recorder
from fovea.kernels.batch import SEGMENT_ROWS, Segments
from fovea.models.vision import VisionTower

# With more patches the device is busy for longer than the launches take.
PATCHES = (*range(256, 1024, 128), *range(1024, 4096, 256), *range(4096, 8193, 512))
WINDOW_ROWS = 32  # windows have this many patches at least, but for some
MORE_TILES = 32


class TowerGraphs:
    """Takes the place of VisionTower.run_blocks where a graph fits."""

    def __init__(self, tower: VisionTower, device: torch.device, recorder: Recorder, max_patches: int) -> None:
        self._tower, self._recorder, spec = tower, recorder, tower.spec
        self._sizes = [size for size in PATCHES if size <= max_patches] or [PATCHES[0]]
        most = self._sizes[-1]
        self._x = torch.zeros(most, spec.width, dtype=tower.dtype, device=device)
        self._angles: tuple[Tensor, Tensor] | None = None
        if spec.rope_theta is not None:
            half = spec.width // spec.num_heads // 2
            cos, sin = torch.zeros(2, most, half, device=device)
            self._angles = cos, sin
        whole, near = (most // rows + MORE_TILES for rows in (SEGMENT_ROWS, WINDOW_ROWS))
        self._whole = torch.zeros(whole, 3, dtype=torch.int32, device=device)
        self._near = torch.zeros(near, 3, dtype=torch.int32, device=device) if spec.window else self._whole
        self._graphs: dict[int, Recorded | None] = {}  # None: wanted once

    def __call__(self, x: Tensor, whole: Segments, near: Segments, rope: tuple[Tensor, Tensor] | None) -> Tensor | None:
        """What run_blocks gives for patches [P, width], until the next call; None: no graph fits."""
        count = len(x)
        size = next((size for size in self._sizes if size >= count), None)
        if size is None:
            return None
        assert whole.tiles is not None
        assert near.tiles is not None
        if len(whole.tiles) > self._room(self._whole, size) or len(near.tiles) > self._room(self._near, size):
            return None
        bodies = partial(self._rehearse, size), partial(self._step, size)
        recorded = self._recorder.when_wanted_again(self._graphs, size, *bodies)
        if recorded is None:
            return None
        self._x[:count].copy_(x)
        if self._angles is not None and rope is not None:
            for kept, given in zip(self._angles, rope, strict=True):
                kept[:count].copy_(given)
        _put(self._whole, whole.tiles)
        if self._near is not self._whole:
            _put(self._near, near.tiles)
        graph, made = recorded
        graph.replay()
        return made[:count]

    def rehearse(self) -> None:
        """Run the largest size once: libraries load what they multiply many patches with."""
        self._rehearse(self._sizes[-1])

    def _room(self, tiles: Tensor, size: int) -> int:
        rows = SEGMENT_ROWS if tiles is self._whole else WINDOW_ROWS
        return size // rows + MORE_TILES

    def _rehearse(self, size: int) -> None:
        """Run a size once as it will be captured, without any segment: those of the last run may lie beyond it."""
        self._whole.zero_()
        self._near.zero_()
        self._step(size)

    def _step(self, size: int) -> Tensor:
        whole, near = (Segments([], tiles[: self._room(tiles, size)]) for tiles in (self._whole, self._near))
        rope = None if self._angles is None else (self._angles[0][:size], self._angles[1][:size])
        return self._tower.run_blocks(self._x[:size], whole, near, rope)


def _put(into: Tensor, tiles: Tensor) -> None:
    into.zero_()
    into[: len(tiles)].copy_(tiles)
