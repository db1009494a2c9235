"""Tiny random GLM checkpoints, as zai-org publishes GLM-4.1V-9B-Thinking, GLM-4.5V and GLM-OCR."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from .checkpoints import (
    CLIP_MEAN,
    CLIP_STD,
    Case,
    _added_tokens_decoder,
    _id,
    _mute,
    _qwen_tokenizer,
    _special,
    _Tensors,
    _write,
)
from .qwen3vl import rename
from .text_parts import separate_experts

GLM_TOKENS = [
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>"),
    *("<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
    *("<|image|>", "<|video|>"),
]
GLM_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message.role }}|>\n{% if message.content is string %}"
    "{{ message.content }}{% else %}{% for item in message.content %}"
    "{% if item.type == 'image' or 'image' in item %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% elif item.type == 'video' or 'video' in item %}<|begin_of_video|><|video|><|end_of_video|>"
    "{% elif item.type == 'text' %}{{ item.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_SEE = "<|begin_of_image|><|image|><|end_of_image|>"


def _turn(user: str) -> str:
    return f"[gMASK]<sop><|user|>\n{user}<|assistant|>\n"


_CASES = (
    Case("one", _turn(f"{_SEE}What is shown in this picture?"), ((100, 70, 1),)),
    Case(
        "several",
        _turn(f"{_SEE}This is the first picture. {_SEE}{_SEE}How do they differ?"),
        ((30, 20, 2), (400, 300, 3), (84, 200, 4)),
    ),
    Case("text", _turn("Tell me a story about the river and the sea.")),
)
CASES: Mapping[str, tuple[Case, ...]] = dict.fromkeys(("glm4v", "glm4v_moe", "glm_ocr", "glm46v"), _CASES)
_FIRST_SEED = {"glm4v": 217, "glm4v_moe": 277, "glm_ocr": 85, "glm46v": 217}

_SIZES = {
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "use_cache": True,
}
_TEXTS: Mapping[str, dict[str, Any]] = {
    "glm4v": {
        **_SIZES,
        "attention_bias": True,
        "intermediate_size": 96,
        "max_position_embeddings": 65536,
        "model_type": "glm4v_text",
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default"},
        "rope_theta": 10000.0,
    },
    "glm4v_moe": {
        **_SIZES,
        "attention_bias": True,
        "first_k_dense_replace": 1,
        "head_dim": 24,
        "intermediate_size": 96,
        "max_position_embeddings": 65536,
        "model_type": "glm4v_moe_text",
        "moe_intermediate_size": 40,
        "n_group": 2,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 2,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"mrope_section": [2, 2, 2], "rope_type": "default"},
        "rope_theta": 10000.0,
        "routed_scaling_factor": 1.5,
        "topk_group": 1,
        "use_qk_norm": False,
    },
    "glm_ocr": {
        **_SIZES,
        "attention_bias": False,
        "head_dim": 24,
        "intermediate_size": 96,
        "max_position_embeddings": 131072,
        "model_type": "glm_ocr_text",
        "rope_parameters": {
            "mrope_section": [4, 4, 4],
            "partial_rotary_factor": 1.0,
            "rope_theta": 10000,
            "rope_type": "default",
        },
    },
}
_CLASSES = {"glm4v": "Glm4v", "glm4v_moe": "Glm4vMoe", "glm_ocr": "GlmOcr", "glm46v": "Glm46V"}


def build_glm(folder: str | Path, kind: str, *, seed: int = 0) -> Path:
    """A tower of 2 layers before one of the family's decoders of 3 layers. GLM-4.6V is 4.1V with another name."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _qwen_tokenizer([_special(token) for token in GLM_TOKENS])
    config = _config(_id(tokenizer, "<|endoftext|>"), kind)
    _weights(config, _FIRST_SEED[kind] + seed).save(folder)
    _write(folder, tokenizer, _files(tokenizer, config, kind))
    return folder


