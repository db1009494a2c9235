"""schemathesis reads /openapi.json and sends what the document permits and what it forbids: what comes back is what the
document says, and never a 5xx."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpus.conftest import Servers
from tests.corpus.watch import Watch

NUM_EXAMPLES = int(os.environ.get("FOVEA_FUZZ_EXAMPLES", "150"))
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)
TIMEOUT_S = 1800
# 503 and 504 are answers, not bugs: a full queue, a deadline that the request itself set.
CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503", "504"]
"""


@pytest.fixture
def brief(servers: Servers) -> Iterator[Watch]:
    found = servers.get("brief")
    yield found
    complaints = found.check()
    assert not complaints, "\n".join(complaints)


@pytest.mark.fuzz
@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed")
def test_answers_are_what_the_document_says(brief: Watch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{brief.server.url}/openapi.json"),
        *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--mode", "all"),
        *("--max-examples", str(NUM_EXAMPLES), "--seed", "1", "--workers", "2", "--request-timeout", "120"),
        *("--suppress-health-check", "all", "--warnings", "off", "--no-color"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=tmp_path, check=False)
    with capsys.disabled():
        sys.stdout.write(f"\nschemathesis: {_summary(done.stdout)}\n")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def _summary(output: str) -> str:
    lines = [
        line.strip() for line in output.splitlines() if "generated" in line or "passed" in line or "failed" in line
    ]
    return "; ".join(lines[-4:])
