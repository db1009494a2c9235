"""Pictures to rows: as transformers makes them, for one picture and for many of different sizes in one pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fovea.core.types import ROW, MediaItem
from fovea.media.decode import decode
from fovea.media.source import PilSource
from fovea.media.transform import apply_plan
from fovea.models.encoders import window_order, window_sizes
from fovea.models.vlm import VLM
from tests.oracle.checkpoints import picture
from tests.oracle.reference import image_features
from tests.parity.support import EVERY_FAMILY, Checkpoints, Engines

SIZES = {
    "llava": [(90, 60), (40, 120), (56, 56), (300, 57), (13, 9)],
    "llava_next": [(90, 60), (40, 120), (56, 56), (300, 57), (13, 9), (112, 112), (400, 131), (9, 200), (600, 3)],
    "vipllava": [(90, 60), (40, 120), (56, 56), (13, 9)],
    "qwen2_vl": [(100, 70), (30, 20), (400, 300), (84, 200), (14, 700), (28, 28)],
    "qwen2_5_vl": [(100, 70), (30, 20), (400, 300), (84, 84), (84, 200), (14, 700), (168, 252), (28, 28)],
    "qwen3_vl": [(100, 70), (30, 20), (400, 300), (84, 200), (14, 700), (32, 32), (320, 320)],
    "glm4v": [(100, 70), (30, 20), (400, 300), (84, 200), (14, 700), (28, 28), (140, 140), (5, 9)],
    "glm_ocr": [(100, 70), (30, 20), (400, 300), (84, 200), (28, 28)],
    "mistral3": [(100, 70), (30, 20), (400, 300), (84, 200), (14, 700), (28, 28)],
    "internvl": [(90, 60), (40, 120), (56, 56), (300, 57), (13, 9), (112, 112), (400, 131), (600, 3)],
    "ovis2": [(90, 60), (40, 120), (56, 56), (300, 57), (13, 9), (112, 112), (400, 131), (600, 3)],
    "llava_next_video": [(90, 60), (40, 120), (300, 57), (13, 9), (112, 112), (600, 3)],
    "llava_onevision": [(90, 60), (40, 120), (58, 58), (300, 57), (13, 9), (600, 3), (2, 700)],
    "llava_siglip": [(90, 60), (40, 120), (58, 58), (13, 9)],
    "idefics3": [(90, 60), (40, 120), (58, 58), (300, 57), (13, 9), (232, 232), (401, 131), (600, 3), (2, 5000)],
    "smolvlm": [(90, 60), (40, 120), (58, 58), (301, 57), (13, 9), (3, 600)],
    "phi3_v": [(300, 200), (160, 220), (60, 250), (5, 5)],
    "gemma3": [(90, 60), (40, 120), (56, 56), (300, 57), (13, 9)],
    "paligemma": [(90, 60), (40, 120), (56, 56), (300, 57), (13, 9)],
    "aya_vision": [(90, 60), (40, 120), (56, 56), (300, 57), (13, 9), (112, 112), (600, 3)],
}


def items(engines: Engines, family: str, images: list[Image.Image]) -> list[MediaItem]:
    options = engines.get(family).family.for_pictures({}, len(images))
    plans = [engines.get(family).family.plan_image(image.width, image.height, options) for image in images]
    canvases = [apply_plan(decode(PilSource(image)), plan) for image, plan in zip(images, plans, strict=True)]
    return [
        MediaItem(bytes([i]), plan.num_tokens, plan.num_patches, plan.grid, canvas=canvas)
        for i, (plan, canvas) in enumerate(zip(plans, canvases, strict=True))
    ]


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_rows_are_the_reference_rows(checkpoints: Checkpoints, engines: Engines, family: str) -> None:
    images = [picture(*size, seed=i) for i, size in enumerate(SIZES[family])]
    with torch.inference_mode():
        got = engines.get(family).engine.model.encode(items(engines, family, images))
    for rows, want in zip(got, image_features(checkpoints.folder(family), images), strict=True):
        np.testing.assert_allclose(rows.numpy(), want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_neighbours_in_a_pass_do_not_change_a_picture(engines: Engines, family: str) -> None:
    made = items(engines, family, [picture(*size, seed=i) for i, size in enumerate(SIZES[family])])
    model = engines.get(family).engine.model
    with torch.inference_mode():
        together = model.encode(made)
        for i, item in enumerate(made):
            torch.testing.assert_close(model.encode([item])[0], together[i], atol=1e-5, rtol=0)
        swapped = model.encode(made[::-1])[::-1]
    for one, other in zip(together, swapped, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_number_of_rows_is_what_was_planned(engines: Engines, family: str) -> None:
    made = items(engines, family, [picture(*size, seed=i) for i, size in enumerate(SIZES[family])])
    with torch.inference_mode():
        rows = engines.get(family).engine.model.encode(made)
    assert [len(r) for r in rows] == [item.num_tokens for item in made]


def test_text_between_the_rows_is_embedded_as_the_prompt_s(engines: Engines) -> None:
    model: VLM = engines.get("qwen2_vl").engine.model
    plain = items(engines, "qwen2_vl", [picture(30, 20, seed=0), picture(100, 70, seed=1), picture(84, 56, seed=2)])
    mixed = list(plain)
    for i, item in ((0, plain[0]), (2, plain[2])):
        ids = [token for n in range(item.num_tokens) for token in (ROW, 5 + n)][:-1]
        mixed[i] = replace(item, num_tokens=len(ids), ids=tuple(ids))
    with torch.inference_mode():
        for got, want, item in zip(model.encode(mixed), model.encode(plain), mixed, strict=True):
            assert len(got) == item.num_tokens
            if item.ids is None:
                assert torch.equal(got, want)
                continue
            assert torch.equal(got[::2], want)
            assert torch.equal(got[1::2], model.decoder.embed(torch.tensor(item.ids[1::2])))


@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_windows_are_those_of_transformers(window: int) -> None:
    theirs = pytest.importorskip("transformers.vision_utils", reason="older ones keep it inside the model")
    for rows in range(1, 10):
        for columns in range(1, 10):
            grid = torch.tensor([[1, 2 * rows, 2 * columns]])
            order, ends = theirs.get_vision_window_index(grid, 2, window * 2 * 14, 14)
            assert window_order(rows, columns, window, torch.device("cpu")).tolist() == order.tolist()
            assert [4 * size for size in window_sizes(rows, columns, window)] == ends.diff().tolist()


def test_rows_without_pixels_are_not_encoded(engines: Engines) -> None:
    model: VLM = engines.get("llava").engine.model
    with pytest.raises(AssertionError, match="only pictures with pixels"):
        model.encode([MediaItem(b"", 16, 16, (1, 4, 4))])
