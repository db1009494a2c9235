"""Small videos made here: by PyAV, and by Pillow where that is not installed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

FRAMES = 12


def grey_frames(count: int = FRAMES, width: int = 64, height: int = 48) -> list[Image.Image]:
    """Frame n has the level 20 n, so that a decoded frame tells its number."""
    return [Image.new("RGB", (width, height), (20 * n % 256,) * 3) for n in range(count)]


def number_of(pixels: np.ndarray) -> int:
    """Of a decoded frame; codecs change the level a little."""
    return round(float(pixels.mean()) / 20)


def mp4(
    frames: Sequence[Image.Image] | None = None,
    *,
    fps: int = 4,
    codec: str = "libx264",
    format: str = "mp4",
    gop: int = 5,
    rotation: int = 0,
) -> bytes:
    av: Any = pytest.importorskip("av", reason="the extra video is not installed")
    frames = grey_frames() if frames is None else frames
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        stream.codec_context.gop_size = gop
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return file.getvalue()


def sound() -> bytes:
    """An mp4 file without pictures."""
    av: Any = pytest.importorskip("av", reason="the extra video is not installed")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        samples = np.zeros((1, 8000), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def animation(format: str, frames: Sequence[Image.Image] | None = None, *, duration_ms: int = 250) -> bytes:
    """GIF or WebP."""
    frames = grey_frames() if frames is None else frames
    file = io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {"optimize": False}
    frames[0].save(file, format, save_all=True, append_images=list(frames[1:]), duration=duration_ms, loop=0, **options)
    return file.getvalue()
