"""The judge itself."""

import pytest

from tiny import evaluate
from tiny.evaluate import Example
from tiny.scoring import character_error, distance, is_right


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("Red", "Red", True),
        ("red.", "Red", True),
        (" The  red circle ", "the red circle", True),
        ("Redd", "Red", False),
        ("", "Red", False),
    ],
)
def test_short_answers(answer: str, expected: str, right: bool) -> None:
    assert is_right("scene", answer, expected) == right


def test_reading_counts_case_and_edits() -> None:
    assert not is_right("text", "hello", "Hello")
    assert distance("kitten", "sitting") == 3
    assert character_error(["abc", "xy"], ["abd", "xy"]) == pytest.approx(1 / 5)
    # A model that babbles can't make the error grow without bound.
    assert character_error(["z" * 1000], ["abcd"]) == 2.0


def test_bars_decide() -> None:
    examples = [Example("scene", (), "q", "Yes")] * 20
    assert evaluate.score("scene", examples, ["yes"] * 19 + ["no"]).passed
    assert not evaluate.score("scene", examples, ["yes"] * 18 + ["no"] * 2).passed
    words = [Example("text", (), "q", "abcde")] * 4
    assert evaluate.score("text", words, ["abcde", "abcde", "abcde", "abcdX"]).passed
    assert not evaluate.score("text", words, ["abcde", "abcde", "abXdX", "abcde"]).passed


def test_constant_answers_can_not_pass() -> None:
    """Without seeing, even the best guess stays far below each bar."""
    for task in ("scene", "pair", "motion"):
        examples = evaluate.held_out(task, 200)
        assert evaluate.chance(examples) < evaluate.BARS[task] - 0.2
        for guess in ("Yes", "No", "Red", "1", "Left", "The first picture"):
            assert not evaluate.score(task, examples, [guess] * len(examples)).passed


def test_controls_keep_the_questions_and_change_the_pictures() -> None:
    examples = evaluate.held_out("scene", 5)
    for control in (evaluate.blank(examples), evaluate.swapped(examples)):
        assert [(e.question, e.answer) for e in control] == [(e.question, e.answer) for e in examples]
        assert [e.pictures[0].tobytes() for e in control] != [e.pictures[0].tobytes() for e in examples]
    assert [e.pictures[0].size for e in evaluate.blank(examples)] == [e.pictures[0].size for e in examples]
