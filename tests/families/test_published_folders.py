"""The real models' configs and tokenizers: token counts, ids, ends, weights and sizes as documented."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fovea.engine.build import count_parameters
from fovea.families.base import Family
from fovea.families.registry import load_family
from fovea.models.vlm import VLM
from fovea.prompt.build import PictureRun, expand, tokenize
from fovea.prompt.chat import build_chat
from fovea.prompt.forms import MediaInput, PromptForm
from fovea.prompt.pieces import Piece
from fovea.prompt.template import ChatTemplate
from fovea.prompt.tokenizer import Tokenizer
from tests.parity.support import SHARED

MODELS = SHARED / "models"
LLAVA, PHI, QWEN = "llava-1.5-7b-hf", "Phi-3.5-vision-instruct", "Qwen2-VL-2B-Instruct"
NAMES = (LLAVA, PHI, QWEN)
pytestmark = [
    pytest.mark.golden,
    pytest.mark.skipif(not MODELS.is_dir(), reason="the published configs are not beside the checkout"),
]


def family(name: str) -> Family:
    return load_family(MODELS / name)


def tokenizer(name: str) -> Tokenizer:
    return Tokenizer.load(MODELS / name)


# Pixels of the upright picture and the tokens it becomes (the numbers were taken from the published processors).
TOKENS = [
    *((LLAVA, size, {}, 576) for size in ((336, 336), (1, 1), (4000, 3000), (50, 2000), (640, 480))),
    *((QWEN, (side, side), {}, tokens) for side, tokens in ((28, 4), (224, 64), (336, 144), (448, 256), (1024, 1369))),
    (QWEN, (640, 480), {}, 391),
    (QWEN, (1920, 1080), {}, 2691),
    (QWEN, (3840, 2160), {}, 10549),
    (QWEN, (6000, 4000), {}, 16224),
    (QWEN, (1024, 1024), {"max_pixels": 784 * 256}, 256),
    (QWEN, (28, 28), {"min_pixels": 784 * 256}, 256),
    *(
        (PHI, size, {}, tokens)
        for size, tokens in (
            ((320, 140), 457),
            ((140, 320), 469),
            ((400, 130), 601),
            ((300, 200), 757),
            ((336, 336), 757),
            ((60, 250), 781),
        )
    ),
    (PHI, (300, 200), {"num_crops": 1}, 313),
    (PHI, (1000, 1000), {"num_crops": 16}, 2509),
    (PHI, (10, 200), {"num_crops": 16}, 2653),
]


@pytest.mark.parametrize(("name", "size", "options", "tokens"), TOKENS, ids=str)
def test_a_picture_of_this_size_becomes_so_many_tokens(
    name: str, size: tuple[int, int], options: dict[str, int], tokens: int
) -> None:
    made = family(name)
    plan = made.plan_image(*size, made.check_options(options))
    assert plan.num_tokens == tokens
    assert plan.num_patches <= made.largest_picture(made.check_options(options))


@pytest.mark.parametrize(("name", "ids"), [(LLAVA, {2}), (PHI, {2, 32000, 32007}), (QWEN, {151643, 151645})], ids=str)
def test_an_answer_ends_at_these_ids(name: str, ids: set[int]) -> None:
    made, loaded = family(name), tokenizer(name)
    by_text = {loaded.token_id(text) for text in made.stop_strings()}
    assert made.stop_tokens() | by_text == ids


def prompt_ids(name: str, prompt: str, counts: list[int]) -> list[int]:
    form = PromptForm((Piece(prompt, True),), media=tuple(MediaInput("picture", None) for _ in counts))
    token_ids, spans = expand(tokenize(form, family(name), tokenizer(name)), [PictureRun(count) for count in counts])
    assert [span.length for span in spans] == counts
    return list(token_ids)


def test_llava_ids_are_the_documented_ones() -> None:
    ids = prompt_ids(LLAVA, "USER: <image>\nWhat is it? ASSISTANT:", [576])
    assert ids[:4] == [1, 3148, 1001, 29901]
    assert ids[4] == 29871
    assert ids[5:581] == [32000] * 576
    assert ids[581:587] == [29871, 13, 5618, 338, 372, 29973]


def test_phi_ids_have_a_bos_for_each_piece_of_text() -> None:
    ids = prompt_ids(PHI, "<|user|>\n<|image_1|>\nWhat? <|image_2|>\n<|end|>\n<|assistant|>\n", [457, 757])
    assert ids[:2] == [1, 32010]
    assert ids.count(32044) == 457 + 757
    assert ids.count(1) == 3
    first = ids.index(32044)
    assert ids[first : first + 458] == [32044] * 457 + [1]
    assert ids[-1] == 32001, "<|assistant|> takes the newline behind it along"


def test_qwen_ids_are_chatml_without_a_bos() -> None:
    prompt = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n"
    ids = prompt_ids(QWEN, prompt, [4])
    assert ids[:4] == [151644, 872, 198, 151652]
    assert ids[4:8] == [151655] * 4
    assert ids[8] == 151653
    assert ids[-3:] == [151644, 77091, 198]


@pytest.mark.parametrize("name", NAMES)
def test_the_published_template_renders_pictures_where_the_family_expects_them(name: str) -> None:
    made, loaded = family(name), tokenizer(name)
    template = ChatTemplate.load(
        MODELS / name, None, tokens=loaded.special_token_strings, special_tokens=loaded.special_tokens
    )
    content = [{"type": "image_pil", "image_pil": object()}, {"type": "text", "text": "What is <image> <|image_1|>?"}]
    form = build_chat([{"role": "user", "content": content}], template, made)
    slotted = tokenize(form, made, loaded)
    assert len(slotted.slots) == len(form.media) == 1
    ids = list(slotted.token_ids)
    assert ids.count(loaded.token_id(made.placeholder) or -1) == 1
    ends = {LLAVA: "ASSISTANT:", PHI: "<|assistant|>\n", QWEN: "<|im_start|>assistant\n"}
    assert (form.text or "").endswith(ends[name])


@pytest.mark.parametrize(("name", "millions"), [(LLAVA, 7050.0), (PHI, 4134.1), (QWEN, 2208.98)], ids=str)
def test_the_model_has_the_published_number_of_parameters(name: str, millions: float) -> None:
    """Without CLIP's last layer and post-norm, which no feature of the second last layer needs."""
    assert count_parameters(family(name)) / 1e6 == pytest.approx(millions, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_weight_map_fills_every_row_of_every_parameter_once(name: str) -> None:
    made = family(name)
    with torch.device("meta"):
        parameters = dict(VLM(made.spec).named_parameters())
    rows: dict[str, list[tuple[int, int]]] = {parameter: [] for parameter in parameters}
    for slot in made.weight_map().slots.values():
        count = parameters[slot.parameter].shape[0] if slot.rows is None else slot.rows
        rows[slot.parameter].append((slot.row, slot.row + count))
    for parameter, spans in rows.items():
        spans.sort()
        assert spans[0][0] == 0, parameter
        assert spans[-1][1] == parameters[parameter].shape[0], parameter
        assert all(one[1] == two[0] for one, two in zip(spans, spans[1:])), parameter


def test_published_names_are_spelled_as_published() -> None:
    names = {name: set(family(name).weight_map().slots) for name in NAMES}
    assert "vision_tower.vision_model.pre_layrnorm.weight" in names[LLAVA]
    assert "language_model.lm_head.weight" in names[LLAVA]
    assert "model.vision_embed_tokens.img_processor.vision_model.encoder.layers.22.mlp.fc2.bias" in names[PHI]
    assert "model.layers.31.self_attn.qkv_proj.weight" in names[PHI]
    assert "visual.merger.ln_q.bias" in names[QWEN]
    assert not any(name.startswith("lm_head") for name in names[QWEN])


def test_the_documented_sizes_are_read() -> None:
    llava, phi, qwen = (family(name).spec.decoder for name in NAMES)
    assert [(s.num_layers, s.hidden_size, s.intermediate_size) for s in (llava, phi, qwen)] == [
        (32, 4096, 11008),
        (32, 3072, 8192),
        (28, 1536, 8960),
    ]
    assert [(s.num_heads, s.num_kv_heads, s.head_dim) for s in (llava, phi, qwen)] == [
        (32, 32, 128),
        (32, 32, 96),
        (12, 2, 128),
    ]
    assert [s.kv_bytes_per_token(2) // 1024 for s in (llava, phi, qwen)] == [512, 384, 28]
    assert [s.norm_eps for s in (llava, phi, qwen)] == [1e-5, 1e-5, 1e-6]
    assert [s.max_positions for s in (llava, phi, qwen)] == [4096, 131072, 32768]
    assert [(s.qkv_bias, s.tied_head) for s in (llava, phi, qwen)] == [(False, False), (False, False), (True, True)]
    assert qwen.rope.sections == (16, 24, 24)
    assert phi.rope.switch_tokens == 4096
    assert [round(r.scale, 4) for r in phi.rope.regimes] == [1.1902] * 2


def test_towers_are_read_up_to_the_feature_layer() -> None:
    towers = [family(name).spec.tower for name in NAMES]
    assert [(t.num_layers, t.width, t.num_heads) for t in towers] == [(23, 1024, 16), (23, 1024, 16), (32, 1280, 16)]
    assert [family(name).dtype("") for name in NAMES] == ["float16", "bfloat16", "bfloat16"]


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_is_the_published_one(name: str) -> None:
    assert (Path(MODELS / name) / "config.json").is_file()
    assert not list((MODELS / name).glob("*.safetensors")), "these folders come without weights"
