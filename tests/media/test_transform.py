"""apply_plan: the same uint8 pixels as transformers' image processors, bit for bit.

The plans here are worked out from the published formulas, not by fovea's families, so that no mistake there can hide.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fovea.core.types import Box, ImagePlan, Picture
from fovea.media import ArraySource, apply_plan, decode
from tests.media.corpus import noise

SIZES_PX = [
    (1, 1),
    (1, 3),
    (3, 1),
    (3, 3),
    (4, 4),
    (13, 7),
    (27, 28),
    (28, 28),
    (29, 57),
    (100, 101),
    (335, 336),
    (336, 336),
    (337, 500),
    (501, 337),
    (336, 1000),
    (640, 427),
    (91, 903),
    (1200, 333),
]


def picture(width_px: int, height_px: int) -> Picture:
    return decode(ArraySource(noise(width_px, height_px, seed=width_px * 10_000 + height_px)))


def plan(resize_px: tuple[int, int], canvas_px: tuple[int, int], **fields: Any) -> ImagePlan:
    defaults: dict[str, Any] = {"resample": "bicubic", "grid": (1, 1, 1), "num_patches": 1, "num_tokens": 1}
    canvas = {"canvas_width_px": canvas_px[0], "canvas_height_px": canvas_px[1]}
    return ImagePlan(*resize_px, **(defaults | canvas | fields))


def clip_plan(width_px: int, height_px: int, edge_px: int = 336) -> ImagePlan:
    """Shortest edge to `edge_px`, then the middle square."""
    long_px = int(edge_px * max(width_px, height_px) / min(width_px, height_px))
    resized = (edge_px, long_px) if width_px <= height_px else (long_px, edge_px)
    left, top = (resized[0] - edge_px) // 2, (resized[1] - edge_px) // 2
    return plan(resized, (edge_px, edge_px), crop=Box(left, top, left + edge_px, top + edge_px))


def qwen2_vl_plan(width_px: int, height_px: int, low: int = 3136, high: int = 200_704) -> ImagePlan:
    """Both sides to multiples of 28, the area between `low` and `high`."""
    w, h = round(width_px / 28) * 28, round(height_px / 28) * 28
    if w * h > high:
        shrink = math.sqrt(width_px * height_px / high)
        w, h = (max(28, math.floor(side / shrink / 28) * 28) for side in (width_px, height_px))
    elif w * h < low:
        grow = math.sqrt(low / (width_px * height_px))
        w, h = (math.ceil(side * grow / 28) * 28 for side in (width_px, height_px))
    return plan((w, h), (w, h))


def processor(name: str, **options: Any) -> Any:
    """transformers' own processor on PIL, giving uint8 pixels: no rescale, no normalisation."""
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, name)(do_rescale=False, do_normalize=False, **options)


@pytest.mark.parametrize("size_px", SIZES_PX)
def test_clip_pictures_equal_transformers(size_px: tuple[int, int]) -> None:
    source = picture(*size_px)
    clip = processor(
        "CLIPImageProcessorPil", size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, resample=3
    )
    expected = clip(Image.fromarray(source.pixels), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(apply_plan(source, clip_plan(*size_px)), expected.transpose(1, 2, 0))


@pytest.mark.parametrize("size_px", SIZES_PX)
def test_a_centre_crop_larger_than_the_picture_equals_transformers(size_px: tuple[int, int]) -> None:
    source = picture(*size_px)
    clip = processor("CLIPImageProcessorPil", do_resize=False, crop_size={"height": 301, "width": 300})
    expected = clip(Image.fromarray(source.pixels), return_tensors="np")["pixel_values"][0]
    left, top = (size_px[0] - 300) // 2, (size_px[1] - 301) // 2
    crop = plan(size_px, (300, 301), crop=Box(left, top, left + 300, top + 301))
    np.testing.assert_array_equal(apply_plan(source, crop), expected.transpose(1, 2, 0))


def unpatch(patches: NDArray[Any], grid: tuple[int, int, int]) -> NDArray[Any]:
    """Qwen2-VL's patch rows back to [height, width, 3]."""
    _, rows, columns = (int(n) for n in grid)
    blocks = patches.reshape(rows // 2, columns // 2, 2, 2, 3, 2, 14, 14)[:, :, :, :, :, 0]
    return blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * 14, columns * 14, 3)


@pytest.mark.parametrize("size_px", SIZES_PX)
def test_qwen2_vl_pictures_equal_transformers(size_px: tuple[int, int]) -> None:
    source = picture(*size_px)
    qwen = processor("Qwen2VLImageProcessorPil", min_pixels=3136, max_pixels=200_704)
    made = qwen(Image.fromarray(source.pixels), return_tensors="np")
    expected = unpatch(made["pixel_values"], made["image_grid_thw"][0])
    np.testing.assert_array_equal(apply_plan(source, qwen2_vl_plan(*size_px)), expected)


def test_the_steps_come_in_their_order() -> None:
    """A tall picture as Phi-3.5-vision treats it: on its side, scaled, padded with white, and turned back."""
    source = picture(50, 90)
    steps = plan((60, 33), (40, 62), resample="bilinear", transpose=True, pad=Box(1, 3, 1, 4), pad_value=255)
    lying = Image.fromarray(source.pixels).transpose(Image.Transpose.TRANSPOSE)
    lying = lying.resize((60, 33), Image.Resampling.BILINEAR)
    padded = Image.new("RGB", (62, 40), (255, 255, 255))
    padded.paste(lying, (1, 3))
    expected = np.asarray(padded.transpose(Image.Transpose.TRANSPOSE))
    np.testing.assert_array_equal(apply_plan(source, steps), expected)


@pytest.mark.parametrize(
    "box", [Box(2, 1, 5, 4), Box(-2, -3, 5, 4), Box(3, 2, 12, 9), Box(-1, -1, 9, 7), Box(20, 20, 23, 22)]
)
def test_a_crop_reaching_outside_is_black_there(box: Box) -> None:
    source = picture(8, 6)
    size_px = (box.right - box.left, box.bottom - box.top)
    wide = np.zeros((46, 48, 3), dtype=np.uint8)
    wide[20:26, 20:28] = source.pixels
    expected = wide[20 + box.top : 20 + box.bottom, 20 + box.left : 20 + box.right]
    np.testing.assert_array_equal(apply_plan(source, plan((8, 6), size_px, crop=box)), expected)


@pytest.mark.parametrize(
    "steps",
    [
        plan((8, 6), (8, 6)),
        plan((8, 6), (3, 3), crop=Box(1, 1, 4, 4)),
        plan((4, 4), (4, 4)),
        plan((6, 8), (8, 6), transpose=True),
    ],
)
def test_the_canvas_belongs_to_the_caller(steps: ImagePlan) -> None:
    source = picture(8, 6)
    before = source.pixels.copy()
    canvas = apply_plan(source, steps)
    assert canvas.flags.c_contiguous
    assert canvas.flags.owndata
    canvas[:] = 0
    np.testing.assert_array_equal(source.pixels, before)


def test_a_plan_that_breaks_its_own_promise_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="promises"):
        apply_plan(picture(8, 6), plan((4, 4), (5, 5)))
