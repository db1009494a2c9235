"""MiniCPM-OCR, MiniCPM-V 4.6 and 4.7: slices, a merger inside the tower, a decoder with linear attention."""

from collections.abc import Callable
from functools import partial
from typing import Any

import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.every.entry import Entry
from tests.every.making import CHATML, builder, ids, text, tokenizer

_MARKS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}
_SIZES: dict[str, Any] = {"scale_resolution": 64, "patch_size": 8, "max_slice_nums": 4}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 8,
}


def _prompt(count: int) -> str:
    return f"<|im_start|>user\n{'<|image_pad|>' * count}What is it?<|im_end|>\n<|im_start|>assistant\n"


def _decoder() -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    return text(
        "qwen3_5_text",
        head_dim=32,
        layer_types=["linear_attention", "linear_attention", "full_attention"],
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        rope_parameters=rope | {"mrope_section": [4, 2, 2], "mrope_interleaved": True},
    )


def _parts(
    model_type: str,
    processor: Callable[[], tuple[Any, Any, Any]],
    mode: str,
    **more: Any,
) -> tuple[Any, Any]:
    tok = tokenizer([*CHATML, *_MARKS.values()], _MARKS)
    kind, pictures, videos = processor()
    made = kind(
        image_processor=pictures(**_SIZES, downsample_mode=mode),
        video_processor=videos(**_SIZES, downsample_mode=mode),
        tokenizer=tok,
    )
    config = CONFIG_MAPPING[model_type](
        text_config=_decoder(),
        vision_config=_VISION,
        insert_layer_id=0,
        downsample_mode=mode,
        **ids(tok, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
        **more,
    )
    return config, made


def _ocr() -> tuple[Any, Any]:
    kinds = partial(lambda: (hf.MiniCPMOcrProcessor, hf.MiniCPMOcrImageProcessor, hf.MiniCPMOcrVideoProcessor))
    return _parts("minicpm_ocr", kinds, "4x")


def _four_six() -> tuple[Any, Any]:
    kinds = partial(lambda: (hf.MiniCPMV4_6Processor, hf.MiniCPMV4_6ImageProcessor, hf.MiniCPMV4_6VideoProcessor))
    return _parts("minicpmv4_6", kinds, "16x", image_size=64)


def _four_seven() -> tuple[Any, Any]:
    kinds = partial(lambda: (hf.MiniCPMV4_7Processor, hf.MiniCPMV4_6ImageProcessor, hf.MiniCPMV4_6VideoProcessor))
    tok = tokenizer([*CHATML, *_MARKS.values()], _MARKS)
    places = ids(
        tok,
        image_start_id="<image>",
        image_end_id="</image>",
        slice_start_id="<slice>",
        slice_end_id="</slice>",
        newline_id="Ċ",
    )
    return _parts("minicpmv4_7", kinds, "16x", image_size=64, **places)


ENTRIES = (
    Entry("minicpm_ocr", builder(_ocr), _prompt, seed=3),
    Entry("minicpmv4_6", builder(_four_six), _prompt),
    Entry("minicpmv4_7", builder(_four_seven), _prompt, seed=1),
)
