"""Models whose pictures are cut into tiles or end their rows with text: all as transformers has it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import Ovis2Processor, PixtralProcessor
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.ovis2.image_processing_ovis2 import get_min_tile_covering_grid
from transformers.models.pixtral.image_processing_pixtral import get_resize_output_image_size

from fovea.core.errors import EmbeddingsError, InvalidOptionError, MediaLimitError, UnsupportedModelError
from fovea.core.types import ROW, ImagePlan
from fovea.families.base import Family
from fovea.families.internvl import nearest_field
from fovea.families.ovis2 import covering_field
from fovea.families.registry import load_family
from fovea.media.decode import decode
from fovea.media.source import PilSource
from fovea.media.transform import apply_plan
from fovea.prompt.build import PictureRun, picture_run
from fovea.prompt.tokenizer import Tokenizer
from tests.oracle.checkpoints import picture
from tests.oracle.reference import pixels
from tests.parity.support import SPANS, Checkpoints

MANY = settings(max_examples=300, deadline=None, derandomize=True)
SIDES = st.one_of(st.integers(1, 60), st.integers(1, 6000))
ROWS = ("mistral3", "pixtral")
TILES = ("internvl", "ovis2")


@pytest.fixture(scope="module")
def families(checkpoints: Checkpoints) -> dict[str, Family]:
    return {name: load_family(checkpoints.folder(name)) for name in {*SPANS, *ROWS}}


@pytest.fixture(scope="module")
def tokenizers(checkpoints: Checkpoints) -> dict[str, Tokenizer]:
    return {name: Tokenizer.load(checkpoints.folder(name)) for name in {*SPANS, *ROWS}}


def run_of(family: Family, tokenizer: Tokenizer, plan: ImagePlan) -> PictureRun:
    return picture_run(family, tokenizer, plan.grid, plan.num_tokens)


@pytest.mark.parametrize("name", ROWS)
@given(width=SIDES, height=SIDES, longest=st.integers(1, 2000))
@MANY
def test_a_picture_s_rows_are_the_reference_processor_s(
    families: dict[str, Family], tokenizers: dict[str, Tokenizer], name: str, width: int, height: int, longest: int
) -> None:
    family, cell = families[name], 28 if name == "mistral3" else 16
    image = np.broadcast_to(np.zeros((), np.uint8), (height, width, 3))
    want = get_resize_output_image_size(image, (longest, longest), (cell, cell), "channels_last")
    if 0 in want:
        with pytest.raises(MediaLimitError, match="too elongated"):
            family.plan_image(width, height, {"longest_edge": longest})
        return
    plan = family.plan_image(width, height, {"longest_edge": longest})
    assert (plan.canvas_height_px, plan.canvas_width_px) == want
    run = run_of(family, tokenizers[name], plan)
    assert run.length + 1 == len(run.token_ids(0)) <= family.largest_picture({"longest_edge": longest}) + 1
    assert plan.num_patches <= family.largest_picture({"longest_edge": longest})
    text = _pixtral_text(name, want)
    assert tokenizers[name].encode(text, add_special_tokens=False) == run.token_ids(_id(tokenizers[name], "[IMG]"))


def _pixtral_text(name: str, size: tuple[int, int]) -> str:
    merge, patch = (2, 14) if name == "mistral3" else (1, 16)
    made = SimpleNamespace(
        patch_size=patch,
        spatial_merge_size=merge,
        image_token="[IMG]",
        image_break_token="[IMG_BREAK]",
        image_end_token="[IMG_END]",
    )
    replace: Any = getattr(PixtralProcessor, "replace_image_token", None)
    if replace is None:  # older ones have it inside __call__
        rows, columns = (side // patch // merge for side in size)
        return "[IMG_BREAK]".join(["[IMG]" * columns] * rows) + "[IMG_END]"
    return str(replace(made, {"image_sizes": [size]}, 0))


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_id(token)
    assert found is not None
    return found


@given(width=SIDES, height=SIDES, low=st.integers(1, 12), more=st.integers(0, 20), tile=st.sampled_from([56, 384, 448]))
@MANY
def test_internvl_s_fields_are_the_reference_s(width: int, height: int, low: int, more: int, tile: int) -> None:
    want = get_optimal_tiled_canvas((height, width), (tile, tile), low, low + more)
    assert nearest_field(width, height, tile, low, low + more) == want


@given(width=SIDES, height=SIDES, high=st.integers(1, 12), tile=st.sampled_from([56, 384, 448]))
@MANY
def test_ovis2_s_fields_are_the_reference_s(width: int, height: int, high: int, tile: int) -> None:
    assert covering_field(width, height, tile, high) == get_min_tile_covering_grid((height, width), tile, high)


@given(width=SIDES, height=SIDES)
@MANY
def test_ovis2_s_tokens_are_the_reference_s(
    families: dict[str, Family], tokenizers: dict[str, Tokenizer], width: int, height: int
) -> None:
    family, tokenizer = families["ovis2"], tokenizers["ovis2"]
    plan = family.plan_image(width, height, {})
    run = run_of(family, tokenizer, plan)
    assert run.inside is None, "no token of it is text"
    assert run.length == plan.num_tokens <= family.largest_picture({})
    replace: Any = getattr(Ovis2Processor, "replace_image_token", None)
    if replace is not None:
        text = replace(SimpleNamespace(image_seq_length=4), {"grids": np.array([plan.grid[1:]])}, 0)
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == run.token_ids(_id(tokenizer, "<IMG_ATOM>"))


@pytest.mark.parametrize("size", [(1, 1), (56, 56), (57, 56), (333, 56), (56, 333), (640, 480), (200, 200), (600, 3)])
@pytest.mark.parametrize("name", TILES)
def test_tiles_are_the_reference_pixels_to_the_bit(
    checkpoints: Checkpoints, families: dict[str, Family], name: str, size: tuple[int, int]
) -> None:
    image, family = picture(*size, seed=3), families[name]
    plan = family.plan_image(*size, {})
    canvas = apply_plan(decode(PilSource(image)), plan)
    field, below = canvas[: plan.canvas_height_px], canvas[plan.canvas_height_px :]
    ours = [field[y : y + 56, x : x + 56] for y in range(0, len(field), 56) for x in range(0, field.shape[1], 56)]
    overview = [below[:, :56]] if plan.view else []
    ours = [*overview, *ours] if name == "ovis2" else [*ours, *overview]
    want = pixels(checkpoints.folder(name), [image])["pixel_values"]
    levels = want * np.array(family.spec.image_std)[:, None, None] + np.array(family.spec.image_mean)[:, None, None]
    np.testing.assert_allclose(levels * 255, np.rint(levels * 255), atol=1e-3)
    np.testing.assert_array_equal(np.rint(levels * 255).transpose(0, 2, 3, 1), np.stack(ours))


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (57, 56), (333, 56), (56, 333), (640, 480), (600, 4)])
def test_mistral_canvases_are_the_reference_pixels(
    checkpoints: Checkpoints, families: dict[str, Family], size: tuple[int, int]
) -> None:
    image, family = picture(*size, seed=3), families["mistral3"]
    canvas = apply_plan(decode(PilSource(image)), family.plan_image(*size, {}))
    want = pixels(checkpoints.folder("mistral3"), [image])["pixel_values"][0]
    mean, std = (np.array(values)[:, None, None] for values in (family.spec.image_mean, family.spec.image_std))
    np.testing.assert_allclose((canvas.transpose(2, 0, 1) / 255 - mean) / std, want, atol=1e-6)


def test_text_stands_where_it_should(families: dict[str, Family], tokenizers: dict[str, Tokenizer]) -> None:
    family, tokenizer = families["mistral3"], tokenizers["mistral3"]
    run = run_of(family, tokenizer, family.plan_image(84, 56, {}))
    end_of_line = _id(tokenizer, "[IMG_BREAK]")
    assert run.inside == run.shown == (ROW, ROW, ROW, end_of_line, ROW, ROW, ROW)
    assert run.after == (_id(tokenizer, "[IMG_END]"),)
    run = run_of(families["internvl"], tokenizers["internvl"], families["internvl"].plan_image(56, 56, {}))
    assert (run.length, run.inside) == (4, None)
    assert (len(run.before), len(run.after)) == (1, 1)


@pytest.mark.parametrize("name", TILES)
def test_the_range_of_tiles_is_checked(families: dict[str, Family], name: str) -> None:
    family = families[name]
    assert family.check_options({"max_patches": 2}) == {"max_patches": 2}
    assert family.plan_image(300, 100, {"max_patches": 1}).view is None
    for wrong in ({"min_patches": 7}, {"max_patches": 65}, {"min_patches": 3, "max_patches": 2}):
        with pytest.raises(InvalidOptionError, match="permitted: min_patches <= max_patches <= 64"):
            family.check_options(wrong)


def test_mistral_s_pixels_are_capped(families: dict[str, Family]) -> None:
    family = families["mistral3"]
    with pytest.raises(InvalidOptionError, match="784 or more"):
        family.check_options({"max_pixels": 783})
    plan = family.plan_image(168, 168, {"max_pixels": 10 * 784})
    assert plan.canvas_width_px * plan.canvas_height_px <= 10 * 784


@pytest.mark.parametrize("name", SPANS)
def test_embeddings_of_no_picture_are_refused(families: dict[str, Family], name: str) -> None:
    with pytest.raises(EmbeddingsError):
        families[name].embeds_grid(1013, None)


@pytest.mark.parametrize("name", SPANS)
@pytest.mark.parametrize("said", [True, False, None])
@pytest.mark.parametrize("published", [True, False])
def test_a_head_in_the_checkpoint_is_one_of_its_own(
    checkpoints: Checkpoints, tmp_path: Path, name: str, said: bool | None, published: bool
) -> None:
    folder = tmp_path / name
    shutil.copytree(checkpoints.folder(name), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["tie_word_embeddings"] = said
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = {key: value for key, value in load_file(folder / "model.safetensors").items() if "lm_head" not in key}
    if published:
        weights["lm_head.weight"] = torch.ones(1)
    save_file(weights, folder / "model.safetensors")
    usual = name not in ("idefics3", "smolvlm")
    assert load_family(folder).spec.decoder.tied_head == ((usual if said is None else said) and not published)
    (folder / "model.safetensors").unlink()
    assert load_family(folder).spec.decoder.tied_head == bool(said)


def _setting(*path: str, to: object, file: str = "config.json") -> tuple[str, Callable[[dict[str, Any]], None]]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return file, change


WRONG = {
    "mistral3": [
        _setting("projector_hidden_act", to="relu"),
        _setting("vision_config", "hidden_act", to="relu"),
        _setting("vision_config", "head_dim", to=8),
        _setting("vision_config", "rope_parameters", to={"rope_type": "linear"}),
        _setting("do_center_crop", to=True, file="preprocessor_config.json"),
        _setting("size", to={"height": 1, "width": 1}, file="preprocessor_config.json"),
    ],
    "pixtral": [_setting("vision_feature_select_strategy", to="default")],
    "internvl": [
        _setting("downsample_ratio", to=0.3),
        _setting("vision_config", "use_mean_pooling", to=False),
        _setting("vision_config", "image_size", to=[56, 84]),
        _setting("vision_config", "model_type", to="clip"),
        _setting("vision_feature_layer", to=[-1, -2]),
        _setting("vision_feature_select_strategy", to="full"),
        _setting("size", to={"height": 84, "width": 84}, file="preprocessor_config.json"),
        _setting("max_patches", to=65, file="preprocessor_config.json"),
        _setting("do_rescale", to=False, file="preprocessor_config.json"),
    ],
    "ovis2": [
        _setting("vision_config", "tokenize_function", to="gumbel_argmax"),
        _setting("vision_config", "num_visual_indicator_tokens", to=4),
        _setting("vision_config", "hidden_stride", to=3),
        _setting("vision_config", "qkv_bias", to=True),
        _setting("hidden_size", to=32),
    ],
}
EVERY_WRONG = [(name, *wrong) for name, all_wrong in WRONG.items() for wrong in all_wrong]


@pytest.mark.parametrize(("name", "file", "change"), EVERY_WRONG)
def test_a_setting_that_would_change_the_answer_is_refused(
    checkpoints: Checkpoints, tmp_path: Path, name: str, file: str, change: Callable[[dict[str, Any]], None]
) -> None:
    folder = tmp_path / name
    shutil.copytree(checkpoints.folder(name), folder)
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    change(content)
    (folder / file).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="supported|permitted|the tower takes"):
        load_family(folder)
