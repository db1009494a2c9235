"""The processes that benchmarks.cpu asks: started, asked one at a time, and stopped while another works."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

PACKAGES: Mapping[str, str] = {"vllm": "vllm", "llama": "llama_cpp", "transformers": "transformers", "fovea": "fovea"}


class ArmFailedError(Exception):
    """An engine could not do what it was asked; the text says why."""


@dataclass
class Arm:
    """`engine` as in benchmarks.cpu_arm, `options` for loading it. `bits` of one weight, for the share of bandwidth.

    `asks`: what this arm adds to each request for many answers; it then uses the process of the arm before it with the
    same engine and options, and takes part in work of many answers only.
    """

    name: str
    engine: str
    options: Mapping[str, Any] = field(default_factory=dict)
    bits: float = 16.0
    asks: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        return self.engine == "fovea"

    def missing(self) -> str:
        """Why this arm can't run here, or nothing."""
        package = PACKAGES[self.engine]
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
        if "quantization" in self.options and not _has_quantization():
            return "this Fovea has no option quantization"
        return ""


def _has_quantization() -> bool:
    from fovea import EngineConfig

    return "quantization" in EngineConfig.__dataclass_fields__


class Running:
    """A process that sleeps (SIGSTOP) whenever nobody asks it: no thread of an idle engine takes a core by spinning."""

    def __init__(self, engine: str, threads: int, log: IO[bytes]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.cpu_arm", engine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # a group of its own: what the engine starts is stopped with it
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        )

    def ask(self, do: str, **more: Any) -> Any:
        """Raises ArmFailedError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = b""
        if not line:
            raise ArmFailedError(f"the process ended with code {self._process.wait()}")
        self._signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "error" in answer:
            raise ArmFailedError(answer["error"])
        return answer.get("value", answer.get("seconds"))

    def close(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
