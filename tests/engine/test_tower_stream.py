"""Where nothing runs beside anything, nothing has to be waited for. What a GPU does is in tests/gpu."""

from __future__ import annotations

import torch

from fovea.engine.tower_stream import TowerStream


def test_a_cpu_encodes_when_it_is_told_to() -> None:
    stream = TowerStream(torch.device("cpu"))
    with stream.encoding():
        made = torch.ones(3)
        stream.give(made)
    stream.join()
    assert made.tolist() == [1, 1, 1]
