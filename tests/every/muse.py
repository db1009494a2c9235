"""Muse, Molmo2, Nemotron and PerceptionLM."""

from typing import Any

import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.every.entry import Entry
from tests.every.making import STOPS, TEXT, builder, ids, needing, text, tokenizer

_MUSE = (
    "<|patch|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|video|>",
    "<|vid_frame_separator|>",
    "<|vid_start|>",
    "<|vid_end|>",
    "<|audio|>",
    "<|soft_audio_start|>",
    "<|soft_audio_end|>",
)
_MUSE_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "pos_emb_height": 4,
    "pos_emb_width": 4,
    "max_position_embeddings": 16,
    "layer_types": ["window_attention", "full_attention", "window_attention"],
}
_MUSE_TEXT = {
    "head_dim": 16,
    "sliding_window": 8,
    "num_hidden_layers": 4,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "layer_rope_theta": [0, 1e4, 1e4, 0],
}


def _muse_glimmer() -> tuple[Any, Any]:
    tok = tokenizer(_MUSE)
    processor = hf.MuseGlimmerProcessor(
        image_processor=hf.MuseGlimmerImageProcessor(max_image_tokens=8),
        video_processor=hf.MuseGlimmerVideoProcessor(),
        tokenizer=tok,
    )
    config = CONFIG_MAPPING["muse_glimmer"](
        text_config=TEXT | STOPS | _MUSE_TEXT,
        vision_config=_MUSE_VISION,
        out_hidden_size=128,
        projector_hidden_size=48,
        **ids(tok, image_token_id="<|patch|>", video_token_id="<|video|>"),
    )
    return config, processor


