"""Videos for the Qwen-VL oracle: what transformers' video processor makes of frames, and positions as they were meant.

The processor itself needs torchvision and resizes with its kernels; here frames are resized by Pillow as pictures are,
and cut as Qwen2VLVideoProcessor.patchify does. transformers 5's get_rope_index advances by the larger side of a picture
alone behind a video and forgets time, so the positions are those of transformers 4.48, written out below.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from .checkpoints import Case, picture

MERGE, SLOTS = 2, 2
_SEE, _WATCH = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"


def clip(frames: int, width: int, height: int, seed: int) -> list[Image.Image]:
    """A picture that slides and brightens: every frame differs from every other."""
    still = np.asarray(picture(width, height, seed)).astype(np.int64)
    moved = (np.roll(still, 3 * n, axis=1) + 4 * n for n in range(frames))
    return [Image.fromarray(np.clip(one, 0, 255).astype(np.uint8)) for one in moved]


def _chatml(user: str) -> str:
    return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


# Clips: (frames, width, height, seed, frames a second). An even and an odd number of frames; several; pictures between.
VIDEO_CASES: tuple[Case, ...] = (
    Case("video", _chatml(f"{_WATCH}What happens here?"), clips=((4, 60, 90, 1, 2.0),)),
    Case("odd", _chatml(f"First this.\n{_WATCH}And then?"), clips=((5, 120, 60, 2, 1.0),)),
    Case(
        "mixed",
        _chatml(f"{_SEE}A picture.\n{_WATCH}A video. {_SEE}{_WATCH}How do they differ?"),
        ((100, 70, 3), (30, 20, 4)),
        clips=((6, 84, 84, 5, 3.0), (1, 60, 90, 6, None)),
    ),
)


# What LLaVA's family is asked: its frames are one tile whatever their shape.
LLAVA_CASES: tuple[Case, ...] = (
    Case("video", "USER: <video>\nWhat happens here? ASSISTANT:", clips=((3, 60, 90, 1, None),)),
    Case("videos", "USER: <video>\nAnd <video>\nThen? ASSISTANT:", clips=((2, 120, 60, 2, None), (1, 40, 40, 3, None))),
    Case(
        "mixed",
        "USER: <image>\nA picture. <video>\nHow do they differ? ASSISTANT:",
        ((90, 60, 1),),
        clips=((4, 84, 84, 5, None),),
    ),
)


def llava_inputs(processor: Any, config: Any, prompt: str, images: Any, clips: Sequence[Any]) -> dict[str, Any]:
    """The processor sees the pictures alone: videos, for which it needs torchvision, are put in behind it."""
    text = prompt.replace("<video>", "<pad>")
    batch = dict(processor(text=[text], images=images or None, return_tensors="pt"))
    batch.pop("mm_token_type_ids", None)
    batch.pop("token_type_ids", None)
    one_vision = config.model_type == "llava_onevision"
    tile, side = config.vision_config.image_size, config.vision_config.image_size // config.vision_config.patch_size
    tokenizer, like = processor.tokenizer, processor.image_processor
    pad, video = tokenizer.convert_tokens_to_ids("<pad>"), tokenizer.convert_tokens_to_ids("<video>")
    mean, std = (np.array(values, np.float32) for values in (like.image_mean, like.image_std))
    ids, following, pixels = list[int](), iter(clips), []
    for token in batch["input_ids"][0].tolist():
        if token != pad:
            ids.append(token)
            continue
        frames, _ = next(following)
        ids += [video] * (len(frames) * (-(-side // 2)) ** 2 + one_vision)
        tiles = np.stack([_tile(frame, tile, crops=not one_vision) for frame in frames])
        values = ((tiles.astype(np.float32) / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
        pixels.append(torch.from_numpy(np.ascontiguousarray(values, np.float32)))
    tokens = torch.tensor([ids])
    return {**batch, "input_ids": tokens, "attention_mask": torch.ones_like(tokens), "videos": pixels}


def _tile(frame: Image.Image, tile: int, *, crops: bool) -> npt.NDArray[np.uint8]:
    if not crops:
        return np.asarray(frame.resize((tile, tile), Image.Resampling.BICUBIC))
    scaled = int(tile * max(frame.size) / min(frame.size))
    width, height = (tile, scaled) if frame.width <= frame.height else (scaled, tile)
    left, top = (width - tile) // 2, (height - tile) // 2
    pixels = np.asarray(frame.resize((width, height), Image.Resampling.BICUBIC))
    return pixels[top : top + tile, left : left + tile]


# InternVL's: frames of one tile each, numbered in the text; in front of them a line's end or a special token.
INTERN_CASES: tuple[Case, ...] = (
    Case("video", _chatml("<video>\nWhat happens here?"), clips=((3, 60, 90, 1, None),)),
    Case(
        "videos", _chatml("<video>\n<video>\nHow do they differ?"), clips=((2, 120, 60, 2, None), (1, 40, 40, 3, None))
    ),
)


def intern_inputs(processor: Any, config: Any, prompt: str, clips: Sequence[Any]) -> dict[str, Any]:
    """As InternVLProcessor.replace_video_token and its video processor have it, of videos alone."""
    tokenizer, like = processor.tokenizer, processor.image_processor
    tile, pixels, text = config.vision_config.image_size[0], [], prompt
    num_rows = int((tile // config.vision_config.patch_size[0] * config.downsample_ratio) ** 2)
    mean, std = (np.array(values, np.float32) for values in (like.image_mean, like.image_std))
    for frames, _ in clips:
        rows = "<img>" + "<IMG_CONTEXT>" * num_rows + "</img>"
        text = text.replace("<video>", "\n".join(f"Frame{n}: {rows}" for n in range(1, len(frames) + 1)), 1)
        pixels += [_tile(frame, tile, crops=False) for frame in frames]
    values = ((np.stack(pixels).astype(np.float32) / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    ids = tokenizer([text], return_tensors="pt", return_token_type_ids=False)
    return {**ids, "pixel_values": torch.from_numpy(np.ascontiguousarray(values, np.float32))}


def video_inputs(
    folder: Path, processor: Any, config: Any, prompt: str, images: Sequence[Image.Image], clips: Sequence[Any]
) -> dict[str, Any]:
    """Of one prompt; `clips` are (frames, frames a second or None)."""
    tokenizer, like = processor.tokenizer, processor.image_processor
    pictures: Mapping[str, Any] = {}
    if images:
        pictures = like(images=list(images), return_tensors="pt")
    tells_time = config.model_type.startswith("qwen3_vl")
    patches, grids = [], []
    for frames, _ in clips:
        size = _size_of_all(frames, like.patch_size) if tells_time else _size_of_one(frames[0], like)
        values, grid = _patches(frames, size, like)
        patches.append(values)
        grids.append(grid)
    steps = [SLOTS / (fps or 24) for _, fps in clips]
    image_grids = pictures["image_grid_thw"].tolist() if images else []
    text = prompt
    for grid in image_grids:
        text = text.replace("<|image_pad|>", "<|there|>" * (math.prod(grid) // MERGE**2), 1)
    text = text.replace("<|there|>", "<|image_pad|>")
    for grid, (frames, fps) in zip(grids, clips, strict=True):
        if tells_time:
            text = text.replace(_WATCH, _with_times(grid, len(frames), fps or 24), 1)
        else:
            text = text.replace("<|video_pad|>", "<|there|>" * (math.prod(grid) // MERGE**2), 1)
    text = text.replace("<|there|>", "<|video_pad|>")
    ids = tokenizer([text], return_tensors="pt", return_token_type_ids=False)
    image_id, video_id = (tokenizer.convert_tokens_to_ids(t) for t in ("<|image_pad|>", "<|video_pad|>"))
    types = (ids["input_ids"] == image_id).long() + 2 * (ids["input_ids"] == video_id).long()
    per_second = getattr(config.vision_config, "tokens_per_second", None)
    apart = [[1, *grid[1:]] for grid in grids for _ in range(grid[0])] if tells_time else grids
    times = steps if len(apart) == len(steps) else [1.0] * len(apart)
    rows = positions_of_4_48(ids["input_ids"][0].tolist(), image_id, video_id, image_grids, apart, times, per_second)
    return {
        **ids,
        **pictures,
        "pixel_values_videos": torch.from_numpy(np.concatenate(patches)),
        "video_grid_thw": torch.tensor(grids),
        "mm_token_type_ids": types,
        "position_ids": torch.from_numpy(rows)[:, None],
    }


def positions_of_4_48(
    ids: Sequence[int],
    image_id: int,
    video_id: int,
    image_grids: Sequence[Sequence[int]],
    video_grids: Sequence[Sequence[int]],
    steps: Sequence[float],
    per_second: float | None,
) -> npt.NDArray[np.int64]:
    """get_rope_index of transformers 4.48 [3, tokens]: text behind a medium begins after its largest position."""
    of_kind = {image_id: iter(image_grids), video_id: iter(video_grids)}
    seconds = iter(steps)
    columns: list[tuple[int, int, int]] = []
    at = 0
    while at < len(ids):
        start = max(map(max, columns)) + 1 if columns else 0
        if ids[at] not in of_kind:
            columns.append((start, start, start))
            at += 1
            continue
        t, h, w = next(of_kind[ids[at]])
        step = next(seconds) if ids[at] == video_id else 0.0
        for i in range(t):
            time = i if per_second is None else int(np.float32(i) * np.float32(per_second * step))
            columns += [(start + time, start + j, start + k) for j in range(h // MERGE) for k in range(w // MERGE)]
        at += t * h * w // MERGE**2
    return np.array(columns, np.int64).T


def _size_of_one(frame: Image.Image, like: Any) -> tuple[int, int]:
    """(height, width) of each frame, whose range of pixels is its own."""
    low, high = like.size["shortest_edge"], min(like.size["longest_edge"], 768 * 28 * 28)
    low = max(low, min(128 * 28 * 28, high // 2))
    height, width = smart_resize(frame.height, frame.width, like.patch_size * MERGE, low, high)
    return height, width


def _size_of_all(frames: Sequence[Image.Image], patch: int) -> tuple[int, int]:
    """smart_resize of video_processing_qwen3_vl (which imports torchvision): the range is that of all frames."""
    factor, count = patch * MERGE, max(len(frames), SLOTS)
    height, width = frames[0].height, frames[0].width
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    h, w, t = round(height / factor) * factor, round(width / factor) * factor, round(count / SLOTS) * SLOTS
    low, high = 128 * factor * factor, 768 * factor * factor
    if t * h * w > high:
        beta = math.sqrt(count * height * width / high)
        h, w = (max(factor, math.floor(side / beta / factor) * factor) for side in (height, width))
    elif t * h * w < low:
        beta = math.sqrt(low / (count * height * width))
        h, w = (math.ceil(side * beta / factor) * factor for side in (height, width))
    return h, w


def _with_times(grid: Sequence[int], count: int, fps: float) -> str:
    """What Qwen3-VL's processor of transformers 4.57 puts in place of a video and the tokens around it."""
    numbers = list(range(count)) + [count - 1] * (-count % SLOTS)
    text = ""
    for step in range(grid[0]):
        middle = (numbers[step * SLOTS] / fps + numbers[step * SLOTS + SLOTS - 1] / fps) / 2
        rows = "<|there|>" * (grid[1] * grid[2] // MERGE**2)
        text += f"<{middle:.1f} seconds><|vision_start|>{rows}<|vision_end|>"
    return text


def _patches(
    frames: Sequence[Image.Image], size: tuple[int, int], like: Any
) -> tuple[npt.NDArray[np.float32], list[int]]:
    (height, width), patch = size, like.patch_size
    resized = [np.asarray(f.resize((width, height), Image.Resampling.BICUBIC), np.float32) for f in frames]
    resized += resized[-1:] * (-len(frames) % SLOTS)
    mean, std = np.array(like.image_mean, np.float32), np.array(like.image_std, np.float32)
    video = ((np.stack(resized) / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    t, h, w = len(video) // SLOTS, height // patch, width // patch
    blocks = video.reshape(t, SLOTS, 3, h // MERGE, MERGE, patch, w // MERGE, MERGE, patch)
    values = blocks.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1)
    return np.ascontiguousarray(values, np.float32), [t, h, w]
