"""kv_cache_dtype: what it takes, where it is refused, what it costs, and that no way to an answer changes it."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
import torch

from fovea.core.config import EngineConfig
from fovea.core.errors import InvalidOptionError
from fovea.engine import build
from fovea.engine.build import plan_engine
from fovea.engine.runner import Runner
from fovea.families.registry import load_family
from fovea.kernels.kv_pages import Fp8Pages, KVPages
from fovea.llm import LLM
from tests.oracle.checkpoints import CASES
from tests.parity.support import (
    DEVICE,
    GREEDY,
    VARIANTS,
    Checkpoints,
    Engines,
    all_tokens,
    answer,
    ask_all,
    prompt_logits,
    question,
    run_together,
)

FP8: dict[str, Any] = {"kv_cache_dtype": "fp8"}
OFF = 0.15  # norm of the error of logits over theirs: float8 keeps three bits, and the weights are random
# Decoders with every head turned, some of it, grouped queries, windows, head norms.
SOME = ("llava", "llava-grouped", "qwen2_vl", "qwen3_vl", "phi3_v", "phi3-partial", "gemma3", "mistral-window")


@pytest.mark.parametrize("value", ["fp8_e5m2", "int8", "", 8, None])
def test_other_values_are_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidOptionError, match="kv_cache_dtype is .*; permitted: auto, fp8"):
        EngineConfig(kv_cache_dtype=value)


def test_on_a_gpu_without_float8_it_is_refused(monkeypatch: pytest.MonkeyPatch, checkpoints: Checkpoints) -> None:
    monkeypatch.setattr(build, "choose_device", lambda config: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    folder = checkpoints.folder("llava")
    with pytest.raises(InvalidOptionError, match="kv_cache_dtype is 'fp8', but this GPU does not convert float8"):
        plan_engine(EngineConfig(model=str(folder), kv_cache_dtype="fp8"), load_family(folder))


def test_where_transformers_keeps_the_keys_it_is_refused(engines: Engines) -> None:
    with pytest.raises(InvalidOptionError, match="kv_cache_dtype is 'fp8', but .* takes the compatible path"):
        engines.get("qwen2_vl", model_impl="compatible", **FP8)


def test_on_a_cpu_one_is_told_that_it_saves_no_time(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("fovea"), "propagate", True)
    plan_engine(EngineConfig(device="cpu", kv_cache_dtype="fp8"), load_family(checkpoints.folder("llava")))
    assert sum("in fp8 save memory on a CPU, not time" in message for message in caplog.messages) == 1


def pages_of(llm: LLM) -> list[KVPages]:
    runner = llm.engine._runner
    assert isinstance(runner, Runner)
    return runner._pages


@pytest.mark.parametrize("variant", ["llava", "qwen2_vl", "phi3_v"])
def test_the_plan_counts_what_is_allocated(engines: Engines, variant: str) -> None:
    plain, small = (engines.get(variant, max_model_len=128, **options) for options in ({}, FP8))
    for llm in (plain, small):
        plan, its = llm.engine.plan, 0
        for keys, values in pages_of(llm):
            for some in (keys, values):
                held = [some.values, some.scales] if isinstance(some, Fp8Pages) else [some]
                its += sum(one.nbytes for one in held)
        assert its * plan.num_blocks == plan.kv_bytes * (plan.num_blocks + 1), "one block is nobody's"
        assert all(isinstance(some, Fp8Pages) == (llm is small) for some in pages_of(llm)[0])
    assert "KV cache in float8" in str(small.engine.plan)


@pytest.mark.parametrize("variant", SOME)
def test_logits_are_near_the_plain_ones(checkpoints: Checkpoints, engines: Engines, variant: str) -> None:
    for case in CASES[VARIANTS[variant][0]][:2]:
        want = answer(checkpoints.folder(variant), case).logits
        got = prompt_logits(engines.get(variant, enable_prefix_caching=False, **FP8), question(case))
        assert not np.array_equal(got, want)
        assert np.linalg.norm(got - want) < OFF * np.linalg.norm(want)


@pytest.mark.parametrize("variant", [*(one for one in SOME if one != "phi3_v"), "qwen2_vl-generic"])
def test_alone_together_in_chunks_cached_or_preempted_the_answers_are_the_same(engines: Engines, variant: str) -> None:
    name, generic, _ = variant.partition("-generic")
    options = {**FP8, **({"model_impl": "generic"} if generic else {})}
    prompts = [question(case) for case in CASES[VARIANTS[name][0]][:3]]
    alone = [ask_all(engines.get(name, **options), [prompt], GREEDY)[0] for prompt in prompts]
    want = all_tokens(alone)
    llm = engines.get(name, **options)
    for _ in range(2):  # cold, then from the cache
        assert all_tokens(ask_all(llm, prompts)) == want
    chunked = engines.get(name, max_num_batched_tokens=64, block_size=4, enable_prefix_caching=False, **options)
    assert all_tokens(ask_all(chunked, prompts[::-1])) == want[::-1]
    longest = max(len(output.prompt_token_ids) for output in alone) + 24
    per_token = llm.engine.plan.kv_bytes // llm.engine.plan.kv_tokens
    tight = engines.get(name, kv_cache_memory_bytes=(longest + 40) * per_token, block_size=4, **options)
    scheduler = tight.engine.scheduler
    scheduler.budgets = dataclasses.replace(scheduler.budgets, ahead_tokens=0)  # start whatever fits now
    assert all_tokens(run_together(tight, prompts * 3, [GREEDY] * 9)) == want * 3
    assert scheduler.stats.num_preemptions > 0


@pytest.mark.skipif(DEVICE != "cpu", reason="kernels of a CPU")
def test_the_kernels_of_a_cpu_leave_float8_to_torch(engines: Engines) -> None:
    prompts = [question(case) for case in CASES["qwen2_vl"][:2]]
    with_kernels, without = (engines.get("qwen2_vl", cpu_kernels=flag, **FP8) for flag in (True, False))
    assert all_tokens(ask_all(with_kernels, prompts)) == all_tokens(ask_all(without, prompts))
