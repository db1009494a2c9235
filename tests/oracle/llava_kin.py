"""More of LLaVA's kin as published: SigLIP's tower, other decoders, LLaVA-OneVision, LLaVA-NeXT-Video."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .checkpoints import (
    _TEXTS,
    LLAVA_TEMPLATE,
    PINPOINTS,
    Case,
    _chatml,
    _clip,
    _id,
    _llama_tokenizer,
    _llava_config,
    _llava_files,
    _mute,
    _qwen_tokenizer,
    _special,
    _Tensors,
    _text_attention,
    _text_mlp,
    _write,
)
from .checkpoints import (
    CASES as OTHERS,
)

_FIRST_SEED = {
    "llava_onevision-tied": 10,
    "llava_onevision": 6,
    "llava_next_video": 6,
    "llava-qwen2": 30,
    "llava-phi3": 5,
    "llava-qwen3": 13,
}
# Tiles of 58 pixels are 4 patches of 14 and a rest of two that nobody sees (SigLIP's 384 pixels have a rest of 6).
TILE = 58
FIELDS = [[rows * TILE, columns * TILE] for rows in range(1, 5) for columns in range(1, 5)]
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 36,
    "image_size": TILE,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "patch_size": 14,
    "vision_use_head": False,
}
HALF = [0.5, 0.5, 0.5]
ONEVISION_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}{# Render all text next #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CASES: Mapping[str, tuple[Case, ...]] = {
    # A field of 2 x 3 tiles with margins, several of one tile each, and one that is interpolated (3 x 4 of at most 5).
    "llava_onevision": (
        Case("one", _chatml("<image>\nWhat is shown in this picture?"), ((150, 90, 1),)),
        Case(
            "several",
            _chatml("<image>\nThis is the first picture. <image>\n<image>\nHow do they differ?"),
            ((40, 120, 3), (200, 131, 4), (58, 58, 5)),
        ),
        Case("large", _chatml("<image>\nWhat is shown in this picture?"), ((400, 260, 2),)),
        Case("text", _chatml("Tell me a story about the river and the sea.")),
    ),
    "llava_next_video": OTHERS["llava_next"],
    "llava_siglip": OTHERS["llava"],
}


def siglip_tensors(t: _Tensors, prefix: str, vision: Mapping[str, Any]) -> None:
    """SigLIP's vision transformer."""
    width, mlp, px = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    patches = (vision["image_size"] // px) ** 2
    t.normal(f"{prefix}.embeddings.patch_embedding.weight", width, 3, px, px, std=(3 * px * px) ** -0.5)
    t.normal(f"{prefix}.embeddings.patch_embedding.bias", width, std=0.1)
    t.normal(f"{prefix}.embeddings.position_embedding.weight", patches, width, std=0.4)
    for index in range(vision["num_hidden_layers"]):
        layer = f"{prefix}.encoder.layers.{index}"
        t.norm(f"{layer}.layer_norm1", width, bias=True)
        for name, gain in (("q_proj", 1.4), ("k_proj", 1.4), ("v_proj", 1.0), ("out_proj", 2.0)):
            t.linear(f"{layer}.self_attn.{name}", width, width, gain=gain, bias=True)
        t.norm(f"{layer}.layer_norm2", width, bias=True)
        t.linear(f"{layer}.mlp.fc1", mlp, width, bias=True)
        t.linear(f"{layer}.mlp.fc2", width, mlp, bias=True)
    t.norm(f"{prefix}.post_layernorm", width, bias=True)


def decoder_tensors(t: _Tensors, prefix: str, head: str, text: Mapping[str, Any], never: list[int]) -> None:
    """Any of the decoders, its tensors below `prefix`; `never`: ids that it must not say."""
    width, vocab, tied = text["hidden_size"], text["vocab_size"], text.get("tie_word_embeddings", False)
    table = t.normal(f"{prefix}embed_tokens.weight", vocab, width, std=0.3 if tied else 1.0)
    for index in range(text["num_hidden_layers"]):
        layer, fused = f"{prefix}layers.{index}", text["model_type"] == "phi3"
        _text_attention(t, layer, dict(text), fused=fused)
        _text_mlp(t, f"{layer}.mlp", dict(text), fused=fused)
    t.norm(f"{prefix}norm", width)
    if tied:
        _mute(table, never, 0.1)
    else:
        _mute(t.normal(f"{head}.weight", vocab, width, std=2.2 * width**-0.5), never, 0.0)


def build_llava_onevision(folder: str | Path, *, seed: int = 0, text: str = "qwen2", tied: bool = False) -> Path:
    """LLaVA-OneVision: SigLIP at 58 pixels, up to 4 x 4 tiles of which 5 are shown in full, Qwen2."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>", "<pad>"]
    tokenizer = _qwen_tokenizer([_special(token) for token in tokens])
    image_id = _id(tokenizer, "<image>")
    config = _llava_config(image_id, 2)
    config["text_config"] |= {"vocab_size": image_id + 64, **_decoder(text), "tie_word_embeddings": tied}
    for key in ("pad_token_id", "vocab_size", "ignore_index"):
        del config[key]
    config |= {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "image_grid_pinpoints": FIELDS,
        "model_type": "llava_onevision",
        "use_image_newline_parameter": True,
        "video_token_index": _id(tokenizer, "<video>"),
        "vision_aspect_ratio": "anyres_max_5",
        "vision_config": SIGLIP,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    files = _siglip_files(_llava_files_of(tokenizer, config), "LlavaOnevision")
    files["preprocessor_config.json"] |= {"do_pad": True, "image_grid_pinpoints": FIELDS}
    files["processor_config.json"] = {
        "image_token": "<image>",
        "num_image_tokens": (TILE // 14) ** 2,
        "processor_class": "LlavaOnevisionProcessor",
        "video_token": "<video>",
        "vision_aspect_ratio": "anyres_max_5",
        "vision_feature_select_strategy": "full",
    }
    files["tokenizer_config.json"] = {
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "extra_special_tokens": {"image_token": "<image>", "video_token": "<video>"},
        "model_max_length": 32768,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    files["generation_config.json"] |= {"eos_token_id": _id(tokenizer, "<|im_end|>")}
    never = list(range(_id(tokenizer, "<|endoftext|>"), config["text_config"]["vocab_size"]))
    return _save(Path(folder), tokenizer, config, files, never, seed, ONEVISION_TEMPLATE)


def build_llava_next_video(folder: str | Path, *, seed: int = 0) -> Path:
    """LLaVA-NeXT-Video: LLaVA-NeXT's parts and a token for videos."""
    tokenizer = _llama_tokenizer([_special(token) for token in ("<video>", "<image>", "<pad>")], end_rstrip=False)
    image_id = _id(tokenizer, "<image>")
    config = _llava_config(image_id, 2) | {
        "architectures": ["LlavaNextVideoForConditionalGeneration"],
        "image_grid_pinpoints": PINPOINTS,
        "model_type": "llava_next_video",
        "spatial_pool_mode": "average",
        "spatial_pool_stride": 2,
        "use_image_newline_parameter": True,
        "video_token_index": _id(tokenizer, "<video>"),
    }
    files = _llava_files_of(tokenizer, config)
    files["preprocessor_config.json"] |= {
        "image_processor_type": "LlavaNextImageProcessor",
        "image_grid_pinpoints": PINPOINTS,
        "do_pad": True,
    }
    for name in ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json"):
        files[name]["processor_class"] = "LlavaNextVideoProcessor"
    files["processor_config.json"]["video_token"] = "<video>"
    never = [0, 1, 2, *range(_id(tokenizer, "<video>"), config["text_config"]["vocab_size"])]
    return _save(Path(folder), tokenizer, config, files, never, seed, LLAVA_TEMPLATE)


def build_llava_siglip(folder: str | Path, *, seed: int = 0, text: str = "qwen2") -> Path:
    """LLaVA with SigLIP, whose pictures are pressed into shape, and another decoder (llava-interleave)."""
    tokenizer = _llama_tokenizer([_special("<image>"), _special("<pad>")], end_rstrip=False)
    image_id = _id(tokenizer, "<image>")
    config = _llava_config(image_id, 2)
    config["text_config"] |= _decoder(text)
    config |= {"vision_config": SIGLIP, "vision_feature_layer": -2, "vision_feature_select_strategy": "full"}
    files = _siglip_files(_llava_files_of(tokenizer, config), "Siglip")
    more = {"num_additional_image_tokens": 0, "vision_feature_select_strategy": "full"}
    files["processor_config.json"] |= more
    never = [0, 1, 2, *range(image_id, config["text_config"]["vocab_size"])]
    return _save(Path(folder), tokenizer, config, files, never, seed, LLAVA_TEMPLATE)


def _decoder(text: str) -> dict[str, Any]:
    own: dict[str, dict[str, Any]] = {"phi3": {"pad_token_id": None}, "qwen3": {"head_dim": 24}}
    return {**_TEXTS.get(text, {}), **own.get(text, {}), "model_type": text}


def _llava_files_of(tokenizer: Any, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return _llava_files(tokenizer, {"pad_token_id": None} | config)


def _siglip_files(files: dict[str, dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    pictures = files["preprocessor_config.json"]
    for key in ("crop_size", "do_center_crop"):
        del pictures[key]
    pictures |= {"image_mean": HALF, "image_std": HALF, "image_processor_type": f"{kind}ImageProcessor"}
    pictures["size"] = {"height": TILE, "width": TILE}
    return files


def _save(
    folder: Path,
    tokenizer: Any,
    config: dict[str, Any],
    files: dict[str, dict[str, Any]],
    never: list[int],
    seed: int,
    template: str,
) -> Path:
    text, vision, kind = config["text_config"], config["vision_config"], config["model_type"]
    t = _Tensors(_first_seed(kind, text) + seed, torch.float16)
    if vision["model_type"] == "siglip_vision_model":
        siglip_tensors(t, "vision_tower.vision_model", vision)
    else:
        patches = (vision["image_size"] // vision["patch_size"]) ** 2
        sizes = (vision["hidden_size"], vision["intermediate_size"], vision["num_hidden_layers"], patches)
        _clip(t, "vision_tower.vision_model", *sizes)
    width = text["hidden_size"]
    t.linear("multi_modal_projector.linear_1", width, vision["hidden_size"], gain=0.8, bias=True)
    t.linear("multi_modal_projector.linear_2", width, width, gain=0.8, bias=True)
    decoder_tensors(t, "language_model.model.", "language_model.lm_head", text, never)
    if "image_grid_pinpoints" in config:
        t.normal("image_newline", width, std=0.8)
    folder.mkdir(parents=True, exist_ok=True)
    t.save(folder)
    _write(folder, tokenizer, files | {"chat_template.json": {"chat_template": template}})
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def _first_seed(kind: str, text: Mapping[str, Any]) -> int:
    if text.get("tie_word_embeddings"):
        return _FIRST_SEED[f"{kind}-tied"]
    return _FIRST_SEED[f"{kind}-{text['model_type']}" if kind == "llava" else kind]


BUILDERS: Mapping[str, Callable[..., Path]] = {
    "llava_onevision": build_llava_onevision,
    "llava_next_video": build_llava_next_video,
    "llava_siglip": build_llava_siglip,
}
