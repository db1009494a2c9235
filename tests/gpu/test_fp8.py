"""Float8 weights on a card: graphs change no answer, and answers are nearly those of the plain model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fovea.kernels.fp8_weights import has_scaled_product
from fovea.models.quantized import QuantizedLinear
from tests.gpu.small import questions
from tests.parity.support import GREEDY, MIB, ask_all, load, tokens

OPTIONS: dict[str, Any] = {"device": "cuda", "kv_cache_memory_bytes": 256 * MIB, "max_model_len": 4096}

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="no products of float8"
)


def test_this_torch_multiplies_float8_by_rows() -> None:
    assert has_scaled_product(torch.device("cuda", torch.cuda.current_device()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "phi3_v"])
def test_graphs_change_no_answer_of_float8_weights(small: Callable[[str], Path], family: str, dtype: str) -> None:
    """One question by one, so that both ways see the same rows."""
    params = dataclasses.replace(GREEDY, max_tokens=16)
    answers = {}
    for eager in (False, True):
        options = {**OPTIONS, "dtype": dtype, "quantization": "fp8", "enable_prefix_caching": False}
        with load(small(family), enforce_eager=eager, **options) as llm:
            assert any(isinstance(module, QuantizedLinear) for module in llm.engine.model.modules())
            asked = [prompt for prompt, _ in questions(family)]
            answers[eager] = [tokens(ask_all(llm, [prompt], params)[0]) for prompt in asked for _ in range(3)]
            together = ask_all(llm, asked, params)
            assert all(len(tokens(output)) == 16 for output in together)
    assert answers[False] == answers[True]
