"""Videos in mp4, mov, mkv and webm files, by PyAV (the extra "video").

Contract: the container is chosen here by its first bytes and must be one of two; nothing beside the given bytes is
ever opened, no address dialled and no file looked for. Counting frames reads packets and decodes one frame; decoding
runs only through the stretches between key frames that hold a wanted frame. Errors have texts of our own.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fovea.core.errors import FoveaError, MediaDecodeError, MediaLimitError, MediaSourceError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4")
DECODERS = (*CODECS, "libdav1d", "libvpx", "libvpx-vp9")
MAX_STREAMS = 16
MAX_STORED_FRAMES = 500_000
_MATROSKA = b"\x1a\x45\xdf\xa3"


@dataclass(frozen=True, slots=True)
class Stored:
    """A video as its file has it: the upright size, and the second at which each frame is shown, in order."""

    width_px: int
    height_px: int
    times_s: tuple[float, ...]
    duration_s: float


def container_of(data: bytes) -> str | None:
    """The demuxer for these bytes, or None."""
    if data[4:8] == b"ftyp":
        return "mov"
    return "matroska" if data.startswith(_MATROSKA) else None


def read_container(data: bytes, max_pixels: int, max_seconds: float) -> Stored:
    """Size and times, from the packets and one decoded frame. Raises MediaError."""
    with _opened(data, max_pixels) as (container, stream):
        shown = [packet for packet in _packets(container, stream) if not packet.is_discard]
        if not shown:
            _refuse("it holds no frames")
        times = sorted(_place(packet) for packet in shown)
        unit = float(stream.time_base or 0)
        duration_s = (times[-1] - times[0] + (shown[-1].duration or 0)) * unit
        if duration_s > max_seconds:
            raise MediaLimitError(
                f"The video is {duration_s:,.0f} seconds long; the option max_video_seconds permits {max_seconds:,g}. "
                "Cut it, or raise the option.",
                code="video_too_long",
            )
        width_px, height_px = _upright_size(data, max_pixels)
    return Stored(width_px, height_px, tuple((time - times[0]) * unit for time in times), duration_s)


def decode_container(data: bytes, indices: Sequence[int], max_pixels: int) -> Iterator[NDArray[np.uint8]]:
    """The frames of these ascending numbers, upright, [height, width, 3]. Raises MediaError."""
    with _opened(data, max_pixels) as (container, stream):
        packets = list(_packets(container, stream))
        times = sorted(_place(packet) for packet in packets if not packet.is_discard)
        if not indices or indices[-1] >= len(times):
            _refuse("it has fewer frames than it had before")
        wanted = [times[index] for index in indices]
        found = 0
        for frame in _frames(stream, packets, wanted):
            time = frame.pts if frame.pts is not None else frame.dts
            while found < len(wanted) and time is not None and time >= wanted[found]:
                yield _upright(frame)
                found += 1
        if found < len(wanted):
            _refuse("some of its frames can't be decoded")


def _frames(stream: VideoStream, packets: list[Packet[Any]], wanted: list[int]) -> Iterator[VideoFrame]:
    """Decoded frames in the order they are shown, leaving out stretches without a wanted one."""
    keys = [(place, number) for number, p in enumerate(packets) if p.is_keyframe and (place := _place(p)) is not None]
    keys.sort()
    places = [place for place, _ in keys]
    at, done = 0, 0
    while at < len(packets) and done < len(wanted):
        nearest = bisect_right(places, wanted[done]) - 1
        start = keys[nearest][1] if nearest >= 0 else 0
        if start > at:
            stream.codec_context.flush_buffers()
            at = start
        for frame in stream.codec_context.decode(packets[at]):
            yield frame
            done = max(done, bisect_right(wanted, frame.pts if frame.pts is not None else -1))
        at += 1
    if done < len(wanted):
        yield from stream.codec_context.decode(None)


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[Any]]:
    count = 0
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        if packet.is_corrupt:
            _refuse("it is incomplete")
        count += 1
        if count > MAX_STORED_FRAMES:
            raise MediaLimitError(
                f"The video has more than {MAX_STORED_FRAMES:,} frames. Cut it.", code="video_too_long"
            )
        yield packet


def _place(packet: Packet[Any]) -> int:
    place = packet.pts if packet.pts is not None else packet.dts
    if place is None:
        _refuse("its frames have no times")
    return place


def _upright_size(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Of the first frame that comes out: what a header says about size and rotation may be wrong."""
    with _opened(data, max_pixels) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            _refuse("no frame of it can be decoded")
        width_px, height_px = frame.width, frame.height
        return (height_px, width_px) if frame.rotation % 180 else (width_px, height_px)


def _upright(frame: VideoFrame) -> NDArray[np.uint8]:
    if frame.is_corrupt:
        _refuse("it is incomplete")
    pixels = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    turns = round(frame.rotation / 90) % 4  # counter-clockwise
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[tuple[InputContainer, VideoStream]]:
    av = _library()
    safe = {
        "enable_drefs": "0",  # a mov file may name other files
        "protocol_whitelist": "none",
        "codec_whitelist": ",".join(DECODERS),
        "max_streams": str(MAX_STREAMS),
    }
    try:
        with av.open(
            io.BytesIO(data),
            mode="r",
            format=container_of(data),
            container_options=safe,
            stream_options=[{"max_pixels": str(max_pixels)}] * MAX_STREAMS,
            metadata_errors="ignore",
            io_open=_open_nothing,
        ) as container:
            if not container.streams.video:
                _refuse("it has no pictures in it")
            stream = container.streams.video[0]
            _check_stream(stream, max_pixels)
            stream.codec_context.options = {"max_pixels": str(max_pixels)}
            yield container, stream
    except (FoveaError, MemoryError, GeneratorExit):
        raise
    except Exception:  # the border to FFmpeg: hostile bytes may raise anything
        _refuse("it is incomplete, broken, or in a form that is not supported")


def _check_stream(stream: VideoStream, max_pixels: int) -> None:
    context = stream.codec_context
    if context is None or context.codec.canonical_name not in CODECS:
        raise MediaDecodeError(
            f"The video's codec is not supported; supported are {', '.join(CODECS)}.", code="invalid_video"
        )
    if context.width * context.height > max_pixels:
        raise MediaLimitError(
            f"The video's frames are {context.width} x {context.height} pixels; the option max_image_pixels permits "
            f"{max_pixels:,} in all. Scale it down, or raise the option.",
            code="image_too_many_pixels",
        )


def _open_nothing(*_: Any, **__: Any) -> NoReturn:
    raise MediaSourceError("The video names another file, which is not opened.", code="invalid_video")


def _library() -> Any:
    try:
        import av
    except ImportError:
        raise MediaDecodeError(
            "Videos in mp4 and webm files need PyAV, which is not installed here: pip install 'fovea-vlm[video]'. "
            "Frames, and animated GIF and WebP files, need nothing.",
            code="unsupported_value",
        ) from None
    return av


def _refuse(reason: str) -> NoReturn:
    raise MediaDecodeError(f"The video can't be used: {reason}.", code="invalid_video") from None
