"""F28, F29, L23: what can't be served ends at once, with its cause in one line and a code other than 0."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fovea.core.config import EngineConfig
from fovea.models.folder import find_model
from tests.faults.support import MODEL, report

REFUSED_WITHIN_S = 10.0  # a bound of 5 s, on machines that do other things too
BROKEN_WITHIN_S = 20.0


def start(*flags: str, within_s: float, env: dict[str, str] | None = None) -> tuple[int, str, float]:
    """Code, stderr and seconds of a server that should not come to be."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "fovea", "serve", *flags],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=within_s,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})},
    )
    return done.returncode, done.stderr, time.monotonic() - started


def cause(stderr: str) -> str:
    """The last line; there must be no traceback before it."""
    assert "Traceback" not in stderr, stderr
    return stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--max-modellen", "5"], "max-model-len"),
        (["--max-num-seqs", "0"], "max_num_seqs"),
        (["--port", "99999"], "port"),
        pytest.param(["--max-model-len", "99999999"], "max_model_len", marks=pytest.mark.faults),
        (["--model", "/nonexistent/model"], "/nonexistent/model"),
        (["--chat-template", "/nonexistent/template.jinja"], "template"),
    ],
)
def test_a_bad_option_is_refused_before_anything_is_loaded(flags: list[str], said: str) -> None:
    code, stderr, seconds = start(*flags, within_s=REFUSED_WITHIN_S * 2)
    assert code != 0
    assert said.replace("_", "-") in cause(stderr).replace("_", "-")
    report(f"refused {flags[0]}", seconds=seconds)
    assert seconds < REFUSED_WITHIN_S


def test_a_port_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, stderr, seconds = start("--port", str(port), within_s=REFUSED_WITHIN_S * 2)
    assert code != 0
    assert str(port) in cause(stderr)
    report("port in use", seconds=seconds)


@pytest.mark.faults
def test_a_missing_device_and_too_little_memory_are_said() -> None:
    for flags, said in ((["--device", "cuda"], "cuda"), (["--kv-cache-memory-bytes", "1024"], "KV cache")):
        code, stderr, seconds = start("--port", "0", *flags, within_s=BROKEN_WITHIN_S)
        assert code != 0
        assert said in cause(stderr)
        report(f"refused {flags}", seconds=seconds)


@pytest.mark.faults
def test_bad_fault_settings_are_refused() -> None:
    code, stderr, _ = start("--port", "0", within_s=BROKEN_WITHIN_S, env={"FOVEA_FAULTS": "[1]"})
    assert code != 0
    assert "FOVEA_FAULTS" in cause(stderr)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(find_model(MODEL, EngineConfig()), folder)
    return folder


def truncate(folder: Path) -> str:
    [weights, *_] = sorted(folder.glob("*.safetensors"))
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    return weights.name


def remove_weights(folder: Path) -> str:
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    return "safetensors"


def miss_a_shard(folder: Path) -> str:
    [weights, *_] = sorted(folder.glob("*.safetensors"))
    index = {"weight_map": {"model.embed_tokens.weight": weights.name, "lm_head.weight": "model-2-of-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    weights.rename(folder / "model-1-of-2.safetensors")
    return "model-2-of-2.safetensors"


def cut_config(folder: Path) -> str:
    path = folder / "config.json"
    path.write_text(path.read_text()[:100])
    return "config.json"


def cut_tokenizer(folder: Path) -> str:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text()[:1000])
    return "tokenizer"


def garble_header(folder: Path) -> str:
    [weights, *_] = sorted(folder.glob("*.safetensors"))
    with weights.open("r+b") as file:
        file.write(b"\xff" * 8)
    return weights.name


@pytest.mark.faults
@pytest.mark.parametrize("harm", [truncate, remove_weights, miss_a_shard, cut_config, cut_tokenizer, garble_header])
def test_a_broken_model_folder_is_named(copied: Path, harm: Callable[[Path], str]) -> None:
    said = harm(copied)
    code, stderr, seconds = start("--port", "0", "--model", str(copied), within_s=BROKEN_WITHIN_S)
    assert code != 0
    assert said in cause(stderr)
    report(f"broken folder: {said}", seconds=seconds)
