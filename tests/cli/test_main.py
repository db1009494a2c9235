"""The command as such: help, version, mistakes, and how each way of ending looks from a shell."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

import fovea as package
from fovea.cli.main import COMMANDS, main
from fovea.core.errors import CapacityError, UnsupportedModelError
from tests.cli.support import FakeLLM, fovea


def test_help_names_every_command_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out and text in out for name, text in COMMANDS.items())
    assert 'fovea run --image photo.jpg "What is in this picture?"' in out


def test_no_command_is_wrong_use_and_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: fovea COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: fovea {command}")
    assert "examples:" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fovea {package.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rnu"], "unknown command 'rnu'. Did you mean 'run'?"),
        (["--verison"], "unknown option '--verison'."),
        (["models", "extra"], "fovea models takes no words, 'extra' was given."),
        (["doctor", "--jsn"], "unknown option --jsn. Did you mean '--json'?"),
    ],
)
def test_mistakes_are_one_line_and_code_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fovea: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_models_lists_every_family(capsys: pytest.CaptureFixture[str]) -> None:
    from fovea.families.registry import FAMILIES

    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for family in FAMILIES for name in family.architectures)
    assert all(option in out for family in FAMILIES for option in family.processor_options)


def test_an_interrupt_is_silent_and_130(fake: type[FakeLLM], capsys: pytest.CaptureFixture[str]) -> None:
    fake.error = KeyboardInterrupt()
    assert main(["run", "-q", "hello"]) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_leaves_is_no_error(
    fake: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    assert main(["run", "-q", "hello"]) == 141
    assert capsys.readouterr().err == ""


def test_our_errors_are_one_line_with_a_hint(fake: type[FakeLLM], capsys: pytest.CaptureFixture[str]) -> None:
    fake.error = UnsupportedModelError("m has Other;\nsupported: These.")
    assert main(["run", "-q", "hello"]) == 1
    assert capsys.readouterr().err == (
        'fovea: error: m has Other; supported: These. "fovea models" lists what is supported.\n'
    )


def test_unexpected_errors_are_one_line_too(fake: type[FakeLLM], capsys: pytest.CaptureFixture[str]) -> None:
    fake.error = ZeroDivisionError("division by zero")
    assert main(["run", "-q", "hello"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("fovea: error: unexpected ZeroDivisionError: division by zero")
    assert "FOVEA_DEBUG=1" in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(
    fake: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FOVEA_DEBUG", "1")
    fake.error = CapacityError("too large")
    assert main(["run", "-q", "hello"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("fovea: error: too large\n")


def test_a_missing_package_is_named(fake: type[FakeLLM], capsys: pytest.CaptureFixture[str]) -> None:
    fake.error = ModuleNotFoundError("No module named 'torch'", name="torch")
    assert main(["run", "-q", "hello"]) == 1
    assert "the Python package 'torch' is not installed" in capsys.readouterr().err


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = fovea("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"fovea {package.__version__}\n", b"")


def test_help_works_without_torch(tmp_path: Path) -> None:
    """A broken torch must not keep anyone from reading the help."""
    (tmp_path / "torch.py").write_text("raise RuntimeError('broken')")
    done = fovea("run", "--help", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0
    assert b"--max-model-len" in done.stdout
