"""Models of Qwen's kind: a picture keeps its shape, and positions have a time, a row and a column."""

from typing import Any

import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.every.entry import Entry
from tests.every.making import CHATML, STOPS, TEXT, VISION, builder, ids, text, tokenizer

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


_WINDOWED: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 64,
    "num_heads": 2,
    "patch_size": 14,
    "fullatt_block_indexes": [1],
    "window_size": 56,
}
_PIXELS_28 = {"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 8}


def _exaone4_5() -> tuple[Any, Any]:
    """Norms behind each block only, windows on two layers, no rotation on the third; a tower with fewer key heads."""
    tok = tokenizer([*CHATML, *VISION])
    processor = hf.Exaone4_5_Processor(
        image_processor=hf.Qwen2VLImageProcessor(**_PIXELS_28),
        tokenizer=tok,
        video_processor=hf.Qwen2VLVideoProcessor(),
    )
    written = text(
        "exaone4", sliding_window=8, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    )
    config = CONFIG_MAPPING["exaone4_5"](
        text_config=written,
        vision_config=_WINDOWED | {"num_key_value_heads": 1},
        **ids(tok, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    )
    return config, processor


def _hyperclovax() -> tuple[Any, Any]:
    tok = tokenizer([*CHATML, *VISION])
    processor = hf.HyperCLOVAXVisionV2Processor(
        image_processor=hf.Qwen2VLImageProcessor(**_PIXELS_28),
        tokenizer=tok,
        video_processor=hf.Qwen2VLVideoProcessor(),
    )
    written = text(
        "hyperclovax",
        embedding_multiplier=2.0,
        residual_multiplier=0.7,
        attention_multiplier=0.3,
        logits_scaling=0.5,
        use_post_norm=True,
    )
    config = CONFIG_MAPPING["hyperclovax_vision_v2"](
        text_config=written,
        vision_config={"model_type": "qwen2_5_vl_vision", **_WINDOWED},
        tie_word_embeddings=False,
        **ids(tok, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    )
    return config, processor


def _ernie() -> tuple[Any, Any]:
    """Text and picture tokens have experts of their own: the processor says which token is which."""
    names = {
        "image_token": "<|IMAGE_PLACEHOLDER|>",
        "image_start_token": "<|IMAGE_START|>",
        "image_end_token": "<|IMAGE_END|>",
        "video_token": "<|VIDEO_PLACEHOLDER|>",
        "video_start_token": "<|VIDEO_START|>",
        "video_end_token": "<|VIDEO_END|>",
    }
    tok = tokenizer(tuple(names.values()), names)
    processor = hf.Ernie4_5_VLMoeProcessor(
        image_processor=hf.Ernie4_5_VLMoeImageProcessor(size={"shortest_edge": 784, "longest_edge": 784 * 8}),
        tokenizer=tok,
        video_processor=hf.Ernie4_5_VLMoeVideoProcessor(draw_on_frames=False),
    )
    written = {
        **TEXT,
        **STOPS,
        "rope_parameters": _rope(3, 3, 2),
        "moe_intermediate_size": [32, 24],
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
    }
    tower = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 14}
    config = CONFIG_MAPPING["ernie4_5_vl_moe"](
        text_config=written, vision_config=tower, **ids(tok, **{f"{name}_id": token for name, token in names.items()})
    )
    return config, processor


def _ernie_prompt(count: int) -> str:
    return "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>" * count + "What is it?"


def _hunyuan() -> tuple[Any, Any]:
    """Four kinds of position, one of them counted per picture; each row of a picture ends with a learned token."""
    names = {
        "image_token": "<|hy_image|>",
        "image_start_token": "<|hy_image_start|>",
        "image_end_token": "<|hy_image_end|>",
    }
    tok = tokenizer(tuple(names.values()), names)
    pictures = hf.HunYuanVLImageProcessor(size={"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 8})
    processor = hf.HunYuanVLProcessor(image_processor=pictures, tokenizer=tok)
    rope = {"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0, "rope_theta": 1e4, "mrope_section": [2, 2, 2, 2]}
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "out_hidden_size": 64,
        "max_image_size": 128,
    }
    config = CONFIG_MAPPING["hunyuan_vl"](
        text_config=_qwen_text(rope_parameters=rope, tie_word_embeddings=False),
        vision_config=tower,
        tie_word_embeddings=False,
        **ids(tok, image_token_id="<|hy_image|>", im_start_id="<|hy_image_start|>", im_end_id="<|hy_image_end|>"),
    )
    return config, processor


def _hunyuan_prompt(count: int) -> str:
    return "<|hy_image_start|><|hy_image|><|hy_image_end|>" * count + "What is it?"


def _latent(**changes: Any) -> dict[str, Any]:
    """Attention through low-rank queries and keys, four experts of which two work."""
    return {
        **TEXT,
        **STOPS,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 32,
        **changes,
    }


def _kimi() -> tuple[Any, Any]:
    tok = tokenizer(["<|media_pad|>", "<|media_begin|>", "<|media_end|>", "<|kimi_k25_video_placeholder|>"])
    pictures = hf.Kimi_K25ImageProcessor(max_patches=32)
    processor = hf.Kimi_K25Processor(
        image_processor=pictures, tokenizer=tok, video_processor=hf.Kimi_K25VideoProcessor()
    )
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "pos_emb_height": 8,
        "pos_emb_width": 8,
    }
    named = {
        "image_token_id": "<|media_pad|>",
        "video_token_id": "<|kimi_k25_video_placeholder|>",
        "vision_start_token_id": "<|media_begin|>",
        "vision_end_token_id": "<|media_end|>",
    }
    config = CONFIG_MAPPING["kimi_k25"](
        text_config={"model_type": "deepseek_v3", **_latent()},
        vision_config=tower,
        projection_hidden_size=32,
        tie_word_embeddings=False,
        **ids(tok, **named),
    )
    return config, processor


def _kimi_prompt(count: int) -> str:
    return "<|media_begin|>image<|media_pad|><|media_end|>" * count + "What is it?"


def _dots3_note() -> tuple[Any, Any]:
    """Two layers that read the best eight tokens by an index, one with a window; experts in decoder and tower."""
    tok = tokenizer(["<|imgpad|>", "<|video_pad|>", "<|audio_comp_pad|>"])
    processor = hf.Dots3NoteProcessor(
        image_processor=hf.Qwen2VLImageProcessor(**_PIXELS_28, temporal_patch_size=1),
        tokenizer=tok,
        video_processor=hf.Qwen3VLVideoProcessor(),
        feature_extractor=hf.Dots3NoteFeatureExtractor(),
    )
    written = _latent(
        head_dim=16,
        index_topk=8,
        index_head_dim=16,
        index_n_heads=2,
        shared_experts_intermediate_size=32,
        sliding_window=8,
        **{f"swa_{name}": size for name, size in _SWA.items()},
    )
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "moe_intermediate_size": 24,
        "num_local_experts": 4,
        "mlp_layer_types": ["dense", "sparse"],
        "adapter_in_dim": 32,
        "adapter_out_dim": 64,
    }
    listener = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "feature_size": 16,
        "downsample_hidden_size": 8,
        "adapter_input_size": 32,
        "adapter_out_dim": 64,
    }
    config = CONFIG_MAPPING["dots3_note"](
        text_config=written,
        vision_config=tower,
        audio_config=listener,
        **ids(tok, image_token_id="<|imgpad|>", video_token_id="<|video_pad|>", audio_token_id="<|audio_comp_pad|>"),
    )
    return config, processor


_SWA = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "head_dim": 16,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}

ENTRIES = (
    Entry("dots3_note", builder(_dots3_note), lambda n: "<|imgpad|>" * n + "What is it?"),
    Entry("ernie4_5_vl_moe", builder(_ernie), _ernie_prompt),
    Entry("exaone4_5", builder(_exaone4_5), _prompt),
    Entry("hunyuan_vl", builder(_hunyuan), _hunyuan_prompt),
    Entry("hyperclovax_vision_v2", builder(_hyperclovax), _prompt),
    Entry("kimi_k25", builder(_kimi), _kimi_prompt),
    Entry("cohere_compass", builder(_cohere_compass), _compass_prompt),
    Entry("cosmos3_edge", builder(_cosmos3_edge), _prompt),
    Entry("cosmos3_omni", builder(_cosmos3_omni), _prompt),
)
