"""Trained weights to a model folder in the published layout: `python -m tiny.export CHECKPOINT [FOLDER]`."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tiny import model, tokenizer
from tiny.train import restore

# Word for word the template of Qwen2-VL-2B-Instruct.
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content or "
    "'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}"
    "Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif "
    "content['type'] == 'video' or 'video' in content %}{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MIN_PIXELS, MAX_PIXELS = 112 * 112, 280 * 280


def _small_files() -> dict[str, dict[str, Any]]:
    ids = tokenizer.load().get_vocab()
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    end, stop = ids["<|im_end|>"], ids["<|endoftext|>"]
    return {
        "config.json": model.flat_config(),
        "generation_config.json": {
            "bos_token_id": stop, "pad_token_id": stop, "do_sample": False, "eos_token_id": [end, stop],
            "repetition_penalty": 1.0, "transformers_version": "4.41.2",
        },
        "preprocessor_config.json": {
            "min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS,
            "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
            "image_mean": list(model.MEAN), "image_std": list(model.STD),
            "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
        },
        "tokenizer_config.json": {
            "add_prefix_space": False,
            "added_tokens_decoder": {str(ids[s]): {"content": s, **plain} for s in tokenizer.SPECIALS},
            "additional_special_tokens": list(tokenizer.SPECIALS[1:]),
            "bos_token": None, "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>", "errors": "replace", "model_max_length": 4096, "pad_token": "<|endoftext|>",
            "padding_side": "left", "split_special_tokens": False, "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": None,
        },
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
    }  # fmt: skip


def export(checkpoint: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    trained = model.build(0)
    restore(trained, checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        # save_pretrained writes the published names and leaves out the tied head.
        trained.to(torch.bfloat16).save_pretrained(scratch)
        (folder / "model.safetensors").write_bytes((Path(scratch) / "model.safetensors").read_bytes())
    for name, content in _small_files().items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    if not (folder / "tokenizer.json").exists():
        tokenizer.load().save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else tokenizer.PATH.parent)
