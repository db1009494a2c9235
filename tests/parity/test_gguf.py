"""A GGUF file is the model it was made from: ids, logits and tokens equal transformers' with the same weights."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from gguf import GGMLQuantizationType as Kind  # noqa: E402

from fovea.core.params import SamplingParams  # noqa: E402
from fovea.families.registry import load_family  # noqa: E402
from fovea.llm import LLM  # noqa: E402
from tests.oracle.checkpoints import CASES, build_text  # noqa: E402
from tests.oracle.gguf_files import convert  # noqa: E402
from tests.parity.support import (  # noqa: E402
    GREEDY,
    LLAMA3,
    answer,
    ask,
    check_idle,
    load,
    num_decided,
    prompt_logits,
    question,
    tokens,
)

REAL_FILE = os.environ.get("FOVEA_GGUF_FILE", "")
LONG = {**LLAMA3, "original_max_position_embeddings": 64}


class Made(NamedTuple):
    """A family of the oracle, what its config differs in, and the types of its matrices and of its embeddings."""

    family: str
    matrices: Kind
    table: Kind
    changes: Mapping[str, Any] = {}


MADE = {
    "llama-q8_0": Made("llama", Kind.Q8_0, Kind.Q8_0),
    "llama-tied-q4_1-rope_freqs": Made(
        "llama", Kind.Q4_1, Kind.Q8_0, {"tie_word_embeddings": True, "rope_scaling": LONG}
    ),
    "llama-bf16-biases-linear": Made(
        "llama", Kind.BF16, Kind.F16, {"attention_bias": True, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    ),
    "llama-q4_0-grouped": Made(
        "llama", Kind.Q4_0, Kind.F32, {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 96}
    ),
    "mistral-f32-window": Made("mistral", Kind.F32, Kind.F32, {"sliding_window": 16}),
    "qwen2-q5_0": Made("qwen2", Kind.Q5_0, Kind.Q8_0),
    "qwen2-untied-q5_1": Made("qwen2", Kind.Q5_1, Kind.F16, {"tie_word_embeddings": False}),
    "qwen3-f16": Made("qwen3", Kind.F16, Kind.Q8_0),
}
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}


@pytest.fixture(scope="module", params=MADE)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, LLM, Path]]:
    """The name, an engine on the file, and the folder that transformers reads."""
    one = MADE[request.param]
    path = make(tmp_path_factory.mktemp("gguf"), one)
    llm = load(path)
    yield one.family, llm, path.parent
    check_idle(llm)
    llm.close()


def make(root: Path, one: Made) -> Path:
    folder = build_text(root / "folder", one.family, **one.changes)
    scaling = one.changes.get("rope_scaling") or {}

    def edit(writer: Any) -> None:
        if scaling.get("rope_type") == "llama3":
            writer.add_tensor("rope_freqs.weight", llama3_factors(scaling, 500000.0, 16))

    def chooser(name: str) -> Kind:
        return one.table if name == "token_embd.weight" else one.matrices

    return convert(folder, root / "made", chooser, edit=edit)


def llama3_factors(scaling: Mapping[str, Any], theta: float, width: int) -> Any:
    """As llama.cpp's converter computes them from config.json."""
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    factors = []
    for place in range(0, width, 2):
        wave = 2 * math.pi * theta ** (place / width)
        smooth = (original / wave - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        factors.append(1.0 if wave < original / high else factor if wave > original / low else between)
    return np.asarray(factors, np.float32)


def test_ids_logits_and_greedy_tokens_equal_transformers(made: tuple[str, LLM, Path]) -> None:
    family, llm, folder = made
    for case in CASES[family]:
        want = answer(folder, case)
        llm.reset_prefix_cache()
        assert np.abs(prompt_logits(llm, question(case)) - want.logits).max() < 1e-4
        output = ask(llm, question(case))
        assert list(output.prompt_token_ids) == want.token_ids
        decided = num_decided(want.margins)
        assert decided >= 4, "the weights say too little"
        assert tokens(output)[:decided] == want.greedy[:decided]


def test_the_template_and_the_ends_are_those_of_the_folder(made: tuple[str, LLM, Path]) -> None:
    _, llm, folder = made
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    with load(folder) as other:
        assert llm._preparer.template.source == other._preparer.template.source
        ours, theirs = (one.chat(messages, GREEDY, use_tqdm=False)[0] for one in (llm, other))
        assert list(ours.prompt_token_ids) == list(theirs.prompt_token_ids)
        assert tokens(ours) == tokens(theirs)
        assert llm.family.stop_tokens() >= other.family.stop_tokens()


@pytest.mark.parametrize("kind", [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K], ids=lambda kind: kind.name)
def test_k_quants_give_the_logits_of_transformers(kind: Kind, tmp_path: Path) -> None:
    path = make(tmp_path, Made("llama", kind, Kind.Q6_K, WIDE))
    case = CASES["llama"][0]
    with load(path) as llm:
        want = answer(path.parent, case).logits
        assert np.abs(prompt_logits(llm, question(case)) - want).max() < 1e-4 * max(1.0, float(np.abs(want).max()))


def test_a_file_runs_in_bfloat16_too(tmp_path: Path) -> None:
    path = make(tmp_path, MADE["qwen2-q5_0"])
    with load(path, dtype="bfloat16") as ours, load(path.parent, dtype="bfloat16") as theirs:
        case = CASES["qwen2"][0]
        assert np.array_equal(prompt_logits(ours, question(case)), prompt_logits(theirs, question(case)))


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_file_is_quantised_anew_as_its_folder_is(tmp_path: Path, quantization: str) -> None:
    path = make(tmp_path, MADE["llama-q8_0"])
    options = {"device": "cpu", "quantization": quantization}
    with load(path, **options) as ours, load(path.parent, **options) as theirs:
        case = CASES["llama"][0]
        assert np.array_equal(prompt_logits(ours, question(case)), prompt_logits(theirs, question(case)))


@pytest.mark.skipif(not Path(REAL_FILE).is_file(), reason="FOVEA_GGUF_FILE names no SmolLM2-135M-Instruct")
def test_smollm2_knows_the_capital_of_france() -> None:
    family = load_family(Path(REAL_FILE))
    assert family.spec.decoder.num_layers == 30
    with load(Path(REAL_FILE), kv_cache_memory_bytes=128 * 1024**2) as llm:
        tokenizer = llm._preparer.tokenizer
        assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|>") == [0, 1, 2]
        assert (tokenizer.vocab_size, len(tokenizer.special_tokens)) == (49152, 17)
        chat = [{"role": "user", "content": "What is the capital of France?"}]
        output = llm.chat(chat, SamplingParams(temperature=0.0, max_tokens=16), use_tqdm=False)[0]
        assert output.outputs[0].text == "The capital of France is Paris."
        assert output.outputs[0].finish_reason == "stop"
