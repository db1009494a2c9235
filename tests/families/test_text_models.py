"""Models of text alone: what their configs mean, what is refused, and that pictures are."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from fovea.core.errors import MediaError, UnsupportedModelError
from fovea.engine.build import count_parameters
from fovea.families.base import Family
from fovea.families.registry import load_family
from fovea.models.decoder import Rope
from tests.oracle.checkpoints import CASES, PHI_LONG_FACTOR, PHI_SHORT_FACTOR, TEXT_FAMILIES, build_text, picture
from tests.oracle.reference import reference
from tests.parity.support import (
    GREEDY,
    LLAMA3,
    VARIANTS,
    Checkpoints,
    Engines,
    answer,
    ask,
    load,
    num_decided,
    prompt_logits,
    question,
    tokens,
)
from tests.server_process import serve

# Published configs, without what is a default or does not bear on the arithmetic; and their parameters in millions.
SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"],
    "eos_token_id": 2,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 49152,
}
LLAMA_32_1B = {
    "architectures": ["LlamaForCausalLM"],
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192},
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
MISTRAL_7B_1 = {
    "architectures": ["MistralForCausalLM"],
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "rms_norm_eps": 1e-05,
    "sliding_window": 4096,
    "torch_dtype": "bfloat16",
}
QWEN25_05B = {
    "architectures": ["Qwen2ForCausalLM"],
    "eos_token_id": 151645,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"],
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
PHI3_MINI_4K = {
    "architectures": ["Phi3ForCausalLM"],
    "max_position_embeddings": 4096,
    "model_type": "phi3",
    "num_key_value_heads": 32,
    "rope_scaling": None,
    "sliding_window": 2047,
}
PHI4_MINI = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "eos_token_id": 199999,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "max_position_embeddings": 131072,
    "model_type": "phi3",
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "original_max_position_embeddings": 4096,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {"long_factor": PHI_LONG_FACTOR, "short_factor": PHI_SHORT_FACTOR, "type": "longrope"},
    "sliding_window": 262144,
    "tie_word_embeddings": True,
    "vocab_size": 200064,
}
PUBLISHED = {
    "SmolLM2-135M": (SMOLLM2_135M, 134.515),
    "Llama-3.2-1B": (LLAMA_32_1B, 1235.814),
    "Mistral-7B-v0.1": (MISTRAL_7B_1, 7241.732),
    "Qwen2.5-0.5B": (QWEN25_05B, 494.033),
    "Qwen3-0.6B": (QWEN3_06B, 596.050),
    "Phi-3-mini-4k": (PHI3_MINI_4K, 3821.080),
    "Phi-4-mini": (PHI4_MINI, 3836.022),
}


def from_config(folder: Path, config: dict[str, Any], **changes: Any) -> Family:
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return load_family(folder)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_gives_the_published_number_of_parameters(tmp_path: Path, name: str) -> None:
    config, millions = PUBLISHED[name]
    family = from_config(tmp_path, config)
    assert count_parameters(family) / 1e6 == pytest.approx(millions, abs=1e-3)
    assert family.stop_tokens()
    assert not family.spec.takes_pictures


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_a_config_without_sizes_means_what_transformers_takes_it_to_mean(tmp_path: Path, family: str) -> None:
    name = {"qwen3_moe": "Qwen3Moe"}.get(family, family.capitalize())
    made = from_config(tmp_path, {"architectures": [f"{name}ForCausalLM"], "model_type": family})
    theirs, ours = AutoConfig.from_pretrained(tmp_path), made.spec.decoder
    assert (ours.vocab_size, ours.hidden_size, ours.intermediate_size, ours.num_layers) == (
        *(theirs.vocab_size, theirs.hidden_size, theirs.intermediate_size, theirs.num_hidden_layers),
    )
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert (ours.num_heads, ours.num_kv_heads, ours.head_dim) == (
        *(theirs.num_attention_heads, theirs.num_key_value_heads, head_dim),
    )
    assert (ours.norm_eps, ours.max_positions, ours.tied_head) == (
        *(theirs.rms_norm_eps, theirs.max_position_embeddings, theirs.tie_word_embeddings),
    )
    assert ours.sliding_window == (theirs.sliding_window if family == "mistral" else None)
    assert ours.rope.regimes[0].theta == theirs.rope_parameters["rope_theta"]
    ends = theirs.eos_token_id or []
    assert made.stop_tokens() == set(ends if isinstance(ends, list) else [ends])


SCALINGS: dict[str, dict[str, Any]] = {
    "none": {"rope_theta": 12345.0},
    "llama3": {"rope_scaling": LLAMA_32_1B["rope_scaling"], "rope_theta": 500000.0},
    "linear": {"rope_scaling": {"type": "linear", "factor": 3.0}, "rope_theta": 10000.0},
    "new spelling": {
        "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 4096, "rope_theta": 500000.0},
        "rope_theta": None,
    },
    "original beside": {"rope_scaling": LLAMA3, "original_max_position_embeddings": 2048},
    "original left out": {"rope_scaling": {**LLAMA3, "factor": 4.0}, "max_position_embeddings": 512},
}


@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    changes = {key: value for key, value in SCALINGS[name].items() if value is not None}
    config = {key: value for key, value in LLAMA_32_1B.items() if not key.startswith("rope")}
    decoder = from_config(tmp_path, config, **changes).spec.decoder
    theirs = LlamaRotaryEmbedding(AutoConfig.from_pretrained(tmp_path))
    ours = Rope(decoder.rope, decoder.head_dim, torch.device("cpu"))
    torch.testing.assert_close(ours._inv_freq[0], theirs.inv_freq, rtol=1e-6, atol=0)
    assert float(ours._scales[0]) == theirs.attention_scaling == 1.0


@pytest.mark.parametrize(
    ("more", "max_positions"), [({}, 131072), ({}, 4096), ({"factor": 2.0}, 131072), ({"attention_factor": 1.5}, 8192)]
)
def test_long_frequencies_are_those_of_transformers(tmp_path: Path, more: dict[str, float], max_positions: int) -> None:
    scaling = {"long_factor": PHI_LONG_FACTOR, "short_factor": PHI_SHORT_FACTOR, "type": "longrope", **more}
    changes = {"rope_scaling": scaling, "max_position_embeddings": max_positions, "sliding_window": None}
    decoder = from_config(tmp_path, PHI3_MINI_4K, **changes).spec.decoder
    ours = Rope(decoder.rope, decoder.head_dim, torch.device("cpu"))
    theirs = Phi3RotaryEmbedding(AutoConfig.from_pretrained(tmp_path))
    assert decoder.rope.switch_tokens == 4096
    for regime, num_tokens in ((0, 4096), (1, 4097)):
        theirs(torch.zeros(1), torch.arange(num_tokens)[None])
        torch.testing.assert_close(ours._inv_freq[regime], theirs.inv_freq, rtol=1e-6, atol=0)
        assert float(ours._scales[regime]) == pytest.approx(theirs.attention_scaling)


UNSUPPORTED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "yarn": (QWEN25_05B, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'; supported: 'default', 'linear'"),
    "dynamic": (SMOLLM2_135M, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
    "a key of another scaling": (
        *(LLAMA_32_1B, {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 32}}, "'beta_fast'"),
    ),
    "frequencies for each layer": (
        *(LLAMA_32_1B, {"rope_scaling": None, "rope_parameters": {"full_attention": {}}}, "'full_attention'"),
    ),
    "partial rotary": (QWEN25_05B, {"partial_rotary_factor": 0.75}, "'partial_rotary_factor' is 0.75"),
    "more than all rotary": (PHI3_MINI_4K, {"partial_rotary_factor": 1.5}, "144 of 96 dimensions"),
    "an odd part rotary": (PHI3_MINI_4K, {"partial_rotary_factor": 0.27}, "25 of 96"),
    "partial rotary inside": (
        *(LLAMA_32_1B, {"rope_parameters": {"partial_rotary_factor": 0.5}, "rope_scaling": None}, "is 0.5"),
    ),
    "factors of another length": (
        PHI3_MINI_4K,
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
        "48 numbers",
    ),
    "low above high": (
        *(LLAMA_32_1B, {"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "not below 'high_freq_factor'"),
    ),
    "biases in the MLP": (SMOLLM2_135M, {"mlp_bias": True}, "'mlp_bias' is True"),
    "biases where there are none": (MISTRAL_7B_1, {"attention_bias": True}, "'attention_bias' is True"),
    "another activation": (SMOLLM2_135M, {"hidden_act": "gelu"}, "'hidden_act' is 'gelu'"),
    "heads of odd width": (QWEN3_06B, {"head_dim": 33}, "33 of 33 dimensions"),
    "heads that do not divide": (QWEN3_06B, {"num_key_value_heads": 3}, "do not divide"),
    "layers of another kind": (QWEN3_06B, {"layer_types": ["chunked_attention"] * 28}, "'layer_types'"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_implemented_is_refused_by_name(tmp_path: Path, name: str) -> None:
    config, changes, says = UNSUPPORTED[name]
    with pytest.raises(UnsupportedModelError, match="(?s).*") as caught:
        from_config(tmp_path, config, **changes)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("config", "changes", "window"),
    [
        (MISTRAL_7B_1, {}, 4096),
        (MISTRAL_7B_1, {"sliding_window": None}, None),
        (PHI3_MINI_4K, {}, 2047),
        (QWEN25_05B, {}, None),
        (QWEN25_05B, {"use_sliding_window": True}, 32768),
        (QWEN25_05B, {"use_sliding_window": True, "max_window_layers": 24}, None),
        (QWEN25_05B, {"use_sliding_window": True, "layer_types": ["full_attention"] * 24}, None),
        (QWEN3_06B, {"use_sliding_window": True, "sliding_window": 7}, None),  # 28 layers, of which the first 28 don't
        (QWEN3_06B, {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 27}, 7),
    ],
    ids=str,
)
def test_windows_are_read(tmp_path: Path, config: dict[str, Any], changes: dict[str, Any], window: int | None) -> None:
    decoder = from_config(tmp_path, config, **changes).spec.decoder
    assert decoder.sliding_window == window
    assert bool(decoder.sliding_layers) == (window is not None)


def test_a_window_would_change_the_answer(tmp_path: Path) -> None:
    """The parity of "mistral-window" says something: the oracle answers otherwise when a sequence outgrows it."""
    prompt = CASES["mistral"][1].prompt
    wide, narrow = (
        reference(build_text(tmp_path / str(window), "mistral", sliding_window=window), prompt, max_new_tokens=1)
        for window in (None, 16)
    )
    assert abs(wide.logits[-1] - narrow.logits[-1]).max() > 0.1


@pytest.mark.parametrize("variant", ["llama-llama3", "llama-linear", "phi3-switch-32"])
def test_a_scaling_changes_the_answer(checkpoints: Checkpoints, variant: str) -> None:
    """So parity with transformers says that it is applied."""
    family = VARIANTS[variant][0]
    case = CASES[family][1]
    plain, scaled = (answer(checkpoints.folder(name), case) for name in (family, variant))
    assert abs(plain.logits[-1] - scaled.logits[-1]).max() > 0.1


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_a_picture_is_refused_in_every_form(engines: Engines, family: str) -> None:
    llm = engines.get(family)
    image = picture(40, 30, 1)
    says = "is a model of text alone and takes no pictures"
    for shown in (image, [image, image], torch.zeros(3, llm.family.spec.decoder.hidden_size)):
        with pytest.raises(MediaError, match=says) as caught:
            ask(llm, {"prompt": "What is it?", "multi_modal_data": {"image": shown}})
        assert caught.value.status == 400
    content = [{"type": "image_pil", "image_pil": image}, {"type": "text", "text": "What is it?"}]
    with pytest.raises(MediaError, match=says):
        llm.chat([{"role": "user", "content": content}], GREEDY, use_tqdm=False)
    with pytest.raises(MediaError, match=says):
        ask(llm, {"prompt_token_ids": [5, 6, 7], "multi_modal_data": {"image": image}})


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_chat_is_generate_on_the_rendered_text(checkpoints: Checkpoints, engines: Engines, family: str) -> None:
    case, llm = CASES[family][0], engines.get(family)
    for content in ("What is it?", [{"type": "text", "text": "What is it?"}]):
        (output,) = llm.chat([{"role": "user", "content": content}], GREEDY, use_tqdm=False)
        assert output.prompt == case.prompt
        assert tokens(output) == answer(checkpoints.folder(family), case).greedy


def test_processor_options_are_refused(engines: Engines) -> None:
    with pytest.raises(MediaError, match="LlamaForCausalLM takes: none"):
        ask(engines.get("llama"), {"prompt": "hello", "mm_processor_kwargs": {"num_crops": 4}})


def test_no_memory_is_planned_for_pictures(engines: Engines) -> None:
    assert engines.get("llama").engine.plan.encoder_cache_bytes == 0


def test_old_checkpoints_and_second_heads_load(tmp_path: Path) -> None:
    """Frequencies that old versions stored, and a head beside a tied table, say nothing of their own."""
    from safetensors.torch import load_file, save_file

    folder = build_text(tmp_path / "model", "qwen2")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    load(folder).close()


def test_a_server_with_a_text_model_says_so_and_refuses_pictures(checkpoints: Checkpoints) -> None:
    folder = checkpoints.folder("qwen3")
    flags = ("--device", "cpu", "--kv-cache-memory-bytes", "64M", "--max-model-len", "256")
    with serve(str(folder), *flags) as server:
        (card,) = httpx2.get(f"{server.url}/v1/models", timeout=30).json()["data"]
        assert card["fovea"]["modalities"] == ["text"]
        assert card["fovea"]["max_images"] == 0
        assert httpx2.get(f"{server.url}/", timeout=30, follow_redirects=True).status_code == 200

        def chat(content: Any) -> httpx2.Response:
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4, "temperature": 0}
            return httpx2.post(f"{server.url}/v1/chat/completions", json={"model": card["id"], **body}, timeout=60)

        assert chat("What is it?").status_code == 200
        for url in ("http://127.0.0.1:1/a.png", "data:image/png;base64,iVBORw0KGgo="):
            reply = chat([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}])
            assert reply.status_code == 400, reply.text
            assert "text alone and takes no pictures" in reply.json()["error"]["message"]
            assert reply.json()["error"]["code"] == "unsupported_value"
        assert chat("What is it?").status_code == 200


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_shapes_drawn_at_random_agree(tmp_path: Path, family: str, seed: int) -> None:
    """Other widths, depths, groups of queries and heads than the checkpoints that the rest was tried with."""
    rng = random.Random(f"{family} {seed}")
    kv_heads, group, head_dim = rng.randint(1, 3), rng.randint(1, 4), 2 * rng.randint(4, 20)
    heads, head_dim = kv_heads * group, head_dim * (2 if family in ("glm", "glm4") else 1)  # half of it is rotated
    shape: dict[str, Any] = {
        "hidden_size": heads * head_dim if family in ("phi3", "qwen2") else heads * rng.randint(6, 24),
        "intermediate_size": rng.randint(50, 150),
        "num_attention_heads": heads,
        "num_hidden_layers": rng.randint(1, 4),
        "num_key_value_heads": kv_heads,
        "rope_theta": rng.choice([10000.0, 1000000.0]),
        "tie_word_embeddings": rng.random() < 0.5,
    }
    if family == "phi3":
        shape |= {"rope_scaling": None, "max_position_embeddings": 2048}
    elif family != "qwen2":
        shape["head_dim"] = head_dim
    if family in ("llama", "qwen3"):
        shape["attention_bias"] = rng.random() < 0.5
    folder = build_text(tmp_path / "model", family, seed=1000 + seed, **shape)
    with load(folder, max_num_batched_tokens=64) as llm:
        for case in CASES[family]:
            want = reference(folder, case.prompt, max_new_tokens=16)
            np.testing.assert_allclose(prompt_logits(llm, question(case)), want.logits, atol=2e-4, rtol=0)
            decided = num_decided(want.margins)
            assert tokens(ask(llm, question(case)))[:decided] == want.greedy[:decided]
