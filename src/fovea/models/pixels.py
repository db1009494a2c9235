"""Pictures on the model's device: brought there by one copy for many, and their plans carried out there.

Contract: what `apply_plan` makes equals media.transform.apply_plan bit for bit. The host waits for nothing here. On the
device lie at most UPLOAD_BYTES of pictures that still have a plan (or one picture), beside the canvases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fovea import kernels as ops
from fovea.core.types import Box, ImagePlan, MediaItem
from fovea.native.resample_table import plan_passes

UPLOAD_BYTES = 60 * 1024**2  # with its tables below 64 MiB: pinned memory comes in powers of two
ALIGNMENT_BYTES = 64
_DTYPES = {np.dtype(np.uint8): torch.uint8, np.dtype(np.int32): torch.int32}

Passes = Sequence[tuple[int, Tensor]]  # (axis, table [new, 1 + taps]) of one plan


def make_canvases(items: Sequence[MediaItem], device: torch.device) -> list[Tensor]:
    """The canvas uint8 [height, width, 3] of each item, on the device."""
    made: dict[int, Tensor] = {}
    for group in _groups(items):
        chosen = [items[i] for i in group]
        made |= zip(group, _carry_out(chosen, device) if chosen[0].plan else _finished(chosen, device), strict=True)
    return [made[i] for i in range(len(items))]


def apply_plan(pixels: Tensor, plan: ImagePlan, passes: Sequence[Passes] | None = None) -> Tensor:
    """The canvas that `plan` makes of an upright picture [height, width, 3]: contiguous, with memory of its own.

    passes: what plan_passes gives for this size, for the plan and for its view, if it is on the device already.
    """
    if passes is None:
        made = [plan_passes(part, pixels.shape[1], pixels.shape[0]) for part in _parts(plan)]
        passes = [[(axis, torch.from_numpy(t.copy()).to(pixels.device)) for axis, t in tables] for tables in made]
    canvas = _canvas(pixels, plan, passes[0])
    return canvas if plan.view is None else _below(canvas, _canvas(pixels, plan.view, passes[1]))


def _parts(plan: ImagePlan) -> list[ImagePlan]:
    """The plan, and that of its view."""
    return [plan] if plan.view is None else [plan, plan.view]


def _canvas(pixels: Tensor, plan: ImagePlan, passes: Passes) -> Tensor:
    assert plan.border is None, "such a picture stays on the host"
    assert plan.first_resize_px is None, "and so does one that is resized twice"
    if plan.transpose:
        pixels = pixels.transpose(0, 1)
    pixels = pixels.contiguous()
    for axis, table in passes:
        pixels = _resample(pixels, axis, table)
    if plan.crop is not None:
        pixels = _crop(pixels, plan.crop)
    if plan.pad is not None:
        pixels = _pad(pixels, plan.pad, plan.pad_value)
    if plan.transpose:
        pixels = pixels.transpose(0, 1)
    expected = (plan.canvas_height_px, plan.canvas_width_px, 3)
    assert pixels.shape == expected, f"The plan promises {expected} and its steps make {tuple(pixels.shape)}."
    canvas = pixels.contiguous()
    is_part = canvas.untyped_storage().nbytes() > canvas.numel()  # of an upload, or of what it was cropped from
    return canvas.clone() if is_part else canvas


def upload(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """The arrays on the device: gathered in pinned memory, moved by one copy that nobody waits for.

    The allocator of pinned memory takes it back only when the copy is done.
    """
    starts, num_bytes = [], 0
    for array in arrays:
        starts.append(num_bytes)
        num_bytes += -(-array.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    staging = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    into = staging.numpy()
    for start, array in zip(starts, arrays, strict=True):
        into[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    moved = staging.to(device, non_blocking=True)
    return [
        moved[start : start + array.nbytes].view(_DTYPES[array.dtype]).view(array.shape)
        for start, array in zip(starts, arrays, strict=True)
    ]


def _groups(items: Sequence[MediaItem]) -> Iterator[list[int]]:
    """The numbers of the items that go up together: finished canvases all, others within UPLOAD_BYTES."""
    finished = [i for i, item in enumerate(items) if item.plan is None]
    if finished:
        yield finished
    group: list[int] = []
    num_bytes = 0
    for i, item in enumerate(items):
        if item.plan is None:
            continue
        assert item.pixels is not None, "a plan is for pixels"
        if group and num_bytes + item.pixels.nbytes > UPLOAD_BYTES:
            yield group
            group, num_bytes = [], 0
        group.append(i)
        num_bytes += item.pixels.nbytes
    if group:
        yield group


def _finished(items: Sequence[MediaItem], device: torch.device) -> list[Tensor]:
    canvases = [item.canvas for item in items if item.canvas is not None]
    assert len(canvases) == len(items), "only pictures with pixels are encoded"
    return upload(canvases, device)


def _carry_out(items: Sequence[MediaItem], device: torch.device) -> list[Tensor]:
    arrays: list[NDArray[Any]] = []
    places = []
    for item in items:
        assert item.plan is not None, "a group is finished or not"
        assert item.pixels is not None, "a plan is for pixels"
        height_px, width_px, _ = item.pixels.shape
        made = [plan_passes(part, width_px, height_px) for part in _parts(item.plan)]
        places.append((item.plan, len(arrays), [[axis for axis, _ in tables] for tables in made]))
        arrays += [item.pixels, *(table for tables in made for _, table in tables)]
    moved = upload(arrays, device)
    canvases = []
    for plan, at, axes_of_parts in places:
        tables = iter(moved[at + 1 :])
        passes = [[(axis, next(tables)) for axis in axes] for axes in axes_of_parts]
        canvases.append(apply_plan(moved[at], plan, passes))
    return canvases


def _resample(pixels: Tensor, axis: int, table: Tensor) -> Tensor:
    height_px, width_px, _ = pixels.shape
    if axis == 1:
        return ops.resample(pixels, table)
    return ops.resample(pixels.view(1, height_px, -1), table).view(-1, width_px, 3)


def _below(upper: Tensor, lower: Tensor) -> Tensor:
    height_px, width_px, _ = upper.shape
    both = upper.new_zeros(height_px + lower.shape[0], width_px, 3)
    both[:height_px] = upper
    both[height_px:, : lower.shape[1]] = lower
    return both


def _crop(pixels: Tensor, box: Box) -> Tensor:
    """Cut `box` out; what lies outside the picture is black."""
    height_px, width_px, _ = pixels.shape
    left, top = max(box.left, 0), max(box.top, 0)
    right, bottom = max(min(box.right, width_px), left), max(min(box.bottom, height_px), top)
    inside = pixels[top:bottom, left:right]
    if (left, top, right, bottom) == (box.left, box.top, box.right, box.bottom):
        return inside
    cut = pixels.new_zeros(box.bottom - box.top, box.right - box.left, 3)
    cut[top - box.top :, left - box.left :][: bottom - top, : right - left] = inside
    return cut


def _pad(pixels: Tensor, margins: Box, value: int) -> Tensor:
    height_px, width_px, _ = pixels.shape
    shape = (margins.top + height_px + margins.bottom, margins.left + width_px + margins.right, 3)
    padded = pixels.new_full(shape, value)
    padded[margins.top : margins.top + height_px, margins.left : margins.left + width_px] = pixels
    return padded
