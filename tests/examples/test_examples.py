"""The examples and the Python blocks of the README run as they stand."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from fovea.cli.pictures import bundled_asks
from tests.cli.support import environment, needs_embedded
from tests.contract.source import ROOT
from tests.parity.support import Checkpoints
from tests.server_process import serve

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ONE, SEVERAL = "offline_vision_language.py", "offline_vision_language_multi_image.py"
MAX_LINES = 80
FAMILIES = ("llava", "phi3_v", "qwen2_vl")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


CURL = re.compile(r"^(curl .*?)^```$", re.MULTILINE | re.DOTALL)
SERVER = "http://127.0.0.1:8000"


def readme_blocks() -> list[str]:
    return BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a user would stand: two pictures, and nothing of the checkout."""
    for name, colour in (("photo.jpg", "red"), ("other.jpg", "blue")):
        picture = Image.new("RGB", (224, 168), "white")
        ImageDraw.Draw(picture).ellipse((72, 44, 152, 124), fill=colour)
        picture.save(tmp_path / name, quality=95)
    return tmp_path


def run(*argv: str | Path, cwd: Path) -> str:
    """What a script prints; the log goes to stderr."""
    command = [sys.executable, *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment(), cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_short_and_say_how_to_run_them(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_LINES
    assert f"python examples/{path.name}" in (ast.get_docstring(ast.parse(text)) or "")


def test_both_promised_examples_are_there() -> None:
    assert {ONE, SEVERAL} <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_one_picture_for_each_family(model_type: str, checkpoints: Checkpoints, folder: Path) -> None:
    model = checkpoints.folder(model_type)
    out = run(ROOT / "examples" / ONE, "--model-type", model_type, "--model", model, "--image", "photo.jpg", cwd=folder)
    assert out.strip()


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("method", ["generate", "chat"])
def test_several_pictures_for_each_family(model_type: str, method: str, checkpoints: Checkpoints, folder: Path) -> None:
    options = ("--model-type", model_type, "--model", checkpoints.folder(model_type), "--method", method)
    out = run(
        ROOT / "examples" / SEVERAL, *options, "--image", "photo.jpg", "other.jpg", "--num-prompts", "2", cwd=folder
    )
    assert len(out.strip().splitlines()) >= 2


@needs_embedded
def test_the_embedded_model_answers_one_picture(folder: Path) -> None:
    out = run(ROOT / "examples" / ONE, "--image", "photo.jpg", cwd=folder)
    assert "red" in out
    assert "circle" in out


@needs_embedded
@pytest.mark.parametrize("method", ["generate", "chat"])
def test_the_embedded_model_compares_two_pictures(method: str, folder: Path) -> None:
    pictures = ("--image", "photo.jpg", "other.jpg", "--method", method)
    assert run(ROOT / "examples" / SEVERAL, *pictures, cwd=folder).strip().startswith("No")


@needs_embedded
@pytest.mark.parametrize("name", [ONE, SEVERAL])
def test_examples_run_without_arguments(name: str, folder: Path) -> None:
    if len(bundled_asks()) < 2:
        pytest.skip("the bundled pictures are not in this checkout")
    assert run(ROOT / "examples" / name, cwd=folder).strip()


@needs_embedded
@pytest.mark.parametrize("number", range(len(readme_blocks())))
def test_python_blocks_of_the_readme_run(number: int, folder: Path) -> None:
    block = readme_blocks()[number]
    with serve() if SERVER in block else contextlib.nullcontext() as server:
        (folder / "block.py").write_text(block.replace(SERVER, server.url if server else SERVER), encoding="utf-8")
        assert "red circle" in run("block.py", cwd=folder)


@needs_embedded
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_curl_line_of_the_readme_runs(folder: Path) -> None:
    with serve() as server:
        line = CURL.findall((ROOT / "README.md").read_text(encoding="utf-8"))[0].replace(SERVER, server.url)
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=folder, timeout=60, check=True)
    assert "red circle" in json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_the_readme_has_blocks_to_run() -> None:
    assert len(readme_blocks()) >= 2
