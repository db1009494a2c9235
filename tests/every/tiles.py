"""Models that see a picture as tiles, or as one tile of a fixed size: a tower, a projector, a decoder."""

from typing import Any

import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.every.entry import Entry
from tests.every.making import SIGLIP, builder, ids, text, tokenizer

_IMAGE = {"image_token": "<image>"}
_SIDE_28 = {"height": 28, "width": 28}
_SIDE_56 = {"height": 56, "width": 56}
_MIX = ["sliding_attention", "full_attention", "sliding_attention"]


def _prompt(count: int) -> str:
    return "USER: " + "<image>\n" * count + "What is it? ASSISTANT:"


def _aria() -> tuple[Any, Any]:
    """The processor has every picture padded to 980 pixels a side, whatever its image processor was made with."""
    tok = tokenizer(["<image>"], _IMAGE)
    pictures = hf.AriaImageProcessor(max_image_size=980, min_image_size=336)
    processor = hf.AriaProcessor(image_processor=pictures, tokenizer=tok, size_conversion={490: 4, 980: 4})
    tower = {
        "model_type": "idefics3_vision",
        "hidden_size": 16,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 980,
        "patch_size": 70,
    }
    config = CONFIG_MAPPING["aria"](
        text_config=text("aria_text", moe_num_experts=4, moe_topk=2),
        vision_config=tower,
        projector_patch_to_query_dict={196: 4},
        **ids(tok, image_token_index="<image>"),
    )
    return config, processor


_AYA = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL", "TILE")


def _cohere2() -> dict[str, Any]:
    return text("cohere2", sliding_window=8, layer_types=_MIX, logit_scale=0.5)


def _aya_vision() -> tuple[Any, Any]:
    tok = tokenizer(["<image>", *_AYA], _IMAGE)
    pictures = hf.GotOcr2ImageProcessor(size=_SIDE_56, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = hf.AyaVisionProcessor(
        image_processor=pictures, tokenizer=tok, patch_size=14, img_size=56, downsample_factor=2
    )
    config = CONFIG_MAPPING["aya_vision"](
        text_config=_cohere2(),
        vision_config=SIGLIP | {"image_size": 56},
        downsample_factor=2,
        **ids(tok, image_token_index="<|IMG_PATCH|>"),
    )
    return config, processor


def _cohere2_vision() -> tuple[Any, Any]:
    """The image processor's patch_size is how many tokens are on a tile's side."""
    names = {
        "image_token": "<|IMG_PATCH|>",
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    tok = tokenizer(tuple(names.values()), names)
    pictures = hf.Cohere2VisionImageProcessor(size=_SIDE_56, patch_size=2, max_patches=4)
    config = CONFIG_MAPPING["cohere2_vision"](
        text_config=_cohere2(),
        vision_config=SIGLIP | {"image_size": 56},
        downsample_factor=2,
        alignment_intermediate_size=96,
        **ids(tok, image_token_id="<|IMG_PATCH|>"),
    )
    return config, hf.Cohere2VisionProcessor(image_processor=pictures, tokenizer=tok)


def _deepseek_vl() -> tuple[Any, Any]:
    tok = tokenizer(["<image>"], _IMAGE)
    processor = hf.DeepseekVLProcessor(
        image_processor=hf.DeepseekVLImageProcessor(size=_SIDE_28), tokenizer=tok, num_image_tokens=4
    )
    config = CONFIG_MAPPING["deepseek_vl"](
        text_config=text("llama"), vision_config=SIGLIP, **ids(tok, image_token_id="<image>")
    )
    return config, processor


_SAM: dict[str, Any] = {
    "hidden_size": 32,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 8,
    "window_size": 3,
    "global_attn_indexes": [1],
    "mlp_dim": 48,
}


def _deepseek_vl_hybrid() -> tuple[Any, Any]:
    """The fine tower's map is brought to 4 x 24 points a side whatever its size, then halved twice: 576 tokens."""
    tok = tokenizer(["<image>"], _IMAGE)
    pictures = hf.DeepseekVLHybridImageProcessor(
        size={"height": 96, "width": 96}, high_res_size={"height": 64, "width": 64}
    )
    processor = hf.DeepseekVLHybridProcessor(image_processor=pictures, tokenizer=tok, num_image_tokens=576)
    config = CONFIG_MAPPING["deepseek_vl_hybrid"](
        text_config=text("llama"),
        vision_config=SIGLIP | {"image_size": 96, "patch_size": 4},
        high_res_vision_config={"model_type": "sam_vision_model", **_SAM},
        **ids(tok, image_token_id="<image>"),
    )
    return config, processor


ENTRIES = (
    Entry("aria", builder(_aria), _prompt),
    Entry("aya_vision", builder(_aya_vision), _prompt),
    Entry("cohere2_vision", builder(_cohere2_vision), lambda n: "<|IMG_PATCH|>" * n + "What is it?"),
    Entry("deepseek_vl", builder(_deepseek_vl), _prompt),
    Entry("deepseek_vl_hybrid", builder(_deepseek_vl_hybrid), _prompt),
)
