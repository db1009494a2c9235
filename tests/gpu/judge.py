"""transformers on the card, in float64 as the truth and in the model's type as the yardstick.

Tokens are forced: each position is judged by what the reference says after the same tokens, so one early difference
does not spoil the rest.

The tolerance. In float32 the likeliest token is the true one at 99 % of the positions at least, and logits are off by
1e-3 at most (root mean square; 1e-5 is usual). In 16 bits the error of logits is at most 1.5 times transformers' own,
and the likeliest token is as often the true one as transformers' is, but for chance. 99 % would be no fair bound there:
random weights leave many positions undecided, and transformers itself has 86 to 98 % in bfloat16 on these checkpoints.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText

from fovea.core.types import RequestOutput
from tests.oracle import phi3v
from tests.oracle import reference as oracle

CARD = torch.device("cuda")


MOST_ERROR = 1.5  # times the yardstick's
MOST_FLOAT32_ERROR = 1e-3
LEAST_FLOAT32_AGREEMENT = 0.99
CHANCE = 3.0  # standard deviations


@dataclass(frozen=True)
class Score:
    """`agreement`: share of positions with the true likeliest token. `error`: root mean square, in logits."""

    agreement: float
    error: float
    positions: int


def check(what: str, dtype: str, mine: Score, yardstick: Score) -> None:
    """Raises AssertionError beyond the tolerance. Prints both, for those who want to know by how much."""
    print(f"{what} {dtype}: ours {mine}, transformers {yardstick}")  # noqa: T201
    if dtype == "float32":
        assert mine.error <= MOST_FLOAT32_ERROR
        assert mine.agreement >= LEAST_FLOAT32_AGREEMENT
        return
    assert mine.error <= MOST_ERROR * yardstick.error
    deviation = (2 * yardstick.agreement * (1 - yardstick.agreement) / yardstick.positions) ** 0.5
    assert mine.agreement >= yardstick.agreement - max(0.01, CHANCE * deviation)


class Judge:
    """One checkpoint in one type; `logits` are of all positions [T, V], in float64."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._is_phi = oracle.model_type(folder) == "phi3_v"
        self._model: Any
        if self._is_phi:
            loaded = phi3v.load(folder)
            clip = _on_card(loaded.clip, dtype)
            self._model = dataclasses.replace(
                loaded,
                clip=lambda crops, **options: clip(crops.to(CARD, dtype), **options),
                decoder=_on_card(loaded.decoder, dtype),
                vision={name: weight.to(CARD, dtype) for name, weight in loaded.vision.items()},
            )
        else:
            self._processor = oracle.load(folder)[1].image_processor
            self._model = _on_card(AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32), dtype)

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int], images: Sequence[Image.Image]) -> Tensor:
        made: Tensor = self._phi(list(token_ids), images) if self._is_phi else self._usual(list(token_ids), images)
        return made.double()

    def _usual(self, token_ids: list[int], images: Sequence[Image.Image]) -> Tensor:
        ids = torch.tensor([token_ids], device=CARD)
        inputs: dict[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if images:
            inputs |= {k: v.to(CARD) for k, v in self._processor(images=list(images), return_tensors="pt").items()}
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = (ids == self._model.config.image_token_id).long()
        logits: Tensor = self._model(**inputs, use_cache=False).logits[0]
        return logits

    def _phi(self, token_ids: list[int], images: Sequence[Image.Image]) -> Tensor:
        with CARD:
            features = [phi3v._features(self._model, image) for image in images]
            return phi3v._Forward(self._model)(phi3v._embeds(self._model, token_ids, features))


def _on_card(module: Any, dtype: torch.dtype) -> Any:
    """A copy with parameters in `dtype`; buffers (rotary frequencies) stay float32, as from_pretrained leaves them."""
    moved = copy.deepcopy(module).to(CARD).eval()
    for parameter in moved.parameters():
        parameter.data = parameter.data.to(dtype)
    return moved


def score(pairs: Iterable[tuple[Tensor, Tensor]]) -> Score:
    """Of (logits, true logits) for each prompt, [T, V] both."""
    right = count = 0
    squares = values = 0.0
    for ours, truth in pairs:
        ours = ours.to(truth)
        right += int((ours.argmax(-1) == truth.argmax(-1)).sum())
        count += len(truth)
        squares += float((ours - truth).square().sum())
        values += truth.numel()
    return Score(right / count, (squares / values) ** 0.5, count)


def score_answers(
    outputs: Sequence[RequestOutput], pictures: Sequence[Sequence[Image.Image]], truth: Judge, yardstick: Judge
) -> tuple[Score, Score]:
    """Of greedy answers with log-probabilities: ours, and the yardstick's after the same tokens.

    The error is of the given token's log-probability.
    """
    ours, theirs = [], []
    for output, images in zip(outputs, pictures, strict=True):
        (completion,) = output.outputs
        assert completion.logprobs is not None
        tokens = list(completion.token_ids)
        said = [entry[token].logprob for token, entry in zip(tokens, completion.logprobs, strict=True)]
        ids, rows = [*output.prompt_token_ids, *tokens[:-1]], torch.tensor(tokens, device=CARD)
        true, other = (judge.logits(ids, images)[-len(tokens) :] for judge in (truth, yardstick))
        best, wanted, got = true.argmax(-1), _chosen(true, rows), _chosen(other, rows)
        ours.append((rows == best, torch.tensor(said, device=CARD, dtype=torch.float64) - wanted))
        theirs.append((other.argmax(-1) == best, got - wanted))
    return _summed(ours), _summed(theirs)


def _chosen(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]


def _summed(parts: list[tuple[Tensor, Tensor]]) -> Score:
    right, errors = (torch.cat(column) for column in zip(*parts, strict=True))
    return Score(float(right.double().mean()), float(errors.square().mean().sqrt()), len(right))
