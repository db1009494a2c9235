"""Models of Qwen's kind: a picture keeps its shape, and positions have a time, a row and a column."""

from typing import Any

import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.every.entry import Entry
from tests.every.making import CHATML, STOPS, TEXT, VISION, builder, ids, tokenizer

_NAMED = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
_PIXELS = {"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 8}


def _prompt(count: int) -> str:
    seen = "<|vision_start|><|image_pad|><|vision_end|>" * count
    return f"<|im_start|>user\n{seen}What is it?<|im_end|>\n<|im_start|>assistant\n"


def _qwen_text(**changes: Any) -> dict[str, Any]:
    return {**TEXT, **STOPS, "head_dim": 16, **changes}


def _rope(*section: int, **changes: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(section), **changes}


_KINDS = ("sliding_attention", "full_attention")
_DEEP: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 64,
    "num_heads": 2,
    "patch_size": 16,
    "deepstack_visual_indexes": [0, 1],
    "num_position_embeddings": 16,
}


def _cosmos3_omni() -> tuple[Any, Any]:
    tok = tokenizer([*CHATML, *VISION])
    pictures = hf.Qwen2VLImageProcessor(size=_PIXELS, patch_size=16, merge_size=2, temporal_patch_size=2)
    processor = hf.Qwen3VLProcessor(image_processor=pictures, tokenizer=tok, video_processor=hf.Qwen3VLVideoProcessor())
    config = CONFIG_MAPPING["cosmos3_omni"](
        text_config=_qwen_text(rope_parameters=_rope(4, 2, 2, mrope_interleaved=True)),
        vision_config=_DEEP,
        **ids(tok, **_NAMED),
    )
    return config, processor


def _cosmos3_edge() -> tuple[Any, Any]:
    tok = tokenizer([*CHATML, *VISION])
    pictures = hf.Cosmos3EdgeImageProcessor(size=_PIXELS, patch_size=16, merge_size=2)
    processor = hf.Cosmos3EdgeProcessor(
        image_processor=pictures, tokenizer=tok, video_processor=hf.Cosmos3EdgeVideoProcessor()
    )
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 16,
        "num_patches": 16,
    }
    config = CONFIG_MAPPING["cosmos3_edge"](
        text_config=_qwen_text(rope_parameters=_rope(2, 3, 3)),
        vision_config=tower,
        projector_hidden_size=48,
        **ids(tok, **_NAMED),
    )
    return config, processor


def _cohere_compass() -> tuple[Any, Any]:
    names = {
        "image_token_id": "<|IMAGE_PAD|>",
        "video_token_id": "<|VIDEO_PAD|>",
        "vision_start_token_id": "<|VISION_START|>",
        "vision_end_token_id": "<|VISION_END|>",
    }
    tok = tokenizer(tuple(names.values()))
    pictures = hf.CohereCompassImageProcessor(size=_PIXELS, patch_size=16, merge_size=2)
    processor = hf.CohereCompassProcessor(
        image_processor=pictures, tokenizer=tok, video_processor=hf.CohereCompassVideoProcessor()
    )
    written = {**TEXT, **STOPS, "logit_scale": 0.5, "sliding_window": 8}
    config = CONFIG_MAPPING["cohere_compass"](
        text_config=written
        | {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {kind: _rope(2, 3, 3, mrope_interleaved=True) for kind in _KINDS},
        },
        vision_config=_DEEP,
        **ids(tok, **names),
    )
    return config, processor


def _compass_prompt(count: int) -> str:
    return "<|VISION_START|><|IMAGE_PAD|><|VISION_END|>" * count + "What is it?"


ENTRIES = (
    Entry("cohere_compass", builder(_cohere_compass), _compass_prompt),
    Entry("cosmos3_edge", builder(_cosmos3_edge), _prompt),
    Entry("cosmos3_omni", builder(_cosmos3_omni), _prompt),
)
