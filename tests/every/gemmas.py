"""Gemma's models: scaled embeddings, (1 + w) norms, windows, pictures whose tokens see each other."""

from typing import Any

import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.every.entry import Entry
from tests.every.making import SIGLIP, STOPS, TEXT, builder, ids, text, tokenizer

_MIX = ["sliding_attention", "full_attention", "sliding_attention"]
_GEMMA3 = {
    "image_token": "<image_soft_token>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
}


def _gemma3() -> tuple[Any, Any]:
    """A picture's tokens see each other, on windowed layers inside the window only."""
    tok = tokenizer(tuple(_GEMMA3.values()), _GEMMA3)
    pictures = hf.Gemma3ImageProcessor(size={"height": 56, "width": 56})
    processor = hf.Gemma3Processor(image_processor=pictures, tokenizer=tok, image_seq_length=4)
    config = CONFIG_MAPPING["gemma3"](
        text_config=text("gemma3_text", head_dim=16, sliding_window=8, layer_types=_MIX),
        vision_config=SIGLIP | {"image_size": 56},
        mm_tokens_per_image=4,
        **ids(tok, **{f"{name}_index": token for name, token in _GEMMA3.items()}),
    )
    return config, processor


_GEMMA4 = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
_GEMMA4_IDS = {
    "image_token_id": "<|image|>",
    "boi_token_id": "<|image>",
    "eoi_token_id": "<image|>",
    "audio_token_id": "<|audio|>",
    "boa_token_id": "<|audio>",
    "eoa_token_index": "<audio|>",
    "video_token_id": "<|video|>",
}
_GEMMA4_TEXT: dict[str, Any] = {
    **TEXT,
    **STOPS,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "final_logit_softcapping": 30.0,
    "use_bidirectional_attention": "vision",
}


def _gemma4() -> tuple[Any, Any]:
    """Inputs of each layer's own, keys shared by the last two layers, experts beside the MLP, a pooled tower."""
    tok = tokenizer([*_GEMMA4.values(), "<|video|>"], _GEMMA4)
    processor = hf.Gemma4Processor(
        feature_extractor=hf.Gemma4AudioFeatureExtractor(),
        image_processor=hf.Gemma4ImageProcessor(patch_size=4, max_soft_tokens=70, pooling_kernel_size=3),
        tokenizer=tok,
        video_processor=hf.Gemma4VideoProcessor(),
        image_seq_length=70,
    )
    written = _GEMMA4_TEXT | {
        "vocab_size_per_layer_input": TEXT["vocab_size"],
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 2,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
    }
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "patch_size": 4,
        "position_embedding_size": 64,
    }
    config = CONFIG_MAPPING["gemma4"](text_config=written, vision_config=tower, **ids(tok, **_GEMMA4_IDS))
    return config, processor


def _gemma4_unified() -> tuple[Any, Any]:
    """No tower: the pixels of a patch are projected into the decoder."""
    tok = tokenizer([*_GEMMA4.values(), "<|video|>"], _GEMMA4)
    processor = hf.Gemma4UnifiedProcessor(
        feature_extractor=hf.Gemma4UnifiedAudioFeatureExtractor(),
        image_processor=hf.Gemma4UnifiedImageProcessor(patch_size=4, max_soft_tokens=70, pooling_kernel_size=3),
        tokenizer=tok,
        video_processor=hf.Gemma4UnifiedVideoProcessor(),
        image_seq_length=70,
    )
    tower = {
        "patch_size": 4,
        "pooling_kernel_size": 3,
        "mm_embed_dim": 48,
        "mm_posemb_size": 64,
        "output_proj_dims": 48,
    }
    config = CONFIG_MAPPING["gemma4_unified"](text_config=_GEMMA4_TEXT, vision_config=tower, **ids(tok, **_GEMMA4_IDS))
    return config, processor


ENTRIES = (
    Entry(
        "diffusion_gemma",
        None,
        why_not="It denoises whole blocks of random tokens in several passes; there is no next token to follow.",
    ),
    Entry("gemma3", builder(_gemma3), lambda n: "<start_of_image>" * n + "What is it?"),
    Entry(
        "gemma3n", None, why_not="Its tower is a network of the timm package, which transformers does not bring along."
    ),
    Entry("gemma4", builder(_gemma4), lambda n: "<|image|>" * n + "What is it?"),
    Entry("gemma4_unified", builder(_gemma4_unified), lambda n: "<|image|>" * n + "What is it?"),
)
