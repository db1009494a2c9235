"""Float8 weights on a card: the product is there, and graphs change no answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fovea.kernels.batch import FEW_ROWS
from fovea.kernels.fp8_weights import has_scaled_product
from fovea.models.quantized import QuantizedLinear
from tests.gpu.small import questions
from tests.parity.support import GREEDY, MIB, ask_all, leads, load, num_decided

TOSS_UP = 0.3  # a lead in log-probability
OPTIONS: dict[str, Any] = {"device": "cuda", "kv_cache_memory_bytes": 256 * MIB, "max_model_len": 4096}

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="no products of float8"
)


def test_this_torch_multiplies_float8_by_rows() -> None:
    assert has_scaled_product(torch.device("cuda", torch.cuda.current_device()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "phi3_v"])
def test_graphs_give_the_answers_of_eager_steps_with_float8_weights(
    small: Callable[[str], Path], family: str, dtype: str
) -> None:
    """Up to the first token that is a toss-up: graphs pad prompts, and other shapes round otherwise.

    Prompts have more tokens than our own kernels for few rows take, which a graph would give to the others.
    """
    params = dataclasses.replace(GREEDY, max_tokens=16, logprobs=2)
    ids = [prompt.get("prompt_token_ids") for prompt, _ in questions(family)]
    is_long = [not isinstance(one, list) or len(one) > FEW_ROWS for one in ids]
    asked = [prompt for (prompt, _), long in zip(questions(family), is_long, strict=True) if long]
    answers = {}
    for eager in (False, True):
        options = {**OPTIONS, "dtype": dtype, "quantization": "fp8", "enable_prefix_caching": False}
        with load(small(family), enforce_eager=eager, **options) as llm:
            assert any(isinstance(module, QuantizedLinear) for module in llm.engine.model.modules())
            answers[eager] = [ask_all(llm, [prompt], params)[0].outputs[0] for prompt in asked for _ in range(3)]
    decided = [num_decided(leads(completion), TOSS_UP) for completion in answers[True]]
    assert sum(decided) >= 12, "the checkpoint says too little"
    for count, one, other in zip(decided, answers[False], answers[True], strict=True):
        assert one.token_ids[:count] == other.token_ids[:count]
