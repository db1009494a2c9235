"""Batches for training: one number of pictures and one grid each, so everything is dense."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from tiny import phrases, tasks, tokenizer
from tiny.tasks import Maker, Sample

_T = TypeVar("_T")
DEFAULT_SYSTEM = "You are a helpful assistant."
# (rows, columns) of merged cells, 28 pixels each, and how often. The processor never gives fewer than 16 cells.
GRIDS: dict[tuple[int, int], float] = {
    (4, 4): 5, (4, 5): 2, (5, 4): 2, (4, 6): 2.5, (6, 4): 1.5, (3, 6): 2.5, (3, 7): 2, (3, 8): 2, (2, 8): 1.5,
    (2, 9): 1.5, (2, 10): 1, (5, 5): 2, (5, 6): 2, (6, 5): 1.2, (5, 7): 1.5, (4, 8): 1.5, (6, 6): 1.5,
    (5, 8): 1, (6, 8): 1, (8, 6): 0.8, (7, 7): 0.8, (8, 8): 0.6, (7, 10): 0.5, (10, 7): 0.4, (8, 10): 0.5,
    (10, 10): 0.4, (9, 11): 0.4, (6, 12): 0.4, (3, 12): 0.7, (2, 12): 0.5,
}  # fmt: skip
PAIR_GRIDS = {(4, 4): 4.0, (4, 5): 2, (5, 4): 1, (5, 5): 1.5, (4, 6): 1, (6, 6): 0.7}
MOTION_GRIDS = {(4, 4): 4.0, (4, 5): 1.5, (5, 4): 1, (5, 5): 0.7}
FRAMES = (4, 4, 5, 6, 8)
# Batches hold samples of about one length: reading, or several questions about one picture.
MIX: dict[str, dict[str, float]] = {
    "read": {"text": 0.68, "digits": 0.31, "blank": 0.01},
    "scene": {"scene": 0.69, "easy-vqa": 0.25, "describe": 0.06},
}
GROUPS = {"read": 0.31, "scene": 0.42, "pair": 0.18, "motion": 0.06, "talk": 0.03}
MAKERS: dict[str, Maker] = {
    "text": tasks.text_sample,
    "scene": tasks.scene_sample,
    "digits": tasks.digits_sample,
    "easy-vqa": tasks.easy_vqa_sample,
    "describe": tasks.describe_sample,
    "blank": tasks.blank_sample,
}


@dataclass(frozen=True)
class Bucket:
    """What all samples of a batch share."""

    group: str
    pictures: int
    grid: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        return self.grid[1] * 28, self.grid[0] * 28

    def batch(self, tokens: int) -> int:
        """So many samples that each batch costs about the same."""
        return max(4, tokens // (self.pictures * (self.grid[0] * self.grid[1] + 2) + 64))


def _pick(rng: Random, weights: Mapping[_T, float]) -> _T:
    return rng.choices(list(weights), list(weights.values()))[0]


def random_bucket(rng: Random, groups: dict[str, float]) -> Bucket:
    group = _pick(rng, groups)
    if group in MIX:
        flat_too = group == "read"
        return Bucket(group, 1, _pick(rng, GRIDS if flat_too else {g: w for g, w in GRIDS.items() if g[0] > 2}))
    if group == "pair":
        return Bucket(group, 2, _pick(rng, PAIR_GRIDS))
    if group == "motion":
        frames = rng.choice(FRAMES)
        return Bucket(group, frames, (4, 4) if frames > 6 else _pick(rng, MOTION_GRIDS))
    return Bucket("talk", 0, (0, 0))


def make_sample(rng: Random, bucket: Bucket, mix: dict[str, dict[str, float]], held_out: bool = False) -> Sample:
    if bucket.group == "motion":
        return tasks.motion_sample(rng, bucket.size, held_out, bucket.pictures)
    if bucket.group not in mix:
        return (tasks.pair_sample if bucket.group == "pair" else tasks.talk_sample)(rng, bucket.size, held_out)
    name = _pick(rng, mix[bucket.group])
    if name == "easy-vqa" and bucket.grid[0] != bucket.grid[1]:
        name = "scene"
    return MAKERS[name](rng, bucket.size, held_out)


@cache
def _special(name: str) -> int:
    return int(tokenizer.load().get_vocab()[name])


def _ids(text: str) -> list[int]:
    return list(tokenizer.load().encode(text, add_special_tokens=False).ids)


_fixed = cache(_ids)


def prompt_ids(system: str, question: str, pictures: int, cells: int, first: bool = True) -> list[int]:
    """Exactly what the chat template gives for one question, with each picture's placeholder repeated."""
    vision = [_special("<|vision_start|>"), *[_special("<|image_pad|>")] * cells, _special("<|vision_end|>")] * pictures
    words = _ids(question)
    user = [*vision, *words] if first else [*words, *vision]
    head = _fixed(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n")
    return [*head, *user, *_fixed("<|im_end|>\n<|im_start|>assistant\n")]


def conversation(rng: Random, sample: Sample, cells: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of the whole conversation, and the spans of the answers with their end marks."""
    system = DEFAULT_SYSTEM if rng.random() < 0.7 else rng.choice(phrases.SYSTEM_PROMPTS)
    ids: list[int] = []
    spans = []
    for i, (question, answer) in enumerate(sample.turns):
        if i == 0:
            ids = prompt_ids(system, question, len(sample.pictures), cells, first=rng.random() < 0.88)
        else:
            ids += [*_fixed("\n<|im_start|>user\n"), *_ids(question), *_fixed("<|im_end|>\n<|im_start|>assistant\n")]
        start = len(ids)
        ids += [*_ids(answer), _special("<|im_end|>")]
        spans.append((start, len(ids)))
    return ids, spans


def positions_for(ids: list[int], grid: tuple[int, int]) -> np.ndarray:
    """M-RoPE positions (3, length): text counts on, a picture spans rows and columns from where it starts."""
    cells = grid[0] * grid[1]
    out = np.empty((3, len(ids)), np.int64)
    place, i, pad = 0, 0, _special("<|image_pad|>")
    rows, columns = np.divmod(np.arange(cells), max(1, grid[1]))
    while i < len(ids):
        if ids[i] == pad:
            out[:, i : i + cells] = place + np.stack((np.zeros(cells, np.int64), rows, columns))
            place, i = place + max(grid), i + cells
        else:
            out[:, i] = place
            place, i = place + 1, i + 1
    return out


def collate(rng: Random, samples: list[Sample], bucket: Bucket) -> dict[str, Tensor]:
    cells = bucket.grid[0] * bucket.grid[1]
    rows = [conversation(rng, s, cells) for s in samples]
    length = -(-max(len(ids) for ids, _ in rows) // 16) * 16
    ids = np.full((len(rows), length), _special("<|endoftext|>"), np.int64)
    positions = np.zeros((3, len(rows), length), np.int64)
    where: list[int] = []
    target: list[int] = []
    weight: list[float] = []
    for r, (row, spans) in enumerate(rows):
        ids[r, : len(row)] = row
        positions[:, r, : len(row)] = positions_for(row, bucket.grid)
        for start, end in spans:
            # The hidden state one before a token predicts it. Long answers count more, but not in proportion.
            where += range(r * length + start - 1, r * length + end - 1)
            target += row[start:end]
            weight += [(end - start) ** -0.5] * (end - start)
    batch = {
        "ids": torch.from_numpy(ids),
        "positions": torch.from_numpy(positions),
        "where": torch.tensor(where),
        "target": torch.tensor(target),
        "weight": torch.tensor(weight),
        "places": torch.from_numpy(np.flatnonzero(ids == _special("<|image_pad|>"))),
    }
    if bucket.pictures:
        worn = [tasks.worn(rng, p) for s in samples for p in s.pictures]
        batch["pictures"] = torch.from_numpy(np.stack([np.asarray(p) for p in worn]))
    return batch


class Stream(IterableDataset[dict[str, Tensor]]):
    """An endless stream of training batches, different in each worker and each run's seed."""

    def __init__(self, seed: int, tokens: int, mix: dict[str, dict[str, float]], groups: dict[str, float]) -> None:
        self.seed, self.tokens, self.mix, self.groups = seed, tokens, mix, groups

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = get_worker_info()
        rng = Random(f"{self.seed}/{info.id if info else 0}")
        torch.set_num_threads(1)
        while True:
            bucket = random_bucket(rng, self.groups)
            count = bucket.batch(self.tokens)
            samples = [make_sample(rng, bucket, self.mix) for _ in range(2 * count)]
            # Two batches, of the shorter and the longer ones: less padding.
            samples.sort(key=lambda s: sum(len(q) + len(a) for q, a in s.turns))
            for half in (samples[:count], samples[count:]):
                yield collate(rng, half, bucket)
