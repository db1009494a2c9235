"""Drawing in plain torch: how many of the largest are looked at first changes nothing, and often they are enough."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fovea.kernels import draw_reference
from fovea.kernels.draw_reference import Ways, draw

WIDTH = 40


def rows_and_ways(seed: int) -> tuple[Tensor, Ways]:
    """Rows with equals, banned values, and one likely token; every kind of way beside each other."""
    torch.manual_seed(seed)
    picks = [(t, m, k, p) for t in (1.0, 0.1) for m in (0.0, 0.2) for k in (0, 1, 5, WIDTH, 99) for p in (1, 0.7, 0.01)]
    logits = 3 * torch.randn(len(picks), WIDTH)
    logits[::3] = logits[::3].round()
    logits[1::4, 9:] = -torch.inf
    logits[2::5, 7] = 30.0
    logits[4] = 1.0
    numbers = torch.cat([torch.tensor(picks), torch.rand(len(picks), 1)], dim=1).double().T.contiguous()
    return logits, Ways(numbers, is_truncated=True)


@pytest.mark.parametrize("count", [1, 2, 6, WIDTH - 1])
@pytest.mark.parametrize("seed", range(4))
def test_a_row_s_token_does_not_depend_on_how_many_are_looked_at_first(
    monkeypatch: pytest.MonkeyPatch, seed: int, count: int
) -> None:
    logits, ways = rows_and_ways(seed)
    want = draw(logits, ways)  # all of them: there are fewer than CANDIDATES
    monkeypatch.setattr(draw_reference, "CANDIDATES", count)
    assert torch.equal(draw(logits, ways), want)
    for i in range(len(logits)):  # a row that few decide may have a neighbour that takes them all
        assert draw(logits[i : i + 1], Ways(ways.numbers[:, i : i + 1], is_truncated=True)) == want[i]


def test_few_of_a_large_vocabulary_are_ordered_where_they_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    plain = draw_reference._decided

    def told(logits: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor, count: int) -> Tensor | None:
        asked.append(count)
        return plain(logits, weights, top_k, top_p, count)

    monkeypatch.setattr(draw_reference, "_decided", told)
    logits = torch.randn(2, 5000)
    logits[:, 100] = 20.0
    for k, p, wanted in ((0, 0.9, [256]), (50, 1.0, [256]), (300, 1.0, [256, 5000]), (0, 0.99999999, [256, 5000])):
        asked.clear()
        numbers = torch.tensor([[1.0, 0.0, k, p, 0.5]] * 2, dtype=torch.float64).T.contiguous()
        draw(logits, Ways(numbers, is_truncated=True))
        assert asked == wanted
