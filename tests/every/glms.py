"""GLM-4V and those built like it: sandwich norms, partly rotated heads, positions by time, row and column."""

from typing import Any

import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.every.entry import Entry
from tests.every.making import STOPS, TEXT, builder, ids, tokenizer

_TOKENS = (
    "<|image|>",
    "<|video|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
)
_IDS = {
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
}
_EXTRA = {"image_token": "<|image|>", "video_token": "<|video|>"}
_SIZE = {"shortest_edge": 28 * 28, "longest_edge": 2 * 28 * 28 * 9}
_TOWER: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 64,
    "num_heads": 2,
    "patch_size": 14,
    "image_size": 56,
}
_TEXT: dict[str, Any] = {
    **TEXT,
    **STOPS,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "mrope_section": [1, 1, 2],
    },
}
_MOE: dict[str, Any] = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}


def _prompt(count: int) -> str:
    return "<|begin_of_image|><|image|><|end_of_image|>" * count + "What is it?"


def _glm4v_processor(tok: Any) -> Any:
    return hf.Glm4vProcessor(
        image_processor=hf.Glm4vImageProcessor(size=_SIZE), tokenizer=tok, video_processor=hf.Glm4vVideoProcessor()
    )


def _glm4v() -> tuple[Any, Any]:
    tok = tokenizer(_TOKENS, _EXTRA)
    config = CONFIG_MAPPING["glm4v"](text_config=_TEXT, vision_config=_TOWER, **ids(tok, **_IDS))
    return config, _glm4v_processor(tok)


def _glm4v_moe() -> tuple[Any, Any]:
    tok = tokenizer(_TOKENS, _EXTRA)
    config = CONFIG_MAPPING["glm4v_moe"](text_config={**_TEXT, **_MOE}, vision_config=_TOWER, **ids(tok, **_IDS))
    return config, _glm4v_processor(tok)


def _glm_ocr() -> tuple[Any, Any]:
    tok = tokenizer(_TOKENS, _EXTRA)
    pictures = hf.Glm46VImageProcessor(size=_SIZE)
    processor = hf.Glm46VProcessor(image_processor=pictures, tokenizer=tok, video_processor=hf.Glm46VVideoProcessor())
    config = CONFIG_MAPPING["glm_ocr"](text_config=_TEXT, vision_config=_TOWER, **ids(tok, **_IDS))
    return config, processor


def _glm46v() -> tuple[Any, Any]:
    tok = tokenizer(_TOKENS, _EXTRA)
    pictures = hf.Glm46VImageProcessor(size=_SIZE)
    processor = hf.Glm46VProcessor(image_processor=pictures, tokenizer=tok, video_processor=hf.Glm46VVideoProcessor())
    config = CONFIG_MAPPING["glm46v"](
        text_config={"model_type": "glm4v_text", **_TEXT},
        vision_config={"model_type": "glm4v_vision", **_TOWER},
        **ids(tok, **_IDS),
    )
    return config, processor


def _glmga() -> tuple[Any, Any]:
    """Its own image processor: sides are multiples of patch, merge and expand factor together."""
    tok = tokenizer(_TOKENS, _EXTRA)
    pictures = hf.GlmgaImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 56 * 56 * 4})
    processor = hf.Glm46VProcessor(image_processor=pictures, tokenizer=tok, video_processor=hf.GlmgaVideoProcessor())
    config = CONFIG_MAPPING["glmga"](
        text_config={"model_type": "glm4v_text", **_TEXT},
        vision_config={"model_type": "glm4v_vision", **_TOWER},
        **ids(tok, **_IDS),
    )
    return config, processor


def _glm5_next() -> tuple[Any, Any]:
    """Linear attention with a convolution, indexed attention over pooled keys, several residual streams, experts."""
    tok = tokenizer(_TOKENS, _EXTRA)
    pictures = hf.Glm5NextImageProcessor(size=_SIZE)
    processor = hf.Glm5NextProcessor(
        image_processor=pictures, tokenizer=tok, video_processor=hf.Glm5NextVideoProcessor()
    )
    written = {
        **TEXT,
        **STOPS,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "v_head_dim": 16,
        "qk_nope_head_dim": 16,
        "index_topk": 8,
        "index_head_dim": 16,
        "index_n_heads": 2,
        "index_kpool": 4,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
        "hc_mult": 2,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
    }
    config = CONFIG_MAPPING["glm5_next"](
        text_config=written, vision_config=_TOWER | {"projection_intermediate_size": 48}, **ids(tok, **_IDS)
    )
    return config, processor


ENTRIES = (
    Entry("glm46v", builder(_glm46v), _prompt),
    Entry("glm4v", builder(_glm4v), _prompt),
    Entry("glm4v_moe", builder(_glm4v_moe), _prompt),
    Entry("glm5_next", builder(_glm5_next), _prompt),
    Entry("glm_ocr", builder(_glm_ocr), _prompt),
    Entry("glmga", builder(_glmga), _prompt),
)
