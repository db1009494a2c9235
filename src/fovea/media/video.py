"""Videos: what was handed in becomes one typed source, then a Clip that says what it will cost, then frames.

Contract: `probe_video` judges bytes, duration and the size of frames before a frame is decoded (of an mp4 or webm file
one is); `decode_video` makes only the frames asked for, and holds them at the size of their plan. Raises nothing but
MediaError.

    source          from
    FramesSource    a list of pictures, or a uint8 array [frames, height, width, 3], with or without metadata
    BytesSource     bytes, data:, or a file: mp4, mov, mkv, webm (the extra "video"), animated GIF and WebP
    FileSource      pathlib.Path, file://
    UrlSource       http://, https://
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fovea.core.config import EngineConfig
from fovea.core.errors import MediaDecodeError, MediaError, MediaLimitError, MediaSourceError, nearest
from fovea.core.types import Clip, ImagePlan, Picture
from fovea.media.animation import decode_animation, frame_seconds
from fovea.media.container import container_of, decode_container, read_container
from fovea.media.decode import decode
from fovea.media.headers import read_header
from fovea.media.load import open_source
from fovea.media.probe import MediaLimits, check_num_bytes, check_size, probe
from fovea.media.source import ArraySource, BytesSource, FileSource, ImageSource, MemorySource, parse_image
from fovea.media.transform import apply_plan

METADATA_KEYS = (
    *("fps", "timestamps", "frames_indices", "total_num_frames", "duration"),
    *("width", "height", "video_backend", "do_sample_frames"),
)
MAX_FPS = 1000.0


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """The most one video may have. `picture` is what its bytes and each of its frames may have."""

    picture: MediaLimits
    max_seconds: float
    max_frames: int
    max_pixels: int

    @classmethod
    def from_config(cls, config: EngineConfig) -> VideoLimits:
        picture = replace(
            MediaLimits.from_config(config), max_bytes=config.max_video_bytes, bytes_option="max_video_bytes"
        )
        return cls(picture, config.max_video_seconds, config.max_video_frames, config.max_video_pixels)


@dataclass(frozen=True, slots=True, eq=False)
class FramesSource:
    """Frames that somebody chose already. `fps` of these frames, and the second of each, where it is known."""

    frames: tuple[ImageSource, ...]
    fps: float | None = None
    times_s: tuple[float, ...] = ()


VideoSource = FramesSource | BytesSource
"""With its bytes in memory."""


def is_frame(value: object) -> bool:
    """Whether a value is one frame of a video, rather than a video."""
    return isinstance(value, Image.Image) or (getattr(value, "ndim", None) in (2, 3) and hasattr(value, "dtype"))


def parse_video(value: object) -> FramesSource | ImageSource:
    """Take a video that a program hands in."""
    if isinstance(value, FramesSource):
        return value
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping):
        return _with_metadata(_frames(value[0]), value[1])
    if isinstance(value, (list, tuple)) or getattr(value, "ndim", None) is not None:
        return _frames(value)
    if isinstance(value, (str, Image.Image)):
        raise _wrong_kind(
            "A video can't be given as text or as one picture. Pass pathlib.Path(...) for a local file, the bytes of a "
            "file, or a list of frames; addresses go into a video_url part of a chat message."
        )
    try:
        return parse_image(value)
    except MediaSourceError:
        raise _wrong_kind(
            f"A video can't be made from {type(value).__name__[:40]}. Pass a uint8 array [frames, height, width, 3], a "
            "list of PIL pictures, (frames, metadata), bytes, or pathlib.Path."
        ) from None


def probe_video(source: VideoSource, limits: VideoLimits) -> Clip:
    """Size, frames and times. Raises MediaError for what is over a limit."""
    if isinstance(source, FramesSource):
        return _probe_frames(source, limits)
    data = source.data
    check_num_bytes(len(data), limits.picture)
    if container_of(data) is not None:
        stored = read_container(data, limits.picture.max_pixels, limits.max_seconds)
        check_size(stored.width_px, stored.height_px, limits.picture)
        fps = len(stored.times_s) / stored.duration_s if stored.duration_s > 0 else None
        return Clip(stored.width_px, stored.height_px, len(stored.times_s), len(data), fps, stored.times_s)
    return _probe_animation(data, limits)


def decode_video(
    source: VideoSource, indices: Sequence[int], plan: ImagePlan, limits: VideoLimits
) -> NDArray[np.uint8]:
    """The canvas uint8 [frames, height, width, 3] that `plan` makes of these frames; the last one fills it up."""
    canvas = np.empty((plan.slots, plan.canvas_height_px, plan.canvas_width_px, 3), np.uint8)
    each = replace(plan, frames=0, slots=0)
    size, count = None, 0
    for count, pixels in enumerate(_decoded(source, indices, limits), 1):
        size = size or pixels.shape
        if pixels.shape != size:
            raise _not_alike()
        canvas[count - 1] = apply_plan(Picture(pixels, b""), each)
    if count != len(indices) or count != plan.frames:
        raise MediaDecodeError("The video has fewer frames than it had before.", code="invalid_video")
    canvas[count:] = canvas[count - 1]
    canvas.setflags(write=False)
    return canvas


def video_digest(canvas: NDArray[np.uint8], times_s: Sequence[float]) -> bytes:
    """SHA-256 of a finished canvas and of the seconds its frames stand at."""
    hasher = hashlib.sha256(b"fovea.video.1" + struct.pack(">4QQ", *canvas.shape, len(times_s)))
    hasher.update(struct.pack(f">{len(times_s)}d", *times_s))
    hasher.update(np.ascontiguousarray(canvas).data)
    return hasher.digest()


def _decoded(source: VideoSource, indices: Sequence[int], limits: VideoLimits) -> Iterator[NDArray[np.uint8]]:
    if isinstance(source, FramesSource):
        for index in indices:
            yield decode(_in_memory(source.frames[index], limits)).pixels
    elif container_of(source.data) is not None:
        yield from decode_container(source.data, indices, limits.picture.max_pixels)
    else:
        yield from decode_animation(source.data, read_header(source.data), indices)


def _probe_frames(source: FramesSource, limits: VideoLimits) -> Clip:
    sizes, num_bytes = set(), 0
    for frame in source.frames:
        found = probe(_in_memory(frame, limits), limits.picture)
        sizes.add((found.width_px, found.height_px))
        num_bytes += found.num_bytes
    if len(sizes) != 1:
        raise _not_alike()
    ((width_px, height_px),) = sizes
    return Clip(width_px, height_px, len(source.frames), num_bytes, source.fps, source.times_s, is_sampled=True)


def _in_memory(frame: ImageSource, limits: VideoLimits) -> MemorySource:
    return open_source(frame, limits.picture)


def _probe_animation(data: bytes, limits: VideoLimits) -> Clip:
    try:
        header = read_header(data)
    except MediaError:
        raise MediaDecodeError(
            "The file is no video of a supported kind: mp4, mov, mkv, webm, animated GIF or WebP. Convert it.",
            code="invalid_video",
        ) from None
    if not header.is_animated:
        raise MediaDecodeError(
            f"The {header.format.upper()} file holds one picture. Send it as a picture (image_url).",
            code="invalid_video",
        )
    check_size(*header.upright_size_px, limits.picture)
    seconds = frame_seconds(data, header)
    if len(seconds) < 2:
        raise MediaDecodeError("The animation is incomplete or broken.", code="invalid_video")
    total_s = math.fsum(seconds)
    if total_s > limits.max_seconds:
        raise MediaLimitError(
            f"The animation is {total_s:,.0f} seconds long; the option max_video_seconds permits "
            f"{limits.max_seconds:,g}. Cut it, or raise the option.",
            code="video_too_long",
        )
    times = tuple(np.cumsum((0.0, *seconds[:-1])).tolist())
    return Clip(header.width_px, header.height_px, len(seconds), len(data), len(seconds) / total_s, times)


def _frames(value: Any) -> FramesSource:
    """A list of frames, or an array of them: [frames, height, width, channels], or of torch [frames, C, H, W]."""
    if not isinstance(value, (list, tuple)):
        if getattr(value, "ndim", 0) != 4:
            raise _wrong_kind(
                f"A video as an array has four dimensions, [frames, height, width, 3]; this one has shape "
                f"{str(tuple(getattr(value, 'shape', ())))[:60]}."
            )
        value = list(value)
    if not len(value):
        raise _wrong_kind("A video must have at least one frame.")
    if not all(is_frame(frame) or isinstance(frame, (ArraySource, BytesSource, FileSource)) for frame in value):
        raise _wrong_kind("A video's frames must be PIL pictures or uint8 arrays [height, width, 3], all of one size.")
    return FramesSource(tuple(parse_image(frame) for frame in value))


def _with_metadata(source: FramesSource, said: Mapping[Any, Any]) -> FramesSource:
    """Times from metadata as vLLM and transformers have it. Raises MediaSourceError for what cannot be true."""
    count = len(source.frames)
    for key in said:
        if key not in METADATA_KEYS:
            known = ", ".join(METADATA_KEYS)
            raise _bad_metadata(f"it has {str(key)[:40]!r}; known: {known}.{nearest(str(key)[:40], METADATA_KEYS)}")
    fps = _number(said, "fps", 1e-3, MAX_FPS)
    total = _number(said, "total_num_frames", 1, 2**31)
    duration = _number(said, "duration", 0, 1e9)
    times = _ascending(said, "timestamps", count)
    indices = _ascending(said, "frames_indices", count)
    if indices and total is not None and indices[-1] >= total:
        raise _bad_metadata(f"frames_indices has {indices[-1]:g} and total_num_frames is {total:g}.")
    if not indices and total is not None and total != count:
        raise _bad_metadata(f"total_num_frames is {total:g}, {count} frames were given and frames_indices is not.")
    if times and duration is not None and times[-1] > duration:
        raise _bad_metadata(f"timestamps has {times[-1]:g} and duration is {duration:g}.")
    if indices and fps is not None:
        times = times or tuple(index / fps for index in indices)
        whole = total if total is not None else indices[-1] + 1
        return replace(source, fps=count / whole * fps, times_s=times)
    if fps is None and len(times) > 1:
        fps = (len(times) - 1) / (times[-1] - times[0])
    if fps is None and duration:
        fps = count / duration
    if fps is not None and not times:
        times = tuple(number / fps for number in range(count))
    return replace(source, fps=fps, times_s=times)


def _number(said: Mapping[Any, Any], key: str, low: float, high: float) -> float | None:
    value = said.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise _bad_metadata(f"{key} must be a number from {low:g} to {high:g}.")
    return float(value)


def _ascending(said: Mapping[Any, Any], key: str, count: int) -> tuple[float, ...]:
    value = said.get(key)
    if value is None:
        return ()
    try:
        numbers = tuple(float(number) for number in value)
    except (TypeError, ValueError):
        raise _bad_metadata(f"{key} must be a list of numbers.") from None
    rises = all(a < b for a, b in zip(numbers, numbers[1:]))
    if len(numbers) != count or not all(map(math.isfinite, numbers)) or not rises or numbers[0] < 0:
        raise _bad_metadata(f"{key} must hold {count} numbers from 0, each larger than the one before it.")
    return numbers


def _bad_metadata(reason: str) -> MediaSourceError:
    return MediaSourceError(f"The video's metadata can't be right: {reason}", code="invalid_value")


def _not_alike() -> MediaDecodeError:
    return MediaDecodeError("The frames of a video must all have one size.", code="invalid_video")


def _wrong_kind(message: str) -> MediaSourceError:
    return MediaSourceError(message, code="invalid_type")
