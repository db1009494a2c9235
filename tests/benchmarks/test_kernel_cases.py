"""The kernel benchmarks run what they say: each case's kernel agrees with what stands beside it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from benchmarks.kernels.__main__ import NO_CARD, combinations, main


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed on this platform")
def test_every_case_runs_and_agrees_with_its_twin() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.benchmarks.run_kernel_cases"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("ran ")


def test_a_sweep_is_every_combination() -> None:
    assert combinations(["tile=64/32/4/2,128/64/8/3", "padded=False"]) == [
        {"tile": (64, 32, 4, 2), "padded": False},
        {"tile": (128, 64, 8, 3), "padded": False},
    ]
    assert combinations(["num_warps=1,2", "columns_at_once=512"])[1] == {"num_warps": 2, "columns_at_once": 512}


def test_without_a_card_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([]) == NO_CARD
    assert "no CUDA card" in capsys.readouterr().err
