"""A request alone, in a batch, in chunks, from the cache or thrown out: as exact every time.

Rounding differs with the shapes of a step, so tokens may; the float64 reference after the same tokens judges each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fovea.core.types import RequestOutput
from fovea.llm import LLM
from tests.gpu.judge import Judge, check, score_answers
from tests.gpu.small import questions
from tests.gpu.test_transformers import ANSWER, PRECISIONS
from tests.parity.support import MIB, ask_all, check_idle, load

Judges = Callable[[str, torch.dtype], Judge]


def alone(llm: LLM, prompts: list[Any]) -> list[RequestOutput]:
    return [ask_all(llm, [prompt], ANSWER)[0] for prompt in prompts]


def together(llm: LLM, prompts: list[Any]) -> list[RequestOutput]:
    return ask_all(llm, prompts, ANSWER)


def twice(llm: LLM, prompts: list[Any]) -> list[RequestOutput]:
    """The second time, from the prefix cache."""
    ask_all(llm, prompts, ANSWER)
    outputs = ask_all(llm, prompts, ANSWER)
    assert sum(output.num_cached_tokens for output in outputs) > 0
    return outputs


def squeezed(llm: LLM, prompts: list[Any]) -> list[RequestOutput]:
    """Too little memory for all at once, and nobody looks ahead whether answers will fit."""
    scheduler = llm.engine.scheduler
    scheduler.budgets = dataclasses.replace(scheduler.budgets, ahead_tokens=0)
    outputs = ask_all(llm, prompts * 4, ANSWER)
    assert scheduler.stats.num_preemptions > 0
    return outputs[-len(prompts) :]


# How requests are asked, and the engine's options.
WAYS: Mapping[str, tuple[Callable[[LLM, list[Any]], list[RequestOutput]], Mapping[str, Any]]] = {
    "alone": (alone, {"enable_prefix_caching": False}),
    "together": (together, {"enable_prefix_caching": False}),
    "in chunks": (together, {"enable_prefix_caching": False, "max_num_batched_tokens": 256}),
    "cached": (twice, {}),
    "preempted": (squeezed, {"enable_prefix_caching": False, "max_num_seqs": 64}),
}
# Values kept for one token; tokens of a prompt and its answer, and a little more.
TOKEN_VALUES = {"llava": 2 * 4 * 512, "qwen2_vl": 2 * 4 * 128, "qwen2_5_vl": 2 * 4 * 128, "phi3_v": 2 * 4 * 384}
LONGEST = {"llava": 768, "qwen2_vl": 768, "qwen2_5_vl": 768, "phi3_v": 2688}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("family", "dtype"), PRECISIONS)
def test_every_way_is_as_exact_as_transformers(
    small: Callable[[str], Path], judges: Judges, family: str, dtype: str, way: str
) -> None:
    asks, options = WAYS[way]
    if way == "preempted":
        longest, token_bytes = LONGEST[family], TOKEN_VALUES[family] * getattr(torch, dtype).itemsize
        options = {**options, "max_model_len": longest, "kv_cache_memory_bytes": longest * token_bytes}
    asked = questions(family)
    usual = {"dtype": dtype, "kv_cache_memory_bytes": 256 * MIB, "max_num_seqs": 16, "max_model_len": 4096}
    with load(small(family), device="cuda", **{**usual, **options}) as llm:
        outputs = asks(llm, [prompt for prompt, _ in asked])
        check_idle(llm)
    pictures = [images for _, images in asked]
    truth, yardstick = judges(family, torch.float64), judges(family, getattr(torch, dtype))
    check(f"{family} {way}", dtype, *score_answers(outputs, pictures, truth, yardstick))
