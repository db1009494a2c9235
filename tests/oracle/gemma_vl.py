"""Tiny random checkpoints of Gemma 3, PaliGemma and Aya Vision as they are published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .checkpoints import Case, _id, _Tensors, _write
from .gemma import CONFIGS, TURN, text_files, text_weights, tokenizer_of
from .llava_kin import HALF, SIGLIP, siglip_tensors

SEE = "<start_of_image>"
PICTURES = ((90, 60, 1),)
SEVERAL = ((40, 120, 2), (200, 130, 3), (56, 56, 4))
CASES: Mapping[str, tuple[Case, ...]] = {
    "gemma3": (
        Case("one", TURN.format(f"{SEE}What is shown in this picture?"), PICTURES),
        Case("several", TURN.format(f"{SEE}This is the first picture. {SEE}\n{SEE} How do they differ?"), SEVERAL),
        Case("text", TURN.format("Tell me a story about the river and the sea.")),
    ),
    # A field of 3 x 2; of one tile, 1 x 6, 2 x 2.
    "aya_vision": (
        Case("one", "<image>What is shown in this picture?", ((150, 100, 1),)),
        Case(
            "several",
            "The first: <image> the second: <image> and <image>How do they differ?",
            ((30, 20, 2), (40, 300, 3), (200, 200, 4)),
        ),
        Case("text", "Tell me a story about the river and the sea."),
    ),
    "paligemma": (
        Case("one", "<image>What is shown in this picture?", PICTURES),
        Case("several", "<image>This is the first picture. <image>\n<image>How do they differ?", SEVERAL),
        Case("text", "Tell me a story about the river and the sea."),
    ),
}
_FIRST_SEED = {"gemma3": 3, "paligemma": 8, "paligemma-2": 4, "aya_vision": 2}
VISION: dict[str, Any] = {**SIGLIP, "image_size": 56}
TOKENS = {"boi_token": SEE, "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}


def build_gemma3(folder: str | Path, *, seed: int = 0, **changes: Any) -> Path:
    """16 patches become 4 tokens, before a Gemma 3 of 3 layers; `changes` are values of its text_config."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(*TOKENS.values())
    first = _id(tokenizer, "<pad>")
    inner = {key: value for key, value in CONFIGS["gemma3_text"].items() if key not in ("architectures", "torch_dtype")}
    config: dict[str, Any] = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": _id(tokenizer, SEE),
        "eoi_token_index": _id(tokenizer, "<end_of_image>"),
        "eos_token_id": [2, _id(tokenizer, "<end_of_turn>")],
        "image_token_index": _id(tokenizer, "<image_soft_token>"),
        "initializer_range": 0.02,
        "mm_tokens_per_image": 4,
        "model_type": "gemma3",
        "text_config": {**inner, "vocab_size": first + 16, **changes},
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": VISION,
    }
    t = _weights(config, _FIRST_SEED["gemma3"] + seed, first)
    width = config["text_config"]["hidden_size"]
    t.normal("multi_modal_projector.mm_input_projection_weight", VISION["hidden_size"], width, std=0.3)
    t.normal("multi_modal_projector.mm_soft_emb_norm.weight", VISION["hidden_size"], std=0.2, mean=0.3)
    t.save(folder)
    files = text_files(tokenizer, config)
    files["tokenizer_config.json"] |= {**TOKENS, "extra_special_tokens": TOKENS, "processor_class": "Gemma3Processor"}
    _write(folder, tokenizer, {**files, **_processor_files("Gemma3", "Gemma3ImageProcessor", 2)})
    return folder


