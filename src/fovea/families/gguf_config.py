"""What a GGUF file's metadata say, as the JSON files of a model folder: the rest of Fovea then reads it as one.

The keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A key of the architecture that nothing here knows
is refused, because each may change the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fovea.core.errors import ModelError, UnsupportedModelError, WeightsError
from fovea.families.gguf_file import GgufFile, Listed, read_gguf

ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
)
MAX_LAYERS = 1024
MAX_SIZE = 2**31 - 1
ROPE_FACTORS = "rope_freqs.weight"
TEMPLATE = "tokenizer.chat_template"

# Keys below the architecture's name that are read or say nothing that bears on the arithmetic.
KNOWN = frozenset(
    {
        *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
        *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
        *("attention.key_length", "attention.value_length", "attention.sliding_window"),
        *("rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"),
        *("rope.scaling.original_context_length", "rope.scaling.finetuned", "tensor_data_layout"),
    }
)
# Keys that are taken with this value only, which is that of a plain decoder.
NEUTRAL: Mapping[str, Any] = MappingProxyType(
    {
        "expert_count": 0,
        "expert_used_count": 0,
        "attention.causal": True,
        "rope.scaling.attn_factor": 1.0,
        "use_parallel_residual": False,
        "logit_scale": 1.0,
    }
)
# Roles in tokenizer_config.json, and the names of their ids here.
ROLES: Mapping[str, str] = MappingProxyType(
    {
        "bos_token": "tokenizer.ggml.bos_token_id",
        "eos_token": "tokenizer.ggml.eos_token_id",
        "unk_token": "tokenizer.ggml.unknown_token_id",
        "pad_token": "tokenizer.ggml.padding_token_id",
    }
)
END_IDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
# Control tokens that end an answer whatever ids the file names, as in llama.cpp: older files name one end of several.
END_TEXTS = frozenset({"<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>"})
CONTROL = 3


def document(path: Path, name: str) -> dict[str, Any]:
    """What `name` would hold in a folder of this model; {} if there would be no such file."""
    make = _DOCUMENTS.get(name)
    return {} if make is None else make(read_gguf(path))


def _config(file: GgufFile) -> dict[str, Any]:
    name = file.get(str, "general.architecture")
    _check_kind(file, name)
    prefix = f"{name}."
    _check_keys(file, prefix)
    hidden_size = _count(file, prefix + "embedding_length")
    num_heads = _count(file, prefix + "attention.head_count")
    num_kv_heads = _count(file, prefix + "attention.head_count_kv", num_heads)
    head_dim = _count(file, prefix + "attention.key_length", max(1, hidden_size // num_heads))
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[name]],
        "model_type": name,
        "hidden_size": hidden_size,
        "intermediate_size": _count(file, prefix + "feed_forward_length"),
        "num_hidden_layers": _count(file, prefix + "block_count", most=MAX_LAYERS),
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": file.get(float, prefix + "attention.layer_norm_rms_epsilon"),
        "rope_theta": file.get(float, prefix + "rope.freq_base", 10000.0),
        "max_position_embeddings": _count(file, prefix + "context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": _dtype(file),
    }
    for key in ("attention.value_length", "rope.dimension_count"):
        if _count(file, prefix + key, head_dim) != head_dim:
            raise UnsupportedModelError(f"{file.path}: {prefix + key!r} differs from the heads' width, {head_dim}.")
    config["vocab_size"] = _check_sizes(file, config)
    scaling = _scaling(file, prefix, head_dim)
    if scaling:
        config["rope_scaling"] = scaling
    if name == "llama" and prefix + "attention.sliding_window" in file:
        config["sliding_window"] = _count(file, prefix + "attention.sliding_window")
        config["architectures"], config["model_type"] = ["MistralForCausalLM"], "mistral"
    elif name != "qwen2":
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    return config


def _check_kind(file: GgufFile, architecture: str) -> None:
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{file.path} has the architecture {architecture[:60]!r}; supported in GGUF files: "
            f"{', '.join(ARCHITECTURES)}."
        )
    if file.get(int, "split.count", 1) > 1:
        raise UnsupportedModelError(
            f"{file.path} is one of {file.get(int, 'split.count')} parts; join them with llama-gguf-split --merge."
        )
    kind = file.get(str, "general.type", "model")
    if kind != "model":
        raise UnsupportedModelError(f"{file.path} holds no model: its 'general.type' is {kind[:60]!r}.")


def _check_keys(file: GgufFile, prefix: str) -> None:
    for key, value in file.metadata.items():
        name = key.removeprefix(prefix)
        if name == key or name in KNOWN:
            continue
        if name not in NEUTRAL:
            raise UnsupportedModelError(f"{file.path} has the metadata {key!r}, which Fovea does not know.")
        if value != NEUTRAL[name]:
            shown = "a list" if isinstance(value, Listed) else repr(value)[:60]
            raise UnsupportedModelError(f"{file.path}: {key!r} is {shown}; supported: {NEUTRAL[name]!r}.")


def _count(file: GgufFile, key: str, default: int | None = None, *, most: int = MAX_SIZE) -> int:
    """A whole number from 1. Lists with a number for each layer are taken if all are the same."""
    value = file.metadata.get(key, default)
    if isinstance(value, Listed):
        each = set(file.numbers(key))
        value = each.pop() if len(each) == 1 else value
    if isinstance(value, Listed):
        raise UnsupportedModelError(f"{file.path}: {key!r} differs between layers, which is not supported.")
    if value is None:
        raise ModelError(f"{file.path} lacks the metadata {key!r}.")
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ModelError(f"{file.path}: {key!r} is {str(value)[:60]}; it must be a whole number from 1 to {most:,}.")
    return value


def _check_sizes(file: GgufFile, config: Mapping[str, Any]) -> int:
    """Compare what the metadata claim with tensors, whose size the file's own size bounds; rows of the vocabulary."""
    hidden, width = config["hidden_size"], config["head_dim"]
    rows = _shape(file, "token_embd.weight")[0]
    wanted = {
        "token_embd.weight": (rows, hidden),
        "blk.0.attn_q.weight": (config["num_attention_heads"] * width, hidden),
        "blk.0.attn_k.weight": (config["num_key_value_heads"] * width, hidden),
        "blk.0.ffn_up.weight": (config["intermediate_size"], hidden),
        f"blk.{config['num_hidden_layers'] - 1}.attn_norm.weight": (hidden,),
    }
    for name, shape in wanted.items():
        if _shape(file, name) != shape:
            raise WeightsError(
                f"{file.path}: the metadata say that {name!r} has shape {list(shape)}; it has "
                f"{list(_shape(file, name))}."
            )
    known = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(known, Listed) and known.count > rows:
        raise WeightsError(f"{file.path} has {known.count:,} tokens, but embeddings for {rows:,}.")
    return rows


