"""benchmarks.offline asks an engine for exactly what the script asks it for that the targets were made with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fovea
from benchmarks import offline
from tests.benchmarks import recorder
from tests.contract.source import ROOT
from tests.parity.support import SHARED

SCRIPT = SHARED / "bench" / "bench_offline.py"
SIZES = {"n": 256, "out": 4, "w": 32, "h": 24}


@pytest.mark.skipif(not SCRIPT.is_file(), reason="the script is not beside the checkout")
@pytest.mark.parametrize("model", ["Qwen2-VL-2B-Instruct", "llava-1.5-7b-hf", "Phi-3.5-vision-instruct"])
def test_the_engine_is_asked_the_same(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, workloads = str(SHARED / "models" / model), ",".join(offline.WORKLOADS)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    settings = [f"{name}={value}" for name, value in SIZES.items()]
    command = [sys.executable, str(SCRIPT), recorder.__name__, folder, workloads, *settings]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    environment = {**os.environ, "RECORDER_FILE": str(theirs), "PYTHONPATH": paths}
    subprocess.run(command, env=environment, check=True, capture_output=True)

    monkeypatch.setenv("RECORDER_FILE", str(ours))
    monkeypatch.setattr(fovea, "LLM", recorder.LLM, raising=False)
    monkeypatch.setattr(fovea, "SamplingParams", recorder.SamplingParams, raising=False)
    arguments = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
    bench = offline.Bench(offline.parse_args([folder, "--dummy", *arguments]))
    bench.first()
    for workload in offline.WORKLOADS:
        getattr(bench, workload)()
    assert ours.read_text(encoding="utf-8").splitlines() == theirs.read_text(encoding="utf-8").splitlines()
