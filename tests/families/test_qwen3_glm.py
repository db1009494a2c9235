"""Qwen3-VL and GLM: published sizes make the published models, and what is not implemented is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from fovea.core.errors import ModelError
from fovea.engine.build import count_parameters
from fovea.families.registry import load_family
from fovea.families.spec import RopeSpec
from fovea.models.decoder import Rope
from tests.parity.support import Checkpoints

_ROPE = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
_GLM_ROPE = {"mrope_section": [8, 12, 12], "rope_type": "default"}
_GLM_VISION = {"depth": 24, "hidden_size": 1536, "num_heads": 12, "image_size": 336, "intermediate_size": 13696}

# Published configs, without what is a default or does not bear on the arithmetic.
PUBLISHED: Mapping[str, dict[str, Any]] = {
    "Qwen3-VL-4B-Instruct": {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": {
            "head_dim": 128,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "max_position_embeddings": 262144,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": 32,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "rope_scaling": _ROPE,
            "rope_theta": 5000000,
            "tie_word_embeddings": True,
        },
        "tie_word_embeddings": True,
        "vision_config": {
            "deepstack_visual_indexes": [5, 11, 17],
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "model_type": "qwen3_vl",
            "out_hidden_size": 2560,
        },
    },
    "Qwen3-VL-30B-A3B-Instruct": {
        "architectures": ["Qwen3VLMoeForConditionalGeneration"],
        "model_type": "qwen3_vl_moe",
        "text_config": {
            "head_dim": 128,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "model_type": "qwen3_vl_moe_text",
            "moe_intermediate_size": 768,
            "num_attention_heads": 32,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 48,
            "num_key_value_heads": 4,
            "rope_scaling": _ROPE,
            "rope_theta": 5000000,
        },
        "vision_config": {"model_type": "qwen3_vl_moe", "out_hidden_size": 2048},
    },
    "GLM-4.1V-9B-Thinking": {
        "architectures": ["Glm4vForConditionalGeneration"],
        "model_type": "glm4v",
        "text_config": {
            "attention_bias": True,
            "model_type": "glm4v_text",
            "partial_rotary_factor": 0.5,
            "rope_scaling": _GLM_ROPE,
            "rope_theta": 10000.0,
        },
        "vision_config": {**_GLM_VISION, "out_hidden_size": 4096},
    },
    "GLM-4.5V": {
        "architectures": ["Glm4vMoeForConditionalGeneration"],
        "model_type": "glm4v_moe",
        "text_config": {
            "attention_bias": True,
            "head_dim": 128,
            "model_type": "glm4v_moe_text",
            "partial_rotary_factor": 0.5,
            "rope_scaling": _GLM_ROPE,
            "rope_theta": 10000.0,
            "use_qk_norm": False,
        },
        "vision_config": {"intermediate_size": 10944, "out_hidden_size": 4096},
    },
    "GLM-OCR": {
        "architectures": ["GlmOcrForConditionalGeneration"],
        "model_type": "glm_ocr",
        "text_config": {
            "attention_bias": False,
            "head_dim": 128,
            "hidden_size": 1536,
            "intermediate_size": 4608,
            "model_type": "glm_ocr_text",
            "rope_parameters": {**_GLM_ROPE, "mrope_section": [16, 24, 24], "rope_theta": 10000},
        },
        "vision_config": {"model_type": "glm_ocr_vision", "out_hidden_size": 1536},
    },
    "GLM-4-9B-0414": {"architectures": ["Glm4ForCausalLM"], "model_type": "glm4"},
    "Qwen3-30B-A3B": {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "head_dim": 128},
}


def saved(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_make_the_model_that_transformers_makes(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path, PUBLISHED[name])
    made = load_family(folder)
    kind: Any = AutoModelForImageTextToText if made.spec.takes_pictures else AutoModelForCausalLM
    config = AutoConfig.from_pretrained(folder)
    if made.spec.decoder.tied_head:
        config.tie_word_embeddings = True
    with torch.device("meta"):
        theirs = kind.from_config(config)
    tensors = {tensor.data_ptr() or id(tensor): tensor for tensor in theirs.parameters()}
    biases = [buffer for buffer_name, buffer in theirs.named_buffers() if "e_score_correction_bias" in buffer_name]
    assert count_parameters(made) == sum(tensor.numel() for tensor in [*tensors.values(), *biases])


@pytest.mark.parametrize("sections", [(24, 20, 20), (4, 2, 2), (2, 3, 3), (8, 12, 12)])
def test_rows_of_positions_take_turns_as_transformers_has_it(sections: tuple[int, ...]) -> None:
    """Its rule written out: height and width stand where the rule puts them, time everywhere else."""
    half, device = sum(sections), torch.device("cpu")
    plain = load_spec(sections, interleaved=False)
    positions = torch.tensor([[5, 1], [7, 20], [3, 11]])
    regimes = torch.zeros(2, dtype=torch.int64)
    rows = torch.zeros(half, dtype=torch.int64)
    for row in (1, 2):
        rows[torch.arange(half)[row : 3 * sections[row] : 3]] = row
    one_row = [Rope(RopeSpec(plain.regimes), 2 * half, device)(positions[r : r + 1], regimes) for r in range(3)]
    cos, sin = Rope(load_spec(sections, interleaved=True), 2 * half, device)(positions, regimes)
    for frequency, row in enumerate(rows.tolist()):
        torch.testing.assert_close(cos[:, frequency], one_row[row][0][:, frequency])
        torch.testing.assert_close(sin[:, frequency], one_row[row][1][:, frequency])


def load_spec(sections: tuple[int, ...], *, interleaved: bool) -> RopeSpec:
    from fovea.families.parts import plain_rope

    made = plain_rope(10000.0, sections)
    return RopeSpec(made.regimes, made.sections, interleaved=interleaved)


REFUSED = [
    ("qwen3_vl", "text_config.rope_scaling.mrope_interleaved", False, "mrope_interleaved"),
    ("qwen3_vl", "text_config.rope_scaling.mrope_section", [4, 2, 1], "mrope_section"),
    ("qwen3_vl", "text_config.rope_scaling.rope_type", "yarn", "rope_type"),
    ("qwen3_vl", "text_config.hidden_act", "gelu", "hidden_act"),
    ("qwen3_vl", "vision_config.hidden_act", "gelu", "hidden_act"),
    ("qwen3_vl", "vision_config.num_position_embeddings", 24, "num_position_embeddings"),
    ("qwen3_vl", "vision_config.deepstack_visual_indexes", [1, 0], "deepstack_visual_indexes"),
    ("qwen3_vl", "vision_config.deepstack_visual_indexes", [0, 3], "deepstack_visual_indexes"),
    ("qwen3_vl", "vision_config.out_hidden_size", 32, "out_hidden_size"),
    ("qwen3_vl_moe", "text_config.norm_topk_prob", False, "norm_topk_prob"),
    ("qwen3_vl_moe", "text_config.num_experts_per_tok", 7, "num_experts_per_tok"),
    ("glm4v", "text_config.rope_scaling.mrope_section", [2, 3, 3], "mrope_section"),
    ("glm4v", "text_config.attention_bias", False, "attention_bias"),
    ("glm4v", "text_config.head_dim", 32, "head_dim"),
    ("glm4v", "text_config.model_type", "glm4", "model_type"),
    ("glm4v", "vision_config.model_type", "qwen3_vl", "model_type"),
    ("glm4v", "vision_config.hidden_act", "gelu", "hidden_act"),
    ("glm4v_moe", "text_config.use_qk_norm", True, "use_qk_norm"),
    ("glm4v_moe", "text_config.n_group", 3, "groups"),
    ("glm_ocr", "text_config.attention_bias", True, "attention_bias"),
]


@pytest.mark.parametrize(("variant", "key", "value", "says"), REFUSED)
def test_what_would_change_the_answer_is_refused_by_name(
    checkpoints: Checkpoints, tmp_path: Path, variant: str, key: str, value: object, says: str
) -> None:
    folder = Path(shutil.copytree(checkpoints.folder(variant), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    *path, last = key.split(".")
    place = config
    for part in path:
        place = place[part]
    place[last] = value
    with pytest.raises(ModelError, match=says):
        load_family(saved(folder, config))


@pytest.mark.parametrize("key", ["shortest_edge", "longest_edge"])
def test_a_range_that_halves_to_no_whole_number_is_refused(checkpoints: Checkpoints, tmp_path: Path, key: str) -> None:
    folder = Path(shutil.copytree(checkpoints.folder("glm4v"), tmp_path / "model"))
    path = folder / "preprocessor_config.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    said["size"][key] += 1
    path.write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(ModelError, match=key):
        load_family(folder)
