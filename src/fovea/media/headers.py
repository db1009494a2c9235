"""Format, size and orientation of an encoded picture, read from its bytes without a decoder.

Contract: the work is bounded whatever the bytes say. That is why this is not left to Pillow: its parsers walk chunk by
chunk in Python without a bound, may allocate while they open a file, and have a pixel guard that is global.
The decoder is given only what passed here, and must agree about the size. Refusals are MediaDecodeError; limits are
judged in probe.

Only PNG, JPEG, WebP and GIF are read, recognised by their first bytes. The orientation is the one of the Exif block; a
hint in XMP is ignored, as browsers do. Where programs disagree whether a file holds one picture or several, it counts
as animated: what a person sees must be what the model sees.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fovea.core.errors import MediaDecodeError

Format = Literal["png", "jpeg", "webp", "gif"]

_MIN_CHUNKS = 20_000
_BYTES_PER_CHUNK = 1024
_BYTES_PER_GIF_BLOCK = 64  # the format allows 255, and encoders fill them
_MAX_JPEG_SEGMENTS = 4096
_MAX_JPEG_EXIF_SEGMENTS = 16
_MAX_JPEG_SCANS = 128
_JPEG_MARKER = re.compile(rb"[^\xff]{0,4096}\xff{1,4096}([^\x00\xff])")
_JPEG_SCAN_END = re.compile(rb"\xff(?=[^\x00\xd0-\xd7\xff])")
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset(range(0xD0, 0xD9)) | {0x01}
_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1
_EXIF_PREFIX = b"Exif\0\0"
_GIF_IMAGE, _GIF_EXTENSION = ord(","), ord("!")
_GIF_MARK = re.compile(rb"[,!;]")
_ORIENTATION_TAG = 0x0112
_TIFF_LONG = 4


@dataclass(frozen=True, slots=True)
class Header:
    """The size is the stored one; `orientation` (1 to 8, as in Exif) says how it is turned upright.

    `is_animated`: the file holds, or claims to hold, more than one picture; an animation of one frame is still.
    """

    format: Format
    width_px: int
    height_px: int
    orientation: int = 1
    is_animated: bool = False

    @property
    def upright_size_px(self) -> tuple[int, int]:
        return upright_size_px((self.width_px, self.height_px), self.orientation)


def upright_size_px(size_px: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(width, height) after turning; orientations 5 to 8 swap the sides."""
    return (size_px[1], size_px[0]) if orientation >= 5 else size_px


