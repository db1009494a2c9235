"""The cap on a CPU: a default that lowers what a model would take of a large picture, and gives way to whoever asks."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from fovea.core.config import EngineConfig
from fovea.core.types import ImagePlan
from fovea.engine.build import suited
from fovea.families.base import Family
from fovea.families.registry import load_family
from tests.parity.support import EVERY_FAMILY, Checkpoints

ANY_SIZE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "glm_ocr", "mistral3")
LARGE, CAP = (3000, 2000), 100_352  # 128 cells of 28 pixels


def family(checkpoints: Checkpoints, name: str, **most: Any) -> Family:
    """A model that takes pictures of 4,000 x 4,000; those of the tests are published with less."""
    loaded = load_family(checkpoints.folder(name))
    if name == "mistral3":
        loaded.longest_edge = 4000  # type: ignore[attr-defined]
    elif hasattr(loaded, "max_pixels"):
        loaded.max_pixels = 16_000_000
    return loaded


def area(plan: ImagePlan) -> int:
    return plan.canvas_width_px * plan.canvas_height_px


@pytest.mark.parametrize("name", ANY_SIZE)
def test_a_capped_model_shows_no_more_of_a_large_picture(checkpoints: Checkpoints, name: str) -> None:
    whole = family(checkpoints, name)
    capped = whole.with_pixel_cap(CAP, {})
    assert area(whole.plan_image(*LARGE, {})) > CAP
    assert 0.5 * CAP < area(capped.plan_image(*LARGE, {})) <= CAP
    assert capped.most_pixels({}) == CAP
    assert capped.largest_picture({}) < whole.largest_picture({})


@pytest.mark.parametrize("name", ANY_SIZE)
def test_a_picture_below_the_cap_is_what_it_was(checkpoints: Checkpoints, name: str) -> None:
    whole = family(checkpoints, name)
    assert whole.with_pixel_cap(CAP, {}).plan_image(300, 200, {}) == whole.plan_image(300, 200, {})


@pytest.mark.parametrize("name", ANY_SIZE)
def test_max_pixels_of_an_option_wins(checkpoints: Checkpoints, name: str) -> None:
    whole, options = family(checkpoints, name), {"max_pixels": 1_003_520}
    assert whole.with_pixel_cap(CAP, options) is whole
    capped = whole.with_pixel_cap(CAP, {})
    assert capped.plan_image(*LARGE, options) == whole.plan_image(*LARGE, options)


def test_min_pixels_of_an_option_lifts_the_cap(checkpoints: Checkpoints) -> None:
    whole, options = family(checkpoints, "qwen2_vl"), {"min_pixels": 200_704}
    capped = whole.with_pixel_cap(CAP, options)
    assert capped.most_pixels(capped.check_options(options)) == 200_704


@pytest.mark.parametrize("name", sorted(set(EVERY_FAMILY) - set(ANY_SIZE)))
def test_models_whose_pictures_are_tiles_are_left_alone(checkpoints: Checkpoints, name: str) -> None:
    loaded = load_family(checkpoints.folder(name))
    assert loaded.with_pixel_cap(CAP, {}) is loaded


def test_the_cap_is_for_cpus_can_be_left_out_and_is_told(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = family(checkpoints, "qwen2_vl")
    monkeypatch.setattr(logging.getLogger("fovea"), "propagate", True)
    caplog.set_level(logging.INFO, logger="fovea")
    config = EngineConfig(device="cpu")
    assert config.pixel_cap("cuda:0") == 0
    assert suited(EngineConfig(device="cpu", cpu_max_pixels=0), whole) is whole
    assert suited(EngineConfig(device="cpu", mm_processor_kwargs={"max_pixels": 2_000_000}), whole) is whole
    assert not caplog.records
    assert suited(config, whole).most_pixels({}) == config.cpu_max_pixels
    assert "at most 1003520 pixels, of 16000000 that the model takes" in caplog.text