def _shape(file: GgufFile, name: str) -> tuple[int, ...]:
    entry = file.tensors.get(name)
    if entry is None:
        raise WeightsError(f"{file.path} lacks the tensor {name!r}.")
    return entry.shape


def _scaling(file: GgufFile, prefix: str, head_dim: int) -> dict[str, Any]:
    """`rope_scaling` as in config.json; one factor for each frequency where the file holds these."""
    factor = file.get(float, prefix + "rope.scaling.factor", file.get(float, prefix + "rope.scale_linear", 1.0))
    kind = file.get(str, prefix + "rope.scaling.type", "none" if factor == 1.0 else "linear")
    if kind not in ("none", "linear"):
        raise UnsupportedModelError(
            f"{file.path}: '{prefix}rope.scaling.type' is {kind[:60]!r}; supported: none, linear."
        )
    is_linear = kind == "linear" and factor != 1.0
    if ROPE_FACTORS not in file.tensors:
        return {"rope_type": "linear", "factor": factor} if is_linear else {}
    if is_linear or prefix != "llama.":
        raise UnsupportedModelError(f"{file.path} has {ROPE_FACTORS!r}, which is supported for plain llama only.")
    factors = file.floats_of(ROPE_FACTORS)
    if len(factors) != head_dim // 2:
        raise WeightsError(f"{file.path}: {ROPE_FACTORS!r} has {len(factors)} values; it must have {head_dim // 2}.")
    return {"rope_type": "factors", "factors": list(factors)}


def _dtype(file: GgufFile) -> str:
    """The type to compute in on a GPU: the matrices' own if they have one, else bfloat16."""
    kinds = {entry.kind for entry in file.tensors.values() if len(entry.shape) > 1}
    return {frozenset({0}): "float32", frozenset({1}): "float16"}.get(frozenset(kinds), "bfloat16")


def _generation(file: GgufFile) -> dict[str, Any]:
    ids = {file.get(int, key) for key in END_IDS if key in file}
    if "tokenizer.ggml.tokens" in file and "tokenizer.ggml.token_type" in file:
        kinds = file.numbers("tokenizer.ggml.token_type")
        texts = file.strings("tokenizer.ggml.tokens")
        ids |= {i for i, (text, kind) in enumerate(zip(texts, kinds)) if kind == CONTROL and text in END_TEXTS}
    return {"eos_token_id": sorted(ids)}


def _tokenizer_config(file: GgufFile) -> dict[str, Any]:
    tokens = file.strings("tokenizer.ggml.tokens")
    config: dict[str, Any] = {}
    for role, key in ROLES.items():
        if key not in file:
            continue
        token_id = file.get(int, key)
        if not 0 <= token_id < len(tokens):
            raise ModelError(f"{file.path}: {key!r} is {token_id}; the vocabulary has {len(tokens):,} tokens.")
        config[role] = tokens[token_id]
    if TEMPLATE in file:
        config["chat_template"] = file.get(str, TEMPLATE)
    return config


_DOCUMENTS: Mapping[str, Callable[[GgufFile], dict[str, Any]]] = MappingProxyType(
    {
        "config.json": _config,
        "generation_config.json": _generation,
        "tokenizer_config.json": _tokenizer_config,
    }
)
