"""What the tests of the command line share: running it in this process or in its own, and a model without an engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fovea.core.types import CompletionOutput, MediaReport, RequestMetrics, RequestOutput
from fovea.models.folder import embedded_model

EMBEDDED_IS_THERE = (embedded_model() / "model.safetensors").is_file()
needs_embedded = pytest.mark.skipif(not EMBEDDED_IS_THERE, reason="the embedded model is not in this checkout")

SMALL = ("--max-model-len", "512", "--device", "cpu", "--kv-cache-memory-bytes", "16M")


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "FOVEA_DEBUG"}
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **more}


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "fovea", *map(str, words)]


def fovea(
    *words: str | Path, stdin: bytes = b"", cwd: Path | None = None, **more: str
) -> subprocess.CompletedProcess[bytes]:
    """`fovea ...` in a process of its own."""
    return subprocess.run(
        command(*words), input=stdin, capture_output=True, timeout=240, env=environment(**more), cwd=cwd, check=False
    )


class FakeLLM:
    """In place of fovea.llm.LLM: remembers how it was made and asked, and answers with `steps`."""

    steps: Sequence[str] = ("A", "A red", "A red square.")
    error: BaseException | None = None
    made: Mapping[str, Any] = {}
    asked: Sequence[Any] = ()

    def __init__(self, model: str | None = None, **options: Any) -> None:
        type(self).made = {"model": model, **options} if model else options

    def __enter__(self) -> FakeLLM:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def stream_chat(self, messages: Sequence[Any], params: Any) -> Iterator[RequestOutput]:
        type(self).asked = (messages, params)
        pictures = sum(part["type"] != "text" for part in messages[0]["content"])
        for i, text in enumerate(self.steps, 1):
            yield answer(text, i, pictures, finished=i == len(self.steps))
        if self.error is not None:
            raise self.error

    def chat(self, messages: Sequence[Any], params: Any, **_: Any) -> list[RequestOutput]:
        return [list(self.stream_chat(messages, params))[-1]]


def answer(text: str, num_tokens: int, pictures: int, *, finished: bool) -> RequestOutput:
    completion = CompletionOutput(0, text, tuple(range(num_tokens)), finish_reason="stop" if finished else None)
    metrics = RequestMetrics(0.005, 0.01, 0.0, 0.02, 0.03, 0.5, 0.06, 0.56, 0) if finished else None
    media = tuple(MediaReport(100, 70, 112, 56, 8, cache_hit=False) for _ in range(pictures))
    return RequestOutput("0", None, tuple(range(30)), [completion], finished, media=media, metrics=metrics)
