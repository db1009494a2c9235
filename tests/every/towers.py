"""Models with a tower of their own kind: SmolVLM, Mistral 3, LightOnOCR, Ovis2, PaddleOCR-VL and others."""

from typing import Any

import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.every.entry import Entry
from tests.every.making import CHATML, STOPS, TEXT, VISION, builder, ids, needing, text, tokenizer

_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
}
_PIXTRAL = {
    "image_token": "[IMG]",
    "image_break_token": "[IMG_BREAK]",
    "image_end_token": "[IMG_END]",
}


def _smolvlm() -> tuple[Any, Any]:
    specials = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    specials += [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    tok = tokenizer(specials)
    processor = hf.SmolVLMProcessor(
        image_processor=hf.SmolVLMImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28}),
        tokenizer=tok,
        video_processor=hf.SmolVLMVideoProcessor(size={"longest_edge": 28}, max_image_size={"longest_edge": 28}),
        image_seq_len=1,
    )
    config = CONFIG_MAPPING["smolvlm"](
        text_config=text("llama"),
        vision_config=_TOWER | {"image_size": 28},
        scale_factor=2,
        **ids(tok, image_token_id="<image>"),
    )
    return config, processor


def _mistral3() -> tuple[Any, Any]:
    tok = tokenizer(tuple(_PIXTRAL.values()), _PIXTRAL)
    pictures = hf.PixtralImageProcessor(size={"longest_edge": 84}, patch_size={"height": 14, "width": 14})
    processor = hf.PixtralProcessor(
        image_processor=pictures, tokenizer=tok, patch_size=14, spatial_merge_size=2, **_PIXTRAL
    )
    config = CONFIG_MAPPING["mistral3"](
        text_config=text("mistral", sliding_window=12),
        vision_config=_TOWER | {"model_type": "pixtral", "image_size": 84, "head_dim": 16},
        spatial_merge_size=2,
        vision_feature_layer=-1,
        **ids(tok, image_token_id="[IMG]"),
    )
    return config, processor


def _lighton_ocr() -> tuple[Any, Any]:
    tok = tokenizer(tuple(_PIXTRAL.values()), _PIXTRAL)
    pictures = hf.PixtralImageProcessor(size={"longest_edge": 84}, patch_size={"height": 28, "width": 28})
    processor = hf.LightOnOcrProcessor(
        image_processor=pictures, tokenizer=tok, patch_size=14, spatial_merge_size=2, **_PIXTRAL
    )
    config = CONFIG_MAPPING["lighton_ocr"](
        text_config=text("qwen3", head_dim=16, tie_word_embeddings=True),
        vision_config=_TOWER | {"model_type": "pixtral", "image_size": 84, "head_dim": 16},
        spatial_merge_size=2,
        **ids(tok, image_token_id="[IMG]"),
    )
    return config, processor


def _ovis2() -> tuple[Any, Any]:
    marks = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tok = tokenizer(["<image>", "<IMG_ATOM>", *marks])
    pictures = hf.Ovis2ImageProcessor(
        size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4, use_covering_area_grid=False
    )
    processor = hf.Ovis2Processor(image_processor=pictures, tokenizer=tok, image_seq_length=4)
    config = CONFIG_MAPPING["ovis2"](
        text_config=text("qwen2", tie_word_embeddings=True),
        vision_config=_TOWER | {"image_size": 28, "vocab_size": 40, "hidden_stride": 1},
        visual_indicator_token_ids=tok.convert_tokens_to_ids(marks),
        vocab_size=TEXT["vocab_size"],
        hidden_size=TEXT["hidden_size"],
        **ids(tok, image_token_id="<IMG_ATOM>"),
    )
    return config, processor


def _qianfan_ocr() -> tuple[Any, Any]:
    marks = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tok = tokenizer(tuple(marks.values()), marks)
    side = {"height": 28, "width": 28}
    pictures = hf.GotOcr2ImageProcessor(size=side, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = hf.QianfanOCRProcessor(image_processor=pictures, tokenizer=tok, image_seq_length=1)
    config = CONFIG_MAPPING["qianfan_ocr"](
        text_config=text("qwen3", head_dim=16),
        vision_config=_TOWER | {"image_size": [28, 28], "patch_size": [14, 14]},
        image_seq_length=1,
        **ids(tok, image_token_id="<IMG_CONTEXT>"),
    )
    return config, processor


def _paddleocr_vl() -> tuple[Any, Any]:
    marks = {"image_token": "<|IMAGE_PLACEHOLDER|>"}
    specials = [*marks.values(), "<|video_pad|>", "<|IMAGE_START|>", "<|IMAGE_END|>"]
    tok = tokenizer(specials, marks)
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 8}
    processor = hf.PaddleOCRVLProcessor(image_processor=hf.PaddleOCRVLImageProcessor(size=size), tokenizer=tok)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    config = CONFIG_MAPPING["paddleocr_vl"](
        text_config=TEXT | STOPS | {"head_dim": 16, "rope_parameters": rope},
        vision_config=_TOWER | {"image_size": 56},
        **ids(
            tok,
            image_token_id=specials[0],
            video_token_id=specials[1],
            vision_start_token_id=specials[2],
            vision_end_token_id=specials[3],
        ),
    )
    return config, processor


