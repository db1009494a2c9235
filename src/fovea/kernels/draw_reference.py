"""Drawing a token from each row of logits, in plain torch: what the kernel in drawing.py does without a sort.

A row's weights relative to its largest are whole numbers (32-bit fixed point), whose sums are exact in any order. What
stays is decided by value, so equal logits stand or fall together. One uniform number picks from the running sum of what
stays, in the order of the vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

WEIGHT_SCALE = 2.0**32
CANDIDATES = 256  # of a row, among which top_k and top_p nearly always end


class Ways(NamedTuple):
    """How to draw from rows: `numbers` [5, R] float64 are 1 / temperature, min_p, top_k (0: all), top_p and a number of
    [0, 1) drawn uniformly.

    `is_truncated`: whether some have top_k or top_p.
    """

    numbers: Tensor
    is_truncated: bool


def draw(logits: Tensor, ways: Ways) -> Tensor:
    """Tokens [R] int64 from rows of float32 logits [R, V]; anything where a row has no finite largest value.

    Of the weights exp((x - largest) / temperature), those below min_p are left out; then all but the top_k largest
    (and their equals); then, from the largest on, what comes after top_p of the sum is reached.
    """
    sharpness, min_p, top_k, top_p, uniform = (column[:, None] for column in ways.numbers)
    best = logits.amax(dim=-1, keepdim=True)  # [R, 1]
    weights = ((logits - best) * sharpness.float()).exp().nan_to_num_(0.0)  # [R, V], 1 for the likeliest
    weights.masked_fill_(weights < min_p.float(), 0.0)
    mass = _truncated(logits, weights, top_k, top_p) if ways.is_truncated else _mass(weights)
    running = mass.cumsum(dim=-1)
    total = running[:, -1:]
    target = torch.minimum((total.double() * uniform).long(), total - 1)
    return torch.searchsorted(running, target, right=True).clamp_(0, logits.shape[1] - 1)[:, 0]


def _truncated(logits: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The mass of what top_k and top_p [R, 1] leave [R, V]. Ordering everything takes ten times as long as a few."""
    few, every = min(CANDIDATES, logits.shape[1]), logits.shape[1]
    mass = _decided(logits, weights, top_k, top_p, few)
    if mass is None:
        mass = _decided(logits, weights, top_k, top_p, every)
    assert mass is not None, "all of them decide"
    return mass


def _decided(logits: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor, count: int) -> Tensor | None:
    """The same from the `count` largest logits of each row; None if some row goes beyond them."""
    last = top_k.long().clamp(max=logits.shape[1]) - 1
    if bool((last >= count).any()):
        return None
    is_all = count == logits.shape[1]
    ordered, order = logits.sort(dim=-1, descending=True) if is_all else logits.topk(count, dim=-1)  # [R, count]
    mass = _mass(weights.masked_fill((logits < ordered.gather(1, last.clamp(min=0))) & (last >= 0), 0.0))
    summed = mass.gather(1, order).cumsum(dim=-1)
    reached, is_cut = summed.double() >= mass.sum(dim=-1, keepdim=True).double() * top_p, top_p < 1
    if bool((is_cut & ~reached[:, -1:]).any()):
        return None
    least = ordered.gather(1, reached.int().argmax(dim=-1, keepdim=True))
    return mass.masked_fill_((logits < least) & is_cut, 0)


def _mass(weights: Tensor) -> Tensor:
    return (weights * WEIGHT_SCALE).long()
