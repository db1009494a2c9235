"""Carry out an ImagePlan on a picture: border, transpose, resize, crop, pad, transpose back.

Contract: the result equals, bit for bit, what transformers' PIL image processors have before they rescale to floats. It
is a new contiguous array that the caller owns. Nothing is decided here; the plan was worked out from the size alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fovea.core.types import Box, ImagePlan, Picture
from fovea.native.resample import resized

STRIP_PIXELS = 4 * 1024**2
_RESAMPLE = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


def apply_plan(picture: Picture, plan: ImagePlan) -> NDArray[np.uint8]:
    """The canvas [height, width, 3] that `plan` makes of `picture`, with the plan's view below."""
    canvas = _canvas(picture.pixels, plan)
    if plan.view is None:
        return canvas
    return _below(canvas, _canvas(canvas if plan.view_of_canvas else picture.pixels, plan.view))


def _canvas(given: NDArray[np.uint8], plan: ImagePlan) -> NDArray[np.uint8]:
    pixels = given
    if plan.border is not None:
        assert not plan.transpose, "a border is for pictures that stay upright"
        pixels = _resize_bordered(pixels, plan, plan.border)
    else:
        if plan.transpose:
            pixels = _swap_axes(pixels)
        if plan.first_resize_px is not None:
            pixels = _resize(pixels, plan.first_resize_px, plan)
        pixels = _resize(pixels, (plan.resize_width_px, plan.resize_height_px), plan)
    if plan.crop is not None:
        pixels = _crop(pixels, plan.crop)
    if plan.pad is not None:
        pixels = _pad(pixels, plan.pad, plan.pad_value)
    if plan.transpose:
        pixels = _swap_axes(pixels)
    if pixels is given or not (pixels.flags.c_contiguous and pixels.flags.owndata):
        pixels = np.array(pixels, order="C")
    expected = (plan.canvas_height_px, plan.canvas_width_px, 3)
    assert pixels.shape == expected, f"The plan promises {expected} and its steps make {pixels.shape}."
    return pixels


def _below(upper: NDArray[np.uint8], lower: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height_px, width_px, _ = upper.shape
    both = np.zeros((height_px + lower.shape[0], width_px, 3), dtype=np.uint8)
    both[:height_px] = upper
    both[height_px:, : lower.shape[1]] = lower
    return both


def _swap_axes(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pixels.transpose(1, 0, 2))


def _resize(pixels: NDArray[np.uint8], size: tuple[int, int], plan: ImagePlan) -> NDArray[np.uint8]:
    if size == (pixels.shape[1], pixels.shape[0]):
        return pixels
    made = resized(pixels, size, plan.resample)
    return np.asarray(Image.fromarray(pixels).resize(size, _RESAMPLE[plan.resample])) if made is None else made


def _resize_bordered(pixels: NDArray[np.uint8], plan: ImagePlan, border: Box) -> NDArray[np.uint8]:
    """The resize of a picture with margins, which need not exist as a whole: of a thin line they would be gigabytes.

    Pillow works on rows first and on columns then, and one colour stays what it is in both.
    """
    resample, width = _RESAMPLE[plan.resample], plan.resize_width_px
    height_px = pixels.shape[0]
    rows_at_once = max(1, STRIP_PIXELS // (border.left + pixels.shape[1] + border.right))
    narrow = np.empty((border.top + height_px + border.bottom, width, 3), dtype=np.uint8)
    narrow[:] = plan.border_value
    for first in range(0, height_px, rows_at_once):
        strip = pixels[first : first + rows_at_once]
        wide = np.empty((len(strip), border.left + pixels.shape[1] + border.right, 3), dtype=np.uint8)
        wide[:] = plan.border_value
        wide[:, border.left : border.left + pixels.shape[1]] = strip
        resized = Image.fromarray(wide).resize((width, len(strip)), resample)
        narrow[border.top + first : border.top + first + len(strip)] = np.asarray(resized)
    return np.asarray(Image.fromarray(narrow).resize((width, plan.resize_height_px), resample))


def _crop(pixels: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """Cut `box` out; what lies outside the picture is black, as in transformers' center_crop."""
    height_px, width_px, _ = pixels.shape
    left, top = max(box.left, 0), max(box.top, 0)
    right, bottom = min(box.right, width_px), min(box.bottom, height_px)
    inside = pixels[top : max(bottom, top), left : max(right, left)]
    if (left, top, right, bottom) == (box.left, box.top, box.right, box.bottom):
        return inside
    cut = np.zeros((box.bottom - box.top, box.right - box.left, 3), dtype=np.uint8)
    y, x = top - box.top, left - box.left
    if inside.size:
        cut[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return cut


def _pad(pixels: NDArray[np.uint8], margins: Box, value: int) -> NDArray[np.uint8]:
    height_px, width_px, _ = pixels.shape
    shape = (margins.top + height_px + margins.bottom, margins.left + width_px + margins.right, 3)
    padded = np.full(shape, value, dtype=np.uint8)
    padded[margins.top : margins.top + height_px, margins.left : margins.left + width_px] = pixels
    return padded
