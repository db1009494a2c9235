"""The option: what it takes, where it is refused, what the plan and the answers of an engine make of it."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
import torch

from fovea.core.config import EngineConfig
from fovea.core.errors import InvalidOptionError
from fovea.engine import build
from fovea.engine.build import plan_engine
from fovea.families.registry import load_family
from fovea.models.quantized import QuantizedLinear
from tests.oracle.checkpoints import CASES
from tests.parity.support import DEVICE, GREEDY, Checkpoints, Engines, ask, ask_all, question, tokens

OFF = 0.15  # of log-probabilities: activations are bfloat16 in some products, and the weights are random

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="integers are multiplied on a CPU only")


@pytest.mark.parametrize("value", ["awq", "fp16", "FP8", "INT8", "", 8, True])
def test_other_values_are_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidOptionError, match="quantization is .*; permitted: int8, int4, fp8"):
        EngineConfig(quantization=value)


def test_on_a_gpu_it_is_refused(monkeypatch: pytest.MonkeyPatch, checkpoints: Checkpoints) -> None:
    monkeypatch.setattr(build, "choose_device", lambda config: torch.device("cuda", 0))
    folder = checkpoints.folder("llava")
    with pytest.raises(InvalidOptionError, match="quantization is 'int8', but the model runs on cuda.*pass \"fp8\""):
        plan_engine(EngineConfig(model=str(folder), quantization="int8"), load_family(folder))


def test_on_a_gpu_without_float8_fp8_is_refused(monkeypatch: pytest.MonkeyPatch, checkpoints: Checkpoints) -> None:
    monkeypatch.setattr(build, "choose_device", lambda config: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    folder = checkpoints.folder("llava")
    with pytest.raises(InvalidOptionError, match="this GPU has no products of float8 .* int8 and int4 are for CPUs"):
        plan_engine(EngineConfig(model=str(folder), quantization="fp8"), load_family(folder))


def test_on_a_cpu_fp8_is_told_to_be_slow(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("fovea"), "propagate", True)
    folder = checkpoints.folder("llava")
    plan_engine(EngineConfig(device="cpu", quantization="fp8"), load_family(folder))
    assert sum("fp8 weights are slow on a CPU" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("path", ["generic", "compatible"])
def test_where_transformers_loads_the_weights_it_is_refused(
    checkpoints: Checkpoints, engines: Engines, path: str
) -> None:
    with pytest.raises(InvalidOptionError, match=f"quantization is 'int4', but .* takes the {path} path"):
        engines.get("qwen2_vl", model_impl=path, quantization="int4")


def test_the_memory_plan_counts_integers(checkpoints: Checkpoints) -> None:
    folder = checkpoints.folder("llava")
    family = load_family(folder)
    plain, eight, four, float8 = (
        plan_engine(EngineConfig(device="cpu", dtype="float32", quantization=asked), family).memory.weights_bytes
        for asked in (None, "int8", "int4", "fp8")
    )
    assert four < eight < float8 < plain  # whose head stays


@pytest.mark.parametrize("asked", ["int8", "int4", "fp8"])
def test_an_engine_answers_alone_as_in_company(engines: Engines, asked: str) -> None:
    """Log-probabilities of the likeliest first tokens; one sequence takes other products than all of them."""
    llm = engines.get("qwen2_vl", quantization=asked)
    assert any(isinstance(module, QuantizedLinear) for module in llm.engine.model.modules())
    scored = dataclasses.replace(GREEDY, logprobs=4, max_tokens=1)
    cases = CASES["qwen2_vl"]
    together = ask_all(llm, [question(case) for case in cases], scored)
    for case, output in zip(cases, together, strict=True):
        alone = ask(llm, question(case), scored)
        theirs, ours = (next(iter(each.outputs[0].logprobs or [])) for each in (output, alone))
        common = set(theirs) & set(ours)
        assert len(common) >= 3
        assert all(abs(theirs[token].logprob - ours[token].logprob) < OFF for token in common)


@pytest.mark.parametrize("asked", ["int8", "fp8"])
def test_a_prompt_is_answered_nearly_as_by_the_plain_model(engines: Engines, asked: str) -> None:
    plain, quantised = engines.get("qwen2_vl"), engines.get("qwen2_vl", quantization=asked)
    for case in CASES["qwen2_vl"]:
        first, second = (ask(llm, question(case)) for llm in (plain, quantised))
        assert tokens(first)[0] == tokens(second)[0]
