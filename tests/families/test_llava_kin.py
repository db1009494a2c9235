"""LLaVA's kin and Idefics3 at their published sizes, and what of them is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from fovea.core.errors import UnsupportedModelError
from fovea.engine.build import count_parameters
from fovea.families.base import Family
from fovea.families.registry import load_family
from tests.oracle.checkpoints import BUILDERS

SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 26,
    "patch_size": 14,
    "image_size": 384,
    "vision_use_head": False,
}
QWEN2 = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "vocab_size": 152000,
    "tie_word_embeddings": True,
}
# Configs as those of llava-onevision-qwen2-0.5b, SmolVLM-256M and Idefics3-8B-Llama3, as far as sizes go.
SIZES: dict[str, dict[str, Any]] = {
    "LlavaOnevisionForConditionalGeneration": {
        "model_type": "llava_onevision",
        "text_config": QWEN2,
        "vision_config": SIGLIP,
    },
    "SmolVLMForConditionalGeneration": {
        "model_type": "smolvlm",
        "scale_factor": 4,
        "text_config": {
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_hidden_layers": 30,
            "num_key_value_heads": 3,
            "vocab_size": 49280,
        },
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "image_size": 512,
            "patch_size": 16,
        },
    },
    "Idefics3ForConditionalGeneration": {
        "model_type": "idefics3",
        "scale_factor": 2,
        "text_config": {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128259,
        },
        "vision_config": {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "image_size": 364,
            "patch_size": 14,
        },
    },
}
UNUSED = {"LlavaOnevisionForConditionalGeneration": 2 * 1152}  # the norm behind SigLIP's last layer
TILES = {"SmolVLMForConditionalGeneration": 512, "Idefics3ForConditionalGeneration": 364}


def folder_of(tmp_path: Path, name: str, **changes: Any) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name], **SIZES[name], **changes}))
    if name in TILES:
        sizes = {"size": {"longest_edge": 4 * TILES[name]}, "max_image_size": {"longest_edge": TILES[name]}}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(sizes))
    return tmp_path


@pytest.mark.parametrize("name", SIZES)
def test_the_published_sizes_mean_what_transformers_takes_them_to_mean(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, name)
    with torch.device("meta"):
        theirs: Any = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    family = load_family(folder)
    assert count_parameters(family) == sum(p.numel() for p in theirs.parameters()) - UNUSED.get(name, 0)


def test_real_pictures_have_the_known_numbers_of_tokens(tmp_path: Path) -> None:
    """81 a tile were it SmolVLM-2.2B; here 64 of 512 pixels, and 169 of 364; 729 and a field without its margins."""
    counts: dict[str, Any] = {}
    for name in SIZES:
        (tmp_path / name).mkdir()
        family = load_family(folder_of(tmp_path / name, name))
        plan = family.plan_image(1600, 1200, {})
        one_of_two = family.plan_image(1600, 1200, family.for_pictures({}, 2))
        counts[name] = (plan.num_tokens, plan.grid, one_of_two.num_tokens)
    assert counts == {
        "LlavaOnevisionForConditionalGeneration": (729 + 70 * (93 + 1), (1, 102, 135), 730),
        "SmolVLMForConditionalGeneration": (13 * 64, (1, 3, 4), 13 * 64),
        "Idefics3ForConditionalGeneration": (13 * 169, (1, 3, 4), 13 * 169),
    }


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another packing": ("llava_onevision", {"vision_aspect_ratio": "square"}, "'vision_aspect_ratio' is 'square'"),
    "SigLIP without a row": ("llava_onevision", {"vision_feature_select_strategy": "default"}, "supported: 'full'"),
    "CLIP with its class token": ("llava_next_video", {"vision_feature_select_strategy": "full"}, "'default'"),
    "tiles that don't merge": ("idefics3", {"scale_factor": 3}, "'scale_factor' is 3"),
    "another decoder": ("smolvlm", {"text_config": {"model_type": "gpt2"}}, "'gpt2'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_implemented_is_refused_by_name(tmp_path: Path, name: str) -> None:
    kind, changes, says = REFUSED[name]
    folder = BUILDERS[kind](tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UnsupportedModelError, match=says):
        load_family(folder, "fused")


@pytest.mark.parametrize(
    "changes",
    [{"do_pad": False}, {"resample": 0}, {"size": {"height": 58, "width": 58}}, {"size": {"longest_edge": 999}}],
)
def test_other_ways_to_split_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = BUILDERS["idefics3"](tmp_path / "model")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UnsupportedModelError, match=next(iter(changes))):
        load_family(folder, "fused")


def test_pictures_that_are_not_split_are_one_tile(tmp_path: Path) -> None:
    folder = BUILDERS["smolvlm"](tmp_path / "model")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_image_splitting": False}))
    family: Family = load_family(folder)
    plan = family.plan_image(300, 100, {})
    assert (plan.grid, plan.num_tokens, plan.view, family.largest_picture({})) == ((1, 1, 1), 4, None, 16)
    assert plan.first_resize_px == (232, 78)
