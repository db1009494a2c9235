"""Questions about pictures that nobody has seen before, made before a run by processes of their own.

Each picture is random, so no cache can know it: 32 to 1,024 pixels a side (small ones as likely as large ones by
factor), PNG and JPEG by turns. What was made lies in files, so that it costs the run nothing but reading.
"""

from __future__ import annotations

import base64
import io
import json
import math
import mmap
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

MIN_SIDE_PX, MAX_SIDE_PX = 32, 1024
QUESTIONS = ("What is in this picture?", "Which colour is most of it?", "Describe it.", "What do you see here?")
WORDS = ("red", "green", "small", "large", "left", "right", "above", "below", "bright", "dark", "round", "square")

Mix = Mapping[int, float]  # number of pictures: how often
ALL_PICTURES: Mix = {1: 1.0}
HALF_PICTURES: Mix = {0: 0.5, 1: 0.5}


@dataclass(frozen=True, slots=True)
class Asked:
    """The beginning of a body, up to its messages."""

    head: memoryview
    num_pictures: int


class Questions:
    """Iterating takes each once; `left` says how many there are still."""

    def __init__(self, items: Sequence[Asked]) -> None:
        self._items = items
        self._next = 0

    @property
    def left(self) -> int:
        return len(self._items) - self._next

    def __iter__(self) -> Iterator[Asked]:
        return self

    def __next__(self) -> Asked:
        if not self.left:
            raise StopIteration
        self._next += 1
        return self._items[self._next - 1]

    def take(self, count: int) -> list[Asked]:
        return [next(self) for _ in range(count)]


def make_questions(count: int, mix: Mix, seed: int) -> Questions:
    """So many different ones. Takes a few milliseconds of every core for each."""
    num_processes = max(1, min(len(os.sched_getaffinity(0)), count // 64))
    shares = [count * i // num_processes for i in range(num_processes + 1)]
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool,
    ):
        jobs = [
            pool.submit(_write, Path(folder) / str(i), high - low, dict(mix), f"{seed}/{i}")
            for i, (low, high) in enumerate(pairwise(shares))
        ]
        made = [_read(Path(folder) / str(i), job.result()) for i, job in enumerate(jobs)]
    return Questions([asked for part in zip_all(made) for asked in part])


def zip_all(parts: Sequence[Sequence[Asked]]) -> Iterator[Sequence[Asked]]:
    """By turns of each part, so that every stretch of the result is like every other."""
    for i in range(max(map(len, parts))):
        yield [part[i] for part in parts if i < len(part)]


def _write(path: Path, count: int, mix: Mix, seed: str) -> list[tuple[int, int]]:
    """(bytes, pictures) of each."""
    rng = random.Random(seed)
    kinds = rng.choices(list(mix), list(mix.values()), k=count)
    sizes = []
    with path.open("wb") as file:
        for number, num_pictures in enumerate(kinds):
            sizes.append((file.write(question(rng, num_pictures, number)), num_pictures))
    return sizes


def _read(path: Path, sizes: Sequence[tuple[int, int]]) -> list[Asked]:
    """Mapped: the file may be deleted, and its pages are not ours to count."""
    with path.open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    ends = list(accumulate((size for size, _ in sizes), initial=0))
    return [Asked(view[low:high], kind) for (low, high), (_, kind) in zip(pairwise(ends), sizes, strict=True)]


def question(rng: random.Random, num_pictures: int, number: int = 0) -> bytes:
    """`{"messages":[...]`: a question with pictures or, without one, with some words to read."""
    parts = [image_part(data_url(random_picture(rng, number + i))) for i in range(num_pictures)]
    words = " ".join(rng.choices(WORDS, k=8 if num_pictures else 48))
    parts.append({"type": "text", "text": f"{rng.getrandbits(32):08x} {words}. {rng.choice(QUESTIONS)}"})
    return messages_head([{"role": "user", "content": parts}])


def messages_head(messages: list[dict[str, object]]) -> bytes:
    return b'{"messages":' + json.dumps(messages, separators=(",", ":")).encode()


def image_part(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def data_url(encoded: tuple[bytes, str]) -> str:
    data, kind = encoded
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def random_picture(rng: random.Random, number: int) -> tuple[bytes, str]:
    width, height = (round(MIN_SIDE_PX * (MAX_SIDE_PX / MIN_SIDE_PX) ** rng.random()) for _ in range(2))
    return encoded_picture(rng, width, height, "png" if number % 2 else "jpeg")


def encoded_picture(rng: random.Random, width: int, height: int, kind: str) -> tuple[bytes, str]:
    """A field of colours with a noisy corner: costs a decoder and a resizer what a photograph does."""
    values = np.random.default_rng(rng.getrandbits(64))
    small = Image.fromarray(values.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).copy()
    side = max(1, math.isqrt(width * height) // 4)
    corner = pixels[:side, :side]
    corner[:] = values.integers(0, 255, corner.shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"compress_level": 1} if kind == "png" else {"quality": 85}))
    return buffer.getvalue(), kind