def _config(first: int, kind: str) -> dict[str, Any]:
    like = "glm4v" if kind == "glm46v" else kind
    ids = {token: first + number for number, token in enumerate(GLM_TOKENS)}
    ends = [ids["<|endoftext|>"], ids["<|user|>"], ids["<|observation|>"]]
    text = {**_TEXTS[like], "dtype": "bfloat16", "eos_token_id": ends, "pad_token_id": first, "vocab_size": first + 64}
    vision = {
        "attention_bias": like == "glm_ocr",
        "attention_dropout": 0.0,
        "depth": 2,
        "hidden_act": "silu",
        "hidden_size": 32,
        "image_size": 70,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "model_type": f"{like}_vision",
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 14,
        "rms_norm_eps": 1e-05,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return {
        "architectures": [f"{_CLASSES[kind]}ForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_end_token_id": ids["<|end_of_image|>"],
        "image_start_token_id": ids["<|begin_of_image|>"],
        "image_token_id": ids["<|image|>"],
        "model_type": kind,
        "text_config": text,
        "tie_word_embeddings": False,
        "transformers_version": "4.57.1",
        "video_end_token_id": ids["<|end_of_video|>"],
        "video_start_token_id": ids["<|begin_of_video|>"],
        "video_token_id": ids["<|video|>"],
        "vision_config": vision,
    }


def _files(tokenizer: Tokenizer, config: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    ends = config["text_config"]["eos_token_id"]
    name = "Glm46V" if kind in ("glm46v", "glm_ocr") else "Glm4v"
    return {
        "config.json": config,
        "generation_config.json": {
            "do_sample": True,
            "eos_token_id": ends,
            "pad_token_id": ends[0],
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 0.0001,
            "transformers_version": "4.57.1",
        },
        "preprocessor_config.json": {
            "size": {"shortest_edge": 2 * 3136, "longest_edge": 2 * 64 * 28 * 28},
            "do_rescale": True,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "image_processor_type": f"{name}ImageProcessor",
            "processor_class": f"{name}Processor",
        },
        "tokenizer_config.json": {
            "added_tokens_decoder": _added_tokens_decoder(tokenizer),
            "additional_special_tokens": GLM_TOKENS[1:],
            "chat_template": GLM_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "do_lower_case": False,
            "eos_token": "<|endoftext|>",
            "extra_special_tokens": {},
            "model_max_length": 65536,
            "pad_token": "<|endoftext|>",
            "padding_side": "left",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    }


def _weights(config: dict[str, Any], seed: int) -> _Tensors:
    t = _Tensors(seed, torch.bfloat16)
    _vision(t, config["vision_config"])
    text = config["text_config"]
    width, vocab, first = text["hidden_size"], text["vocab_size"], text["pad_token_id"]
    t.normal("model.embed_tokens.weight", vocab, width, std=1.0)
    t.norm("model.norm", width)
    _mute(t.normal("lm_head.weight", vocab, width, std=2.2 * width**-0.5), range(first, vocab), 0.0)
    for index in range(text["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        decoder_layer(t, layer, text)
        if index and "n_routed_experts" in text:
            for name in ("gate_proj", "up_proj", "down_proj"):
                del t.by_name[f"{layer}.mlp.{name}.weight"]
            separate_experts(t, f"{layer}.mlp", text, text["n_routed_experts"])
            bias = torch.from_numpy(t.rng.normal(0.0, 0.2, text["n_routed_experts"])).float()
            t.by_name[f"{layer}.mlp.gate.e_score_correction_bias"] = bias
            gated(t, f"{layer}.mlp.shared_experts", width, text["moe_intermediate_size"])
    rename(t)
    return t


def decoder_layer(t: _Tensors, layer: str, text: dict[str, Any]) -> None:
    """Four norms and a joined gate and up, or two norms and a plain MLP where there are experts."""
    width, inner, heads = text["hidden_size"], text["intermediate_size"], text["num_attention_heads"]
    head, bias = text.get("head_dim", width // heads), text["attention_bias"]
    t.norm(f"{layer}.input_layernorm", width)
    for name, count, gain in (("q", heads, 1.5), ("k", text["num_key_value_heads"], 1.5)):
        t.linear(f"{layer}.self_attn.{name}_proj", count * head, width, gain=gain, bias=bias)
    t.linear(f"{layer}.self_attn.v_proj", text["num_key_value_heads"] * head, width, bias=bias)
    t.linear(f"{layer}.self_attn.o_proj", width, heads * head, gain=2.0)
    t.norm(f"{layer}.post_attention_layernorm", width)
    if "n_routed_experts" in text:
        gated(t, f"{layer}.mlp", width, inner)
        return
    for name in ("post_self_attn_layernorm", "post_mlp_layernorm"):
        t.norm(f"{layer}.{name}", width)
    t.linear(f"{layer}.mlp.gate_up_proj", 2 * inner, width, gain=1.5)
    t.linear(f"{layer}.mlp.down_proj", width, inner)


def gated(t: _Tensors, mlp: str, width: int, inner: int, *, bias: bool = False) -> None:
    for name in ("gate_proj", "up_proj"):
        t.linear(f"{mlp}.{name}", inner, width, gain=1.5, bias=bias)
    t.linear(f"{mlp}.down_proj", width, inner, bias=bias)


def _vision(t: _Tensors, vision: dict[str, Any]) -> None:
    width, patch, out = vision["hidden_size"], vision["patch_size"], vision["out_hidden_size"]
    is_ocr = vision["model_type"] == "glm_ocr_vision"
    t.normal("visual.patch_embed.proj.weight", width, 3, 2, patch, patch, std=(3 * 2 * patch * patch) ** -0.5)
    t.normal("visual.patch_embed.proj.bias", width, std=0.1)
    if not is_ocr:
        table = (vision["image_size"] // patch) ** 2
        t.normal("visual.embeddings.position_embedding.weight", table, width, std=0.6)
        t.norm("visual.post_conv_layernorm", width)
    for index in range(vision["depth"]):
        block = f"visual.blocks.{index}"
        t.norm(f"{block}.norm1", width)
        t.linear(f"{block}.attn.qkv", 3 * width, width, bias=is_ocr)
        t.linear(f"{block}.attn.proj", width, width, gain=1.5, bias=is_ocr)
        if is_ocr:
            t.norm(f"{block}.attn.q_norm", width // vision["num_heads"])
            t.norm(f"{block}.attn.k_norm", width // vision["num_heads"])
        t.norm(f"{block}.norm2", width)
        gated(t, f"{block}.mlp", width, vision["intermediate_size"] if is_ocr else out, bias=is_ocr)
    t.norm("visual.post_layernorm", width)
    t.normal("visual.downsample.weight", out, width, 2, 2, std=(4 * width) ** -0.5)
    t.normal("visual.downsample.bias", out, std=0.1)
    t.linear("visual.merger.proj", out, out, gain=1.5)
    t.norm("visual.merger.post_projection_norm", out, bias=True)
    gated(t, "visual.merger", out, 3 * out if is_ocr else vision["intermediate_size"])
    for name in ("gate_proj", "up_proj", "down_proj"):
        t.by_name[f"visual.merger.{name}.weight"] *= 1.2


BUILDERS: Mapping[str, Callable[..., Path]] = {kind: partial(build_glm, kind=kind) for kind in CASES}
