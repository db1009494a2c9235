"""The repository as a newcomer finds it: paths that documents name exist, nothing of a machine leaked in, small."""

from __future__ import annotations

import re
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest

from fovea.cli.checks import check_model_files
from fovea.cli.pictures import bundled_asks
from tests.contract.source import ROOT

MAX_TRACKED_BYTES = 45 * 1024**2
MAX_README_LINES = 170
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".json", ".jinja", ".yml", ".yaml", ".cfg", ""}
MAX_TEXT_BYTES = 2 * 1024**2

# Folders of the machines that this was written on; assembled so that this file does not hold them itself.
MACHINE_PATHS = re.compile("|".join(re.escape("/" + name + "/") for name in ("work", "tmp/w", "home", "root")))
NAMED_PATH = re.compile(r"`([\w./-]+(?:/[\w.-]*|\.(?:py|md|toml|json|txt)))`")
ROOTS = ("src/", "tests/", "docs/", "examples/", "benchmarks/", "tiny/", ".ci/")
DOCUMENTS = ("README.md", "docs/architecture.md")


@lru_cache(maxsize=1)
def tracked_files() -> tuple[Path, ...]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return tuple(ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file())


def text_files() -> list[Path]:
    return [p for p in tracked_files() if p.suffix in TEXT_SUFFIXES and p.stat().st_size <= MAX_TEXT_BYTES]


def test_all_tracked_files_together_are_small() -> None:
    assert sum(path.stat().st_size for path in tracked_files()) < MAX_TRACKED_BYTES


def test_no_path_of_a_machine_is_in_a_tracked_file() -> None:
    found = []
    for path in text_files():
        for match in MACHINE_PATHS.finditer(path.read_text(encoding="utf-8", errors="replace")):
            found.append(f"{path.relative_to(ROOT)}: {match[0]}")
    assert not found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_named_in_documents_exist(document: str) -> None:
    if not (ROOT / document).is_file():
        pytest.skip(f"{document} is not written yet")
    missing = []
    for name in NAMED_PATH.findall((ROOT / document).read_text(encoding="utf-8")):
        if name.startswith(ROOTS):
            known = (ROOT / name).exists()
        elif "/" in name:
            continue  # a hub id, a folder of the user
        else:
            known = any(path.name == name for path in tracked_or_new()) or (ROOT / name).exists()
        if not known:
            missing.append(name)
    assert not missing, f"{document} names {missing}"


def tracked_or_new() -> list[Path]:
    folders = ("src", "tests", "docs", "examples", "benchmarks", "tiny")
    return [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]


def test_the_embedded_model_and_its_pictures_are_shipped() -> None:
    """Without them the first command a newcomer runs fails, and many tests would skip instead of saying so."""
    assert check_model_files().status == "ok", check_model_files().detail
    asks = bundled_asks()
    assert len({path for ask in asks for path in ask.pictures}) >= 2
    assert all(path.is_file() for ask in asks for path in ask.pictures)


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") < MAX_README_LINES


def test_ci_runs_the_commands_of_the_readme() -> None:
    steps = re.findall(r"^step (.+)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(steps) == {"make check", "make golden", "make test", "make browser"}
    assert all(step in readme for step in steps)


@pytest.mark.parametrize(
    "target",
    [
        "help",
        "demo",
        "serve",
        "test",
        "check",
        "golden",
        "corpus",
        "faults",
        "fuzz",
        "browser",
        "load",
        "bench",
        "gpu-test",
        "clean",
    ],
)
def test_the_makefile_has_the_promised_targets(target: str) -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", text, re.MULTILINE)
