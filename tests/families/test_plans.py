"""What becomes of a picture, from its size alone: as the reference processors do it, for any size and option."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlavaNextProcessor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.idefics3 import image_processing_pil_idefics3 as idefics3_processing
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches, unpad_image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as reference_resize

from fovea.core.errors import MediaLimitError
from fovea.families.base import Family
from fovea.families.idefics3 import resized, tiles_of
from fovea.families.llava_next import LlavaNext, best_resolution
from fovea.families.phi3_v import crop_columns
from fovea.families.qwen2_vl import smart_resize
from fovea.families.registry import load_family
from fovea.media.decode import decode
from fovea.media.source import PilSource
from fovea.media.transform import apply_plan
from tests.oracle.checkpoints import CASES, QWEN_TOKENS, Case, picture
from tests.oracle.reference import load as oracle
from tests.oracle.reference import pixels, positions
from tests.parity.support import EVERY_FAMILY, GRIDDED, QWEN, Checkpoints, Engines, answer

SIZES = [(1, 1), (28, 28), (56, 57), (57, 56), (333, 56), (56, 333), (640, 480), (480, 640), (337, 336), (999, 1000)]


@pytest.fixture(scope="module")
def families(checkpoints: Checkpoints) -> dict[str, Family]:
    return {family: load_family(checkpoints.folder(family)) for family in EVERY_FAMILY}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["llava", "vipllava"])
def test_llava_canvases_are_the_reference_pixels(
    checkpoints: Checkpoints, families: dict[str, Family], name: str, size: tuple[int, int]
) -> None:
    image, family = picture(*size, seed=3), families[name]
    want = pixels(checkpoints.folder(name), [image])["pixel_values"][0]
    canvas = apply_plan(decode(PilSource(image)), family.plan_image(*size, {}))
    np.testing.assert_allclose(_normalised(canvas, family), want, atol=1e-6)


SPLIT_SIZES = [*SIZES, (232, 232), (233, 231), (58, 58), (59, 58), (600, 3), (2, 5000), (5000, 4999), (117, 116)]


@pytest.mark.parametrize("size", SPLIT_SIZES, ids=str)
@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_idefics_canvases_are_the_reference_pixels(
    checkpoints: Checkpoints, families: dict[str, Family], name: str, size: tuple[int, int]
) -> None:
    image, family = picture(*size, seed=3), families[name]
    views = pixels(checkpoints.folder(name), [image])["pixel_values"][0]
    plan = family.plan_image(*size, {})
    canvas = apply_plan(decode(PilSource(image)), plan)
    tiles = [canvas[y : y + 58, x : x + 58] for y in range(0, len(canvas), 58) for x in range(0, canvas.shape[1], 58)]
    ours = tiles[: plan.grid[1] * plan.grid[2] + (plan.view is not None)]
    assert len(ours) == len(views) == plan.num_patches // 16
    for got, want in zip(ours, views, strict=True):
        np.testing.assert_allclose(_normalised(got, family), want, atol=1e-6)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    width=st.integers(1, 6000),
    height=st.integers(1, 6000),
    tile=st.sampled_from([58, 364, 384, 512, 91]),
    longest=st.integers(1, 5000),
)
def test_idefics_tiles_are_transformers_own(width: int, height: int, tile: int, longest: int) -> None:
    theirs: Any = idefics3_processing
    new_height, new_width = theirs.get_resize_output_image_size(np.empty((3, height, width), bool), longest)
    assert resized(width, height, longest) == (new_width, new_height)
    told = SimpleNamespace(resize=lambda image, size, resample: np.empty((3, size.height, size.width), bool))
    kind = theirs.Idefics3ImageProcessorPil
    field = kind.resize_for_vision_encoder(told, np.empty((3, new_height, new_width), bool), tile)
    columns, rows = tiles_of(new_width, new_height, tile)
    assert field.shape[1:] == (rows * tile, columns * tile)
    assert rows * columns <= math.ceil((longest + longest % 2) / tile) ** 2


@pytest.mark.parametrize("size", [(90, 60), (58, 59), (1, 200), (700, 3), (400, 260)], ids=str)
def test_one_of_several_pictures_is_the_reference_square(
    checkpoints: Checkpoints, families: dict[str, Family], size: tuple[int, int]
) -> None:
    image, family = picture(*size, seed=3), families["llava_onevision"]
    want = oracle(checkpoints.folder("llava_onevision"))[1].image_processor(images=[[image, image]])["pixel_values"]
    canvas = apply_plan(decode(PilSource(image)), family.plan_image(*size, family.for_pictures({}, 2)))
    np.testing.assert_allclose(_normalised(canvas, family), want[0][0], atol=1e-6)


# Wide, tall, square, tiny, larger than every field, and lines so thin that nothing of them is left in a field.
NEXT_SIZES = [*SIZES, (112, 56), (168, 56), (300, 57), (57, 300), (112, 112), (40, 39), (113, 57), (600, 3), (2, 900)]


@pytest.mark.parametrize("size", NEXT_SIZES, ids=str)
def test_llava_next_canvases_are_the_reference_pixels_to_the_bit(
    checkpoints: Checkpoints, families: dict[str, Family], size: tuple[int, int]
) -> None:
    """The overview first, then the tiles in reading order: each level of each colour is the reference's own."""
    image, family = picture(*size, seed=3), families["llava_next"]
    views = pixels(checkpoints.folder("llava_next"), [image])["pixel_values"][0]
    plan = family.plan_image(*size, {})
    canvas = apply_plan(decode(PilSource(image)), plan)
    field, below = canvas[: plan.canvas_height_px], canvas[plan.canvas_height_px :]
    tiles = [field[y : y + 56, x : x + 56] for y in range(0, len(field), 56) for x in range(0, field.shape[1], 56)]
    ours = [below[:, :56], *tiles]
    assert len(ours) == len(views) == plan.num_patches // 16
    assert not below[:, 56:].any()
    levels = np.array(views) * np.array(family.spec.image_std)[:, None, None]
    levels = (levels + np.array(family.spec.image_mean)[:, None, None]) * 255
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
    np.testing.assert_array_equal(np.rint(levels).transpose(0, 2, 3, 1), np.stack(ours))


