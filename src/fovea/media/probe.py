"""What a picture will cost, known before it is paid: size and format, judged against the limits.

A server also refuses animations here: the model would see the first frame only, and a person another picture.

Contract: no pixel of an encoded picture is decoded and no buffer of its size is allocated. The reported size is that of
the upright picture, equal to what decode will make. Limits raise MediaLimitError naming the value, the limit and its
option.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from fovea.core.config import EngineConfig
from fovea.core.errors import MediaDecodeError, MediaLimitError
from fovea.core.server_config import ServerConfig
from fovea.media.headers import Format, read_header, upright_size_px
from fovea.media.pil import lock_of, read_orientation
from fovea.media.source import ArraySource, BytesSource, MemorySource, PilSource

_NAMES: dict[Format, str] = {"png": "PNG", "jpeg": "JPEG", "webp": "WebP", "gif": "GIF"}


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """The most one picture may have: encoded bytes, pixels, and long side over short side.

    `max_request_*`: the most all pictures of a request may have together; None for no limit. `allow_animated`: whether
    an encoded animation may stand for its first frame. `bytes_option` is where the limit of bytes comes from.
    """

    max_bytes: int
    max_pixels: int
    max_aspect: float
    max_request_bytes: int | None = None
    max_request_pixels: int | None = None
    allow_animated: bool = True
    bytes_option: str = "max_image_bytes"

    @property
    def noun(self) -> str:
        return "picture" if self.bytes_option == "max_image_bytes" else "video"

    @classmethod
    def from_config(cls, config: EngineConfig) -> MediaLimits:
        """A server's options limit requests too, and its pictures come from strangers; a program's own job may be of
        any size, and it knows what its animations show."""
        limits = cls(config.max_image_bytes, config.max_image_pixels, config.max_image_aspect)
        if isinstance(config, ServerConfig):
            return replace(
                limits,
                max_request_bytes=config.max_request_media_bytes,
                max_request_pixels=config.max_request_pixels,
                allow_animated=False,
            )
        return limits


@dataclass(frozen=True, slots=True)
class Probe:
    """`num_bytes` is the length of the encoded picture, or of the pixels if they were handed in decoded."""

    width_px: int
    height_px: int
    format: Format | Literal["pil", "array"]
    num_bytes: int


def probe(source: MemorySource, limits: MediaLimits) -> Probe:
    """Size and format of the upright picture; raises if it is over a limit."""
    match source:
        case BytesSource(data):
            return _probe_bytes(data, limits)
        case ArraySource(array):
            height_px, width_px = array.shape[:2]
            check_size(width_px, height_px, limits)
            return Probe(width_px, height_px, "array", array.nbytes)
        case PilSource():
            return _probe_pil(source, limits)


def check_num_bytes(num_bytes: int, limits: MediaLimits) -> None:
    if num_bytes > limits.max_bytes:
        raise MediaLimitError(
            f"The {limits.noun} has {num_bytes:,} bytes; the option {limits.bytes_option} permits "
            f"{limits.max_bytes:,}. Send a smaller file, or raise the option."
        )


def check_request(num_bytes: int, num_pixels: int, limits: MediaLimits) -> None:
    """Judge what the pictures of a request have together."""
    if limits.max_request_bytes is not None and num_bytes > limits.max_request_bytes:
        raise MediaLimitError(
            f"The pictures of the request up to here have {num_bytes:,} bytes; the option max_request_media_bytes "
            f"permits {limits.max_request_bytes:,}. Send fewer or smaller ones."
        )
    if limits.max_request_pixels is not None and num_pixels > limits.max_request_pixels:
        raise MediaLimitError(
            f"The pictures of the request up to here have {num_pixels:,} pixels; the option max_request_pixels permits "
            f"{limits.max_request_pixels:,}. Send fewer, or scale them down.",
            code="image_too_many_pixels",
        )


def check_size(width_px: int, height_px: int, limits: MediaLimits) -> None:
    """Judge a size; which side is which does not matter."""
    size = f"The picture is {width_px} x {height_px} pixels"
    if min(width_px, height_px) < 1:
        raise MediaLimitError(
            f"{size}; it must have at least 1 x 1. Send a picture that is not empty.", code="image_too_small"
        )
    if width_px * height_px > limits.max_pixels:
        raise MediaLimitError(
            f"{size}, {width_px * height_px:,} in all; the option max_image_pixels permits {limits.max_pixels:,}. "
            "Scale the picture down, or raise the option.",
            code="image_too_many_pixels",
        )
    long_px, short_px = max(width_px, height_px), min(width_px, height_px)
    if long_px > limits.max_aspect * short_px:
        raise MediaLimitError(
            f"{size}, one side {long_px / short_px:.4g} times the other; the option max_image_aspect permits "
            f"{limits.max_aspect:g}. Crop or pad the picture, or raise the option.",
            code="above_max_value",
        )


def _probe_bytes(data: bytes, limits: MediaLimits) -> Probe:
    check_num_bytes(len(data), limits)
    header = read_header(data)
    width_px, height_px = header.upright_size_px
    check_size(width_px, height_px, limits)
    if header.is_animated and not limits.allow_animated:
        raise MediaDecodeError(
            f"The {_NAMES[header.format]} file has several frames, and the model would see only the first. "
            "Send the frames you mean as separate pictures.",
            code="animated_image_not_supported",
        )
    return Probe(width_px, height_px, header.format, len(data))


def _probe_pil(source: PilSource, limits: MediaLimits) -> Probe:
    image = source.image
    check_size(image.width, image.height, limits)
    try:
        with lock_of(image):
            width_px, height_px = upright_size_px(image.size, read_orientation(image))
    except Exception:  # the border to Pillow: whatever the file behind the picture does ends here
        raise MediaDecodeError("The PIL picture can't be loaded. Is its file complete and still open?") from None
    return Probe(width_px, height_px, "pil", width_px * height_px * len(image.getbands()))
