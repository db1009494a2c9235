"""The comparison on a CPU: what it says of its samples, who is left out and why, and that idle engines are stopped."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import cpu, cpu_process
from benchmarks.cpu_process import Arm, ArmFailedError, Running
from benchmarks.cpu_work import jpeg, prompts

ECHO = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "end":
        sys.exit(3)
    answer = {"error": "no"} if asked["do"] == "fail" else {"value": asked["value"]}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **more: popen([sys.executable, "-c", ECHO], **more))
    with Path("/dev/null").open("wb") as log:
        running = Running("any", 1, log)
    yield running
    running.close()


def becomes(running: Running, state: str) -> bool:
    """A signal takes a moment to arrive."""
    for _ in range(500):
        if Path(f"/proc/{running._process.pid}/stat").read_text().rpartition(")")[2].split()[0] == state:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_engine_that_nobody_asks_is_stopped(process: Running) -> None:
    for value in (1, 2):
        assert process.ask("say", value=value) == value
        assert becomes(process, "T")


def test_an_error_and_an_end_are_told_apart_from_answers(process: Running) -> None:
    with pytest.raises(ArmFailedError, match="no"):
        process.ask("fail")
    assert process.ask("say", value=5) == 5
    with pytest.raises(ArmFailedError, match="code 3"):
        process.ask("end")


def test_what_is_not_installed_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert Arm("vllm", "vllm").missing() == "vllm is not installed"
    monkeypatch.undo()
    assert Arm("fovea", "fovea").missing() == ""
    monkeypatch.setattr(cpu_process, "_has_quantization", lambda: False)
    assert "quantization" in Arm("fovea-int8", "fovea", {"quantization": "int8"}).missing()


def test_a_ratio_is_of_the_same_round_and_above_one_where_we_are_faster(capsys: pytest.CaptureFixture[str]) -> None:
    arms = {"fovea": Arm("fovea", "fovea"), "vllm": Arm("vllm", "vllm")}
    rows = cpu.table("decode", {"fovea": [1.0, 10.0, 2.0], "vllm": [2.0, 20.0, 5.0]}, arms)
    ratio = next(row for row in rows if row["unit"] == "x")
    assert (ratio["arm"], ratio["over"], ratio["wanted"]) == ("fovea", "vllm", 1.0)
    assert ratio["median"] == 2.0
    assert ratio["values"] == [2.0, 2.0, 2.5]
    assert "fovea is faster than vllm" in capsys.readouterr().out


def test_an_arm_that_fails_in_the_middle_is_left_out_and_named() -> None:
    class Failing:
        def ask(self, do: str, **more: Any) -> float:
            raise ArmFailedError("out of memory")

    class Good:
        def ask(self, do: str, **more: Any) -> float:
            return 0.5

    skipped: dict[str, str] = {}
    arms: Any = [(Arm("good", "fovea"), Good()), (Arm("bad", "vllm"), Failing())]
    args = cpu.parse_args(["--rounds", "2", "--out", "4"])
    assert cpu.rounds("eight", arms, args, skipped) == {"good": [0.5, 0.5]}
    assert skipped == {"bad, eight": "out of memory"}


def test_inputs_differ_from_round_to_round_and_are_the_same_for_a_seed() -> None:
    one, same = np.random.default_rng(1), np.random.default_rng(1)
    first, second = prompts(one, 3, 8), prompts(one, 3, 8)
    assert first != second
    assert [len(ids) for ids in first] == [8, 12, 16]
    assert prompts(same, 3, 8) == first
    assert Image.open(io.BytesIO(jpeg(one, 64, 48))).size == (64, 48)
