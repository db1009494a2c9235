"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5, Qwen4 and the thinkers of the two Omni models."""

from typing import Any

import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.every.entry import Entry
from tests.every.making import CHATML, STOPS, TEXT, VISION, builder, ids, tokenizer

_SEE = "<|vision_start|><|image_pad|><|vision_end|>"
_HEAR = "<|vision_bos|><|IMAGE|><|vision_eos|>"


def _prompt(count: int) -> str:
    return f"<|im_start|>user\n{_SEE * count}What is it?<|im_end|>\n<|im_start|>assistant\n"


def _omni_prompt(count: int) -> str:
    return f"<|im_start|>user\n{_HEAR * count}What is it?<|im_end|>\n<|im_start|>assistant\n"


def _names(tok: Any) -> dict[str, int]:
    return ids(
        tok,
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )


def _pictures(patch: int) -> Any:
    side = 2 * patch
    return hf.Qwen2VLImageProcessor(
        size={"shortest_edge": side * side, "longest_edge": side * side * 8}, patch_size=patch, merge_size=2
    )


def _mrope(section: list[int], **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "mrope_section": section, "rope_theta": 1e4, **more}


def _qwen2_vl() -> tuple[Any, Any]:
    tok = tokenizer(CHATML + VISION)
    processor = hf.Qwen2VLProcessor(
        image_processor=_pictures(14), tokenizer=tok, video_processor=hf.Qwen2VLVideoProcessor()
    )
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 14, "mlp_ratio": 2}
    written = TEXT | STOPS | {"rope_parameters": _mrope([2, 3, 3])}
    return CONFIG_MAPPING["qwen2_vl"](text_config=written, vision_config=vision, **_names(tok)), processor


def _qwen2_5_vl() -> tuple[Any, Any]:
    tok = tokenizer(CHATML + VISION)
    processor = hf.Qwen2_5_VLProcessor(
        image_processor=_pictures(14), tokenizer=tok, video_processor=hf.Qwen2VLVideoProcessor()
    )
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "num_heads": 2,
        "patch_size": 14,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    }
    written = TEXT | STOPS | {"rope_parameters": _mrope([2, 3, 3])}
    return CONFIG_MAPPING["qwen2_5_vl"](text_config=written, vision_config=vision, **_names(tok)), processor


_DEEP_VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 64,
    "num_heads": 2,
    "patch_size": 16,
    "num_position_embeddings": 16,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
_LINEAR = {
    "head_dim": 32,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": _mrope([4, 2, 2], mrope_interleaved=True, partial_rotary_factor=0.5),
}


def _three(model_type: str, text: dict[str, Any], vision: dict[str, Any]) -> tuple[Any, Any]:
    tok = tokenizer(CHATML + VISION)
    processor = hf.Qwen3VLProcessor(
        image_processor=_pictures(16), tokenizer=tok, video_processor=hf.Qwen3VLVideoProcessor()
    )
    written = TEXT | STOPS | {"head_dim": 16} | text
    config = CONFIG_MAPPING[model_type](text_config=written, vision_config=_DEEP_VISION | vision, **_names(tok))
    return config, processor


def _qwen3_vl() -> tuple[Any, Any]:
    text = {"rope_parameters": _mrope([4, 2, 2], mrope_interleaved=True)}
    return _three("qwen3_vl", text, {"deepstack_visual_indexes": [0, 1]})


def _qwen3_vl_moe() -> tuple[Any, Any]:
    text = {"rope_parameters": _mrope([4, 2, 2], mrope_interleaved=True), "mlp_only_layers": [0], **_EXPERTS}
    return _three("qwen3_vl_moe", text, {"deepstack_visual_indexes": [0, 1]})


def _qwen3_5() -> tuple[Any, Any]:
    return _three("qwen3_5", _LINEAR, {})


def _qwen3_5_moe() -> tuple[Any, Any]:
    return _three("qwen3_5_moe", _LINEAR | _EXPERTS | {"shared_expert_intermediate_size": 32}, {})


def _qwen4_exp() -> tuple[Any, Any]:
    text = {
        **_LINEAR,
        **_EXPERTS,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],  # read as indexed
        "shared_expert_intermediate_size": 32,
        "hc_count": 2,
        "hc_lowrank": 8,
        "ple_layer_ids": [2],
        "ple_embed_dim": 32,
        "ngram_size": 3,
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 300,
        "split_ngram_parts": 2,
        "make_ngram_vocab_size_divisible_by": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 32,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    }
    return _three("qwen4_exp", text, {})


_OMNI = ("<|VIDEO|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|IMAGE|>", "<|vision_bos|>", "<|vision_eos|>")
_OMNI_EXTRA = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
_AUDIO = {
    "num_mel_bins": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "d_model": 32,
    "max_source_positions": 64,
    "output_dim": 64,
}


def _omni(model_type: str, kind: Any, patch: int, text: Any, vision: Any, audio: Any) -> tuple[Any, Any]:
    tok = tokenizer(CHATML + _OMNI, _OMNI_EXTRA)
    processor = kind(
        image_processor=_pictures(patch),
        tokenizer=tok,
        video_processor=hf.Qwen2VLVideoProcessor(),
        feature_extractor=hf.WhisperFeatureExtractor(feature_size=16),
    )
    config = CONFIG_MAPPING[model_type](
        text_config=TEXT | STOPS | text,
        vision_config=vision,
        audio_config=_AUDIO | audio,
        **ids(
            tok,
            image_token_id="<|IMAGE|>",
            video_token_id="<|VIDEO|>",
            audio_token_id="<|AUDIO|>",
            audio_start_token_id="<|audio_bos|>",
            audio_end_token_id="<|audio_eos|>",
            user_token_id="u",
            vision_start_token_id="<|vision_bos|>",
            vision_end_token_id="<|vision_eos|>",
        ),
    )
    return config, processor


def _qwen2_5_omni() -> tuple[Any, Any]:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "num_heads": 2,
        "patch_size": 14,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    }
    text = {"rope_parameters": _mrope([2, 3, 3]), "tie_word_embeddings": False}
    return _omni("qwen2_5_omni_thinker", hf.Qwen2_5OmniProcessor, 14, text, vision, {"n_window": 10})


def _qwen3_omni() -> tuple[Any, Any]:
    text = {"rope_parameters": _mrope([4, 2, 2], interleaved=True), "head_dim": 16, **_EXPERTS}
    audio = {"n_window": 10, "n_window_infer": 40, "downsample_hidden_size": 16}
    vision = _DEEP_VISION | {"deepstack_visual_indexes": [0, 1]}
    return _omni("qwen3_omni_moe_thinker", hf.Qwen3OmniMoeProcessor, 16, text, vision, audio)


ENTRIES = (
    Entry("qwen2_5_omni_thinker", builder(_qwen2_5_omni), _omni_prompt),
    Entry("qwen2_5_vl", builder(_qwen2_5_vl), _prompt, seed=2),
    Entry("qwen2_vl", builder(_qwen2_vl), _prompt, seed=3),
    Entry("qwen3_5", builder(_qwen3_5), _prompt),
    Entry("qwen3_5_moe", builder(_qwen3_5_moe), _prompt),
    Entry("qwen3_omni_moe_thinker", builder(_qwen3_omni), _omni_prompt, seed=1),
    Entry("qwen3_vl", builder(_qwen3_vl), _prompt),
    Entry("qwen3_vl_moe", builder(_qwen3_vl_moe), _prompt),
    Entry("qwen4_exp", builder(_qwen4_exp, spread=1.0), _prompt, seed=3),
)
