"""A fast check of all tasks during training, with the dense forward pass. The real evaluation is tiny/evaluate.py."""

from collections.abc import Iterator
from functools import partial
from random import Random

import numpy as np
import torch
from torch import Tensor

from tiny import batches, tasks, tokenizer
from tiny.batches import MAKERS, Bucket
from tiny.model import Dense, normalised
from tiny.scoring import CHARACTER_TASKS, character_error, is_right
from tiny.splits import HELD_OUT_FONT
from tiny.tasks import Maker, Sample

_SMALL, _WIDE, _LARGE = (4, 6), (3, 8), (7, 8)
PLAN: list[tuple[str, Maker, int, tuple[int, int]]] = [
    *[("scene", MAKERS["scene"], 1, g) for g in ((4, 4), _SMALL, _LARGE)],
    *[("describe", MAKERS["describe"], 1, g) for g in (_SMALL, _LARGE)],
    ("easy-vqa", MAKERS["easy-vqa"], 1, (4, 4)),
    *[("text", MAKERS["text"], 1, g) for g in (_SMALL, _WIDE, (2, 9), _LARGE)],
    ("text-held-out-font", partial(tasks.text_sample, font=HELD_OUT_FONT), 1, _SMALL),
    *[("digits", MAKERS["digits"], 1, g) for g in (_SMALL, _WIDE, _LARGE)],
    *[("pair", tasks.pair_sample, 2, g) for g in ((4, 4), (5, 5))],
    *[("motion", partial(tasks.motion_sample, frames=n), n, (4, 4)) for n in (4, 8)],
    ("talk", tasks.talk_sample, 0, (0, 0)),
]


@torch.no_grad()
def answers(dense: Dense, samples: list[Sample], bucket: Bucket, device: torch.device, longest: int = 36) -> list[str]:
    """Greedy answers to each sample's first question, the whole sequence recomputed for each token."""
    cells = bucket.grid[0] * bucket.grid[1]
    rows = [batches.prompt_ids(batches.DEFAULT_SYSTEM, s.turns[0][0], bucket.pictures, cells) for s in samples]
    length = max(map(len, rows)) + longest
    ids, positions = np.zeros((len(rows), length), np.int64), np.zeros((3, len(rows), length), np.int64)
    end = tokenizer.load().token_to_id("<|im_end|>")
    for r, row in enumerate(rows):
        ids[r, : len(row)] = row
        known = batches.positions_for(row, bucket.grid)
        positions[:, r, : len(row)] = known
        positions[:, r, len(row) :] = known[0, -1] + 1 + np.arange(length - len(row))
    places = torch.from_numpy(np.flatnonzero(ids == tokenizer.load().token_to_id("<|image_pad|>"))).to(device)
    ends = torch.tensor([len(r) for r in rows], device=device)
    tokens, places_in = torch.from_numpy(ids).to(device), torch.arange(len(rows), device=device)
    at = torch.from_numpy(positions).to(device)
    seen = None
    if bucket.pictures:
        fitted = [p if p.size == bucket.size else p.resize(bucket.size, 3) for s in samples for p in s.pictures]
        stacked = np.stack([np.asarray(p) for p in fitted])
        seen = dense.see(normalised(torch.from_numpy(stacked).to(device)))
    done = torch.zeros(len(rows), dtype=torch.bool, device=device)
    for step in range(longest):
        hidden = dense.read(tokens, at, seen, places)
        best: Tensor = dense.logits(hidden[places_in, ends - 1 + step]).argmax(-1)
        tokens[places_in, ends + step] = best
        done |= best == end
        if bool(done.all()):
            break
    out = tokens.cpu().tolist()
    replies = [row[len(r) :] for row, r in zip(out, rows)]
    return [tokenizer.load().decode(t[: t.index(end)] if end in t else t) for t in replies]


def report(dense: Dense, device: torch.device, count: int, blank_control: bool) -> Iterator[str]:
    """One line for each task and grid, with some wrong answers."""
    for number, (task, maker, pictures, grid) in enumerate(PLAN):
        rng = Random(f"quick/{number}")
        bucket = Bucket(task, pictures, grid)
        samples = [maker(rng, bucket.size, True) for _ in range(count)]
        samples = [Sample(s.pictures, s.turns[:1], s.key, s.truth) for s in samples]
        autocast = torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda")
        with autocast:
            got = answers(dense, samples, bucket, device)
            line = f"{task} {grid} x{pictures}: {_score(task, got, samples)}"
            if blank_control and pictures:
                swapped = [
                    Sample(b.pictures, a.turns, a.key, a.truth) for a, b in zip(samples, samples[1:] + samples[:1])
                ]
                line += f" | wrong picture: {_score(task, answers(dense, swapped, bucket, device), samples)}"
        yield line
        wrong = [(s.turns[0], g) for s, g in zip(samples, got) if not is_right(task, g, s.turns[0][1], s.truth)]
        for (question, expected), given in wrong[:6]:
            yield f"    {question!r} expected {expected!r} got {given!r}"


def _score(task: str, got: list[str], samples: list[Sample]) -> str:
    expected = [s.turns[0][1] for s in samples]
    right = sum(is_right(task, g, e, s.truth) for g, e, s in zip(got, expected, samples)) / len(samples)
    error = f" CER {character_error(got, expected):.3f}" if task in CHARACTER_TASKS else ""
    return f"{right:.3f}{error}"
