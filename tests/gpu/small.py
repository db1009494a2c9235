"""Random checkpoints that are small but have the head sizes of the published models, so that their kernels run.

family     tower heads   decoder heads   sizes
llava      4 x 64        4 x 128         4 layers, 512 wide
qwen2_vl   4 x 80        6 x 128, 1 KV   4 layers, 768 wide; qwen2_5_vl too
phi3_v     2 x 64        4 x 96          4 layers, 384 wide
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.oracle import checkpoints as tiny

_SIZES: Mapping[str, Mapping[str, Any]] = {
    "llava": {
        "text_config": {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4},
        "vision_config": {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4},
    },
    "qwen2_vl": {
        "hidden_size": 768,
        "intermediate_size": 1536,
        "num_attention_heads": 6,
        "num_hidden_layers": 4,
        "num_key_value_heads": 1,
        "rope_scaling": {"mrope_section": [16, 24, 24]},
        "vision_config": {"depth": 4, "embed_dim": 320, "hidden_size": 768, "num_heads": 4},
    },
    "qwen2_5_vl": {
        "hidden_size": 768,
        "intermediate_size": 1536,
        "num_attention_heads": 6,
        "num_hidden_layers": 4,
        "num_key_value_heads": 1,
        "rope_scaling": {"mrope_section": [16, 24, 24]},
        "vision_config": {
            "depth": 4,
            "hidden_size": 320,
            "intermediate_size": 428,
            "out_hidden_size": 768,
            "num_heads": 4,
        },
    },
    "phi3_v": {
        "hidden_size": 384,
        "intermediate_size": 768,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "img_processor": {"image_dim_out": 128, "intermediate_size": 256},
    },
}
_WEIGHTS: Mapping[str, Callable[[dict[str, Any], int], Any]] = {
    "llava": tiny._llava_weights,
    "qwen2_vl": tiny._qwen_weights,
    "qwen2_5_vl": tiny._qwen25_weights,
    "phi3_v": tiny._phi_weights,
}


def build_small(family: str, folder: Path, seed: int = 0) -> Path:
    """The tiny folder of the family with larger matrices."""
    tiny.BUILDERS[family](folder, seed=seed)
    path = folder / "config.json"
    config = _merged(json.loads(path.read_text(encoding="utf-8")), _SIZES[family])
    path.write_text(json.dumps(config), encoding="utf-8")
    _WEIGHTS[family](config, seed).save(folder)
    return folder


def _merged(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in changes.items():
        config[name] = _merged(config[name], value) if isinstance(value, Mapping) else value
    return config


WORD_IDS = range(270, 400)  # words and letters in all three vocabularies
PROMPT_TOKENS = (1, 2, 15, 16, 17, 100, 257, 600)


def questions(family: str) -> list[tuple[dict[str, object], list[Image.Image]]]:
    """Prompts for generate and their pictures: the family's cases, and ids drawn at random in odd numbers."""
    asked: list[tuple[dict[str, object], list[Image.Image]]] = []
    for case in tiny.CASES[family]:
        images = case.images()
        media: dict[str, object] = {"multi_modal_data": {"image": images}} if images else {}
        asked.append(({"prompt": case.prompt, **media}, images))
    rng = np.random.default_rng(5)
    for count in PROMPT_TOKENS:
        ids = rng.integers(WORD_IDS.start, WORD_IDS.stop, count).tolist()
        asked.append(({"prompt_token_ids": ids}, []))
    return asked
