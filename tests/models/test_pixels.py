"""Plans carried out on the device give media.transform's canvases, bit for bit, one by one and many together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fovea.core.errors import MediaLimitError
from fovea.core.params import SamplingParams
from fovea.core.types import Box, ImagePlan, MediaItem, Picture
from fovea.families.base import Family
from fovea.families.registry import load_family
from fovea.media import transform
from fovea.models import pixels
from fovea.models.encoders import KNOWN_GRIDS, MergedGridEncoder
from fovea.models.pixels import apply_plan, make_canvases, upload
from fovea.pipeline.pictures import fits_device
from tests.oracle.checkpoints import CASES
from tests.parity.support import EVERY_FAMILY, Checkpoints, Engines, question

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
SIDES = st.one_of(st.integers(1, 30), st.integers(1, 400))
OPTIONS: dict[str, dict[str, int]] = {
    "qwen2_vl": {"max_pixels": 60 * 784},
    "qwen2_5_vl": {"max_pixels": 50 * 784},
    "qwen3_vl": {"max_pixels": 50 * 1024},
    "glm4v": {"max_pixels": 50 * 784},
    "glm_ocr": {"max_pixels": 50 * 784},
    "phi3_v": {"num_crops": 3},
}


@pytest.fixture(scope="module")
def families(checkpoints: Checkpoints) -> dict[str, Family]:
    return {family: load_family(checkpoints.folder(family)) for family in EVERY_FAMILY}


ON_HOST = ("idefics3", "smolvlm")  # their pictures are resized twice, by Lanczos, which the device doesn't do


def noise(width: int, height: int, seed: int = 0) -> Picture:
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    array.setflags(write=False)
    return Picture(array, b"")


def on_device(picture: Picture, plan: ImagePlan) -> NDArray[np.uint8]:
    canvas = apply_plan(torch.from_numpy(picture.pixels.copy()).to(DEVICE), plan)
    assert canvas.is_contiguous()
    return canvas.cpu().numpy()


@pytest.mark.parametrize("name", EVERY_FAMILY)
@given(width=SIDES, height=SIDES)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_plans_of_every_family_give_the_same_canvas(
    families: dict[str, Family], name: str, width: int, height: int
) -> None:
    try:
        plan = families[name].plan_image(width, height, OPTIONS.get(name, {}))
    except MediaLimitError:  # too elongated
        assume(False)
        raise
    assume(plan.resize_width_px * plan.resize_height_px < 2_000_000)
    picture = noise(width, height, seed=width)
    if name in ON_HOST:
        assert not fits_device(plan, width, height)
        return
    np.testing.assert_array_equal(on_device(picture, plan), transform.apply_plan(picture, plan))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(
    ("crop", "pad"),
    [
        (None, None),
        (Box(1, 2, 9, 7), None),
        (Box(-3, -2, 15, 14), None),
        (Box(-5, 2, 3, 30), Box(1, 0, 2, 3)),
        (Box(20, 20, 24, 23), None),
        (Box(-9, -9, -5, -6), None),
        (None, Box(0, 4, 0, 5)),
    ],
    ids=str,
)
def test_every_step_of_a_plan_is_the_same(transpose: bool, crop: Box | None, pad: Box | None) -> None:
    width, height = (12, 11) if crop is None else (crop.right - crop.left, crop.bottom - crop.top)
    if pad is not None:
        width, height = width + pad.left + pad.right, height + pad.top + pad.bottom
    canvas = (height, width) if transpose else (width, height)
    plan = ImagePlan(
        12, 11, "bicubic", *canvas, (1, 1, 1), 1, 1, transpose=transpose, crop=crop, pad=pad, pad_value=200
    )
    for size in ((12, 11), (11, 12), (12, 30), (40, 11), (7, 5)):
        picture = noise(*size)
        np.testing.assert_array_equal(on_device(picture, plan), transform.apply_plan(picture, plan))


def test_a_canvas_keeps_nothing_else_alive(families: dict[str, Family]) -> None:
    """Pictures that their plans leave as they are, or just crop, or resize."""
    made = items(families["llava"], {}, [(56, 56)] * 4 + [(56, 90)] * 4 + [(90, 90)] * 4, whole=False)
    canvases = make_canvases([item for item in made if item.plan is not None], DEVICE)
    assert [canvas.untyped_storage().nbytes() for canvas in canvases] == [56 * 56 * 3] * len(canvases)


def test_a_plan_that_breaks_its_own_promise_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="promises"):
        on_device(noise(8, 6), ImagePlan(4, 4, "bicubic", 5, 5, (1, 1, 1), 1, 1))


def test_what_is_uploaded_together_arrives_apart() -> None:
    arrays: list[NDArray[Any]] = [
        noise(3, 5).pixels,
        np.arange(7, dtype=np.int32),
        noise(1, 1, 1).pixels,
        np.full((2, 3), -1, np.int32),
    ]
    for array, tensor in zip(arrays, upload(arrays, DEVICE), strict=True):
        np.testing.assert_array_equal(tensor.cpu().numpy(), array)
        assert tensor.data_ptr() % 16 == 0, "kernels are compiled for it once"


def items(family: Family, options: dict[str, int], sizes: list[tuple[int, int]], *, whole: bool) -> list[MediaItem]:
    """Pictures with their plans; without `whole` every third is a finished canvas."""
    made = []
    for number, size in enumerate(sizes):
        picture, plan = noise(*size, seed=number), family.plan_image(*size, options)
        item = MediaItem(bytes([number]), plan.num_tokens, plan.num_patches, plan.grid)
        pixels_of: dict[str, Any] = {"pixels": picture.pixels, "plan": plan}
        if whole or number % 3 == 0:
            pixels_of = {"canvas": transform.apply_plan(picture, plan)}
        made.append(replace(item, **pixels_of))
    return made


SIZES = [(100, 70), (30, 20), (300, 200), (84, 120), (28, 28), (57, 56), (400, 90)]


@pytest.mark.parametrize("at_once", [1, 20_000, 10**9])
def test_pictures_of_all_kinds_keep_their_order(
    families: dict[str, Family], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "UPLOAD_BYTES", at_once)
    mixed, finished = (items(families["qwen2_vl"], {}, SIZES, whole=whole) for whole in (False, True))
    for canvas, item in zip(make_canvases(mixed, DEVICE), finished, strict=True):
        np.testing.assert_array_equal(canvas.cpu().numpy(), item.canvas)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no card")
def test_the_host_does_not_wait_for_a_card(families: dict[str, Family]) -> None:
    for name in set(EVERY_FAMILY) - set(ON_HOST):
        mixed = items(families[name], {}, SIZES, whole=False)
        make_canvases(mixed, DEVICE)
        torch.cuda.set_sync_debug_mode("error")
        try:
            make_canvases(mixed, DEVICE)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", [name for name in EVERY_FAMILY if name not in ON_HOST])
def test_the_rows_do_not_tell_who_resized(engines: Engines, name: str) -> None:
    llm = engines.get(name)
    mixed, finished = (items(llm.family, {}, SIZES[:4], whole=whole) for whole in (False, True))
    with torch.inference_mode():
        for one, other in zip(llm.engine.model.encode(mixed), llm.engine.model.encode(finished), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_an_engine_that_resizes_answers_the_same(engines: Engines, name: str) -> None:
    answers = []
    for resize_on_device in (False, True):
        llm = engines.get(name, resize_on_device=resize_on_device)
        outputs = [llm.generate(question(case), GREEDY, use_tqdm=False)[0] for case in CASES[name]]
        answers.append([(output.prompt_token_ids, output.outputs[0].token_ids) for output in outputs])
    assert answers[0] == answers[1]


def test_places_of_patches_are_kept_for_the_latest_sizes_only(engines: Engines) -> None:
    encoder = engines.get("qwen2_vl").engine.model.encoder
    assert isinstance(encoder, MergedGridEncoder)
    device = next(encoder.parameters()).device
    for columns in range(2, 2 * KNOWN_GRIDS + 4, 2):
        frame = encoder._frame(4, columns, device)
        assert frame.places.shape == (4 * columns, 2)
        assert frame.places[:4].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]], "the first block"
        assert encoder._frame(4, columns, device) is frame
    assert len(encoder._known_frames) == KNOWN_GRIDS
