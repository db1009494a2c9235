"""Tiny Idefics3 and SmolVLM checkpoints in the published layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .checkpoints import Case, _id, _qwen_tokenizer, _special, _Tensors, _write

_FIRST_SEED = {"idefics3": 5, "smolvlm": 27}
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
CASES: Mapping[str, tuple[Case, ...]] = dict.fromkeys(
    ("idefics3", "smolvlm"),
    # 3 x 2 tiles; 4 x 1, a line so thin that it is stretched, and 4 x 4; text.
    (
        Case("one", "<|im_start|>User:<image>What is shown?<end_of_utterance>\nAssistant:", ((150, 90, 1),)),
        Case(
            "several",
            "<|im_start|>User:<image>This is the first picture. <image>\n<image>\nHow do they differ?"
            "<end_of_utterance>\nAssistant:",
            ((40, 170, 2), (300, 3, 3), (90, 90, 4)),
        ),
        Case("text", "<|im_start|>User: Tell me a story about the river.<end_of_utterance>\nAssistant:"),
    ),
)


def build_idefics3(folder: str | Path, *, seed: int = 0, kind: str = "idefics3") -> Path:
    """Tiles of 58 pixels (4 patches a side and a rest) that become 4 rows each; SmolVLM has 5 x 5 positions."""
    from .llava_kin import decoder_tensors, siglip_tensors

    tokens = ["<|endoftext|>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>"]
    names = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = _qwen_tokenizer([_special(token) for token in (*tokens, "<global-img>", *names)])
    first, vocab = _id(tokenizer, "<|endoftext|>"), _id(tokenizer, "<|endoftext|>") + 64
    config = _config(kind, _id(tokenizer, "<image>"), vocab)
    text, vision = config["text_config"], config["vision_config"]
    t = _Tensors(_FIRST_SEED[kind] + seed, torch.bfloat16)
    siglip_tensors(t, "model.vision_model", vision)
    joined = vision["hidden_size"] * config["scale_factor"] ** 2
    t.linear("model.connector.modality_projection.proj", text["hidden_size"], joined, gain=0.8)
    decoder_tensors(t, "model.text_model.", "lm_head", text, list(range(first, vocab)))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    t.save(folder)
    _write(folder, tokenizer, _files(config, first))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


def _config(kind: str, image_id: int, vocab: int) -> dict[str, Any]:
    name = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[kind]
    text = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 273768.0,
        "vocab_size": vocab,
    }
    vision = {
        "hidden_size": 36,
        "image_size": 58 if kind == "idefics3" else 70,
        "intermediate_size": 64,
        "model_type": kind if kind == "idefics3" else "smolvlm_vision",
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "patch_size": 14,
    }
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "image_token_id": image_id,
        "model_type": kind,
        "scale_factor": 2,
        "text_config": text,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.0",
        "vision_config": vision,
        "vocab_size": vocab,
    }


def _files(config: dict[str, Any], first: int) -> dict[str, dict[str, Any]]:
    name = config["architectures"][0].removesuffix("ForConditionalGeneration")
    return {
        "config.json": config,
        "generation_config.json": {"bos_token_id": first + 1, "eos_token_id": first + 2, "pad_token_id": first},
        "preprocessor_config.json": {
            "do_convert_rgb": True,
            "do_image_splitting": True,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": f"{name}ImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "max_image_size": {"longest_edge": 58},
            "processor_class": f"{name}Processor",
            "resample": 1,
            "rescale_factor": 0.00392156862745098,
            "size": {"longest_edge": 4 * 58},
        },
        "processor_config.json": {"image_seq_len": 4, "processor_class": f"{name}Processor"},
        "chat_template.json": {"chat_template": TEMPLATE},
        "tokenizer_config.json": {
            "bos_token": "<|im_start|>",
            "eos_token": "<end_of_utterance>",
            "pad_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "model_max_length": 16384,
            "tokenizer_class": "GPT2Tokenizer",
        },
    }


BUILDERS: Mapping[str, Callable[..., Path]] = {
    kind: partial(build_idefics3, kind=kind) for kind in ("idefics3", "smolvlm")
}