class _Published(LlavaNext):
    """The sizes of llava-v1.6, or others, without a folder."""

    def __init__(self, spec: Any, pinpoints: list[tuple[int, int]]) -> None:
        self.spec, self.pinpoints = spec, tuple(pinpoints)


def _published(family: Family, side: int, fields: list[tuple[int, int]]) -> _Published:
    tile = side * 14
    return _Published(replace(family.spec, tile_px=tile), [(rows * tile, columns * tile) for rows, columns in fields])


FIELDS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=7)
LONG = st.one_of(st.integers(1, 40), st.integers(1, 6000))


@settings(max_examples=500, deadline=None, derandomize=True)
@given(width=LONG, height=LONG, side=st.sampled_from([4, 5, 24]), fields=FIELDS)
def test_llava_next_counts_are_transformers_own(
    families: dict[str, Family], width: int, height: int, side: int, fields: list[tuple[int, int]]
) -> None:
    family = _published(families["llava_next"], side, fields)
    pinpoints = [list(pinpoint) for pinpoint in family.pinpoints]
    assert best_resolution(width, height, family.pinpoints) == select_best_resolution((height, width), pinpoints)
    tile = side * 14
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=pinpoints), patch_size=14, num_additional_image_tokens=1
    )
    processor._get_unpadded_features = partial(LlavaNextProcessor._get_unpadded_features, processor)
    counted: Any = LlavaNextProcessor._get_number_of_features
    plan = family.plan_image(width, height, {})
    assert plan.num_tokens == counted(processor, height, width, tile, tile) - 1
    assert plan.num_tokens in family._possible_counts()
    assert plan.num_patches == image_size_to_num_patches([height, width], pinpoints, tile) * side**2
    shape = (1, plan.canvas_height_px // 14, plan.canvas_width_px // 14)
    assert plan.grid[1:] == tuple(unpad_image(torch.empty(shape), [height, width]).shape[1:])
    assert max(plan.num_patches, plan.num_tokens) <= family.largest_picture({})


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", GRIDDED)
def test_grids_are_the_reference_grids(
    checkpoints: Checkpoints, families: dict[str, Family], name: str, size: tuple[int, int]
) -> None:
    image = picture(*size, seed=3)
    want = pixels(checkpoints.folder(name), [image])
    plan = families[name].plan_image(*size, {})
    assert [list(plan.grid)] == want["image_grid_thw"].tolist()
    assert plan.num_patches == len(want["pixel_values"])
    assert plan.num_tokens == plan.num_patches // 4


@pytest.mark.parametrize("size", [*SIZES, (1344, 336), (336, 1344), (5, 900), (900, 5)], ids=str)
def test_phi_canvases_are_the_reference_sizes(
    checkpoints: Checkpoints, families: dict[str, Family], size: tuple[int, int]
) -> None:
    image = picture(*size, seed=3)
    want = pixels(checkpoints.folder("phi3_v"), [image])
    plan = families["phi3_v"].plan_image(*size, {})
    assert [[plan.canvas_height_px, plan.canvas_width_px]] == want["image_sizes"].tolist()


def _normalised(canvas: Any, family: Family) -> Any:
    wide = canvas.astype(np.float32) / 255
    return ((wide - np.array(family.spec.image_mean)) / np.array(family.spec.image_std)).transpose(2, 0, 1)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    width=st.integers(1, 6000),
    height=st.integers(1, 6000),
    low=st.integers(1, 40_000),
    spread=st.integers(0, 4_000_000),
)
def test_smart_resize_is_transformers_own(width: int, height: int, low: int, spread: int) -> None:
    if max(width, height) > 200 * min(width, height):
        return
    high = max(784, low) + spread
    want_height, want_width = reference_resize(height, width, 28, low, high)
    assert smart_resize(width, height, 28, low, high) == (want_width, want_height)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(width=st.integers(1, 5000), height=st.integers(1, 5000), num_crops=st.integers(1, 64))
