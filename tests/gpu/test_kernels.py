"""Every Triton kernel, compiled, equals its plain twin."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.contract.source import ROOT

PROGRAMS = sorted(path.stem for path in (ROOT / "tests" / "kernels").glob("compare_*.py"))
BY_DTYPE = ("compare_attention", "compare_dense")  # those that compile for minutes
RUNS = [
    [program, *dtype]
    for program in PROGRAMS
    for dtype in ((["float32"], ["float16"], ["bfloat16"]) if program in BY_DTYPE else [[]])
]


@pytest.mark.parametrize("run", RUNS, ids=" ".join)
def test_compiled_kernels_equal_their_plain_twins(run: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", f"tests.kernels.{run[0]}", *run[1:]]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("equal")
