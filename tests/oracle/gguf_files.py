"""GGUF files made from the tiny checkpoints, and the same checkpoints with the weights that such a file then holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file

Floats = npt.NDArray[np.float32]
Chooser = Callable[[str], Kind]

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
# Types that gguf can only read: a block's bytes, where its float16 scales lie, and what they are here.
RANDOM_BLOCKS: Mapping[Kind, Mapping[int, float]] = {
    Kind.Q2_K: {80: 0.004, 82: 0.006},
    Kind.Q3_K: {108: 0.002},
    Kind.Q4_K: {0: 2e-4, 2: 1.5e-3},
    Kind.Q5_K: {0: 1e-4, 2: 1.5e-3},
    Kind.Q6_K: {208: 5e-5},
}


def convert(
    folder: Path, out: Path, chooser: Chooser, *, edit: Callable[[gguf.GGUFWriter], None] | None = None
) -> Path:
    """Write `out`/model.gguf from a folder; the folder `out` then holds the dequantised weights for transformers."""
    out.mkdir(parents=True)
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, out / path.name)
    config = json.loads((folder / "config.json").read_text())
    arch = "llama" if config["model_type"] == "mistral" else config["model_type"]
    writer = gguf.GGUFWriter(str(out / "model.gguf"), arch)
    add_config(writer, config)
    add_tokenizer(writer, folder, pre=None if arch == "llama" else "qwen2")
    rng = np.random.Generator(np.random.PCG64(3))
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        own, values = own_name(name), tensor.float().numpy()
        kind = chooser(own) if values.ndim > 1 else Kind.F32
        turned = arch == "llama" and own.split(".")[-2] in ("attn_q", "attn_k")
        width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        raw = quantised(paired(values, width) if turned else values, kind, rng)
        writer.add_tensor(own, raw, raw_dtype=None if kind == Kind.F32 else kind)
        held = gguf.dequantize(raw, kind).reshape(values.shape)
        weights[name] = torch.from_numpy(np.ascontiguousarray(halved(held, width) if turned else held))
    if edit is not None:
        edit(writer)
    write(writer)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out / "model.gguf"


def write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def own_name(published: str) -> str:
    name, kind = published.rsplit(".", 1)
    if not name.startswith("model.layers."):
        return f"{NAMES[name]}.{kind}"
    layer, inside = name.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{NAMES[inside]}.{kind}"


def paired(values: Floats, width: int) -> Floats:
    """Rows of heads as llama.cpp's converter has them: the two that turn together side by side."""
    heads = values.reshape(-1, 2, width // 2, *values.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2).reshape(values.shape))


def halved(values: Floats, width: int) -> Floats:
    return values.reshape(-1, width // 2, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def quantised(values: Floats, kind: Kind, rng: np.random.Generator) -> npt.NDArray[Any]:
    """The bytes of a tensor; random ones of a sane size in types that gguf cannot write."""
    if kind not in RANDOM_BLOCKS:
        return np.asarray(gguf.quantize(np.ascontiguousarray(values), kind))
    block, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (values.size // block, num_bytes), np.uint8)
    for place, scale in RANDOM_BLOCKS[kind].items():
        raw[:, place : place + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return raw.reshape(values.shape[0], -1)


def add_config(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if config.get("sliding_window") and config["model_type"] == "mistral":
        writer.add_sliding_window(config["sliding_window"])
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, *, pre: str | None) -> None:
    """What llama.cpp's converter makes of a folder's tokenizer. `pre` None: pieces with scores."""
    definition = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    added = {token["id"]: token for token in definition["added_tokens"]}
    texts = {number: text for text, number in definition["model"]["vocab"].items()}
    texts |= {number: token["content"] for number, token in added.items()}
    config_file = folder / "config.json"
    known = json.loads(config_file.read_text())["vocab_size"] if config_file.is_file() else 0
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(max(known, max(texts) + 1))]
    kinds = [_kind(number, text, texts, added, pre) for number, text in enumerate(tokens)]
    merges = [m.split(" ") if isinstance(m, str) else m for m in definition["model"]["merges"]]
    writer.add_tokenizer_model("llama" if pre is None else "gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if pre is None:
        ranks: dict[str, int] = {}
        for rank, pair in enumerate(merges):
            ranks.setdefault("".join(pair), rank)
        writer.add_token_scores([-float(ranks.get(text, 10**6)) for text in tokens])
    else:
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([" ".join(pair) for pair in merges])
    adders = {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "pad": writer.add_pad_token_id}
    for role, add in adders.items():
        value = config.get(f"{role}_token")
        value = value["content"] if isinstance(value, dict) else value
        if value is not None:
            add(tokens.index(value))
    template = config.get("chat_template")
    if isinstance(template, str):
        writer.add_chat_template(template)


def _kind(number: int, text: str, texts: Mapping[int, str], added: Mapping[int, Any], pre: str | None) -> int:
    if number not in texts:
        return int(gguf.TokenType.UNUSED)
    if pre is None and text == "<unk>":
        return int(gguf.TokenType.UNKNOWN)
    if number in added:
        return int(gguf.TokenType.CONTROL if added[number]["special"] else gguf.TokenType.USER_DEFINED)
    is_byte = pre is None and len(text) == 6 and text.startswith("<0x")
    return int(gguf.TokenType.BYTE if is_byte else gguf.TokenType.NORMAL)