def _muse_spark() -> tuple[Any, Any]:
    tok = tokenizer(_MUSE)
    processor = hf.MuseSparkProcessor(
        image_processor=hf.MuseGlimmerImageProcessor(max_image_tokens=8),
        video_processor=hf.MuseGlimmerVideoProcessor(),
        tokenizer=tok,
        feature_extractor=hf.MuseSparkFeatureExtractor(),
    )
    experts = {
        "moe_intermediate_size": 40,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_hidden_size": 32,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    }
    audio = {
        "patch_sizes": [4, 2],
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "num_hidden_layers": 2,
        "out_hidden_size": 64,
    }
    config = CONFIG_MAPPING["muse_spark"](
        text_config=TEXT | STOPS | _MUSE_TEXT | experts,
        vision_config=_MUSE_VISION,
        audio_config=audio,
        out_hidden_size=128,
        projector_hidden_size=48,
        **ids(tok, image_token_id="<|patch|>", video_token_id="<|video|>", audio_token_id="<|audio|>"),
    )
    return config, processor


_MOLMO = (
    "<|image|>",
    "<|video|>",
    "<im_patch>",
    "<im_col>",
    "<im_start>",
    "<low_res_im_start>",
    "<frame_start>",
    "<im_end>",
    "<frame_end>",
    "<im_low>",
)


def _molmo2() -> tuple[Any, Any]:
    tok = tokenizer(_MOLMO, {"image_token": "<|image|>", "video_token": "<|video|>"})
    processor = hf.Molmo2Processor(
        image_processor=hf.Molmo2ImageProcessor(
            size={"height": 56, "width": 56}, max_crops=4, overlap_margins=[1, 1], patch_size=14
        ),
        video_processor=hf.Molmo2VideoProcessor(),
        tokenizer=tok,
    )
    heads = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = CONFIG_MAPPING["molmo2"](
        text_config=TEXT | STOPS | {"head_dim": 16, "vocab_size": 260, "additional_vocab_size": 16},
        vision_config=heads | {"intermediate_size": 48, "num_hidden_layers": 3, "image_size": [56, 56]},
        adapter_config=heads | {"intermediate_size": 48, "text_hidden_size": 64, "vision_feature_layer": [2, 0]},
        **ids(
            tok,
            image_patch_id="<im_patch>",
            image_start_token_id="<im_start>",
            low_res_image_start_token_id="<low_res_im_start>",
            image_end_token_id="<im_end>",
            frame_start_token_id="<frame_start>",
            frame_end_token_id="<frame_end>",
        ),
    )
    return config, processor


_NEMOTRON = ("<image>", "<video>", "<so_embedding>", "<so_start>", "<so_end>", "<img>", "</img>")


def _nemotron_h_omni() -> tuple[Any, Any]:
    tok = tokenizer(_NEMOTRON)
    processor = hf.NemotronH_Omni_Reasoning_V3Processor(
        image_processor=hf.NemotronH_Omni_Reasoning_V3ImageProcessor(min_num_patches=4, max_num_patches=24),
        video_processor=hf.NemotronH_Omni_Reasoning_V3VideoProcessor(),
        tokenizer=tok,
        feature_extractor=hf.ParakeetFeatureExtractor(),
    )
    written = text(
        "nemotron_h",
        num_hidden_layers=4,
        layers_block_type=["linear_attention", "moe", "full_attention", "mlp"],
        head_dim=16,
        ssm_state_size=8,
        mamba_num_heads=4,
        mamba_head_dim=16,
        n_groups=2,
        chunk_size=8,
        n_routed_experts=4,
        moe_intermediate_size=32,
        moe_shared_expert_intermediate_size=32,
    )
    vision = {
        "model_type": "radio",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 1.5,
        "patch_size": 16,
        "image_size": 64,
        "max_img_size": 128,
        "num_registers": 2,
        "video_temporal_patch_size": 2,
    }
    config = CONFIG_MAPPING["nemotron_h_omni"](
        text_config=written,
        vision_config=vision,
        vision_hidden_size=32,
        projector_hidden_size=48,
        **ids(tok, image_token_id="<image>", video_token_id="<video>", audio_token_id="<so_embedding>"),
    )
    return config, processor


def _perception_lm() -> tuple[Any, Any]:
    tok = tokenizer(["<|image|>", "<|video|>"], {"image_token": "<|image|>", "video_token": "<|video|>"})
    processor = hf.PerceptionLMProcessor(
        image_processor=hf.PerceptionLMImageProcessor(tile_size=56, max_num_tiles=4),
        video_processor=hf.PerceptionLMVideoProcessor(size={"height": 56, "width": 56}),
        tokenizer=tok,
        patch_size=14,
        pooling_ratio=2,
    )
    vision = {
        "model_type": "timm_wrapper",
        "architecture": "vit_pe_core_large_patch14_336",
        "model_args": {
            "embed_dim": 32,
            "depth": 2,
            "num_heads": 2,
            "mlp_ratio": 1.5,
            "img_size": [56, 56],
            "global_pool": "",
            "use_post_transformer_norm": False,
            "init_values": 0.1,
            "ref_feat_shape": [4, 4],
        },
    }
    config = CONFIG_MAPPING["perception_lm"](
        text_config=text("llama"),
        vision_config=vision,
        projector_pooling_ratio=2,
        **ids(tok, image_token_id="<|image|>", video_token_id="<|video|>"),
    )
    return config, processor


def _plain(picture: str) -> Any:
    return lambda count: f"{picture * count}\nWhat is it?"


ENTRIES = (
    Entry("molmo2", builder(_molmo2), _plain("<|image|>"), seed=1),
    Entry("muse_glimmer", builder(_muse_glimmer, spread=3.0), _plain("<|patch|>"), seed=2),
    Entry("muse_spark", builder(_muse_spark, spread=3.0), _plain("<|patch|>"), seed=1),
    Entry("nemotron_h_omni", builder(_nemotron_h_omni), _plain("<image>"), seed=4),
    needing("timm", Entry("perception_lm", builder(_perception_lm), _plain("<|image|>"))),
)
