"""`fovea demo`: the first thing that anybody runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fovea.cli import demo
from fovea.cli.main import main
from fovea.cli.pictures import ANY_QUESTION, Ask, bundled_asks, pictures_folder
from tests.cli.support import FakeLLM, fovea, needs_embedded
from tests.parity.support import Checkpoints


def test_it_prints_question_answer_size_tokens_and_time(
    fake: type[FakeLLM], picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        demo, "bundled_asks", lambda: [Ask((picture,), "What is it?"), Ask((picture, picture), "Same?")]
    )
    assert main(["demo"]) == 0
    out = capsys.readouterr().out
    assert out.count("red.png: 100x70 pixels, shown as 112x56, 8 tokens") == 3
    assert "question  What is it?" in out
    assert out.count("answer    A red square.") == 2
    assert "first token after 0.06 s" in out
    ending = out.partition("Three things to try next:\n")[2].splitlines()
    assert len(ending) == 3
    assert str(picture) in ending[0]


def test_another_model_can_be_shown(
    checkpoints: Checkpoints, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "bundled_asks", lambda: [Ask((picture,), "What is it?")])
    assert main(["demo", "--model", str(checkpoints.folder("qwen2_vl"))]) == 0
    assert "red.png: 100x70 pixels" in capsys.readouterr().out


def test_without_pictures_the_installation_is_called_incomplete(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "bundled_asks", list)
    assert main(["demo"]) == 1
    assert "holds no pictures" in capsys.readouterr().err


def test_questions_come_from_the_file_or_are_the_same_for_all(tmp_path: Path, picture: Path) -> None:
    assert [ask.pictures for ask in bundled_asks(tmp_path)] == [(picture,)]
    assert bundled_asks(tmp_path)[0].question == ANY_QUESTION
    entry = {"pictures": ["red.png", "red.png"], "question": "Same?", "answer": "Yes"}
    (tmp_path / "questions.json").write_text(json.dumps([entry]))
    assert bundled_asks(tmp_path) == [Ask((picture, picture), "Same?", "Yes")]


def test_the_next_steps_can_be_pasted(
    fake: type[FakeLLM], picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Paths are short where they can be, and `fovea` is named by its path: the environment need not be active."""
    monkeypatch.setattr(demo, "bundled_asks", lambda: [Ask((picture,), "What is it?")])
    monkeypatch.chdir(picture.parent)
    commands = picture.parent / "env" / "bin"
    commands.mkdir(parents=True)
    (commands / "fovea").touch()
    monkeypatch.setattr("sys.executable", str(commands / "python"))
    assert main(["demo"]) == 0
    steps = capsys.readouterr().out.partition("next:\n")[2].splitlines()
    assert steps[0].startswith('  env/bin/fovea run --image red.png "What')
    assert steps[2] == "  env/bin/fovea doctor"


@needs_embedded
def test_the_bundled_pictures_are_there_and_answered() -> None:
    asks = bundled_asks()
    assert len(asks) >= 2
    assert all(path.is_file() for ask in asks for path in ask.pictures)
    assert all(path.parent == pictures_folder() for ask in asks for path in ask.pictures)
    done = fovea("demo")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().count("  answer    ") == len(asks)
