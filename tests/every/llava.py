"""LLaVA and those built like it: a tower, a projector, and rows that take the places of picture tokens."""

from typing import Any

import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.every.entry import Entry
from tests.every.making import CLIP, SIGLIP, builder, ids, text, tokenizer

_GRID = [[28, 56], [56, 28], [56, 56]]
_CLIP_SIZES: dict[str, Any] = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
_PATCHES: dict[str, Any] = {
    "patch_size": 14,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
_BOTH = {"image_token": "<image>", "video_token": "<video>"}


def _prompt(count: int) -> str:
    return "USER: " + "<image>\n" * count + "What is it? ASSISTANT:"


def _llava() -> tuple[Any, Any]:
    tok = tokenizer(["<image>"], {"image_token": "<image>"})
    processor = hf.LlavaProcessor(image_processor=hf.CLIPImageProcessor(**_CLIP_SIZES), tokenizer=tok, **_PATCHES)
    config = CONFIG_MAPPING["llava"](
        text_config=text("llama"), vision_config=CLIP, image_seq_length=4, **ids(tok, image_token_id="<image>")
    )
    return config, processor


def _vipllava() -> tuple[Any, Any]:
    tok = tokenizer(["<image>"], {"image_token": "<image>"})
    processor = hf.LlavaProcessor(image_processor=hf.CLIPImageProcessor(**_CLIP_SIZES), tokenizer=tok, **_PATCHES)
    config = CONFIG_MAPPING["vipllava"](
        text_config=text("llama"),
        vision_config=CLIP,
        vision_feature_layers=[-1, -2, -3, 1],
        image_seq_length=4,
        **ids(tok, image_token_index="<image>"),
    )
    return config, processor


def _llava_next() -> tuple[Any, Any]:
    tok = tokenizer(["<image>"], {"image_token": "<image>"})
    pictures = hf.LlavaNextImageProcessor(**_CLIP_SIZES, image_grid_pinpoints=_GRID)
    processor = hf.LlavaNextProcessor(image_processor=pictures, tokenizer=tok, **_PATCHES)
    config = CONFIG_MAPPING["llava_next"](
        text_config=text("mistral", sliding_window=None),
        vision_config=CLIP,
        image_grid_pinpoints=_GRID,
        **ids(tok, image_token_id="<image>"),
    )
    return config, processor


def _llava_next_video() -> tuple[Any, Any]:
    tok = tokenizer(["<image>", "<video>"], _BOTH)
    processor = hf.LlavaNextVideoProcessor(
        image_processor=hf.LlavaNextImageProcessor(**_CLIP_SIZES, image_grid_pinpoints=_GRID),
        video_processor=hf.LlavaNextVideoVideoProcessor(**_CLIP_SIZES),
        tokenizer=tok,
        **_PATCHES,
    )
    config = CONFIG_MAPPING["llava_next_video"](
        text_config=text("llama"),
        vision_config=CLIP,
        image_grid_pinpoints=_GRID,
        **ids(tok, image_token_id="<image>", video_token_id="<video>"),
    )
    return config, processor


def _llava_onevision() -> tuple[Any, Any]:
    tok = tokenizer(["<image>", "<video>"], _BOTH)
    side = {"height": 28, "width": 28}
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=_GRID),
        video_processor=hf.LlavaOnevisionVideoProcessor(size=side),
        tokenizer=tok,
        num_image_tokens=4,
        vision_feature_select_strategy="full",
    )
    config = CONFIG_MAPPING["llava_onevision"](
        text_config=text("qwen2"),
        vision_config=SIGLIP,
        image_grid_pinpoints=_GRID,
        **ids(tok, image_token_id="<image>", video_token_id="<video>"),
    )
    return config, processor


def _video_llava() -> tuple[Any, Any]:
    tok = tokenizer(["<image>", "<video>"], _BOTH)
    processor = hf.VideoLlavaProcessor(
        image_processor=hf.VideoLlavaImageProcessor(**_CLIP_SIZES),
        video_processor=hf.VideoLlavaVideoProcessor(**_CLIP_SIZES),
        tokenizer=tok,
        **_PATCHES,
    )
    config = CONFIG_MAPPING["video_llava"](
        text_config=text("llama"),
        vision_config=CLIP,
        image_seq_length=4,
        video_seq_length=40,
        **ids(tok, image_token_index="<image>", video_token_index="<video>"),
    )
    return config, processor


def _paligemma() -> tuple[Any, Any]:
    tok = tokenizer(["<image>"])
    pictures = hf.SiglipImageProcessor(size={"height": 28, "width": 28})
    pictures.image_seq_length = 4
    processor = hf.PaliGemmaProcessor(image_processor=pictures, tokenizer=tok)  # adds 1024 places and 128 segments
    config = CONFIG_MAPPING["paligemma"](
        text_config=text("gemma", head_dim=16, vocab_size=1600),
        vision_config=SIGLIP,
        projection_dim=64,
        **ids(tok, image_token_index="<image>"),
    )
    return config, processor


def _paligemma_prompt(count: int) -> str:
    return "<image>" * count + "answer en What is it?"


def _gemma_prompt(count: int) -> str:
    return "<start_of_image>" * count + "What is it?"


_GEMMA_PICTURES = {
    "image_token": "<image_soft_token>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
}


def _shieldgemma2() -> tuple[Any, Any]:
    """The class's own processor asks its fixed questions only; the one it encodes them with asks any.

    The library reads published names of this kind only into the classifier around the model.
    """
    tok = tokenizer(tuple(_GEMMA_PICTURES.values()), _GEMMA_PICTURES)
    pictures = hf.Gemma3ImageProcessor(size={"height": 56, "width": 56})
    processor = hf.Gemma3Processor(image_processor=pictures, tokenizer=tok, image_seq_length=4)
    written = text(
        "gemma3_text",
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    config = CONFIG_MAPPING["shieldgemma2"](
        text_config=written,
        vision_config=SIGLIP | {"image_size": 56},
        mm_tokens_per_image=4,
        **ids(tok, **{f"{name}_index": token for name, token in _GEMMA_PICTURES.items()}),
    )
    return config, processor


ENTRIES = (
    Entry("llava", builder(_llava), _prompt, seed=1),
    Entry("llava_next", builder(_llava_next), _prompt),
    Entry("llava_next_video", builder(_llava_next_video), _prompt),
    Entry("llava_onevision", builder(_llava_onevision), _prompt, seed=1),
    Entry("paligemma", builder(_paligemma), _paligemma_prompt, takes_text_only=False, seed=30),
    Entry(
        "shieldgemma2", builder(_shieldgemma2, own_names=True), lambda n: "<start_of_image>" * n + "What is it?", seed=4
    ),
    Entry("video_llava", builder(_video_llava), _prompt),
    Entry("vipllava", builder(_vipllava), _prompt),
)
