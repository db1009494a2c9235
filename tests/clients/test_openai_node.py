"""The unmodified openai package for Node, one run of `node/client.mjs` against the server of the other client tests.

The package is installed by npm into the environment's own folder, once for each lock file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.support import ASK, ASKS, KEY, MODEL, data_url
from tests.server_process import ServerProcess

HERE = Path(__file__).parent / "node"
INSTALL_TIMEOUT_S = 300
RUN_TIMEOUT_S = 300


@pytest.fixture(scope="module")
def folder() -> Path:
    """A folder with client.mjs and the packages of package-lock.json."""
    for program in ("node", "npm"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    digest = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()[:16]
    folder = Path(sys.prefix) / "node-clients" / digest
    if not (folder / "installed").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, folder)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
        )
        if done.returncode != 0 and not os.environ.get("CI"):
            pytest.skip("npm could not install the openai package: is a registry reachable?")
        assert done.returncode == 0, done.stderr[-2000:]
        (folder / "installed").touch()
    shutil.copy(HERE / "client.mjs", folder)
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path, server: ServerProcess, pictures_url: str) -> dict[str, Any]:
    given = {
        "baseURL": f"{server.url}/v1",
        "apiKey": KEY,
        "model": MODEL,
        "asks": [{"pictures": [data_url(path) for path in ask.pictures], "question": ask.question} for ask in ASKS],
        "pictureURL": f"{pictures_url}/{ASK.names[0]}",
    }
    done = subprocess.run(
        ["node", "client.mjs"],
        input=json.dumps(given),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout))


def test_answers_are_right(seen: dict[str, Any]) -> None:
    assert [answer["text"] for answer in seen["answers"]] == [ask.answer for ask in ASKS]
    assert {answer["finish"] for answer in seen["answers"]} == {"stop"}
    assert all(answer["usage"]["prompt_tokens_details"]["image_tokens"] > 0 for answer in seen["answers"])


def test_streams_say_the_same(seen: dict[str, Any]) -> None:
    assert [stream["text"] for stream in seen["streams"]] == [ask.answer for ask in ASKS]
    assert all(stream["usage"]["completion_tokens"] > 0 for stream in seen["streams"])
    assert seen["helper"]["text"] == ASK.answer


def test_a_picture_by_url_is_fetched(seen: dict[str, Any]) -> None:
    assert seen["byURL"]["text"] == ASK.answer


def test_a_stream_that_is_left_frees_its_place(seen: dict[str, Any]) -> None:
    assert seen["afterAbort"]["text"] == ASK.answer


def test_models_and_request_ids_are_there(seen: dict[str, Any]) -> None:
    assert seen["models"] == [MODEL]
    assert seen["retrieved"] == MODEL
    assert seen["raw"]


@pytest.mark.parametrize(
    ("case", "kind", "status", "code", "param"),
    [
        ("key", "AuthenticationError", 401, "invalid_api_key", None),
        ("temperature", "BadRequestError", 400, "above_max_value", "temperature"),
        ("stream", "BadRequestError", 400, "above_max_value", "temperature"),
        ("model", "NotFoundError", 404, "model_not_found", "model"),
        ("path", "NotFoundError", 404, "not_found", None),
        ("picture", "BadRequestError", 400, "unsupported_image_format", "messages.0.content.0.image_url"),
    ],
)
def test_errors_are_those_of_the_package(
    case: str, kind: str, status: int, code: str, param: str | None, seen: dict[str, Any]
) -> None:
    error = seen["errors"][case]
    assert kind in error["kinds"]
    assert (error["status"], error["code"]) == (status, code)
    assert param is None or error["param"].startswith(param)
    assert error["requestID"]
