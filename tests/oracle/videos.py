"""Videos for the Qwen-VL oracle: what transformers' video processor makes of frames, and positions as they were meant.

The processor itself needs torchvision and resizes with its kernels; here frames are resized by Pillow as pictures are,
and cut as Qwen2VLVideoProcessor.patchify does. transformers 5's get_rope_index advances by the larger side of a picture
alone behind a video and forgets time, so the positions are those of transformers 4.48, written out below.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from .checkpoints import CLIP_MEAN, CLIP_STD, Case, picture

PATCH, MERGE, SLOTS = 14, 2, 2
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
    Case("odd", _chatml(f"First this. {_WATCH}And then?"), clips=((5, 120, 60, 2, 1.0),)),
    Case(
        "mixed",
        _chatml(f"{_SEE}A picture. {_WATCH}A video. {_SEE}{_WATCH}How do they differ?"),
        ((100, 70, 3), (30, 20, 4)),
        clips=((6, 84, 84, 5, 3.0), (1, 60, 90, 6, None)),
    ),
)


def video_inputs(
    folder: Path, processor: Any, config: Any, prompt: str, images: Sequence[Image.Image], clips: Sequence[Any]
) -> dict[str, Any]:
    """Of one prompt; `clips` are (frames, frames a second or None)."""
    tokenizer, settings = processor.tokenizer, processor.image_processor.size
    pictures: Mapping[str, Any] = {}
    if images:
        pictures = processor.image_processor(images=list(images), return_tensors="pt")
    patches, grids = [], []
    low, high = settings["shortest_edge"], settings["longest_edge"]
    low = max(low, min(128 * 28 * 28, min(high, 768 * 28 * 28) // 2))
    for frames, _ in clips:
        values, grid = _patches(frames, low, min(high, 768 * 28 * 28))
        patches.append(values)
        grids.append(grid)
    text, steps = prompt, [SLOTS / (fps or 24) for _, fps in clips]
    image_grids = pictures["image_grid_thw"].tolist() if images else []
    for token, found in (("<|image_pad|>", image_grids), ("<|video_pad|>", grids)):
        for t, h, w in found:
            text = text.replace(token, "<|there|>" * (t * h * w // MERGE**2), 1)
        text = text.replace("<|there|>", token)
    ids = tokenizer([text], return_tensors="pt", return_token_type_ids=False)
    image_id, video_id = (tokenizer.convert_tokens_to_ids(t) for t in ("<|image_pad|>", "<|video_pad|>"))
    types = (ids["input_ids"] == image_id).long() + 2 * (ids["input_ids"] == video_id).long()
    per_second = getattr(config.vision_config, "tokens_per_second", None)
    rows = positions_of_4_48(ids["input_ids"][0].tolist(), image_id, video_id, image_grids, grids, steps, per_second)
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


def _patches(frames: Sequence[Image.Image], low: int, high: int) -> tuple[npt.NDArray[np.float32], list[int]]:
    height, width = smart_resize(frames[0].height, frames[0].width, PATCH * MERGE, low, high)
    resized = [np.asarray(f.resize((width, height), Image.Resampling.BICUBIC), np.float32) for f in frames]
    resized += resized[-1:] * (-len(frames) % SLOTS)
    mean, std = np.array(CLIP_MEAN, np.float32), np.array(CLIP_STD, np.float32)
    video = ((np.stack(resized) / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    t, h, w = len(video) // SLOTS, height // PATCH, width // PATCH
    blocks = video.reshape(t, SLOTS, 3, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH)
    values = blocks.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1)
    return np.ascontiguousarray(values, np.float32), [t, h, w]
