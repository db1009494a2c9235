"""A video of a request: opened, judged and sampled, then decoded at the size of its plan.

Contract: as with pictures, nothing is decoded before every limit has been judged, except the first frame of an mp4 or
webm file, whose size is judged before that from its header.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fovea.core.errors import MediaLimitError
from fovea.core.types import Clip, ImagePlan, MediaReport, Sampling
from fovea.families.base import Family
from fovea.families.video import SAMPLING_KEYS, Chosen, choose_frames, read_sampling
from fovea.media.video import VideoLimits, VideoSource, decode_video, probe_video, video_digest
from fovea.prompt.forms import MediaInput


@dataclass(frozen=True, slots=True)
class OpenedVideo:
    source: VideoSource
    clip: Clip
    chosen: Chosen
    plan: ImagePlan


@dataclass(frozen=True, slots=True)
class MadeVideo:
    canvas: NDArray[np.uint8]
    digest: bytes
    decode_s: float


def open_video(
    source: VideoSource, media: MediaInput, family: Family, options: Mapping[str, Any], limits: VideoLimits
) -> OpenedVideo:
    """`options`: of the request; a video's own sampling goes before theirs. Raises MediaError."""
    clip = probe_video(source, limits)
    wish = media.video or Sampling()
    if wish == Sampling():
        wish = read_sampling(options, "mm_processor_kwargs")
    chosen = choose_frames(clip, wish, family.video_rule, limits.max_frames)
    num_pixels = len(chosen.indices) * clip.width_px * clip.height_px
    if num_pixels > limits.max_pixels:
        raise MediaLimitError(
            f"{len(chosen.indices)} frames of {clip.width_px} x {clip.height_px} pixels have {num_pixels:,} in all; "
            f"the option max_video_pixels permits {limits.max_pixels:,}. Ask for fewer frames (num_frames or fps), "
            "scale the video down, or raise the option.",
            code="image_too_many_pixels",
        )
    known = {key: value for key, value in options.items() if key not in SAMPLING_KEYS}
    count = len(chosen.indices)
    plan = family.plan_video_within(count, clip.width_px, clip.height_px, chosen.fps, known, media.budget)
    return OpenedVideo(source, clip, chosen, plan)


def make_video(opened: OpenedVideo, limits: VideoLimits) -> MadeVideo:
    started = time.perf_counter()
    canvas = decode_video(opened.source, opened.chosen.indices, opened.plan, limits)
    return MadeVideo(canvas, video_digest(canvas, opened.chosen.times_s), time.perf_counter() - started)


def report_video(
    video: OpenedVideo, num_tokens: int, token_grid: tuple[int, int], fetch_s: float, decode_s: float
) -> MediaReport:
    return MediaReport(
        original_width_px=video.clip.width_px,
        original_height_px=video.clip.height_px,
        width_px=video.plan.canvas_width_px,
        height_px=video.plan.canvas_height_px,
        num_tokens=num_tokens,
        token_rows=token_grid[0],
        token_columns=token_grid[1],
        num_bytes=video.clip.num_bytes,
        fetch_s=fetch_s,
        decode_s=decode_s,
        num_frames=video.plan.frames,
        times_s=video.chosen.times_s,
    )