def test_phi_never_uses_more_crops_than_permitted(width: int, height: int, num_crops: int) -> None:
    ratio = max(width, height) / min(width, height)
    columns = crop_columns(ratio, num_crops)
    rows = math.ceil(columns / ratio)
    assert columns >= 1
    assert columns * rows <= num_crops
    assert (columns + 1) * math.ceil((columns + 1) / ratio) > num_crops, "one more column would not fit"


@pytest.mark.parametrize("family", EVERY_FAMILY)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(width=st.integers(1, 4000), height=st.integers(1, 4000))
def test_a_plan_agrees_with_itself(families: dict[str, Family], family: str, width: int, height: int) -> None:
    """Canvas, grid, patches and tokens follow from one another; no plan is larger than the largest announced."""
    made = families[family]
    try:
        plan = made.plan_image(width, height, {})
    except MediaLimitError:
        assert max(width, height) / min(width, height) > (168 if family == "mistral3" else 200)
        return
    assert min(plan.canvas_width_px, plan.canvas_height_px) >= made.spec.tower.patch_px
    if plan.crop is None and plan.pad is None and plan.view is None:
        assert (plan.canvas_width_px, plan.canvas_height_px) == (plan.resize_width_px, plan.resize_height_px)
    if max(width, height) <= 20 * min(width, height):
        assert plan.num_patches <= made.largest_picture({})
    _, rows, columns = plan.grid
    patch = made.spec.tower.patch_px
    if family == "phi3_v":
        assert (plan.canvas_width_px, plan.canvas_height_px) == (columns * 336, rows * 336)
        assert plan.num_tokens == (rows * columns + 1) * 144 + 1 + (rows + 1) * 12
    elif family in ("idefics3", "smolvlm"):
        views = rows * columns + (plan.view is not None)
        assert (plan.canvas_width_px, plan.canvas_height_px) == (columns * 58, rows * 58)
        assert (plan.num_patches, plan.num_tokens) == (views * 16, views * 4)
    elif family == "llava_onevision":
        assert plan.num_patches == plan.canvas_width_px * plan.canvas_height_px // 58**2 * 16 + 16
        assert plan.num_tokens <= 16 + int(5 * 16 * 1.1**2) + 16
    elif family == "llava_siglip":
        assert (plan.num_patches, plan.num_tokens, plan.canvas_width_px) == (16, 16, 58)
    elif family in ("llava_next", "llava_next_video"):
        assert rows * patch <= plan.canvas_height_px
        assert columns * patch <= plan.canvas_width_px
        assert plan.num_patches == plan.canvas_width_px * plan.canvas_height_px // patch**2 + 16
        assert plan.num_tokens == 16 + rows * (columns + 1)
    elif family == "gemma3":
        assert (plan.canvas_width_px, plan.canvas_height_px, plan.num_patches) == (56, 56, 16)
        assert plan.num_tokens == rows * columns == 4
    elif family in ("internvl", "aya_vision", "ovis2"):
        views, marks = rows * columns + (rows * columns > 1), rows * columns + 2 if family == "ovis2" else 0
        assert (plan.canvas_width_px, plan.canvas_height_px) == (columns * 56, rows * 56)
        assert (plan.num_patches, plan.num_tokens) == (views * 16, views * 4 + marks)
    else:
        assert (plan.canvas_width_px, plan.canvas_height_px) == (columns * patch, rows * patch)
        assert plan.num_patches == rows * columns == plan.num_tokens * made.spec.projector.merge**2


