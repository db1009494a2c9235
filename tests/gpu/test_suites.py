"""The suites that hold on a CPU hold on the card too, in float32: the same tests, token for token."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.contract.source import ROOT

SUITES = (
    "tests/parity/test_transformers.py",
    "tests/parity/test_long_rope.py",
    "tests/invariance/test_identity.py",
    "tests/invariance/test_same_answer.py",
)


@pytest.mark.parametrize("suite", SUITES)
def test_the_suite_holds_on_the_card(suite: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", suite]
    environment = {**os.environ, "FOVEA_TEST_DEVICE": "cuda"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
