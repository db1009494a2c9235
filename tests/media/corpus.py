"""Pictures made in code: good, odd and bad ones, shared by the tests of fovea.media."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fovea.media import MediaLimits

LIMITS = MediaLimits(max_bytes=32 * 1024**2, max_pixels=64_000_000, max_aspect=200.0)
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True, "exact": True}}
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
NOT_PICTURES = {
    "empty": b"",
    "text": b"hello",
    "html": b"<!doctype html><html><body>404</body></html>",
    "json": b'{"error": "not found"}',
    "executable": b"MZ\x90\0\x03\0\0\0",
    "pdf": b"%PDF-1.7\n1 0 obj\n",
    "svg": b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
    "psd": b"8BPS\0\x01" + bytes(20),
    "avif": b"\0\0\0\x20ftypavif" + bytes(40),
    "heic": b"\0\0\0\x20ftypheic" + bytes(40),
    "jpeg2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
    "riff without webp": b"RIFF\x10\0\0\0WAVEfmt " + bytes(16),
}


def noise(width_px: int, height_px: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Random pixels [height, width, channels]."""
    shape = (height_px, width_px, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def encoded_samples(width_px: int = 40, height_px: int = 20) -> dict[str, bytes]:
    """One still picture in each format; smooth, so that JPEG stays near."""
    y, x = np.mgrid[0:height_px, 0:width_px]
    pixels = np.stack([x * 255 // width_px, y * 255 // height_px, (x + y) % 256], axis=2).astype(np.uint8)
    return {kind: encode(Image.fromarray(pixels), kind) for kind in FORMATS}


def exif(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """An Exif block with just the orientation, as SHORT (3) or LONG (4)."""
    magic = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(order + ("I" if kind == 4 else "H"), orientation).ljust(4, b"\0")
    entry = struct.pack(order + "HHI", 0x0112, kind, 1) + value
    return b"Exif\0\0" + magic + struct.pack(order + "IH", 8, 1) + entry + bytes(4)


def png_chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    size_px: tuple[int, int],
    rows: list[bytes],
    *,
    depth: int = 8,
    colour: int = 2,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG file with unfiltered `rows` and any chunks before and after the pixels."""
    header = struct.pack(">IIBBBBB", *size_px, depth, colour, 0, 0, 0)
    pixels = png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + before + pixels + after + png_chunk(b"IEND")


def png_of_rgb(pixels: NDArray[np.uint8], before: bytes = b"", after: bytes = b"") -> bytes:
    height_px, width_px, _ = pixels.shape
    return png((width_px, height_px), [row.tobytes() for row in pixels], before=before, after=after)


def huge_headers() -> dict[str, bytes]:
    """Files of some bytes that claim hundreds of megapixels."""
    vp8x = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16382).to_bytes(3, "little") * 2
    jpeg = encoded_samples()["JPEG"]
    at = jpeg.index(b"\xff\xc0") + 5
    return {
        "png 20,000 x 20,000": png((20_000, 20_000), [b"\0"]),
        "png 2^31-1 squared": png((2**31 - 1, 2**31 - 1), [b"\0"]),
        "png 13,000 x 13,000, below Pillow's own limit": png((13_000, 13_000), [b"\0"]),
        "webp 16,383 x 16,383": b"RIFF" + struct.pack("<I", 4 + len(vp8x)) + b"WEBP" + vp8x,
        "gif 65,535 x 65,535": b"GIF89a\xff\xff\xff\xff\0\0\0," + bytes(4) + b"\1\0\1\0\0\2\2\x44\1\0;",
        "gif with a frame larger than its canvas": b"GIF89a\1\0\1\0\0\0\0," + bytes(4) + b"\xff\xff\xff\xff\0\2\0;",
        "jpeg 65,535 x 65,535": jpeg[:at] + b"\xff\xff\xff\xff" + jpeg[at + 4 :],
    }


def over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The reference for transparency, in exact integers."""
    colour, alpha = rgba[..., :3].astype(np.int64), rgba[..., 3:].astype(np.int64)
    return ((2 * (colour * alpha + 255 * (255 - alpha)) + 255) // 510).astype(np.uint8)
