"""The oracles themselves: they load what they should, see what they should, and answer as the published code does."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from . import phi3v
from .checkpoints import BUILDERS, CASES, QWEN_TOKENS, TEXT_FAMILIES, Case, picture
from .reference import Reference, image_features, load, model_type, pixels, positions, reference

SHARED = Path(os.environ.get("FOVEA_SHARED", Path(__file__).parents[2].parent / "shared"))
GOLDEN = SHARED / "golden" / "phi3_v"
PUBLISHED = {
    "llava": "llava-1.5-7b-hf",
    "qwen2_vl": "Qwen2-VL-2B-Instruct",
    "phi3_v": "Phi-3.5-vision-instruct",
}

# Each checkpoint of the tests: the family and what its builder is told.
VARIANTS: dict[str, tuple[str, dict[str, int | str]]] = {
    "llava": ("llava", {}),
    "llava-grouped": ("llava", {"kv_heads": 2}),
    "llava_next": ("llava_next", {}),
    "llava_next-mistral": ("llava_next", {"text": "mistral"}),
    "llava_next-qwen2": ("llava_next", {"text": "qwen2"}),
    "llava_next_video": ("llava_next_video", {}),
    "llava_onevision": ("llava_onevision", {}),
    "llava_onevision-tied": ("llava_onevision", {"tied": True}),
    "llava_siglip": ("llava_siglip", {}),
    "llava_siglip-phi3": ("llava_siglip", {"text": "phi3"}),
    "llava_siglip-qwen3": ("llava_siglip", {"text": "qwen3"}),
    "idefics3": ("idefics3", {}),
    "smolvlm": ("smolvlm", {}),
    "vipllava": ("vipllava", {}),
    "qwen2_vl": ("qwen2_vl", {}),
    "qwen2_5_vl": ("qwen2_5_vl", {}),
    "qwen2_5_vl-nested": ("qwen2_5_vl", {"nested": 1}),
    "qwen3_vl": ("qwen3_vl", {}),
    "qwen3_vl_moe": ("qwen3_vl_moe", {}),
    **{kind: (kind, {}) for kind in ("glm4v", "glm4v_moe", "glm46v", "glm_ocr")},
    "phi3_v": ("phi3_v", {}),
    "phi3_v-switch-32": ("phi3_v", {"original_max_position": 32}),
}
EVERY_CASE = [(variant, case) for variant, (family, _) in VARIANTS.items() for case in CASES[family]]
EVERY_CASE += [(family, case) for family in TEXT_FAMILIES for case in CASES[family]]
PICTURE_CASES = [(variant, case) for variant, case in EVERY_CASE if case.sizes]


def _name(value: object) -> str | None:
    return value.name if isinstance(value, Case) else None


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    variants = VARIANTS | {family: (family, {}) for family in TEXT_FAMILIES}
    return {name: BUILDERS[family](root / name, **options) for name, (family, options) in variants.items()}


# ------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if "phi3_v" not in variant])
def test_transformers_finds_every_weight_and_no_other(folders: dict[str, Path], variant: str) -> None:
    model: Any = AutoModelForCausalLM if variant in TEXT_FAMILIES else AutoModelForImageTextToText
    _, info = model.from_pretrained(folders[variant], output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info


def test_phi_uses_every_weight(folders: dict[str, Path]) -> None:
    """Decoder and CLIP load strictly; what remains is what the glue reads."""
    left = set(phi3v.load(folders["phi3_v"]).vision)
    assert left == {"glb_GN", "sub_GN", *(f"img_projection.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias"))}


@pytest.mark.parametrize("family", BUILDERS)
def test_builders_are_deterministic_and_seeds_differ(tmp_path: Path, folders: dict[str, Path], family: str) -> None:
    again, other = BUILDERS[family](tmp_path / "again"), BUILDERS[family](tmp_path / "other", seed=1)
    names = sorted(path.name for path in folders[family].iterdir())
    for name in names:
        assert (again / name).read_bytes() == (folders[family] / name).read_bytes(), name
    changed = [name for name in names if (other / name).read_bytes() != (again / name).read_bytes()]
    assert changed == ["model.safetensors"]


@pytest.mark.golden
@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="the published configs are not beside the checkout")
@pytest.mark.parametrize("family", PUBLISHED)
def test_files_have_the_published_keys(folders: dict[str, Path], family: str) -> None:
    """Every file and key of the published folder is here; additions are the sizes that the original leaves out."""
    ours, published = folders[family], SHARED / "models" / PUBLISHED[family]
    assert {path.name for path in published.iterdir()} <= {path.name for path in ours.iterdir()}
    added: set[str] = set()
    for path in published.glob("*.json"):
        if path.name not in ("tokenizer.json", "added_tokens.json"):
            added |= _added_keys(_json(path), _json(ours / path.name), path.name)
    sizes = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"}
    assert {key.rpartition(".")[2] for key in added} <= sizes


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _added_keys(published: Any, ours: Any, where: str) -> set[str]:
    if not isinstance(published, dict) or where.endswith("added_tokens_decoder"):
        assert type(published) is type(ours) or isinstance(published, int | float), where
        return set()
    assert set(published) <= set(ours), where
    deeper = [_added_keys(published[key], ours[key], f"{where}.{key}") for key in published]
    return {f"{where}.{key}" for key in set(ours) - set(published)}.union(*deeper)


# ------------------------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize(("variant", "case"), EVERY_CASE, ids=_name)
def test_greedy_tokens_are_decided_clearly(folders: dict[str, Path], variant: str, case: Case) -> None:
    """Rounding cannot flip a token, and no stop or placeholder token appears."""
    answer = _answer(folders[variant], case)
    assert min(answer.margins) > 0.02
    assert 1 < answer.logits[-1].std() < 3
    assert answer.logits.shape == (len(answer.token_ids), _vocabulary(folders[variant]))
    assert max(answer.greedy) < _first_special(folders[variant])
    letters_first = ("qwen", "glm", "llava_onevision", "idefics3", "smolvlm")  # where others have control tokens
    assert min(answer.greedy) > 2 or model_type(folders[variant]).startswith(letters_first)
    assert len(set(answer.greedy)) > 5


@pytest.mark.parametrize(("variant", "case"), PICTURE_CASES, ids=_name)
def test_another_picture_gives_another_answer(folders: dict[str, Path], variant: str, case: Case) -> None:
    answer = _answer(folders[variant], case)
    others = [picture(width, height, seed + 100) for width, height, seed in case.sizes]
    wrong = reference(folders[variant], case.prompt, others, max_new_tokens=1)
    assert wrong.token_ids == answer.token_ids, "as many of them"
    assert np.abs(wrong.logits[-1] - answer.logits[-1]).max() > 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_order_of_pictures_counts(folders: dict[str, Path], variant: str) -> None:
    case = CASES[VARIANTS[variant][0]][1]
    swapped = reference(folders[variant], case.prompt, case.images()[::-1], max_new_tokens=1)
    answer = _answer(folders[variant], case)
    assert np.abs(swapped.logits[-1] - answer.logits[-1]).max() > 0.5


def _answer(folder: Path, case: Case) -> Reference:
    return reference(folder, case.prompt, case.images())


def _vocabulary(folder: Path) -> int:
    config = _json(folder / "config.json")
    return int(config.get("text_config", config).get("vocab_size") or config["vocab_size"])


def _first_special(folder: Path) -> int:
    return _vocabulary(folder) - 64


# --------------------------------------------------------------------------------------------- tokens and embeddings


def test_llava_ids(folders: dict[str, Path]) -> None:
    """BOS, 16 placeholders a picture, and a lone "▁" on both sides of it, as with Llama's tokenizer."""
    answer = _answer(folders["llava"], CASES["llava"][0])
    image = _first_special(folders["llava"])
    start = answer.token_ids.index(image)
    assert answer.token_ids[0] == 1
    assert answer.token_ids[start : start + 16] == [image] * 16
    space = answer.token_ids[start - 1]
    assert answer.token_ids[start + 16 : start + 18] == [space, 13]


