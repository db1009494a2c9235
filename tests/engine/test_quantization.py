"""The option: what it takes, where it is refused, what the plan and the answers of an engine make of it."""

from __future__ import annotations

import dataclasses
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


@pytest.mark.parametrize("value", ["awq", "fp8", "INT8", "", 8, True])
def test_other_values_are_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidOptionError, match="quantization is .*; permitted: int8, int4"):
        EngineConfig(quantization=value)


def test_on_a_gpu_it_is_refused(monkeypatch: pytest.MonkeyPatch, checkpoints: Checkpoints) -> None:
    monkeypatch.setattr(build, "choose_device", lambda config: torch.device("cuda", 0))
    folder = checkpoints.folder("llava")
    with pytest.raises(InvalidOptionError, match="quantization is 'int8', but the model runs on cuda"):
        plan_engine(EngineConfig(model=str(folder), quantization="int8"), load_family(folder))


@pytest.mark.parametrize("path", ["generic", "compatible"])
def test_where_transformers_loads_the_weights_it_is_refused(
    checkpoints: Checkpoints, engines: Engines, path: str
) -> None:
    with pytest.raises(InvalidOptionError, match=f"quantization is 'int4', but .* takes the {path} path"):
        engines.get("qwen2_vl", model_impl=path, quantization="int4")


def test_the_memory_plan_counts_integers(checkpoints: Checkpoints) -> None:
    folder = checkpoints.folder("llava")
    family = load_family(folder)
    plain, eight, four = (
        plan_engine(EngineConfig(device="cpu", dtype="float32", quantization=asked), family).memory.weights_bytes
        for asked in (None, "int8", "int4")
    )
    assert four < eight < plain


@pytest.mark.parametrize("asked", ["int8", "int4"])
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


def test_int8_answers_a_prompt_nearly_as_the_plain_model(engines: Engines) -> None:
    plain, quantised = engines.get("qwen2_vl"), engines.get("qwen2_vl", quantization="int8")
    for case in CASES["qwen2_vl"]:
        first, second = (ask(llm, question(case)) for llm in (plain, quantised))
        assert tokens(first)[0] == tokens(second)[0]
