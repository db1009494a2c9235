"""Tiny checkpoints of models whose pictures have text between or around their rows, or are cut into tiles.

File names, config keys and weight names are those of mistralai/Mistral-Small-3.1-24B-Instruct-2503,
mistral-community/pixtral-12b, OpenGVLab/InternVL3-1B-hf and thisisiron/Ovis2-1B-hf; sizes are small, numbers random.
Shapes come from transformers' own classes, names from what these publish.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from . import checkpoints as base
from .checkpoints import CLIP_MEAN, CLIP_STD, Case

# What seed=0 stands for; see checkpoints.
_FIRST_SEED = {"mistral3": 0, "pixtral": 0}

# The pictures: free; larger than the longest edge, with a side that has to grow; small; a line of patches.
_ROWS = ((100, 70, 1), ((30, 40, 2), (400, 131, 3), (9, 7, 4), (84, 84, 5)))


def _mistral_cases() -> tuple[Case, ...]:
    one, several = _ROWS
    return (
        Case("one", "[INST]What is shown in this picture?[IMG][/INST]", (one,)),
        Case("several", "[INST]This is the first picture. [IMG]\n[IMG][IMG] and [IMG]How do they differ?[/INST]", several),
        Case("text", "[INST]Tell me a story about the river and the sea.[/INST]"),
    )


CASES: Mapping[str, tuple[Case, ...]] = {"mistral3": _mistral_cases(), "pixtral": _mistral_cases()}

_TEXT_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
}
# Gains of linear layers, by the end of their names; the others have 1.
_GAINS = {"q_proj": 1.5, "k_proj": 1.5, "o_proj": 2.0, "out_proj": 2.0, "projection_layer": 2.0, "gate_proj": 1.5}


def random_weights(config: dict[str, Any], seed: int, publish: Callable[[str], str], muted: list[int]) -> base._Tensors:
    """Every parameter that transformers' class has, by its published name; `muted` tokens are never likely.

    Scales as in the other checkpoints.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config))
    t = base._Tensors(seed, torch.bfloat16)
    for name, parameter in model.named_parameters():
        shape, last = tuple(parameter.shape), name.split(".")[-2 if name.endswith(("weight", "bias")) else -1]
        std = _GAINS.get(last, 1.0) / max(1, parameter[0].numel()) ** 0.5
        if last.startswith("lambda"):
            t.normal(publish(name), *shape, std=0.1, mean=0.7)
        elif len(shape) == 1:
            t.normal(publish(name), *shape, std=0.1, mean=0.0 if name.endswith("bias") else 1.0)
        elif name.endswith("lm_head.weight"):
            base._mute(t.normal(publish(name), *shape, std=2.2 * std), muted, 0.0)
        elif "language_model.embed_tokens" in name:
            tied = config.get("tie_word_embeddings", False)
            base._mute(t.normal(publish(name), *shape, std=0.3 if tied else 1.0), muted, 0.1 if tied else 1.0)
        elif last in ("cls_token", "position_embeddings", "position_embedding"):
            t.normal(publish(name), *shape, std=0.4)
        elif last == "visual_embeddings_table":
            t.normal(publish(name), *shape, std=1.0)
        else:
            t.normal(publish(name), *shape, std=std)
    return t


def _llava_name(name: str) -> str:
    """As models are published whose class is LLaVA's kin."""
    if name == "lm_head.weight":
        return "language_model.lm_head.weight"
    return name.removeprefix("model.").replace("language_model.", "language_model.model.", 1)


# ------------------------------------------------------------------------------------------------ Mistral 3, Pixtral

_PIXTRAL_TOKENS = ["[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "<pad>"]
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST]"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for block in message['content'] %}"
    "{% if block['type'] == 'text' %}{{ block['text'] }}{% elif block['type'] in ['image', 'image_url'] %}[IMG]"
    "{% endif %}{% endfor %}{% endif %}[/INST]{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def build_mistral3(folder: str | Path, *, seed: int = 0) -> Path:
    """Mistral Small 3.1: a Pixtral of 3 layers whose patches are merged 2 x 2, and a Mistral of 3 layers."""
    return _build_pixtral(folder, "mistral3", seed)


