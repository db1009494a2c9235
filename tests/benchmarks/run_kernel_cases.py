"""Every case of the kernel benchmarks once, at sizes for Triton's interpreter. Run as a program: prints "ran N"."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from benchmarks.kernels import decoder, fp8, measure, shapes, tower

GROUPED = dataclasses.replace(
    shapes.MODELS[0],
    hidden=32, mlp=48, heads=2, kv_heads=1, head_dim=16, vocab=40, tower_width=32, tower_heads=2, tower_mlp=64,
    segments=((20,), (9, 9), (5, 17)), picture=(28, 28),
)  # fmt: skip
ALONE = dataclasses.replace(GROUPED, kv_heads=2, tower_rotates=False, segments=((17, 17),), resample="bilinear")
DIFFERENT = (
    "paged_decode",
    "paged_decode fp8",
    "common_beginning",
    "paged_prefill",
    "segment_attention",
    "rotary",
    "cut_patches",
)


def main() -> None:
    shapes.CARD, shapes.DTYPE, measure.MOST_SETS = torch.device("cpu"), torch.float32, 2
    decoder.ROWS, decoder.DECODE_ROWS, decoder.KEYS = (1, 20), (2,), 20  # type: ignore[assignment]
    decoder.MANY_ROWS, tower.FEWER_PATCHES = (20,), (20,)  # type: ignore[assignment]
    decoder.PREFILLS = {"2 x 9": ([9, 9], [9, 9]), "2 x 3 over 20": ([3, 3], [23, 23])}
    fp8.ROWS = (1, 20)  # type: ignore[assignment]
    tower.PATCHES, tower.PICTURE, tower.TILE_PX = 5, (20, 12), 28
    torch.manual_seed(0)
    ran = 0
    with torch.inference_mode():
        for case in (*_cases(GROUPED), *(case for case in _cases(ALONE) if case.kernel in DIFFERENT)):
            run(case)
            ran += 1
    print(f"ran {ran}")  # noqa: T201


def _cases(small: shapes.Shapes) -> Iterator[measure.Case]:
    yield from decoder.cases(small)
    yield from fp8.cases(small)
    yield from tower.cases(small)


def run(case: measure.Case) -> None:
    """Both sets of inputs through every arm; the first of the others must agree."""
    arms = case.build()
    for i in range(arms.sets):
        ours = arms.ours(i)
        others = [run(i) for name, run in arms.others.items() if name not in tower.BACKENDS]
        if arms.is_pure and others:
            worst = measure.difference(ours, others[0])
            assert worst < 1e-4, f"{case.kernel}, {case.size}: {worst}"


if __name__ == "__main__":
    main()
