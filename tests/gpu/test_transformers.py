"""On the card Fovea is as exact as transformers, in float32 and in 16 bits. See judge.py for what that means."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from fovea.core.params import SamplingParams
from fovea.llm import LLM
from tests.gpu.judge import Judge, check, score, score_answers
from tests.gpu.small import questions
from tests.parity.support import MIB, ask_all, check_idle, load, prompt_logits

PRECISIONS = [
    *(("llava", dtype) for dtype in ("float32", "float16", "bfloat16")),
    *((family, dtype) for family in ("qwen2_vl", "qwen2_5_vl", "phi3_v") for dtype in ("float32", "bfloat16")),
]
ANSWER = SamplingParams(temperature=0.0, max_tokens=128, ignore_eos=True, logprobs=0)

Judges = Callable[[str, torch.dtype], Judge]


@pytest.fixture(autouse=True)
def small_products_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of models so small would leave most of a card idle, and go to cuBLAS."""
    monkeypatch.setattr("fovea.kernels.many_rows.WORTH_FILLED", 0.0)


@contextmanager
def engine(folder: Path, dtype: str) -> Iterator[LLM]:
    with load(folder, device="cuda", dtype=dtype, kv_cache_memory_bytes=256 * MIB, max_model_len=4096) as llm:
        yield llm
        check_idle(llm)


@pytest.mark.parametrize(("family", "dtype"), PRECISIONS)
def test_prompt_logits_are_as_exact_as_those_of_transformers(
    small: Callable[[str], Path], judges: Judges, family: str, dtype: str
) -> None:
    truth, yardstick = judges(family, torch.float64), judges(family, getattr(torch, dtype))
    ours, theirs = [], []
    with engine(small(family), dtype) as llm:
        for prompt, images in questions(family):
            ids = _prompt_ids(llm, prompt)
            if len(ids) == 1:  # nothing of it is scored, so it may come from a graph, where nobody sees its logits
                continue
            llm.reset_prefix_cache()
            made = torch.from_numpy(prompt_logits(llm, prompt))
            true = truth.logits(ids, images)
            ours.append((made, true))
            theirs.append((yardstick.logits(ids, images), true))
    check(f"{family} prompts", dtype, score(ours), score(theirs))


def _prompt_ids(llm: LLM, prompt: dict[str, object]) -> list[int]:
    one = dataclasses.replace(ANSWER, max_tokens=1, logprobs=None)
    return list(ask_all(llm, [prompt], one)[0].prompt_token_ids)


@pytest.mark.parametrize(("family", "dtype"), PRECISIONS)
def test_greedy_answers_are_the_references(
    small: Callable[[str], Path], judges: Judges, family: str, dtype: str
) -> None:
    """All prompts in one batch: prefill in one launch, then decoding by graphs."""
    truth, yardstick = judges(family, torch.float64), judges(family, getattr(torch, dtype))
    asked = questions(family)
    with engine(small(family), dtype) as llm:
        outputs = ask_all(llm, [prompt for prompt, _ in asked], ANSWER)
        counters = llm.engine.counters()
    assert counters["num_graph_steps"] >= 100
    assert counters["num_eager_decodes"] <= len(asked), "beside the prompt of one token, where it came alone"
    check(f"{family} answers", dtype, *score_answers(outputs, [images for _, images in asked], truth, yardstick))
