"""Each tiny checkpoint loads and answers as its entry says, and its pictures matter."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.every.catalogue import ENTRIES, MODEL_TYPES, QUICK
from tests.every.entry import Entry
from tests.every.oracle import Answer, forget, oracle
from tests.oracle.checkpoints import picture

LEAST_MARGIN = 1e-3
MOST_BYTES = 5_000_000
BUILT = [entry for entry in ENTRIES.values() if entry.build is not None]
PARAMETERS = [
    pytest.param(entry, id=entry.model_type, marks=() if entry.model_type in QUICK else pytest.mark.parity)
    for entry in BUILT
]


def _pictures(entry: Entry, count: int, seed: int = 1) -> list[Image.Image]:
    return [picture(*size, seed + i) for i, size in enumerate(entry.sizes[:count])]


def _build(entry: Entry, folder: Path) -> Path:
    assert entry.build is not None
    entry.build(folder, entry.seed)
    return folder


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("entry", PARAMETERS)
def test_the_checkpoint_answers(entry: Entry, tmp_path: Path) -> None:
    folder = _build(entry, tmp_path / "once")
    files = _files(folder)
    assert files == _files(_build(entry, tmp_path / "again"))
    assert len(files["model.safetensors"]) <= MOST_BYTES
    counts = ([0] if entry.takes_text_only else []) + list(range(1, entry.most_pictures + 1))
    answers = {n: oracle(folder, entry.prompt(n), _pictures(entry, n)) for n in counts}
    for answer in answers.values():
        assert min(answer.margins) >= LEAST_MARGIN
        assert np.isfinite(answer.step_logits).all()
    if 1 in answers:
        assert _apart(answers[1], oracle(folder, entry.prompt(1), _pictures(entry, 1, seed=7))) > 0.01
    if 2 in answers:  # the second one is seen too
        first, second = _pictures(entry, 2)
        other = picture(*second.size, 9)
        assert _apart(answers[2], oracle(folder, entry.prompt(2), [first, other])) > 0.01
    forget()


def _apart(one: Answer, other: Answer) -> float:
    """How far the logits of the first new token are from each other."""
    return float(np.abs(one.step_logits[0] - other.step_logits[0]).max())


def test_every_class_of_the_map_has_an_entry() -> None:
    missing = [name for name in MODEL_TYPES if name not in ENTRIES]
    unsaid = [entry.model_type for entry in ENTRIES.values() if entry.build is None and not entry.why_not]
    assert (missing, unsaid) == ([], [])
    print(f"{len(BUILT)} built, {len(ENTRIES) - len(BUILT)} not")  # noqa: T201