def read_header(data: bytes) -> Header:
    """Read the header of an encoded picture."""
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _read_png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _read_jpeg(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _read_webp(data)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return _read_gif(data)
    except (struct.error, IndexError):
        raise MediaDecodeError("The picture's header is cut off or broken. Send the complete file.") from None
    if not data:
        raise MediaDecodeError("The picture is empty: it has 0 bytes.")
    raise MediaDecodeError(
        "The data is not a picture in a supported format. Supported are PNG, JPEG, WebP and GIF; convert it to one.",
        code="unsupported_image_format",
    )


def exif_orientation(block: bytes) -> int:
    """The orientation tag of an Exif block; 1, upright, when there is none or it makes no sense."""
    tiff = block.removeprefix(_EXIF_PREFIX)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (num_entries,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * num_entries, 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, entry)
            if tag == _ORIENTATION_TAG:
                (value,) = struct.unpack_from(order + ("I" if kind == _TIFF_LONG else "H"), tiff, entry + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _max_chunks(data: bytes, bytes_per_chunk: int = _BYTES_PER_CHUNK) -> int:
    """Real files have chunks of kilobytes; hostile ones have millions of empty chunks, each of which costs a loop."""
    return _MIN_CHUNKS + len(data) // bytes_per_chunk


def _too_fragmented(name: str) -> MediaDecodeError:
    return MediaDecodeError(f"The {name} file is split into far too many parts. Save it again with another program.")


def _read_png(data: bytes) -> Header:
    if data[12:16] != b"IHDR":
        raise MediaDecodeError("The PNG file does not begin with its header. Send the complete file.")
    width_px, height_px = struct.unpack_from(">II", data, 16)
    exif = b""
    has_pixels = is_animated = False
    for num_chunks, (name, start, end) in enumerate(_png_chunks(data)):
        if num_chunks > _max_chunks(data):
            raise _too_fragmented("PNG")
        if name == b"eXIf":
            exif = data[start:end]
        elif name == b"IDAT":
            has_pixels = True
        elif name == b"acTL" and not has_pixels and end - start >= 8:
            is_animated |= int.from_bytes(data[start : start + 4]) > 1
        elif name == b"fdAT":  # pixels of another picture than the one of IDAT, whatever acTL claims
            is_animated = True
    return Header("png", width_px, height_px, exif_orientation(exif), is_animated)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    position = 8
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if name == b"IEND":
            return
        yield name, position + 8, position + 8 + length
        position += length + 12


def _read_jpeg(data: bytes) -> Header:
    size_px: tuple[int, int] | None = None
    exif = b""
    num_exif = 0
    for num_segments, (marker, start, end) in enumerate(_jpeg_segments(data)):
        if num_segments > _MAX_JPEG_SEGMENTS or num_exif > _MAX_JPEG_EXIF_SEGMENTS:
            raise _too_fragmented("JPEG")
        if marker in _JPEG_SIZES:
            height_px, width_px = struct.unpack_from(">HH", data, start + 1)
            size_px = (width_px, height_px)
        elif marker == _APP1 and data.startswith(_EXIF_PREFIX, start):
            exif = exif or data[start:end]
            num_exif += 1
        elif marker == _SOS:
            _check_scans(data, end)
            break
    if size_px is None:
        raise MediaDecodeError("The JPEG file has no picture size. Send the complete file.")
    return Header("jpeg", *size_px, exif_orientation(exif))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end of its payload) up to the first scan."""
    position = 2
    while match := _JPEG_MARKER.match(data, position):
        marker, position = match[1][0], match.end()
        if marker in _JPEG_BARE:
            yield marker, position, position
            continue
        (length,) = struct.unpack_from(">H", data, position)
        yield marker, position + 2, position + max(length, 2)
        position += max(length, 2)


def _check_scans(data: bytes, position: int) -> None:
    """Each scan of a progressive file costs a walk over all blocks, however few bytes it has."""
    if data.count(b"\xff\xda", position) < _MAX_JPEG_SCANS:
        return
    num_scans = 1
    while match := _JPEG_SCAN_END.search(data, position):
        marker = data[match.end()]
        if marker == _EOI:
            return
        num_scans += marker == _SOS
        if num_scans > _MAX_JPEG_SCANS:
            raise MediaDecodeError(
                f"The JPEG file has more than {_MAX_JPEG_SCANS} scans. Save it again with another program."
            )
        (length,) = struct.unpack_from(">H", data, match.end() + 1)
        position = match.end() + 1 + max(length, 2)


def _read_webp(data: bytes) -> Header:
    kind = data[12:16]
    if kind == b"VP8X":
        width_px = int.from_bytes(data[24:27], "little") + 1
        height_px = int.from_bytes(data[27:30], "little") + 1
        exif, is_animated = _scan_webp(data)
        return Header("webp", width_px, height_px, exif_orientation(exif), is_animated)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return Header("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("webp", width & 0x3FFF, height & 0x3FFF)
    raise MediaDecodeError("The WebP file does not begin with its header. Send the complete file.")


def _scan_webp(data: bytes) -> tuple[bytes, bool]:
    """The first Exif block, and whether there are several frames; the animation flag is no proof of two.

    From the first frame on its name is searched rather than the chunks followed: libwebp ignores the length of a frame,
    so that a second one may stand inside the first.
    """
    exif = b""
    is_animated = False
    position = 12
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    for _ in range(_max_chunks(data)):
        if position + 8 > end:
            return exif, is_animated
        name, length = struct.unpack_from("<4sI", data, position)
        if name == b"EXIF":
            exif = exif or data[position + 8 : position + 8 + length]
        elif name == b"ANMF":
            is_animated = is_animated or data.find(b"ANMF", position + 4, end) >= 0
        position += 8 + length + (length & 1)
    raise _too_fragmented("WebP")


def _read_gif(data: bytes) -> Header:
    """The canvas, enlarged to hold the first frame, as decoders do."""
    width_px, height_px, flags = struct.unpack_from("<HHB", data, 6)
    frames = _gif_frames(data, 13 + _gif_palette_bytes(flags))
    first = next(frames, None)
    if first is None:
        raise MediaDecodeError("The GIF file holds no picture. Send the complete file.")
    left, top, frame_width_px, frame_height_px = first
    width_px, height_px = max(width_px, left + frame_width_px), max(height_px, top + frame_height_px)
    return Header("gif", width_px, height_px, is_animated=next(frames, None) is not None)


def _gif_frames(data: bytes, position: int) -> Iterator[tuple[int, int, int, int]]:
    """Left, top, width and height of the frames; those that the file is cut off in front of are left out.

    Junk is passed over behind the first frame only, as many viewers do.
    """
    num_blocks = num_frames = 0
    max_blocks = _max_chunks(data, _BYTES_PER_GIF_BLOCK)
    while mark := _GIF_MARK.search(data, position) if num_frames else _GIF_MARK.match(data, position):
        position = mark.start()
        if data[position] == _GIF_IMAGE and position + 10 <= len(data):
            left, top, width_px, height_px, flags = struct.unpack_from("<HHHHB", data, position + 1)
            yield left, top, width_px, height_px
            num_frames += 1
            position += 11 + _gif_palette_bytes(flags)
        elif data[position] == _GIF_EXTENSION:
            position += 2
        else:
            return
        while position < len(data) and data[position] and num_blocks <= max_blocks:
            position += 1 + data[position]
            num_blocks += 1
        position += 1
        num_blocks += 1
        if num_blocks > max_blocks:
            raise _too_fragmented("GIF")


def _gif_palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
