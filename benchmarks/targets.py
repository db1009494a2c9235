"""The targets of the table, and what vLLM does with the same work: both in this one place.

They hold for one H100 with 80 GB, models in their published type with random weights, `benchmarks.offline` with its
defaults for a table: 256 requests, 128 tokens out, pictures of 1024 x 768, at most 4,096 tokens, 0.85 of the memory.
"""

from __future__ import annotations

from collections.abc import Mapping

QWEN, LLAVA, PHI = "Qwen2-VL-2B-Instruct", "llava-1.5-7b-hf", "Phi-3.5-vision-instruct"
MODELS = (QWEN, LLAVA, PHI)

# Arguments of benchmarks.offline that the targets are for.
WORK: Mapping[str, int] = {"n": 256, "out": 128, "w": 1024, "h": 768, "len": 4096}

_FIGURES = (
    "import + start",
    "first request",
    "TTFT, one picture",
    "decode alone",
    "pictures, one token out",
    "requests, 128 out",
    "two pictures, 128 out",
    "text, batch 64",
    "text, batch 256",
    "one picture, 64 questions",
)


def _by_name(*values: float | None) -> dict[str, float]:
    return {name: value for name, value in zip(_FIGURES, values, strict=True) if value is not None}


# At most for times, at least for rates.
TARGETS: Mapping[str, Mapping[str, float]] = {
    QWEN: _by_name(15, 0.5, 32, 650, 50, 44, 20, 26_000, 45_000, 350),
    LLAVA: _by_name(15, 0.5, 22, 190, 72, 28, 16, 4_800, 6_000, 170),
    PHI: _by_name(15, 0.5, 28, 320, 60, 30, 15, None, None, 170),
}

# vLLM 0.23.0, torch 2.11, CUDA 13, on another day, by the script that benchmarks.offline does the work of; handed to
# us, not measured here. Of two hosts the quicker one; the text batches were measured on the busy one only.
VLLM: Mapping[str, Mapping[str, float]] = {
    QWEN: _by_name(78, None, 65, 408, 33, 28.5, 8.0, 11_022, 19_808, 186),
    LLAVA: _by_name(56, None, 37, 165, 57, 26.4, 14.1, 4_357, 5_272, 121),
    PHI: _by_name(96, None, 69, 239, 31, 21.1, 11.4, None, None, 94),
}
