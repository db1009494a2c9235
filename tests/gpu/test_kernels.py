"""Every Triton kernel, compiled, equals its plain twin."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.contract.source import ROOT

PROGRAMS = sorted(path.stem for path in (ROOT / "tests" / "kernels").glob("compare_*.py"))


@pytest.mark.parametrize("program", PROGRAMS)
def test_compiled_kernels_equal_their_plain_twins(program: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", f"tests.kernels.{program}"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("equal")
