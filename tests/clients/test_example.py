"""`examples/openai_client_for_multimodal.py` and the command of the banner, as a user runs them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fovea.cli.serve import banner
from fovea.core.server_config import ServerConfig
from tests.cli.support import environment
from tests.clients.support import ASK, KEY, MODEL
from tests.contract.source import ROOT
from tests.server_process import ServerProcess

EXAMPLE = ROOT / "examples" / "openai_client_for_multimodal.py"


def run(server: ServerProcess, cwd: Path, *argv: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), *argv, "--base-url", f"{server.url}/v1", "--api-key", key]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment(), cwd=cwd, check=False)


@pytest.mark.parametrize(
    ("argv", "answer"),
    [
        ([], ASK.answer),
        (["base64", "--question", "How many shapes are there?"], "3"),
        (["stream"], ASK.answer),
        (["two-images"], "No"),
        (["frames"], "A red circle moves to the right."),
        (["url", "--image-url", "{pictures}/shapes.png"], ASK.answer),
        (["base64", "--image", "{folder}/sign.png", "--question", "What does the sign say?"], "Fresh Bread"),
    ],
)
def test_every_mode_of_the_example_answers(
    argv: list[str], answer: str, server: ServerProcess, pictures_url: str, tmp_path: Path
) -> None:
    folder = str(ASK.pictures[0].parent)
    done = run(server, tmp_path, *(word.format(pictures=pictures_url, folder=folder) for word in argv))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"{answer}\n"


def test_the_example_says_what_is_missing(server: ServerProcess, tmp_path: Path) -> None:
    done = run(server, tmp_path, "url")
    assert done.returncode == 2
    assert "give --image-url" in done.stderr
    assert "AuthenticationError" in run(server, tmp_path, key="wrong").stderr


def test_the_command_of_the_banner_is_answered(server: ServerProcess) -> None:
    if not all(map(shutil.which, ("sh", "base64", "curl"))):
        pytest.skip("no sh, base64 or curl here")
    text = banner(ServerConfig(api_key=("hidden",)), server.url, MODEL, 4096)
    line = next(line for line in text.splitlines() if "curl" in line)
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, timeout=240, env=environment(FOVEA_API_KEY=KEY), check=True
    )
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == ASK.answer
