"""Decoders with experts, latent attention or chosen blocks, and Mllama's with cross-attention."""

from typing import Any

import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.every.entry import Entry
from tests.every.making import STOPS, TEXT, builder, ids, tokenizer

_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
}
_LLAMA4 = (
    "<|image|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|patch|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
)


def _llama4() -> tuple[Any, Any]:
    tok = tokenizer(_LLAMA4)
    pictures = hf.Llama4ImageProcessor(size={"height": 56, "width": 56}, max_patches=4)
    processor = hf.Llama4Processor(image_processor=pictures, tokenizer=tok, patch_size=14, pixel_shuffle_ratio=0.5)
    vision = _TOWER | {"image_size": 56, "intermediate_size": 128, "vision_output_dim": 48}
    written = {
        "head_dim": 16,
        "num_hidden_layers": 4,
        "intermediate_size": 32,
        "intermediate_size_mlp": 96,
        "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
        "no_rope_layer_interval": 2,
        "attention_chunk_size": 8,
        "floor_scale": 8,
    }
    config = CONFIG_MAPPING["llama4"](
        text_config=TEXT | STOPS | written,
        vision_config=vision | {"projector_input_dim": 48, "projector_output_dim": 48},
        **ids(tok, image_token_index="<|patch|>", boi_token_index="<|image_start|>", eoi_token_index="<|image_end|>"),
    )
    return config, processor


_MINIMAX = ("]<]image[>[", "]<]video[>[", "]<]start of image[>[", "]<]end of image[>[")


def _minimax_m3_vl() -> tuple[Any, Any]:
    tok = tokenizer(_MINIMAX)
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 8}
    processor = hf.MiniMaxM3VLProcessor(
        image_processor=hf.MiniMaxM3VLImageProcessor(size=size),
        tokenizer=tok,
        video_processor=hf.MiniMaxM3VLVideoProcessor(),
    )
    written = {
        "head_dim": 16,
        "rotary_dim": 8,
        "intermediate_size": 32,
        "dense_intermediate_size": 96,
        "shared_intermediate_size": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_block_size": 4,
        "index_topk_blocks": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    }
    config = CONFIG_MAPPING["minimax_m3_vl"](
        text_config=TEXT | STOPS | written,
        vision_config=_TOWER | {"hidden_size": 48, "image_size": 56},
        projector_hidden_size=48,
        **ids(tok, image_token_index=_MINIMAX[0], video_token_index=_MINIMAX[1]),
    )
    return config, processor


_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "moe_intermediate_size": 40,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}


def _mistral4() -> tuple[Any, Any]:
    """A class for text alone, though the map names it."""
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 8.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
        "partial_rotary_factor": 0.5,
    }
    written = TEXT | STOPS | _LATENT | {"q_lora_rank": 24, "first_k_dense_replace": 1, "rope_parameters": rope}
    return CONFIG_MAPPING["mistral4"](**written), tokenizer()


_PIXTRAL = {
    "image_token": "[IMG]",
    "image_break_token": "[IMG_BREAK]",
    "image_end_token": "[IMG_END]",
}


def _mistral_large4() -> tuple[Any, Any]:
    tok = tokenizer(tuple(_PIXTRAL.values()), _PIXTRAL)
    pictures = hf.PixtralImageProcessor(size={"longest_edge": 84}, patch_size={"height": 14, "width": 14})
    processor = hf.PixtralProcessor(
        image_processor=pictures, tokenizer=tok, patch_size=14, spatial_merge_size=2, **_PIXTRAL
    )
    written = {
        "num_hidden_layers": 4,
        "index_topk": 8,
        "index_head_dim": 16,
        "index_n_heads": 2,
        "indexer_types": ["full", "full", "shared", "full"],
        "kv_source_layers": [0, 1, 1, 3],
        "no_rope_layers": [1, 1, 1, 0],
    }
    config = CONFIG_MAPPING["mistral_large4"](
        text_config=TEXT | STOPS | _LATENT | written,
        vision_config=_TOWER | {"model_type": "pixtral", "image_size": 84, "head_dim": 16},
        **ids(tok, image_token_index="[IMG]"),
    )
    return config, processor