def test_phi_ids(folders: dict[str, Path]) -> None:
    """Each piece of text has its BOS; `<|image|>` stands for picture positions; `<|assistant|>` eats the newline."""
    case = CASES["phi3_v"][1]
    answer, first = _answer(folders["phi3_v"], case), _first_special(folders["phi3_v"])
    assert answer.token_ids[:2] == [1, first + 10]
    assert answer.token_ids[-1] == first + 1
    assert answer.token_ids.count(1) == 1 + len(case.sizes)
    assert answer.token_ids.count(first + 44) == 457 + 757 + 781
    assert _answer(folders["phi3_v"], CASES["phi3_v"][2]).token_ids.count(1) == 1


def test_phi_prompt_may_begin_with_a_picture(folders: dict[str, Path]) -> None:
    ids = reference(folders["phi3_v"], "<|image_1|>", [picture(300, 200, 1)], max_new_tokens=1).token_ids
    image = _first_special(folders["phi3_v"]) + 44
    assert ids == [1, *[image] * 757, 1]


@pytest.mark.parametrize(
    ("size", "tokens"), [((320, 140), 457), ((140, 320), 469), ((400, 130), 601), ((300, 200), 757), ((60, 250), 781)]
)
def test_phi_picture_tokens(folders: dict[str, Path], size: tuple[int, int], tokens: int) -> None:
    """(rows * columns + 1) * 144 patches, one separator, and one end for each of the rows of tokens."""
    image = picture(*size, seed=1)
    (features,), batch = image_features(folders["phi3_v"], [image]), pixels(folders["phi3_v"], [image])
    rows, columns = batch["image_sizes"][0] // 336
    assert len(features) == tokens == (rows * columns + 1) * 144 + 1 + (rows + 1) * 12


