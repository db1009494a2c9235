"""Models that see a picture as tiles, or as one tile of a fixed size: a tower, a projector, a decoder."""

from typing import Any

import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.every.entry import Entry
from tests.every.making import CLIP, SIGLIP, STOPS, TEXT, builder, ids, text, tokenizer

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


def _deepseek_ocr2() -> tuple[Any, Any]:
    """A tile has 144 learned queries and the whole picture 256, so their maps must be 12 and 16 points a side."""
    tok = tokenizer(["<image>"], _IMAGE)
    pictures = hf.DeepseekOcr2ImageProcessor(size={"height": 128, "width": 128}, tile_size=96)
    processor = hf.DeepseekOcr2Processor(image_processor=pictures, tokenizer=tok, patch_size=2, downsample_ratio=4)
    fine = _SAM | {"hidden_size": 16, "image_size": 128, "patch_size": 2, "window_size": 14}
    encoder = {"model_type": "deepseek_ocr2_encoder", **TEXT, "num_hidden_layers": 2, "hidden_size": 32}
    config = CONFIG_MAPPING["deepseek_ocr2"](
        text_config={
            **TEXT,
            **STOPS,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 32,
            "mlp_layer_types": ["dense", "sparse", "sparse"],
        },
        vision_config={"sam_config": fine | {"downsample_channels": [16, 32]}, "encoder_config": encoder},
        **ids(tok, image_token_id="<image>"),
    )
    return config, processor


def _got_ocr2() -> tuple[Any, Any]:
    """A picture always has 256 places; the processor wants at least one picture."""
    tok = tokenizer(["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<imgpad>"])
    pictures = hf.GotOcr2ImageProcessor(size={"height": 128, "width": 128})
    tower = _SAM | {"hidden_size": 16, "image_size": 128, "patch_size": 2, "window_size": 14}
    config = CONFIG_MAPPING["got_ocr2"](
        text_config=text("qwen2"),
        vision_config=tower,
        image_seq_length=256,
        tie_word_embeddings=False,
        **ids(tok, image_token_index="<imgpad>"),
    )
    return config, hf.GotOcr2Processor(image_processor=pictures, tokenizer=tok)


def _idefics2() -> tuple[Any, Any]:
    tok = tokenizer(["<image>", "<fake_token_around_image>", "<end_of_utterance>"])
    pictures = hf.Idefics2ImageProcessor(size={"shortest_edge": 28, "longest_edge": 56}, do_image_splitting=False)
    processor = hf.Idefics2Processor(image_processor=pictures, tokenizer=tok, image_seq_len=4)
    perceiver = {
        "hidden_size": 64,
        "resampler_n_latents": 4,
        "resampler_depth": 2,
        "resampler_n_heads": 4,
        "resampler_head_dim": 16,
        "num_key_value_heads": 2,
    }
    config = CONFIG_MAPPING["idefics2"](
        text_config=text("mistral", sliding_window=16),
        vision_config=_TOWER | {"image_size": 56},
        perceiver_config=perceiver,
        **ids(tok, image_token_id="<image>"),
    )
    return config, processor


