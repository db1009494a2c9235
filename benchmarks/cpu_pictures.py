"""Preprocessing, one thread, all ways by turns: a photo's JPEG bytes to what a model takes."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.cpu_work import jpeg
from fovea.core.types import Box, ImagePlan
from fovea.families.parts import resized_plan
from fovea.families.qwen2_vl import DEFAULT_MAX_PIXELS, DEFAULT_MIN_PIXELS, smart_resize
from fovea.media import BytesSource, apply_plan, decode

PHOTO_PX = (1024, 768)
PATCH_PX, CLIP_PX = 14, 336
DIFFERENT = 16
Way = Callable[[bytes], object]


def preprocessing(count: int, seed: int) -> dict[str, list[float]]:
    """Seconds of each of `count` photos on each way.

    "canvas" ends at the uint8 picture that Fovea's engine takes, "patches" at normalised floats as transformers'
    processors give them. All begin with the file's bytes; transformers' processors get a decoded PIL picture.
    """
    import torch

    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    photos = [jpeg(rng, *PHOTO_PX) for _ in range(DIFFERENT)]
    ways = {**_ours("qwen2-vl", _qwen_plan(), 2, 2), **_ours("clip", _clip_plan(), CLIP_PX // PATCH_PX, 1), **_theirs()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-3, count):
        for name, way in ways.items():
            started = time.perf_counter()
            way(photos[number % DIFFERENT])
            if number >= 0:
                times[name].append(time.perf_counter() - started)
    return times


def _qwen_plan() -> ImagePlan:
    return resized_plan(*smart_resize(*PHOTO_PX, 2 * PATCH_PX, DEFAULT_MIN_PIXELS, DEFAULT_MAX_PIXELS), PATCH_PX, 2)


def _clip_plan() -> ImagePlan:
    width = PHOTO_PX[0] * CLIP_PX // PHOTO_PX[1]
    left, side = (width - CLIP_PX) // 2, CLIP_PX // PATCH_PX
    return ImagePlan(
        resize_width_px=width,
        resize_height_px=CLIP_PX,
        resample="bicubic",
        crop=Box(left, 0, left + CLIP_PX, CLIP_PX),
        canvas_width_px=CLIP_PX,
        canvas_height_px=CLIP_PX,
        grid=(1, side, side),
        num_patches=side**2,
        num_tokens=side**2,
    )


def _ours(family: str, plan: ImagePlan, side: int, repeats: int) -> Mapping[str, Way]:
    """`side`: of a block of patches, in patches; `repeats`: of each patch in time."""
    import torch

    from fovea.kernels import cut_patches
    from fovea.kernels.cpu.library import make_crew

    levels, crew = torch.linspace(-2.0, 2.0, 256).expand(3, 256).contiguous(), make_crew(1)

    def canvas(data: bytes) -> NDArray[np.uint8]:
        return apply_plan(decode(BytesSource(data)), plan)

    def patches(data: bytes) -> torch.Tensor:
        return cut_patches([torch.from_numpy(canvas(data))], levels, PATCH_PX, side, repeats, crew)

    return {f"{family}: fovea, canvas": canvas, f"{family}: fovea, patches": patches}


def _theirs() -> Mapping[str, Way]:
    """transformers' processors on torchvision; as the default they lost "Fast" from their names."""
    import transformers

    clip = {"size": {"shortest_edge": CLIP_PX}, "crop_size": {"height": CLIP_PX, "width": CLIP_PX}}
    kinds = {"qwen2-vl": ("Qwen2VLImageProcessor", {}), "clip": ("CLIPImageProcessor", clip)}
    ways: dict[str, Way] = {}
    for family, (name, sizes) in kinds.items():
        made = getattr(transformers, f"{name}Fast", None) or getattr(transformers, name)
        ways[f"{family}: transformers, patches"] = partial(_process, made(**sizes))
    return ways


def _process(processor: Any, data: bytes) -> object:
    return processor(images=Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt")
