"""A client's pixel budget is kept to the pixel, whatever the size of the picture."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fovea.core.errors import MediaError, MediaLimitError
from fovea.core.types import ImagePlan, PixelBudget
from fovea.families.base import LOW_DETAIL_PIXELS, Family
from fovea.families.parts import largest_fitting
from fovea.families.registry import load_family
from tests.parity.support import EVERY_FAMILY, Checkpoints

MANY = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
OPTIONS: dict[str, dict[str, int]] = {
    "llava": {},
    "llava_next": {},
    "vipllava": {},
    "qwen2_vl": {"max_pixels": 1280 * 784},
    "qwen2_5_vl": {"max_pixels": 1280 * 784},
    "qwen3_vl": {"max_pixels": 1280 * 784},
    "glm4v": {"max_pixels": 1280 * 784},
    "glm_ocr": {"max_pixels": 1280 * 784},
    "phi3_v": {"num_crops": 16},
    "mistral3": {"longest_edge": 1540},
    "internvl": {},
    "ovis2": {},
    "gemma3": {},
    "paligemma": {},
    "aya_vision": {},
    "llava_next_video": {},
    "llava_onevision": {},
    "llava_siglip": {},
    "idefics3": {},
    "smolvlm": {},
}
SIDES = st.integers(1, 6000)


@pytest.fixture(scope="module")
def families(checkpoints: Checkpoints) -> dict[str, Family]:
    return {family: load_family(checkpoints.folder(family)) for family in EVERY_FAMILY}


def area(plan: ImagePlan) -> int:
    return plan.canvas_width_px * plan.canvas_height_px


def planned(family: Family, width: int, height: int, budget: PixelBudget) -> ImagePlan:
    try:
        return family.plan_within(width, height, OPTIONS[_name(family)], budget)
    except MediaLimitError:  # too elongated for the model, whatever the budget
        assume(False)
        raise


def _name(family: Family) -> str:
    names = {"Llava": "llava", "Qwen2VL": "qwen2_vl", "Qwen2_5VL": "qwen2_5_vl", "Phi3V": "phi3_v"}
    names |= {"LlavaNext": "llava_next", "VipLlava": "vipllava", "Mistral3": "mistral3", "InternVL": "internvl"}
    names |= {"Gemma3VL": "gemma3", "PaliGemma": "paligemma", "AyaVision": "aya_vision"}
    names |= {"LlavaNextVideo": "llava_next_video", "LlavaOnevision": "llava_onevision"}
    names |= {"Idefics3": "idefics3", "SmolVLM": "smolvlm", "Glm4V": "glm4v", "GlmOcr": "glm_ocr"}
    return (names | {"Ovis2": "ovis2", "Qwen3VL": "qwen3_vl"})[type(family).__name__]


def least(family: Family) -> int:
    tile = family.spec.tile_px**2
    sides = {"llava": tile, "vipllava": tile, "llava_next": 2 * tile, "phi3_v": tile}
    sides |= {"llava_next_video": 2 * tile, "llava_onevision": tile, "idefics3": tile, "smolvlm": tile}
    sides |= {"mistral3": 784, "internvl": tile, "ovis2": tile, "glm4v": 784, "glm_ocr": 784}
    sides |= {"gemma3": tile, "paligemma": tile, "aya_vision": tile}
    return (sides | {"qwen2_vl": 784, "qwen2_5_vl": 784, "qwen3_vl": 1024})[_name(family)]


@pytest.mark.parametrize("name", EVERY_FAMILY)
@given(width=SIDES, height=SIDES, share=st.floats(0, 1), detail=st.sampled_from(["auto", "low", "high"]))
@MANY
def test_a_cap_is_kept(
    families: dict[str, Family], name: str, width: int, height: int, share: float, detail: Any
) -> None:
    family = families[name]
    low, high = least(family), family.most_pixels(OPTIONS[name])
    cap = low + int(share * (high - low))
    assert area(planned(family, width, height, PixelBudget(detail, cap))) <= cap


@pytest.mark.parametrize("name", EVERY_FAMILY)
@given(width=SIDES, height=SIDES)
@MANY
def test_low_detail_is_at_most_512_by_512(families: dict[str, Family], name: str, width: int, height: int) -> None:
    assert area(planned(families[name], width, height, PixelBudget("low"))) <= LOW_DETAIL_PIXELS


@pytest.mark.parametrize("name", EVERY_FAMILY)
@given(width=SIDES, height=SIDES, detail=st.sampled_from(["auto", "high"]))
@MANY
def test_auto_and_high_are_what_the_options_say(
    families: dict[str, Family], name: str, width: int, height: int, detail: Any
) -> None:
    family = families[name]
    plan = planned(family, width, height, PixelBudget(detail))
    assert plan == family.plan_image(width, height, OPTIONS[name])


@given(width=SIDES, height=SIDES, cells=st.tuples(st.integers(1, 200), st.integers(1, 1280)))
@MANY
def test_a_least_is_kept_where_the_most_leaves_room(
    families: dict[str, Family], width: int, height: int, cells: tuple[int, int]
) -> None:
    low, high = cells[0] * 784, cells[1] * 784
    assume(4 * low <= high)
    used = area(planned(families["qwen2_vl"], width, height, PixelBudget("auto", high, low)))
    assert used <= high
    if max(width, height) <= 4 * min(width, height):
        assert used >= low


@pytest.mark.parametrize("name", EVERY_FAMILY)
@given(width=SIDES, height=SIDES)
@MANY
def test_the_token_grid_lies_over_the_canvas(families: dict[str, Family], name: str, width: int, height: int) -> None:
    """Cells are square; no picture has fewer tokens than its grid has cells."""
    family = families[name]
    plan = planned(family, width, height, PixelBudget())
    rows, columns = family.token_grid(plan)
    if name in ("llava_next", "llava_next_video", "llava_onevision"):  # of the part of the canvas that is no margin
        assert rows * 14 <= plan.canvas_height_px
        assert columns * 14 <= plan.canvas_width_px
        return
    assert plan.canvas_height_px * columns == plan.canvas_width_px * rows
    if name in (
        "phi3_v",
        "internvl",
        "aya_vision",
        "ovis2",
        "idefics3",
        "smolvlm",
    ):  # an overview or marks are beside them
        assert rows * columns < plan.num_tokens or (name not in ("phi3_v", "ovis2") and plan.view is None)
        return
    assert rows * columns == plan.num_tokens


@given(width=SIDES, height=SIDES, most=st.integers(784, 10**7))
@MANY
def test_the_largest_fitting_size_fits(width: int, height: int, most: int) -> None:
    used = largest_fitting(width, height, 28, most)
    assert used[0] * used[1] <= most
    assert all(side >= 28 and side % 28 == 0 for side in used)


def test_low_detail_stays_above_what_the_model_is_set_to_need(families: dict[str, Family]) -> None:
    options = {"min_pixels": 400_000, "max_pixels": 800_000}
    plan = families["qwen2_vl"].plan_within(2000, 1500, options, PixelBudget("low"))
    assert LOW_DETAIL_PIXELS < area(plan) <= 400_000


def test_no_wish_is_refused_by_a_server_with_less(families: dict[str, Family]) -> None:
    options = {"max_pixels": 100 * 784}
    for detail in ("low", "high"):
        plan = families["qwen2_vl"].plan_within(2000, 1500, options, PixelBudget(detail))
        assert plan == families["qwen2_vl"].plan_image(2000, 1500, options)


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_the_range_is_named(families: dict[str, Family], name: str) -> None:
    family = families[name]
    low, high = least(family), family.most_pixels(OPTIONS[name])
    for wrong, code in ((low - 1, "below_min_value"), (high + 1, "above_max_value")):
        with pytest.raises(MediaError, match=f"max_pixels is {wrong}; permitted here: {low} to {high}") as caught:
            family.plan_within(100, 100, OPTIONS[name], PixelBudget("auto", wrong))
        assert caught.value.code == code
