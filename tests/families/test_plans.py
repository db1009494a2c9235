"""What becomes of a picture, from its size alone: as the reference processors do it, for any size and option."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as reference_resize

from fovea.core.errors import MediaLimitError
from fovea.families.base import Family
from fovea.families.phi3_v import crop_columns
from fovea.families.qwen2_vl import smart_resize
from fovea.families.registry import load_family
from fovea.media.decode import decode
from fovea.media.source import PilSource
from fovea.media.transform import apply_plan
from tests.oracle.checkpoints import CASES, QWEN_TOKENS, Case, picture
from tests.oracle.reference import pixels, positions
from tests.parity.support import FAMILIES, QWEN, Checkpoints, Engines, answer

SIZES = [(1, 1), (28, 28), (56, 57), (57, 56), (333, 56), (56, 333), (640, 480), (480, 640), (337, 336), (999, 1000)]


@pytest.fixture(scope="module")
def families(checkpoints: Checkpoints) -> dict[str, Family]:
    return {family: load_family(checkpoints.folder(family)) for family in FAMILIES}


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_llava_canvases_are_the_reference_pixels(
    checkpoints: Checkpoints, families: dict[str, Family], size: tuple[int, int]
) -> None:
    image, family = picture(*size, seed=3), families["llava"]
    want = pixels(checkpoints.folder("llava"), [image])["pixel_values"][0]
    canvas = apply_plan(decode(PilSource(image)), family.plan_image(*size, {}))
    np.testing.assert_allclose(_normalised(canvas, family), want, atol=1e-6)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", QWEN)
def test_qwen_grids_are_the_reference_grids(
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


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(width=st.integers(1, 4000), height=st.integers(1, 4000))
def test_a_plan_agrees_with_itself(families: dict[str, Family], family: str, width: int, height: int) -> None:
    """Canvas, grid, patches and tokens follow from one another; no plan is larger than the largest announced."""
    made = families[family]
    try:
        plan = made.plan_image(width, height, {})
    except MediaLimitError:
        assert max(width, height) / min(width, height) > 200
        return
    assert min(plan.canvas_width_px, plan.canvas_height_px) >= made.spec.tower.patch_px
    if plan.crop is None and plan.pad is None:
        assert (plan.canvas_width_px, plan.canvas_height_px) == (plan.resize_width_px, plan.resize_height_px)
    if max(width, height) <= 20 * min(width, height):
        assert plan.num_patches <= made.largest_picture({})
    _, rows, columns = plan.grid
    patch = made.spec.tower.patch_px
    if family == "phi3_v":
        assert (plan.canvas_width_px, plan.canvas_height_px) == (columns * 336, rows * 336)
        assert plan.num_tokens == (rows * columns + 1) * 144 + 1 + (rows + 1) * 12
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
        assert delta == 0
        if name in QWEN:
            assert rows is not None
            assert rows.tolist() == [[0, 1, 2, 3, 4]] * 3
        else:
            assert rows is None


def test_stop_tokens_are_those_of_the_folder(engines: Engines) -> None:
    ends = {
        "llava": {"</s>"},
        "qwen2_vl": {"<|im_end|>", "<|endoftext|>"},
        "qwen2_5_vl": {"<|im_end|>", "<|endoftext|>"},
        "phi3_v": {"</s>", "<|end|>", "<|endoftext|>"},
    }
    for family, texts in ends.items():
        llm = engines.get(family)
        assert llm._preparer._end_ids == {llm.get_tokenizer().token_id(text) for text in texts}
    assert len(QWEN_TOKENS) == 14
