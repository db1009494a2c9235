"""Animated GIF and WebP files as videos: how long each frame is shown, read without a decoder, and the frames.

Contract: as in headers, the work of reading is bounded whatever the bytes say. Frames come out as a viewer shows them,
over white where they are transparent.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import GifImagePlugin, Image, WebPImagePlugin

from fovea.core.errors import FoveaError, MediaDecodeError, MediaLimitError
from fovea.media.headers import Header

MAX_FRAMES = 20_000
MAX_BLOCKS = 2_000_000
_LEAST_S, _INSTEAD_S = 0.011, 0.1  # what browsers do with frames shown for no time
_CONTROL, _IMAGE, _EXTENSION = 0xF9, ord(","), ord("!")


def frame_seconds(data: bytes, header: Header) -> tuple[float, ...]:
    """How long each frame of a GIF or WebP file is shown. Raises MediaError."""
    seconds = []
    for second in _gif_seconds(data) if header.format == "gif" else _webp_seconds(data):
        seconds.append(second if second >= _LEAST_S else _INSTEAD_S)
        if len(seconds) > MAX_FRAMES:
            raise MediaLimitError(f"The animation has more than {MAX_FRAMES:,} frames. Cut it.", code="video_too_long")
    return tuple(seconds)


def decode_animation(data: bytes, header: Header, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """The frames of these ascending numbers [height, width, 3]. Raises MediaDecodeError."""
    kind = GifImagePlugin.GifImageFile if header.format == "gif" else WebPImagePlugin.WebPImageFile
    try:
        with kind(io.BytesIO(data)) as image:
            if image.size != (header.width_px, header.height_px):
                raise _broken()
            for index in indices:
                for step in range(image.tell() + 1, index + 1):  # each frame builds on the one before it
                    image.seek(step)
                    if step < index:
                        image.load()
                yield _over_white(image)
    except (FoveaError, MemoryError, GeneratorExit):
        raise
    except Exception:  # the border to Pillow: hostile bytes may raise anything
        raise _broken() from None


def _over_white(image: Image.Image) -> NDArray[np.uint8]:
    shown = image.convert("RGBA")
    canvas = Image.new("RGB", shown.size, (255, 255, 255))
    canvas.paste(shown, mask=shown)
    return np.array(canvas)


def _gif_seconds(data: bytes) -> Iterator[float]:
    flags = data[10]
    position = 13 + _palette_bytes(flags)
    seconds, num_blocks = 0.0, 0
    while position + 2 <= len(data) and data[position] in (_IMAGE, _EXTENSION):
        if data[position] == _IMAGE:
            if position + 10 > len(data):
                return
            yield seconds
            seconds = 0.0
            position += 11 + _palette_bytes(data[position + 9])
        else:
            if data[position + 1] == _CONTROL and position + 6 <= len(data):
                seconds = int(struct.unpack_from("<H", data, position + 4)[0]) / 100
            position += 2
        while position < len(data) and data[position]:
            position += 1 + data[position]
            num_blocks += 1
            if num_blocks > MAX_BLOCKS:
                raise MediaDecodeError("The GIF file is cut into too many pieces.", code="invalid_video")
        position += 1


def _webp_seconds(data: bytes) -> Iterator[float]:
    position, end = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    for _ in range(MAX_FRAMES * 2):
        if position + 24 > end:
            return
        name, length = struct.unpack_from("<4sI", data, position)
        if name == b"ANMF":
            yield int.from_bytes(data[position + 20 : position + 23], "little") / 1000
        position += 8 + length + (length & 1)


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _broken() -> MediaDecodeError:
    return MediaDecodeError("The animation can't be decoded: it is incomplete or broken.", code="invalid_video")
