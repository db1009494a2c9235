"""The bars on held-out data, through Fovea and through transformers, and the controls that prove the eyes are used."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tiny import evaluate
from tiny.evaluate import Backend

pytestmark = pytest.mark.slow

COUNT, CONTROLS = 60, 20
# Three standard deviations of a share near one half, for a control of this size.
NOISE = 3 * (0.25 / CONTROLS) ** 0.5

AGREEMENT = 0.98  # float32 sums in another order may turn a token whose margin is almost nothing

ENGINES: dict[str, Callable[[Path], Backend]] = {
    "fovea": evaluate.fovea_backend,
    "transformers": evaluate.transformers_backend,
}


@pytest.fixture(scope="module")
def backends(folder: Path) -> dict[str, Backend]:
    return {name: make(folder) for name, make in ENGINES.items()}


@pytest.mark.usefixtures("data_packages")
@pytest.mark.parametrize("task", sorted(evaluate.BARS))
def test_the_bar_is_met_through_both_engines_and_they_agree(backends: dict[str, Backend], task: str) -> None:
    examples = evaluate.held_out(task, COUNT, seed=7)
    answers = {name: backend(examples) for name, backend in backends.items()}
    for name, given in answers.items():
        reached = evaluate.score(task, examples, given)
        assert reached.passed, (name, reached)
    same = sum(ours == theirs for ours, theirs in zip(answers["fovea"], answers["transformers"], strict=True))
    assert same >= AGREEMENT * COUNT


@pytest.mark.usefixtures("data_packages")
@pytest.mark.parametrize("task", sorted(evaluate.BARS))
def test_without_the_right_picture_answers_fall_to_chance(backends: dict[str, Backend], task: str) -> None:
    examples = evaluate.held_out(task, CONTROLS, seed=7)
    chance = evaluate.chance(examples) if task != "describe" else 0.0
    for control in (evaluate.blank(examples), evaluate.swapped(examples)):
        blind = evaluate.score(task, examples, backends["fovea"](control))
        assert not blind.passed
        assert blind.right <= min(chance, 0.6) + NOISE, blind