def _video_llama_3() -> tuple[Any, Any]:
    tok = tokenizer(CHATML + VISION)
    processor = hf.VideoLlama3Processor(
        image_processor=hf.VideoLlama3ImageProcessor(
            size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 8}, merge_size=2
        ),
        tokenizer=tok,
        video_processor=hf.VideoLlama3VideoProcessor(),
    )
    config = CONFIG_MAPPING["video_llama_3"](
        text_config=text("qwen2"),
        vision_config=_TOWER,
        **ids(tok, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    )
    return config, processor


def _lfm2_vl() -> tuple[Any, Any]:
    marks = {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }
    places = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 3) for column in range(1, 3)]
    tok = tokenizer([*marks.values(), *places], marks)
    pictures = hf.Lfm2VlImageProcessor(
        encoder_patch_size=8,
        tile_size=32,
        size={"height": 32, "width": 32},
        min_tiles=2,
        max_tiles=4,
        min_image_tokens=2,
        max_image_tokens=6,
    )
    processor = hf.Lfm2VlProcessor(image_processor=pictures, tokenizer=tok)
    vision = _TOWER | {"model_type": "siglip2_vision_model", "patch_size": 8, "num_patches": 16}
    config = CONFIG_MAPPING["lfm2_vl"](
        text_config=text("lfm2", layer_types=["conv", "full_attention", "conv"]),
        vision_config=vision | {"vision_use_head": False},
        projector_hidden_size=48,
        **ids(tok, image_token_id="<image>"),
    )
    return config, processor


def _lfm3_vl() -> tuple[Any, Any]:
    tok = tokenizer(CHATML + VISION)
    processor = hf.Lfm3VlProcessor(
        image_processor=hf.Qwen2VLImageProcessor(
            size={"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 8}, patch_size=16
        ),
        tokenizer=tok,
        video_processor=hf.Qwen3VLVideoProcessor(),
    )
    vision = _TOWER | {"patch_size": 16, "num_hidden_layers": 3, "num_key_value_heads": 1}
    config = CONFIG_MAPPING["lfm3_vl"](
        text_config=text(
            "lfm3",
            head_dim=16,
            sliding_window=8,
            num_hidden_layers=4,
            layer_types=["conv", "sliding_attention", "conv", "full_attention"],
        ),
        vision_config=vision | {"layer_types": ["conv", "full_attention", "conv"]},
        projector_hidden_size=48,
        **ids(
            tok,
            image_token_id="<|image_pad|>",
            video_token_id="<|video_pad|>",
            vision_start_token_id="<|vision_start|>",
            vision_end_token_id="<|vision_end|>",
        ),
    )
    return config, processor


def _chatml(picture: str) -> Any:
    return lambda count: f"<|im_start|>user\n{picture * count}What is it?<|im_end|>\n<|im_start|>assistant\n"


def _plain(picture: str) -> Any:
    return lambda count: f"{picture * count}\nWhat is it?"


ENTRIES = (
    Entry("lfm2_vl", builder(_lfm2_vl), _plain("<image>")),
    Entry("lfm3_vl", builder(_lfm3_vl), _chatml("<|vision_start|><|image_pad|><|vision_end|>")),
    Entry("lighton_ocr", builder(_lighton_ocr), _plain("[IMG]"), seed=1),
    Entry("mistral3", builder(_mistral3), _plain("[IMG]")),
    Entry("ovis2", builder(_ovis2), _plain("<image>\n"), seed=8),
    Entry("paddleocr_vl", builder(_paddleocr_vl), _plain("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>")),
    Entry("qianfan_ocr", builder(_qianfan_ocr), _plain("<image>"), seed=1),
    needing("num2words", Entry("smolvlm", builder(_smolvlm), _plain("<image>"), seed=1)),
    Entry("video_llama_3", builder(_video_llama_3), _chatml("<|image_pad|>")),
)
