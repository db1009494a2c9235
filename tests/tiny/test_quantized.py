"""The embedded model's accuracy with integer and float8 weights, keys and values: within half a point of the plain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fovea import LLM, SamplingParams
from tiny import evaluate

COUNT = 12
TASKS = ("scene", "text", "pair", "motion")
WITHIN = 0.005
WAYS = [*({"quantization": kind} for kind in ("int8", "int4", "fp8")), {"kv_cache_dtype": "fp8"}]
NAMES = ["-".join(way.values()) + ("-kv" if "kv_cache_dtype" in way else "") for way in WAYS]
GREEDY = SamplingParams(temperature=0.0, max_tokens=evaluate.MAX_ANSWER_TOKENS)


def answers(folder: Path, examples: list[evaluate.Example], **options: str) -> list[str]:
    llm = LLM(str(folder), device="cpu", use_tqdm=False, kv_cache_memory_bytes=2**27, max_model_len=2048, **options)
    outputs = llm.chat([evaluate.messages(example) for example in examples], GREEDY, use_tqdm=False)
    llm.close()
    return [output.outputs[0].text for output in outputs]


@pytest.fixture(scope="module")
def examples() -> list[evaluate.Example]:
    return [example for task in TASKS for example in evaluate.held_out(task, COUNT, seed=3)]


@pytest.fixture(scope="module")
def plain(folder: Path, examples: list[evaluate.Example]) -> list[str]:
    return answers(folder, examples, dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", WAYS, ids=NAMES)
def test_quantised_answers_are_as_right(
    folder: Path, examples: list[evaluate.Example], plain: list[str], options: dict[str, str], dtype: str
) -> None:
    given = answers(folder, examples, dtype=dtype, **options)

    def right(said: list[str]) -> float:
        parts = [slice(i * COUNT, (i + 1) * COUNT) for i in range(len(TASKS))]
        return sum(evaluate.score(t, examples[p], said[p]).right for t, p in zip(TASKS, parts, strict=True)) / len(
            TASKS
        )

    assert right(given) >= right(plain) - WITHIN
    same = sum(ours == theirs for ours, theirs in zip(given, plain, strict=True))
    assert same >= 0.9 * len(plain)


@pytest.mark.parametrize("options", WAYS, ids=NAMES)
def test_the_demo_s_questions_are_answered_one_by_one(folder: Path, options: dict[str, str]) -> None:
    pictures = folder.parent / "pictures"
    entries = json.loads((pictures / "questions.json").read_text(encoding="utf-8"))
    for entry in entries[:4]:
        shown = tuple(Image.open(pictures / name).convert("RGB") for name in entry["pictures"])
        example = evaluate.Example("scene", shown, entry["question"], entry["answer"])
        assert answers(folder, [example], **options) == [entry["answer"]]