def _idefics3() -> tuple[Any, Any]:
    tok = tokenizer(["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *_ROWS])
    pictures = hf.Idefics3ImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    config = CONFIG_MAPPING["idefics3"](
        text_config=text("llama"), vision_config=_TOWER, scale_factor=2, **ids(tok, image_token_id="<image>")
    )
    return config, hf.Idefics3Processor(image_processor=pictures, tokenizer=tok, image_seq_len=1)


def _internvl() -> tuple[Any, Any]:
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tok = tokenizer(tuple(names.values()), names)
    pictures = hf.GotOcr2ImageProcessor(size=_SIDE_28, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = hf.InternVLProcessor(
        image_processor=pictures,
        tokenizer=tok,
        video_processor=hf.InternVLVideoProcessor(size=_SIDE_28),
        image_seq_length=1,
    )
    tower = _TOWER | {"model_type": "internvl_vision", "image_size": [28, 28], "patch_size": [14, 14]}
    config = CONFIG_MAPPING["internvl"](
        text_config=text("qwen2"), vision_config=tower, image_seq_length=1, **ids(tok, image_token_id="<IMG_CONTEXT>")
    )
    return config, processor


def _granite4_vision() -> tuple[Any, Any]:
    """Rows of two tower layers, and of four corners of one, are added before four layers of the decoder."""
    tok = tokenizer(["<image>"], _IMAGE)
    grid = [[56, 112], [112, 56], [112, 112]]
    pictures = hf.LlavaNextImageProcessor(size={"shortest_edge": 56}, crop_size=_SIDE_56, image_grid_pinpoints=grid)
    processor = hf.Granite4VisionProcessor(
        image_processor=pictures,
        tokenizer=tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        downsample_rate="1/2",
    )
    written = text(
        "granite4_vision_text",
        num_hidden_layers=4,
        embedding_multiplier=2.0,
        residual_multiplier=0.7,
        attention_multiplier=0.3,
        logits_scaling=0.5,
    )
    config = CONFIG_MAPPING["granite4_vision"](
        text_config=written,
        vision_config=CLIP | {"hidden_size": 64, "image_size": 56},
        image_grid_pinpoints=grid,
        downsample_rate="1/2",
        deepstack_layer_map=[[-2, 0], [-1, 1]],
        spatial_target_layers=[0, 1, 2, 3],
        qformer_config={
            "model_type": "blip_2_qformer",
            "num_hidden_layers": 1,
            "intermediate_size": 48,
            "cross_attention_frequency": 1,
        },
        **ids(tok, image_token_index="<image>"),
    )
    return config, processor


def _granite_docling() -> tuple[Any, Any]:
    tok = tokenizer(["<image>", "<fake_token_around_image>", "<global-img>", *_ROWS], _IMAGE)
    pictures = hf.GraniteDoclingImageProcessor(size=_SIDE_56, max_patches=4)
    processor = hf.GraniteDoclingProcessor(image_processor=pictures, tokenizer=tok, image_seq_len=4)
    tower = _TOWER | {
        "image_size": 56,
        "num_hidden_layers": 3,
        "out_hidden_size": 64,
        "scale_factor": 2,
        "deepstack_visual_indexes": [0, 1],
        "use_fine_route": False,
    }
    multipliers = {
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.3,
        "logits_scaling": 0.5,
    }
    config = CONFIG_MAPPING["granite_docling"](
        text_config={**TEXT, **STOPS, **multipliers, "tie_word_embeddings": False},
        vision_config=tower,
        tie_word_embeddings=False,
        **ids(tok, image_token_id="<image>"),
    )
    return config, processor


_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_ROWS = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]

ENTRIES = (
    Entry("deepseek_ocr2", builder(_deepseek_ocr2), _prompt),
    Entry(
        "got_ocr2",
        builder(_got_ocr2),
        lambda n: "<|im_start|>user\n" + "<img><imgpad></img>" * n + "\nOCR: <|im_end|>",
        takes_text_only=False,
    ),
    Entry("granite4_vision", builder(_granite4_vision), _prompt),
    Entry("granite_docling", builder(_granite_docling), _prompt),
    Entry("idefics2", builder(_idefics2), _prompt),
    Entry("idefics3", builder(_idefics3), _prompt),
    Entry("internvl", builder(_internvl), lambda n: "<IMG_CONTEXT>\n" * n + "What is it?"),
    Entry(
        "fast_vlm", None, why_not="Its tower is a network of the timm package, which transformers does not bring along."
    ),
    Entry("aria", builder(_aria), _prompt),
    Entry("aya_vision", builder(_aya_vision), _prompt),
    Entry("cohere2_vision", builder(_cohere2_vision), lambda n: "<|IMG_PATCH|>" * n + "What is it?"),
    Entry("deepseek_vl", builder(_deepseek_vl), _prompt),
    Entry("deepseek_vl_hybrid", builder(_deepseek_vl_hybrid), _prompt),
)
