"""Tiny random Qwen3-VL checkpoints, as Qwen/Qwen3-VL-4B-Instruct is published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .checkpoints import CASES as OTHERS
from .checkpoints import (
    QWEN_TOKENS,
    Case,
    _id,
    _mute,
    _qwen_files,
    _qwen_tokenizer,
    _special,
    _split_layer,
    _Tensors,
    _write,
)
from .text_parts import QWEN3_MOE, has_experts, stacked_experts

CASES: Mapping[str, tuple[Case, ...]] = {"qwen3_vl": OTHERS["qwen2_vl"], "qwen3_vl_moe": OTHERS["qwen2_vl"]}
_FIRST_SEED = {"qwen3_vl": 461, "qwen3_vl-untied": 7, "qwen3_vl_moe": 140}
HALF = [0.5, 0.5, 0.5]
PREFIXES = {"model.": "model.language_model.", "visual.": "model.visual.", "lm_head.": "lm_head."}


def build_qwen3_vl(
    folder: str | Path, *, seed: int = 0, tied: bool = True, deepstack: tuple[int, ...] = (0, 1)
) -> Path:
    """A tower of 3 layers, of which `deepstack` have mergers of their own, before a Qwen3 of 3 layers."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _qwen_tokenizer([_special(token) for token in QWEN_TOKENS])
    config = _config(_id(tokenizer, "<|endoftext|>"), tied=tied, deepstack=deepstack)
    _weights(config, _FIRST_SEED["qwen3_vl" if tied else "qwen3_vl-untied"] + seed).save(folder)
    _write(folder, tokenizer, qwen3_files(tokenizer, config))
    return folder


def build_qwen3_vl_moe(folder: str | Path, *, seed: int = 0) -> Path:
    """The same with experts in the last two of its layers, as Qwen/Qwen3-VL-30B-A3B-Instruct is published."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _qwen_tokenizer([_special(token) for token in QWEN_TOKENS])
    config = _config(_id(tokenizer, "<|endoftext|>"), tied=False, deepstack=(0, 2))
    config |= {"architectures": ["Qwen3VLMoeForConditionalGeneration"], "model_type": "qwen3_vl_moe"}
    added = {key: value for key, value in QWEN3_MOE.items() if key not in ("architectures", "model_type")}
    config["text_config"] |= {**added, "mlp_only_layers": [0], "model_type": "qwen3_vl_moe_text"}
    config["vision_config"]["model_type"] = "qwen3_vl_moe"
    _weights(config, _FIRST_SEED["qwen3_vl_moe"] + seed).save(folder)
    _write(folder, tokenizer, qwen3_files(tokenizer, config))
    return folder


def _config(first: int, *, tied: bool, deepstack: tuple[int, ...]) -> dict[str, Any]:
    text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": first,
        "dtype": "bfloat16",
        "eos_token_id": first + 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"},
        "rope_theta": 5000000,
        "tie_word_embeddings": tied,
        "use_cache": True,
        "vocab_size": first + 64,
    }
    vision = {
        "deepstack_visual_indexes": list(deepstack),
        "depth": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 32,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 44,
        "model_type": "qwen3_vl",
        "num_heads": 2,
        "num_position_embeddings": 25,
        "out_hidden_size": 64,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": first + 12,
        "model_type": "qwen3_vl",
        "text_config": text,
        "tie_word_embeddings": tied,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": first + 13,
        "vision_config": vision,
        "vision_end_token_id": first + 10,
        "vision_start_token_id": first + 9,
    }


def qwen3_files(tokenizer: Any, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The published files beside config.json; sizes are counts of pixels inside "size"."""
    flat = {**config["text_config"], **config}
    files = {**_qwen_files(tokenizer, flat, 0), "config.json": config}
    files["preprocessor_config.json"] = {
        "size": {"longest_edge": 64 * 32 * 32, "shortest_edge": 4096},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": HALF,
        "image_std": HALF,
        "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }
    return files


def _weights(config: dict[str, Any], seed: int) -> _Tensors:
    t = _Tensors(seed, torch.bfloat16)
    vision_weights(t, config["vision_config"])
    text = config["text_config"]
    embeddings(t, text, tied=config["tie_word_embeddings"])
    for index in range(text["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        kv_width = text["head_dim"] * text["num_key_value_heads"]
        _split_layer(t, layer, width=text["hidden_size"], mlp=text["intermediate_size"], kv_width=kv_width, bias=False)
        if has_experts(text, index):
            for name in ("gate_proj", "up_proj", "down_proj"):
                del t.by_name[f"{layer}.mlp.{name}.weight"]
            stacked_experts(t, f"{layer}.mlp", text, text["num_experts"])
        for name in ("q_norm", "k_norm"):
            t.norm(f"{layer}.self_attn.{name}", text["head_dim"])
    rename(t)
    return t


def embeddings(t: _Tensors, text: dict[str, Any], *, tied: bool) -> None:
    """The table, the last norm, and a head where it is not the table."""
    width, vocab, first = text["hidden_size"], text["vocab_size"], text["bos_token_id"]
    table = t.normal("model.embed_tokens.weight", vocab, width, std=0.3 if tied else 1.0)
    _mute(table, range(first, vocab), 0.1 if tied else 1.0)
    t.norm("model.norm", width)
    if not tied:
        head = t.normal("lm_head.weight", vocab, width, std=2.2 * width**-0.5)
        _mute(head, range(first, vocab), 0.0)


def rename(t: _Tensors) -> None:
    """The published names: all but the head below "model."."""
    parts = ((name.partition("."), values) for name, values in t.by_name.items())
    t.by_name = {f"{PREFIXES[f'{first}.']}{rest}": values for (first, _, rest), values in parts}


def vision_weights(t: _Tensors, vision: dict[str, Any]) -> None:
    width, patch, mlp = vision["hidden_size"], vision["patch_size"], vision["intermediate_size"]
    t.normal("visual.patch_embed.proj.weight", width, 3, 2, patch, patch, std=(3 * 2 * patch * patch) ** -0.5)
    t.normal("visual.patch_embed.proj.bias", width, std=0.1)
    t.normal("visual.pos_embed.weight", vision["num_position_embeddings"], width, std=0.6)
    for index in range(vision["depth"]):
        block = f"visual.blocks.{index}"
        t.norm(f"{block}.norm1", width, bias=True)
        t.linear(f"{block}.attn.qkv", 3 * width, width, gain=1.4, bias=True)
        t.linear(f"{block}.attn.proj", width, width, gain=2.0, bias=True)
        t.norm(f"{block}.norm2", width, bias=True)
        t.linear(f"{block}.mlp.linear_fc1", mlp, width, bias=True)
        t.linear(f"{block}.mlp.linear_fc2", width, mlp, bias=True)
    merged = width * vision["spatial_merge_size"] ** 2
    mergers = {"visual.merger": width}
    mergers |= {f"visual.deepstack_merger_list.{i}": merged for i in range(len(vision["deepstack_visual_indexes"]))}
    for name, normed in mergers.items():
        t.norm(f"{name}.norm", normed, bias=True)
        t.linear(f"{name}.linear_fc1", merged, merged, gain=1.5, bias=True)
        gain = 1.5 if normed == width else 0.7  # what is added later stays below what is there
        t.linear(f"{name}.linear_fc2", vision["out_hidden_size"], merged, gain=gain, bias=True)


BUILDERS: Mapping[str, Callable[..., Path]] = {"qwen3_vl": build_qwen3_vl, "qwen3_vl_moe": build_qwen3_vl_moe}
