"""Tiny random checkpoints of Gemma, Gemma 2, Gemma 3 and Cohere 2, text alone, in the published layout.

Norms are stored as what is added to 1. The windows are shorter than the prompts, so that they count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from .checkpoints import (
    Case,
    _added_tokens_decoder,
    _id,
    _llama_tokenizer,
    _mute,
    _special,
    _Tensors,
    _text_cases,
    _write,
)

TURN = "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + "
    "('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<start_of_image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
TEXT_MODELS = ("gemma", "gemma2", "gemma3_text", "cohere2")
CASES: Mapping[str, tuple[Case, ...]] = {name: _text_cases(TURN) for name in TEXT_MODELS}
_FIRST_SEED = {"gemma": 10, "gemma2": 24, "gemma3_text": 5, "cohere2": 0}
_COMMON: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 16,
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.0.dev0",
    "use_cache": True,
}
_LATER: dict[str, Any] = {"hidden_activation": "gelu_pytorch_tanh", "sliding_window": 8}
# The keys of gemma-2b, gemma-2-2b and gemma-3-1b-it that are more than sizes.
CONFIGS: Mapping[str, dict[str, Any]] = {
    "gemma": {
        **_COMMON,
        "architectures": ["GemmaForCausalLM"],
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "model_type": "gemma",
        "rope_scaling": None,
        "rope_theta": 10000.0,
    },
    "gemma2": {
        **_COMMON,
        **_LATER,
        "architectures": ["Gemma2ForCausalLM"],
        "attn_logit_softcapping": 5.0,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": 8.0,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "model_type": "gemma2",
        "query_pre_attn_scalar": 24,
        "rope_theta": 10000.0,
    },
    "gemma3_text": {
        **_COMMON,
        **_LATER,
        "architectures": ["Gemma3ForCausalLM"],
        "attn_logit_softcapping": None,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": None,
        "max_position_embeddings": 32768,
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": 16,
        "rope_local_base_freq": 10000,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "rope_theta": 1000000,
        "sliding_window_pattern": 2,
    },
    "cohere2": {
        "architectures": ["Cohere2ForCausalLM"],
        "attention_bias": False,
        "cache_implementation": "hybrid",
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "layer_norm_eps": 1e-05,
        "layer_switch": 2,
        "logit_scale": 0.25,
        "max_position_embeddings": 8192,
        "model_type": "cohere2",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "order_of_interleaved_layers": "local_attn_first",
        "position_embedding_type": "rope_gptj",
        "rope_scaling": None,
        "rope_theta": 50000,
        "rotary_pct": 1.0,
        "sliding_window": 8,
        "sliding_window_pattern": 2,
        "torch_dtype": "bfloat16",
        "use_embedding_sharing": True,
        "use_gated_activation": True,
        "use_parallel_block": True,
        "use_parallel_embedding": False,
        "use_qk_norm": False,
    },
}


def tokenizer_of(*more: str) -> Tokenizer:
    added = ["<pad>", "<start_of_turn>", "<end_of_turn>", *more]
    return _llama_tokenizer([_special(token) for token in added], end_rstrip=False)


def build_text(folder: str | Path, family: str, *, seed: int = 0, **changes: Any) -> Path:
    """A decoder of 3 layers; `changes` are other values of config.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of()
    first = _id(tokenizer, "<pad>")
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": first, "vocab_size": first + 16}
    config = {**CONFIGS[family], **ids, **changes}
    t = _Tensors(_FIRST_SEED[family] + seed, torch.bfloat16)
    text_weights(t, "model", config, [0, 1, 2, *range(first, first + 16)])
    t.save(folder)
    _write(folder, tokenizer, text_files(tokenizer, config))
    return folder


def cohere_weights(t: _Tensors, prefix: str, config: Mapping[str, Any], never: list[int]) -> None:
    width, inner, head = config["hidden_size"], config["intermediate_size"], 16
    q_width, kv_width = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    std = 1.0 if prefix == "model" else 0.3  # Aya Vision does not scale its logits
    _mute(t.normal(f"{prefix}.embed_tokens.weight", config["vocab_size"], width, std=std), never, 0.1)
    for index in range(config["num_hidden_layers"]):
        layer = f"{prefix}.layers.{index}"
        t.norm(f"{layer}.input_layernorm", width)
        for name, rows, gain in (("q_proj", q_width, 1.5), ("k_proj", kv_width, 1.5), ("v_proj", kv_width, 2.0)):
            t.linear(f"{layer}.self_attn.{name}", rows, width, gain=gain)
        t.linear(f"{layer}.self_attn.o_proj", width, q_width, gain=3.0)
        t.linear(f"{layer}.mlp.gate_proj", inner, width, gain=2.0)
        t.linear(f"{layer}.mlp.up_proj", inner, width, gain=2.0)
        t.linear(f"{layer}.mlp.down_proj", width, inner, gain=2.0)
    t.norm(f"{prefix}.norm", width)


def text_weights(t: _Tensors, prefix: str, config: Mapping[str, Any], never: list[int]) -> None:
    if config["model_type"] == "cohere2":
        cohere_weights(t, prefix, config, never)
        return
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q_width, kv_width = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    first = config["model_type"] == "gemma"
    # The table is the head, too: what is large in the sums would be answered again and again.
    table = t.normal(f"{prefix}.embed_tokens.weight", config["vocab_size"], width, std=0.15 if first else 0.08)
    _mute(table, never, 0.1)
    for index in range(config["num_hidden_layers"]):
        layer = f"{prefix}.layers.{index}"
        norms = ["input_layernorm", "post_attention_layernorm"]
        norms += [] if first else ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        for name in norms:
            # What attention adds is normed: much of it would make all places alike.
            small = name == "post_attention_layernorm" and not first
            t.normal(f"{layer}.{name}.weight", width, std=0.2, mean=-0.3 if small else 0.3)
        for name, rows, gain in (("q_proj", q_width, 1.5), ("k_proj", kv_width, 1.5), ("v_proj", kv_width, 1.0)):
            t.linear(f"{layer}.self_attn.{name}", rows, width, gain=gain)
        if config["model_type"] == "gemma3_text":
            for name in ("q_norm", "k_norm"):
                t.normal(f"{layer}.self_attn.{name}.weight", head, std=0.2, mean=1.0)
        t.linear(f"{layer}.self_attn.o_proj", width, q_width, gain=2.0)
        t.linear(f"{layer}.mlp.gate_proj", inner, width, gain=1.5)
        t.linear(f"{layer}.mlp.up_proj", inner, width, gain=1.5)
        t.linear(f"{layer}.mlp.down_proj", width, inner, gain=1.5)
    t.normal(f"{prefix}.norm.weight", width, std=0.2, mean=0.3 if first else 1.5)


def text_files(tokenizer: Tokenizer, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        "config.json": config,
        "generation_config.json": {
            "bos_token_id": 1,
            "eos_token_id": [2, _id(tokenizer, "<end_of_turn>")],
            "pad_token_id": _id(tokenizer, "<pad>"),
            "transformers_version": "4.42.0.dev0",
        },
        "tokenizer_config.json": {
            "added_tokens_decoder": _added_tokens_decoder(tokenizer),
            "bos_token": "<s>",
            "chat_template": TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "model_max_length": 8192,
            "pad_token": "<pad>",
            "tokenizer_class": "GemmaTokenizer",
            "unk_token": "<unk>",
        },
    }


BUILDERS: Mapping[str, Callable[..., Path]] = {name: partial(build_text, family=name) for name in TEXT_MODELS}
