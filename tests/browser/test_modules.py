"""The playground's files: small, self-contained, and right where they can be tried without a browser (by node)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PLAYGROUND = HERE.parents[1] / "src" / "fovea" / "server" / "playground"
FILES = sorted(path for path in PLAYGROUND.iterdir() if path.suffix in {".html", ".css", ".js", ".svg"})
MAX_LINES = 400
MAX_TOTAL_BYTES = 112_000
NODE_TIMEOUT_S = 120

# Ways to turn text into HTML or code; the policy forbids some of them, the house all of them.
TEXT_TO_CODE = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser")
INLINE_CODE = re.compile(r"<script>|<style|\sstyle=|\son[a-z]+=|javascript:", re.IGNORECASE)
ELSEWHERE = re.compile(r"""(?:src|href|url\(|from|import\()\s*=?\s*["'(]*(?:https?:)?//""")


@pytest.mark.parametrize("name", ["markdown.test.mjs", "modules.test.mjs"])
def test_modules_do_what_they_say(name: str, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    for path in PLAYGROUND.glob("*.js"):
        shutil.copy(path, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    done = subprocess.run(
        [node, "--test", str(HERE / name)],
        env={**os.environ, "PLAYGROUND": tmp_path.as_uri()},
        capture_output=True,
        text=True,
        timeout=NODE_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_the_page_is_small_and_its_files_are_short() -> None:
    assert sum(path.stat().st_size for path in FILES) <= MAX_TOTAL_BYTES
    assert {path.name: n for path in FILES if (n := path.read_text(encoding="utf-8").count("\n")) > MAX_LINES} == {}


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix in {".js", ".css"}], ids=lambda p: p.name)
def test_every_file_says_what_it_is_for(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith(("// ", "/* "))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_no_file_makes_html_or_code_of_text_or_loads_from_elsewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not TEXT_TO_CODE.search(text)
    assert not ELSEWHERE.search(text)
    if path.suffix == ".html":
        assert not INLINE_CODE.search(text)


def test_every_file_the_page_names_is_there() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in FILES}
    named = {name for text in texts.values() for name in re.findall(r"/playground/([\w-]+\.\w+)", text)}
    named |= {name for text in texts.values() for name in re.findall(r'from "\./([\w-]+\.js)"', text)}
    assert named <= set(texts)
    assert set(texts) - {"index.html"} <= named, "a file that nothing loads"


def test_every_element_the_modules_ask_for_is_in_the_page() -> None:
    ids = set(re.findall(r'\bid="([\w-]+)"', (PLAYGROUND / "index.html").read_text(encoding="utf-8")))
    wanted: set[str] = set()
    for path in PLAYGROUND.glob("*.js"):
        wanted |= set(re.findall(r'byId\("([\w-]+)"\)', path.read_text(encoding="utf-8")))
    assert wanted <= ids


def test_every_icon_that_is_used_is_drawn() -> None:
    drawn = set(re.findall(r'<symbol id="(\w+)"', (PLAYGROUND / "icons.svg").read_text(encoding="utf-8")))
    page = (PLAYGROUND / "index.html").read_text(encoding="utf-8")
    used = set(re.findall(r"icons\.svg#(\w+)", page))
    for path in PLAYGROUND.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        used |= set(re.findall(r'\bicon\("(\w+)"\)', text))
        used |= set(re.findall(r'button\([^,]+, "(\w+)",', text))
    assert used == drawn