@pytest.mark.parametrize("size", [(28, 28), (30, 20), (100, 70), (84, 200), (400, 300), (14, 700), (1000, 1000)])
def test_qwen_picture_tokens_and_pixels(folders: dict[str, Path], size: tuple[int, int]) -> None:
    image = picture(*size, seed=1)
    (features,), batch = image_features(folders["qwen2_vl"], [image]), pixels(folders["qwen2_vl"], [image])
    width, height = _qwen_size(*size)
    assert len(features) == width * height // 784
    assert batch["image_grid_thw"].tolist() == [[1, height // 14, width // 14]]
    assert batch["pixel_values"].shape == (width * height // 196, 3 * 2 * 14 * 14)


def _qwen_size(width: int, height: int, low: int = 3136, high: int = 64 * 784) -> tuple[int, int]:
    """Whole blocks of 28 pixels; area between the two limits; aspect kept as well as possible."""
    rounded = (round(width / 28) * 28, round(height / 28) * 28)
    if math.prod(rounded) > high:
        shrink = math.sqrt(width * height / high)
        return max(28, math.floor(width / shrink / 28) * 28), max(28, math.floor(height / shrink / 28) * 28)
    if math.prod(rounded) < low:
        grow = math.sqrt(low / (width * height))
        return math.ceil(width * grow / 28) * 28, math.ceil(height * grow / 28) * 28
    return rounded


def test_qwen_positions(folders: dict[str, Path]) -> None:
    """Text counts up in all rows; a picture spans its grid; the text behind starts after its largest position."""
    case = CASES["qwen2_vl"][0]
    ids = _answer(folders["qwen2_vl"], case).token_ids
    rows = positions(folders["qwen2_vl"], case.prompt, case.images())
    start = ids.index(_first_special(folders["qwen2_vl"]) + QWEN_TOKENS.index("<|image_pad|>"))
    assert rows[:, :start].tolist() == [list(range(start))] * 3
    assert (rows[:, start : start + 8] - start).tolist() == [[0] * 8, [0] * 4 + [1] * 4, [0, 1, 2, 3] * 2]
    behind = list(range(start + 4, start + 4 + len(ids) - start - 8))
    assert rows[:, start + 8 :].tolist() == [behind] * 3


def test_pictures_go_through_the_pil_backend(folders: dict[str, Path]) -> None:
    assert {type(load(folders[name])[1].image_processor).__name__ for name in ("llava", "llava_next", "qwen2_vl")} == {
        "CLIPImageProcessorPil",
        "LlavaNextImageProcessorPil",
        "Qwen2VLImageProcessorPil",
    }


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if "phi3_v" not in variant])
def test_image_features_are_what_the_model_inserts(folders: dict[str, Path], variant: str) -> None:
    """Text embeddings with these rows in the picture positions give the same logits as the pixels do."""
    folder, case = folders[variant], CASES[VARIANTS[variant][0]][1]
    answer, (model, _) = _answer(folder, case), load(folder)
    ids = torch.tensor(answer.token_ids)
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids).clone()
        made = torch.from_numpy(np.concatenate(image_features(folder, case.images())))
        rows, *levels = made.split(embeds.shape[1], dim=1)
        seen = ids == model.config.image_token_id
        embeds[seen] = rows
        deepstack = {"visual_pos_masks": seen[None], "deepstack_visual_embeds": levels} if levels else {}
        where = (
            positions(folder, case.prompt, case.images())
            if variant.startswith(("qwen", "glm"))
            else np.arange(len(ids))
        )
        place = torch.from_numpy(where).unsqueeze(-2)
        inner = model.model
        decoder = inner.text_model if hasattr(inner, "text_model") else inner.language_model
        hidden = decoder(inputs_embeds=embeds[None], position_ids=place, use_cache=False, **deepstack)
        logits = model.lm_head(hidden.last_hidden_state)[0]
    np.testing.assert_allclose(logits.numpy(), answer.logits, atol=1e-5)