@pytest.mark.parametrize("family", QWEN)
def test_qwen_positions_are_the_reference_positions(checkpoints: Checkpoints, engines: Engines, family: str) -> None:
    see = "<|vision_start|><|image_pad|><|vision_end|>"
    cases = [
        *CASES["qwen2_vl"][:2],
        Case("bare", see * 2, ((60, 200, 1), (200, 60, 2))),
        Case("end", f"a{see}", ((28, 28, 1),)),
    ]
    folder, llm = checkpoints.folder(family), engines.get(family)
    for case in cases:
        want = positions(folder, case.prompt, case.images())
        ids = answer(folder, case).token_ids
        grids = [llm.family.plan_image(width, height, {}).grid for width, height, _ in case.sizes]
        spans = _spans(ids, llm.get_tokenizer().token_id("<|image_pad|>"), [g[1] * g[2] // 4 for g in grids])
        rows, delta = llm.family.positions(len(ids), spans, grids)
        assert rows is not None
        np.testing.assert_array_equal(rows, want)
        assert delta == want.max() + 1 - len(ids)


def _spans(ids: list[int], placeholder: int, counts: list[int]) -> list[Any]:
    from fovea.core.types import MediaSpan

    spans, start = [], 0
    for count in counts:
        start = ids.index(placeholder, start)
        spans.append(MediaSpan(start, count))
        start += count
    return spans


def test_text_has_plain_positions_in_every_family(families: dict[str, Family]) -> None:
    for name, family in families.items():
        rows, delta = family.positions(5, [], [])
        if name == "paligemma":  # which counts from 1
            assert rows is not None
            assert (rows.tolist(), delta) == ([[1, 2, 3, 4, 5]], 1)
            continue
        assert delta == 0
        if name in GRIDDED:
            assert rows is not None
            assert rows.tolist() == [[0, 1, 2, 3, 4]] * 3
        else:
            assert rows is None


def test_stop_tokens_are_those_of_the_folder(engines: Engines) -> None:
    ends = {
        "llava": {"</s>"},
        "llava_next": {"</s>"},
        "vipllava": {"</s>"},
        "qwen2_vl": {"<|im_end|>", "<|endoftext|>"},
        "qwen2_5_vl": {"<|im_end|>", "<|endoftext|>"},
        "qwen3_vl": {"<|im_end|>", "<|endoftext|>"},
        "glm4v": {"<|endoftext|>", "<|user|>", "<|observation|>"},
        "phi3_v": {"</s>", "<|end|>", "<|endoftext|>"},
        "mistral3": {"</s>"},
        "internvl": {"<|im_end|>", "<|endoftext|>"},
        "ovis2": {"<|im_end|>", "<|endoftext|>"},
    }
    for family, texts in ends.items():
        llm = engines.get(family)
        assert llm._preparer._end_ids == {llm.get_tokenizer().token_id(text) for text in texts}
    assert len(QWEN_TOKENS) == 14
