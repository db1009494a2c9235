"""Keys and values in float8 on a card: kernels write and read them, and no way to an answer changes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.small import questions
from tests.parity.support import GREEDY, MIB, all_tokens, ask_all, leads, load, num_decided, run_together

# Leads in log-probability below which a token is a toss-up: other shapes round otherwise, and now and then a key's
# value to the next of float8's steps.
TOSS_UPS = {"float32": 0.02, "bfloat16": 0.3, "float16": 0.3}
OPTIONS: dict[str, Any] = {
    "device": "cuda",
    "kv_cache_dtype": "fp8",
    "kv_cache_memory_bytes": 256 * MIB,
    "max_model_len": 4096,
}
PARAMS = dataclasses.replace(GREEDY, max_tokens=16, logprobs=2)

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="no conversion of float8"
)


@pytest.mark.parametrize("dtype", TOSS_UPS)
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "phi3_v"])
def test_graphs_neighbours_and_caches_change_no_decided_token(
    small: Callable[[str], Path], family: str, dtype: str
) -> None:
    prompts = [prompt for prompt, _ in questions(family)]
    with load(small(family), enforce_eager=True, dtype=dtype, enable_prefix_caching=False, **OPTIONS) as llm:
        alone = [ask_all(llm, [prompt], PARAMS)[0].outputs[0] for prompt in prompts]
    decided = [num_decided(leads(completion), TOSS_UPS[dtype]) for completion in alone]
    assert sum(decided) >= 12, "the checkpoint says too little"
    with load(small(family), dtype=dtype, **OPTIONS) as llm:
        by_graphs = [ask_all(llm, [prompt], PARAMS)[0].outputs[0] for prompt in prompts]
        together = [output.outputs[0] for output in run_together(llm, prompts * 6, [PARAMS] * (6 * len(prompts)))]
    for i, got in enumerate([*by_graphs, *together]):
        count, want = decided[i % len(prompts)], alone[i % len(prompts)]
        assert got.token_ids[:count] == want.token_ids[:count]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "phi3_v"])
def test_the_kernels_give_the_plain_form_s_answers_in_float32(small: Callable[[str], Path], family: str) -> None:
    prompts = [prompt for prompt, _ in questions(family)]
    answers = []
    for device in ("cuda", "cpu"):
        options = {**OPTIONS, "device": device, "dtype": "float32", "enable_prefix_caching": False}
        with load(small(family), **options) as llm:
            answers.append(ask_all(llm, prompts, PARAMS))
    decided = [num_decided(leads(output.outputs[0]), TOSS_UPS["float32"]) for output in answers[1]]
    for count, one, other in zip(decided, *(all_tokens(some) for some in answers), strict=True):
        assert one[0][:count] == other[0][:count]
