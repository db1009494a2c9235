"""What a graph of a tower is told is what the tower would see, padded by patches of no segment."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fovea.engine.graphs import Recorded, Recorder
from fovea.engine.tower_graphs import TowerGraphs
from fovea.kernels.batch import Segments, segment_tiles

CPU = torch.device("cpu")
WIDTH, HEADS = 8, 2


class FakeRecorder(Recorder):
    """Its graphs double whatever the tower is given."""

    def __init__(self) -> None:
        self.is_on = True

    def record(self, body: Callable[[], Tensor]) -> Recorded:
        made = body()
        graph: Any = SimpleNamespace(replay=lambda: made.copy_(body()))
        return graph, made


def doubled(x: Tensor, whole: Segments, near: Segments, rope: tuple[Tensor, Tensor]) -> Tensor:
    assert whole.tiles is not None
    assert int(whole.tiles.max()) <= len(x), "a kernel would write behind its memory"
    return 2 * x


@pytest.fixture
def graphs() -> TowerGraphs:
    tower: Any = SimpleNamespace(
        spec=SimpleNamespace(width=WIDTH, num_heads=HEADS, rope_theta=1e4, window=None),
        dtype=torch.float32,
        run_blocks=doubled,
    )
    return TowerGraphs(tower, CPU, FakeRecorder(), 1024)


def ask(graphs: TowerGraphs, lengths: list[int]) -> tuple[Tensor, Tensor | None]:
    count = sum(lengths)
    x, angles = torch.randn(count, WIDTH), torch.randn(count, WIDTH // HEADS // 2)
    whole = Segments(lengths, torch.from_numpy(segment_tiles(lengths)))
    return x, graphs(x, whole, whole, (angles, angles))


def test_a_size_is_recorded_when_it_comes_again_and_gives_the_rows_of_its_patches(graphs: TowerGraphs) -> None:
    assert ask(graphs, [300])[1] is None
    x, made = ask(graphs, [200, 150])
    assert made is not None
    torch.testing.assert_close(made, 2 * x)


def test_tiles_of_a_larger_picture_before_are_not_left_behind(graphs: TowerGraphs) -> None:
    for lengths in ([900], [900], [100, 30], [100, 30], [900], [100, 30]):
        ask(graphs, lengths)
    assert graphs._whole[:3].tolist() == [[0, 0, 100], [100, 100, 130], [0, 0, 0]]
    assert not graphs._whole[2:].any()


def test_too_many_patches_or_segments_run_without(graphs: TowerGraphs) -> None:
    for lengths in ([1025], [1] * 60):
        assert [ask(graphs, lengths)[1] for _ in range(3)] == [None] * 3
