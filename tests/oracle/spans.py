"""Tiny checkpoints of models whose pictures have text between or around their rows, or are cut into tiles.

File names, config keys and weight names are those of mistralai/Mistral-Small-3.1-24B-Instruct-2503,
mistral-community/pixtral-12b, OpenGVLab/InternVL3-1B-hf and thisisiron/Ovis2-1B-hf; sizes are small, numbers random.
Shapes come from transformers' own classes, names from what these publish.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, processors
from transformers import AutoConfig, AutoModelForImageTextToText

from . import checkpoints as base
from .checkpoints import CLIP_MEAN, CLIP_STD, Case

# What seed=0 stands for; see checkpoints.
_FIRST_SEED = {"mistral3": 1, "pixtral": 187, "internvl": 12, "internvl-large": 35, "ovis2": 113}

# The pictures: free; larger than the longest edge, with a side that has to grow; small; a line of patches.
_ROWS = ((100, 70, 1), ((30, 40, 2), (400, 131, 3), (9, 7, 4), (84, 84, 5)))


def _mistral_cases() -> tuple[Case, ...]:
    one, several = _ROWS
    return (
        Case("one", "[INST]What is shown in this picture?[IMG][/INST]", (one,)),
        Case("several", "[INST]The first picture: [IMG]\n[IMG][IMG] and [IMG]How do they differ?[/INST]", several),
        Case("text", "[INST]Tell me a story about the river and the sea.[/INST]"),
    )


def _tiled_cases(see: str) -> tuple[Case, ...]:
    """A field of 3 x 2; of one tile, 1 x 6, 2 x 2 (square and large) and 2 x 1."""
    return (
        Case("one", base._chatml(f"{see}\nWhat is shown in this picture?"), ((150, 100, 1),)),
        Case(
            "several",
            base._chatml(f"{see}\nThis is the first picture. {see}{see} and {see}\nHow do they differ?"),
            ((30, 20, 2), (40, 300, 3), (200, 200, 4), (130, 60, 5)),
        ),
        Case("text", base._chatml("Tell me a story about the river and the sea.")),
    )


CASES: Mapping[str, tuple[Case, ...]] = {
    "mistral3": _mistral_cases(),
    "pixtral": _mistral_cases(),
    "internvl": _tiled_cases("<IMG_CONTEXT>"),
    "ovis2": _tiled_cases("<image>"),
}

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
    tokenizer.post_processor = processors.TemplateProcessing(
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


def _pixtral_files(tokenizer: Tokenizer, config: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
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


# --------------------------------------------------------------------------------------------------- InternVL, Ovis2

_INTERN_TOKENS = {
    "context_image_token": "<IMG_CONTEXT>",
    "end_image_token": "</img>",
    "start_image_token": "<img>",
    "video_token": "<video>",
}
_OVIS_TOKENS = ["<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
# What the larger ones' configs say: InternViT-6B and a Llama.
_LARGE = {"attention_bias": False, "norm_type": "rms_norm", "use_qk_norm": True}


def tiled_template(text: str) -> str:
    return (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
        "{% if content['type'] == 'image' %}{{ '" + text + "\n' }}{% elif content['type'] == 'text' %}"
        "{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


def build_internvl(folder: str | Path, *, seed: int = 0, kind: str = "internvl") -> Path:
    """InternVL3-1B: a ViT of 3 layers at 56 pixels, 4 tokens a tile, and a Qwen2 of 3 layers; or its larger kin."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*base.QWEN_TOKENS, *_INTERN_TOKENS.values()]
    tokenizer = base._qwen_tokenizer([base._special(token) for token in tokens])
    first = base._id(tokenizer, "<|endoftext|>")
    vision = {
        "architectures": ["InternVLVisionModel"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 32,
        "image_size": [56, 56],
        "initializer_factor": 0.1,
        "initializer_range": 1e-10,
        "intermediate_size": 64,
        "layer_norm_eps": 1e-06,
        "layer_scale_init_value": 0.1,
        "model_type": "internvl_vision",
        "norm_type": "layer_norm",
        "num_attention_heads": 2,
        "num_channels": 3,
        "num_hidden_layers": 3,
        "patch_size": [14, 14],
        "projection_dropout": 0.0,
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,
        "use_qk_norm": False,
    }
    config = {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "image_seq_length": 4,
        "image_token_id": base._id(tokenizer, "<IMG_CONTEXT>"),
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": _tiled_text("llama" if kind == "internvl-large" else "qwen2", first, tied=False),
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vision_config": vision | (_LARGE if kind == "internvl-large" else {}),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }
    files = _tiled_files(tokenizer, config, "InternVLProcessor", "<IMG_CONTEXT>")
    files["preprocessor_config.json"] |= {"image_processor_type": "GotOcr2ImageProcessor", "crop_to_patches": False}
    files["processor_config.json"]["image_seq_length"] = 4
    files["tokenizer_config.json"]["extra_special_tokens"] = _INTERN_TOKENS
    random_weights(config, _FIRST_SEED[kind] + seed, _llava_name, [*range(first, first + 64)]).save(folder)
    base._write(folder, tokenizer, files)
    return folder


def build_ovis2(folder: str | Path, *, seed: int = 0) -> Path:
    """Ovis2-1B: AIMv2 of 3 layers at 56 pixels, 4 tokens a tile from 35 visual words, and a tied Qwen2 of 3 layers."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = base._qwen_tokenizer([base._special(token) for token in [*base.QWEN_TOKENS, *_OVIS_TOKENS]])
    first, atom = base._id(tokenizer, "<|endoftext|>"), base._id(tokenizer, "<IMG_ATOM>")
    vision = {
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 32,
        "hidden_stride": 2,
        "image_size": 56,
        "intermediate_size": 64,
        "mlp_bias": False,
        "model_type": "ovis2_vision",
        "num_attention_heads": 2,
        "num_channels": 3,
        "num_hidden_layers": 3,
        "num_visual_indicator_tokens": 5,
        "patch_size": 14,
        "qkv_bias": False,
        "rms_norm_eps": 1e-05,
        "tokenize_function": "softmax",
        "vocab_size": 40,
    }
    config = {
        "architectures": ["Ovis2ForConditionalGeneration"],
        "hidden_size": 64,
        "image_token_id": atom,
        "model_type": "ovis2",
        "text_config": _tiled_text("qwen2", first, tied=True),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vision_config": vision,
        "visual_indicator_token_ids": list(range(atom + 1, atom + 6)),
        "vocab_size": first + 64,
    }
    files = _tiled_files(tokenizer, config, "Ovis2Processor", "<image>")
    files["preprocessor_config.json"] |= {"image_processor_type": "Ovis2ImageProcessor", "crop_to_patches": True}
    files["processor_config.json"] |= {"image_seq_length": 4, "image_token": "<image>"}
    t = random_weights(config, _FIRST_SEED["ovis2"] + seed, str, [*range(first, first + 64)])
    t.by_name.pop("lm_head.weight", None)
    t.save(folder)
    base._write(folder, tokenizer, files)
    return folder


def _tiled_text(kind: str, first: int, *, tied: bool) -> dict[str, Any]:
    return {
        **_TEXT_SIZES,
        "architectures": ["Qwen2ForCausalLM" if kind == "qwen2" else "LlamaForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": first,
        "eos_token_id": first + 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "model_type": kind,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": tied,
        "use_cache": True,
        "vocab_size": first + 64,
    }


def _tiled_files(tokenizer: Tokenizer, config: dict[str, Any], kind: str, text: str) -> dict[str, Any]:
    first = config["text_config"]["bos_token_id"]
    template = tiled_template(text)
    return {
        "config.json": config,
        "generation_config.json": {"eos_token_id": [first + 2, first], "pad_token_id": first},
        "preprocessor_config.json": {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "max_patches": 6,
            "min_patches": 1,
            "processor_class": kind,
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": 56, "width": 56},
        },
        "processor_config.json": {"processor_class": kind},
        "chat_template.json": {"chat_template": template},
        "tokenizer_config.json": {
            "added_tokens_decoder": base._added_tokens_decoder(tokenizer),
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "model_max_length": 32768,
            "pad_token": "<|endoftext|>",
            "processor_class": kind,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    }


BUILDERS: Mapping[str, Callable[..., Path]] = {
    "mistral3": build_mistral3,
    "pixtral": build_pixtral,
    "internvl": build_internvl,
    "ovis2": build_ovis2,
}