def _mllama() -> tuple[Any, Any]:
    tok = tokenizer(["<|image|>", "<|python_tag|>"], {"image_token": "<|image|>"})
    pictures = hf.MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=4)
    processor = hf.MllamaProcessor(image_processor=pictures, tokenizer=tok)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "intermediate_layers_indices": [0, 1],
        "vision_output_dim": 96,
    }
    config = CONFIG_MAPPING["mllama"](
        text_config=TEXT | STOPS | {"num_hidden_layers": 4, "cross_attention_layers": [1, 3]},
        vision_config=vision,
        **ids(tok, image_token_index="<|image|>"),
    )
    return config, processor


_STEP = ("<im_patch>", "<patch_start>", "<patch_end>", "<patch_newline>", "<im_start>", "<im_end>")


def _step3p7() -> tuple[Any, Any]:
    tok = tokenizer(_STEP)
    pictures = hf.Step3p7ImageProcessor(size={"height": 112, "width": 112}, patch_size=56, max_image_size=400)
    processor = hf.Step3p7Processor(image_processor=pictures, tokenizer=tok)
    written = {
        "head_dim": 16,
        "num_hidden_layers": 4,
        "sliding_window": 8,
        "num_sliding_attention_heads": 6,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 40,
        "share_expert_dim": 32,
        "moe_router_scaling_factor": 2.0,
        "swiglu_limits": [None, None, None, 1.0],
        "swiglu_limits_shared": [None, None, None, 1.0],
        "rope_theta": [1e5, 1e4, 1e4, 1e5],
        "partial_rotary_factors": [0.5, 1.0, 1.0, 0.5],
    }
    config = CONFIG_MAPPING["step3p7"](
        text_config=TEXT | STOPS | written,
        vision_config=_TOWER | {"image_size": 112, "mlp_ratio": 1.5, "max_position_embeddings": 64},
        **ids(tok, image_token_id="<im_patch>"),
    )
    return config, processor


def _unlimited_ocr() -> tuple[Any, Any]:
    tok = tokenizer(["<image>"], {"image_token": "<image>"})
    pictures = hf.UnlimitedOcrImageProcessor(
        size={"height": 128, "width": 128}, tile_size=64, min_patches=2, max_patches=4, maximum_pad_value=64
    )
    processor = hf.UnlimitedOcrProcessor(image_processor=pictures, tokenizer=tok)
    sam = {
        "hidden_size": 32,
        "output_channels": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 128,
        "patch_size": 16,
        "window_size": 3,
        "global_attn_indexes": [1],
        "mlp_dim": 48,
        "downsample_channels": [32, 32],
    }
    encoder = _TOWER | {"image_size": 28}
    written = {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 40,
        "sliding_window": 4,
    }
    config = CONFIG_MAPPING["unlimited_ocr"](
        text_config=TEXT | STOPS | written,
        vision_config={"sam_config": sam, "encoder_config": encoder},
        **ids(tok, image_token_id="<image>"),
    )
    return config, processor


def _plain(picture: str) -> Any:
    return lambda count: f"{picture * count}\nWhat is it?"


ENTRIES = (
    Entry("llama4", builder(_llama4), _plain("<|image|>")),
    Entry("minimax_m3_vl", builder(_minimax_m3_vl), _plain(_MINIMAX[0])),
    Entry("mistral4", builder(_mistral4), _plain(""), most_pictures=0, seed=1),
    Entry("mistral_large4", builder(_mistral_large4), _plain("[IMG]")),
    Entry("mllama", builder(_mllama), _plain("<|image|>")),
    Entry("step3p7", builder(_step3p7), _plain("<im_patch>"), sizes=((60, 100), (100, 60))),
    Entry("unlimited_ocr", builder(_unlimited_ocr), _plain("<image>")),
)