# --------------------------------------------------------------------------------------------------- Phi-3.5's rope


def test_phi_switches_factors_when_the_sequence_outgrows_them(folders: dict[str, Path]) -> None:
    """Keys and values are kept inside a regime only: each step equals a fresh pass over its whole prefix."""
    model, case = phi3v.load(folders["phi3_v-switch-32"]), CASES["phi3_v"][2]
    answer = _answer(folders["phi3_v-switch-32"], case)
    prompt_len = len(answer.token_ids)
    assert prompt_len < 32 < prompt_len + len(answer.greedy) - 1
    sequence = answer.token_ids + answer.greedy
    with torch.no_grad():
        for length in range(prompt_len, len(sequence)):
            logits = model.decoder(torch.tensor([sequence[:length]])).logits[0, -1]
            assert int(logits.argmax()) == sequence[length]


def test_phi_factors_hold_for_the_whole_sequence(folders: dict[str, Path]) -> None:
    """One token more than the limit changes the logits of tokens long before it."""
    model = phi3v.load(folders["phi3_v-switch-32"])
    ids = torch.arange(300, 333)[None]
    with torch.no_grad():
        short, long = model.decoder(ids[:, :32]).logits[0], model.decoder(ids).logits[0]
    assert float((short[20] - long[20]).abs().max()) > 0.1


# -------------------------------------------------------------------------------------------------------- golden data

GOLDEN_CASES = _json(GOLDEN / "cases.json")["cases"] if GOLDEN.is_dir() else []


@pytest.mark.golden
@pytest.mark.skipif(not GOLDEN_CASES, reason="the golden data are not beside the checkout")
@pytest.mark.parametrize("case", GOLDEN_CASES, ids=lambda case: case["name"])
def test_phi_answers_as_the_published_code_does(case: dict[str, Any]) -> None:
    folder, images = GOLDEN / case["checkpoint"], [Image.open(GOLDEN / name) for name in case["images"]]
    answer = phi3v.reference(folder, case["prompt"], images, max_new_tokens=case["max_new_tokens"])
    image_id = phi3v.load(folder).image_id
    want = [image_id if index < 0 else index for index, count in case["prompt_ids_rle"] for _ in range(count)]
    assert answer.token_ids == want
    np.testing.assert_allclose(answer.logits[-8:], np.load(GOLDEN / case["logits"]), atol=1e-4)
    assert answer.greedy == case["token_ids"]
    np.testing.assert_allclose(answer.margins, case["margins"], atol=1e-4)


@pytest.mark.golden
@pytest.mark.skipif(not GOLDEN_CASES, reason="the golden data are not beside the checkout")
@pytest.mark.parametrize("case", [case for case in GOLDEN_CASES if case["images"]], ids=lambda case: case["name"])
def test_phi_pixels_equal_the_published_ones(case: dict[str, Any]) -> None:
    """To the last bit with the Pillow and torch that made them; else close, resizing being theirs."""
    images = [Image.open(GOLDEN / name) for name in case["images"]]
    batch, want = pixels(GOLDEN / case["checkpoint"], images), case["pixel_values"]
    values = batch["pixel_values"]
    assert batch["image_sizes"].tolist() == want["image_sizes"]
    assert list(values.shape) == want["shape"]
    if hashlib.sha256(values.tobytes()).hexdigest() != want["sha256"]:
        np.testing.assert_allclose(values[:, :3, :, 100:104, 60:124], np.load(GOLDEN / want["slice"]), atol=1e-5)