def build_pixtral(folder: str | Path, *, seed: int = 0) -> Path:
    """Pixtral-12B as transformers has it: LLaVA's class, a token for each patch."""
    return _build_pixtral(folder, "pixtral", seed)


def _build_pixtral(folder: str | Path, kind: str, seed: int) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = base._qwen_tokenizer([base._special(t) for t in ("<unk>", "<s>", "</s>", *_PIXTRAL_TOKENS)])
    ids = {token: base._id(tokenizer, token) for token in ("<s>", "</s>", "[IMG]", "<pad>")}
    tokenizer.post_processor = base.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", ids["<s>"])]
    )
    first = ids["<s>"] - 1
    config = _pixtral_config(kind, first, ids["[IMG]"])
    t = random_weights(config, _FIRST_SEED[kind] + seed, _llava_name, list(range(first, first + 64)))
    t.save(folder)
    base._write(folder, tokenizer, _pixtral_files(tokenizer, config, ids))
    return folder


def _pixtral_config(kind: str, first: int, image_id: int) -> dict[str, Any]:
    text = {
        **_TEXT_SIZES,
        "attention_dropout": 0.0,
        "head_dim": 24,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 131072,
        "model_type": "mistral",
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000000.0,
        "sliding_window": None,
        "use_cache": True,
        "vocab_size": first + 64,
    }
    vision = {
        "attention_dropout": 0.0,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 32,
        "image_size": 84,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "model_type": "pixtral",
        "num_attention_heads": 2,
        "num_channels": 3,
        "num_hidden_layers": 3,
        "patch_size": 14 if kind == "mistral3" else 16,
        "rope_theta": 10000.0,
    }
    config = {
        "image_token_index": image_id,
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": vision,
        "vision_feature_layer": -1,
    }
    if kind == "pixtral":
        return {
            "architectures": ["LlavaForConditionalGeneration"],
            **config,
            "ignore_index": -100,
            "image_seq_length": 1,
            "model_type": "llava",
            "vision_feature_select_strategy": "full",
        }
    return {
        "architectures": ["Mistral3ForConditionalGeneration"],
        **config,
        "model_type": "mistral3",
        "multimodal_projector_bias": False,
        "spatial_merge_size": 2,
    }


def _pixtral_files(tokenizer: base.Tokenizer, config: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    patch, longest = config["vision_config"]["patch_size"], 168 if config["model_type"] == "mistral3" else 160
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return {
        "config.json": config,
        "generation_config.json": {
            "_from_model_config": True,
            "bos_token_id": ids["<s>"],
            "eos_token_id": ids["</s>"],
            "pad_token_id": ids["<pad>"],
            "transformers_version": "4.50.0.dev0",
        },
        "preprocessor_config.json": {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": CLIP_MEAN,
            "image_processor_type": "PixtralImageProcessor",
            "image_std": CLIP_STD,
            "patch_size": {"height": patch, "width": patch},
            "processor_class": "PixtralProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"longest_edge": longest},
        },
        "processor_config.json": {
            "image_break_token": "[IMG_BREAK]",
            "image_end_token": "[IMG_END]",
            "image_token": "[IMG]",
            "patch_size": patch,
            "processor_class": "PixtralProcessor",
            "spatial_merge_size": config.get("spatial_merge_size", 1),
        },
        "special_tokens_map.json": base._token_map(tokens),
        "chat_template.json": {"chat_template": MISTRAL_TEMPLATE},
        "tokenizer_config.json": {
            "add_bos_token": True,
            "add_prefix_space": None,
            "added_tokens_decoder": base._added_tokens_decoder(tokenizer),
            **tokens,
            "chat_template": MISTRAL_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1000000000000000019884624838656,
            "processor_class": "PixtralProcessor",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    }


BUILDERS: Mapping[str, Callable[..., Path]] = {"mistral3": build_mistral3, "pixtral": build_pixtral}


def settings(folder: Path) -> dict[str, Any]:
    """What processor_config.json says beside the class."""
    found: dict[str, Any] = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key != "processor_class"}
