"""The inputs of benchmarks.cpu: a model folder with random weights, prompts of ids, JPEG pictures."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PUBLISHED = Path(__file__).parents[2] / "shared" / "models" / "Qwen2-VL-2B-Instruct"
QUESTION = "<|vision_start|><|image_pad|><|vision_end|>What is in this picture?"
# What Qwen2-VL-2B-Instruct publishes, for machines where its folder is not; ids of tokens are the embedded model's.
SHAPE: Mapping[str, Any] = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}
VISION: Mapping[str, Any] = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": 1536}
MAX_PIXELS = 1_003_520


def make_folder(target: Path, published: Path, scale: float, seed: int) -> None:
    """A Qwen2-VL of random bfloat16 weights that every engine reads, with `scale` of its layers in decoder and tower.

    `published`: a folder with config.json and tokenizer; where it is not, the shape above with the embedded model's.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from fovea.models.folder import embedded_model

    source = published if (published / "config.json").is_file() else embedded_model()
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix == ".json":
            shutil.copy(file, target)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if source != published:
        config |= SHAPE
        config["vision_config"] |= VISION
        preprocessor = json.loads((source / "preprocessor_config.json").read_text(encoding="utf-8"))
        (target / "preprocessor_config.json").write_text(json.dumps({**preprocessor, "max_pixels": MAX_PIXELS}))
    config["num_hidden_layers"] = max(1, round(scale * config["num_hidden_layers"]))
    config["vision_config"]["depth"] = max(1, round(scale * config["vision_config"]["depth"]))
    config["max_window_layers"] = config["num_hidden_layers"]
    (target / "config.json").write_text(json.dumps(config, indent=1))
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(target), dtype=torch.bfloat16)
    model.save_pretrained(target)
    (target / "config.json").write_text(json.dumps(config, indent=1))  # as published: transformers writes another form


def prompts(rng: np.random.Generator, count: int, length: int) -> list[list[int]]:
    """Ids that are plain text in every vocabulary here, a few more or less than `length` for each."""
    return [rng.integers(300, 600, length + 4 * (i % 4)).tolist() for i in range(count)]


def jpeg(rng: np.random.Generator, width_px: int, height_px: int) -> bytes:
    """Smooth shapes with a camera's noise: as many bytes and decoding work as a photo, each picture another one."""
    shapes = Image.fromarray(rng.integers(0, 255, (height_px // 32, width_px // 32, 3), dtype=np.uint8))
    smooth = np.asarray(shapes.resize((width_px, height_px), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = (smooth + rng.integers(-12, 12, smooth.shape, dtype=np.int16)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=90)
    return file.getvalue()