def build_paligemma(folder: str | Path, *, seed: int = 0, text: str = "gemma", **changes: Any) -> Path:
    """16 patches become 16 tokens, before a Gemma, or a Gemma 2 (PaliGemma 2), of 3 layers."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of("<image>", "<bos>")
    first = _id(tokenizer, "<pad>")
    inner = {key: value for key, value in CONFIGS[text].items() if key not in ("architectures", "torch_dtype")}
    config: dict[str, Any] = {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "bos_token_id": _id(tokenizer, "<bos>"),
        "eos_token_id": 2,
        "hidden_size": 64,
        "image_token_index": _id(tokenizer, "<image>"),
        "model_type": "paligemma",
        "pad_token_id": first,
        "projection_dim": 64,
        "text_config": {**inner, "num_image_tokens": 16, "vocab_size": first + 16, **changes},
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.0.dev0",
        "vision_config": {**VISION, "projection_dim": 64, "projector_hidden_act": "gelu_fast"},
    }
    t = _weights(config, _FIRST_SEED["paligemma" if text == "gemma" else "paligemma-2"] + seed, first)
    t.linear("multi_modal_projector.linear", 64, VISION["hidden_size"], gain=1.0, bias=True)
    t.save(folder)
    files = text_files(tokenizer, config)
    files["tokenizer_config.json"] |= {
        "add_bos_token": True,
        "bos_token": "<bos>",
        "extra_special_tokens": {"image_token": "<image>"},
        "processor_class": "PaliGemmaProcessor",
    }
    files["tokenizer_config.json"].pop("chat_template")
    made = _processor_files("PaliGemma", "SiglipImageProcessor", 3)
    made.pop("processor_config.json")
    made["preprocessor_config.json"]["image_seq_length"] = 16
    _write(folder, tokenizer, {**files, **made})
    return folder


AYA_TOKENS = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>")


def build_aya_vision(folder: str | Path, *, seed: int = 0) -> Path:
    """SigLIP at 56 pixels, 4 tokens a tile, before a Cohere 2 of 3 layers."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(*AYA_TOKENS)
    first = _id(tokenizer, "<pad>")
    inner = {key: value for key, value in CONFIGS["cohere2"].items() if key not in ("architectures", "torch_dtype")}
    config: dict[str, Any] = {
        "adapter_layer_norm_eps": 1e-06,
        "alignment_intermediate_size": 96,
        "architectures": ["AyaVisionForConditionalGeneration"],
        "downsample_factor": 2,
        "image_token_index": _id(tokenizer, "<|IMG_PATCH|>"),
        "model_type": "aya_vision",
        "text_config": {**inner, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": first + 16},
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": VISION,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    t = _weights(config, _FIRST_SEED["aya_vision"] + seed, first)
    t.norm("multi_modal_projector.layernorm", 4 * VISION["hidden_size"], bias=True)
    t.linear("multi_modal_projector.linear_1", 96, 4 * VISION["hidden_size"], gain=1.5, bias=True)
    t.linear("multi_modal_projector.linear_2", 64, 48, gain=2.0, bias=True)
    t.save(folder)
    files = {**text_files(tokenizer, config), **_processor_files("AyaVision", "GotOcr2ImageProcessor", 3)}
    files["preprocessor_config.json"] |= {"crop_to_patches": False, "max_patches": 6, "min_patches": 1}
    files["processor_config.json"] = {
        "downsample_factor": 2,
        "end_of_img_token": "<|END_OF_IMG|>",
        "image_token": "<image>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
        "img_patch_token": "<|IMG_PATCH|>",
        "img_size": 56,
        "patch_size": 14,
        "processor_class": "AyaVisionProcessor",
        "start_of_img_token": "<|START_OF_IMG|>",
        "tile_global_token": "TILE_GLOBAL",
        "tile_token": "TILE",
    }
    _write(folder, tokenizer, files)
    return folder


def _weights(config: dict[str, Any], seed: int, first: int) -> _Tensors:
    t = _Tensors(seed, torch.bfloat16)
    text_weights(t, "language_model.model", config["text_config"], [0, 1, 2, *range(first, first + 16)])
    siglip_tensors(t, "vision_tower.vision_model", config["vision_config"])
    return t


def _processor_files(kind: str, image_processor: str, resample: int) -> dict[str, dict[str, Any]]:
    return {
        "preprocessor_config.json": {
            "do_convert_rgb": None,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": HALF,
            "image_processor_type": image_processor,
            "image_seq_length": 4,
            "image_std": HALF,
            "processor_class": f"{kind}Processor",
            "resample": resample,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": 56, "width": 56},
            **({"do_pan_and_scan": None} if kind == "Gemma3" else {}),
        },
        "processor_config.json": {"image_seq_length": 4, "processor_class": f"{kind}Processor"},
    }


def processor(kind: str, image_processor: Any, tokenizer: Any) -> Any:
    """transformers' own, as its class is made of the two."""
    from transformers import AyaVisionProcessor, Gemma3Processor, PaliGemmaProcessor

    if kind == "aya_vision":
        return AyaVisionProcessor(image_processor, tokenizer, patch_size=14, img_size=56, downsample_factor=2)
    if kind == "gemma3":
        return Gemma3Processor(image_processor, tokenizer, image_seq_length=4)
    image_processor.image_seq_length = 16
    return PaliGemmaProcessor(image_processor, tokenizer)


PROCESSORS = ("AyaVisionProcessor", "Gemma3Processor", "PaliGemmaProcessor")


def inputs(made: Any, prompt: str, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
    """Inputs of one prompt. PaliGemma's processor insists on a picture; without, the rest of what it does is done."""
    shown = [list(images)] if images else None
    if type(made).__name__ == "AyaVisionProcessor":
        found = dict(made(text=[prompt], images=shown, return_tensors="pt"))
        return {name: found[name] for name in ("input_ids", "attention_mask", "pixel_values") if name in found}
    if type(made).__name__ == "Gemma3Processor":
        found = dict(made(text=[prompt], images=shown, return_tensors="pt", return_mm_token_type_ids=True))
        return {name: values for name, values in found.items() if name != "num_crops"}
    if images:
        found = dict(made(text=[prompt], images=[list(images)], return_tensors="pt", add_special_tokens=False))
        return {name: values for name, values in found.items() if name != "labels"}
    plain = made.tokenizer([f"<bos>{prompt}\n"], return_tensors="pt", add_special_tokens=False)
    ids = plain["input_ids"]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


BUILDERS: Mapping[str, Callable[..., Path]] = {
    "gemma3": build_gemma3,
    "paligemma": build_paligemma,
    "aya_vision": build_aya_vision,
}
