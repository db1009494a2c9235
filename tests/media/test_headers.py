"""read_header: size and orientation without a decoder, and bounded work for any bytes."""

from __future__ import annotations

import io
import struct
import time

import pytest
from PIL import Image

from fovea.core.errors import MediaDecodeError, MediaError
from fovea.media.headers import exif_orientation, read_header
from tests.media.corpus import FORMATS, NOT_PICTURES, encode, encoded_samples, exif, png_chunk

SAMPLES = encoded_samples()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("size_px", [(1, 1), (1, 3), (3, 1), (17, 255), (256, 1000), (4000, 21)])
def test_size_and_format_are_what_pillow_reads(kind: str, size_px: tuple[int, int]) -> None:
    header = read_header(encode(Image.new("RGB", size_px), kind))
    assert (header.format.upper(), header.width_px, header.height_px) == (kind, *size_px)


@pytest.mark.parametrize(
    "options", [{"lossless": True}, {"quality": 50}, {"exif": exif(6)}, {"lossless": True, "exif": exif(6)}]
)
def test_all_three_kinds_of_webp_are_read(options: dict[str, object]) -> None:
    header = read_header(encode(Image.new("RGB", (300, 77)), "WEBP", **options))
    assert (header.width_px, header.height_px) == (300, 77)
    assert header.orientation == (6 if "exif" in options else 1)


def test_a_gif_frame_larger_than_the_canvas_enlarges_it() -> None:
    data = bytearray(SAMPLES["GIF"])
    data[6:10] = struct.pack("<HH", 1, 1)
    header = read_header(bytes(data))
    assert (header.width_px, header.height_px) == (40, 20)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (40, 20)


@pytest.mark.parametrize("name", NOT_PICTURES)
def test_what_is_not_a_picture_is_refused(name: str) -> None:
    with pytest.raises(MediaDecodeError, match="not a picture in a supported format|is empty"):
        read_header(NOT_PICTURES[name])


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "ICO", "PPM", "TGA", "PCX", "DDS", "AVIF", "JPEG2000"])
def test_formats_outside_the_list_are_refused(kind: str) -> None:
    data = encode(Image.new("RGB", (16, 16)), kind)
    with pytest.raises(MediaDecodeError, match="Supported are PNG, JPEG, WebP and GIF"):
        read_header(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_header_cut_anywhere_is_refused_or_right(kind: str) -> None:
    data = SAMPLES[kind]
    whole = read_header(data)
    for length in range(min(len(data), 800)):
        try:
            header = read_header(data[:length])
        except MediaError:
            continue
        assert header == whole


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_orientation_is_read_in_both_byte_orders_and_widths(order: str, kind: int) -> None:
    for orientation in range(1, 9):
        assert exif_orientation(exif(orientation, order, kind)) == orientation
        assert exif_orientation(exif(orientation, order, kind)[6:]) == orientation


@pytest.mark.parametrize("block", [b"", b"Exif\0\0", b"junk", exif(0), exif(9), exif(6)[:20], b"II*\0\xff\xff\xff\xff"])
def test_an_exif_block_without_sense_means_upright(block: bytes) -> None:
    assert exif_orientation(block) == 1


def test_an_exif_block_that_claims_many_entries_ends_at_its_end() -> None:
    assert exif_orientation(b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(100)) == 1


def flood() -> dict[str, bytes]:
    """Files of a few megabytes whose parts are so small that walking them one by one takes seconds in Python."""
    png_file, jpeg, gif = SAMPLES["PNG"], SAMPLES["JPEG"], SAMPLES["GIF"]
    vp8x = b"VP8X" + struct.pack("<I", 10) + bytes(10)
    after_palette = 13 + (3 << (gif[10] & 7) + 1)
    return {
        "PNG": png_file[:33] + png_chunk(b"tEXt", b"a\0b") * 200_000 + png_file[33:],
        "JPEG": jpeg[:2] + b"\xff\xfe\0\x02" * 500_000 + jpeg[2:],
        "JPEG with many Exif parts": jpeg[:2] + b"\xff\xe1\0\x0aExif\0\0xx" * 100 + jpeg[2:],
        "JPEG with junk": jpeg[:2] + bytes(3_000_000) + jpeg[2:],
        "JPEG with fill": jpeg[:2] + b"\xff" * 3_000_000 + jpeg[2:],
        "GIF": gif[:after_palette] + b"!\xfe" + b"\1x" * 1_000_000 + b"\0" + gif[after_palette:],
        "GIF with empty extensions": gif[:after_palette] + b"!\xfe\0" * 500_000 + gif[after_palette:],
        "WEBP": b"RIFF" + struct.pack("<I", 2**31) + b"WEBP" + vp8x + b"JUNK\0\0\0\0" * 500_000,
    }


@pytest.mark.parametrize("name", flood())
def test_a_flood_of_tiny_parts_is_refused_at_once(name: str) -> None:
    data = flood()[name]
    start = time.perf_counter()
    with pytest.raises(MediaDecodeError):
        read_header(data)
    assert time.perf_counter() - start < 0.25


def progressive() -> tuple[bytes, bytes]:
    """A progressive JPEG and its last scan."""
    data = encode(Image.new("RGB", (64, 64), (120, 30, 40)), "JPEG", progressive=True)
    return data, data[data.rindex(b"\xff\xda") : -2]


def test_a_jpeg_of_many_scans_is_refused() -> None:
    data, scan = progressive()
    read_header(data[:-2] + scan * 50 + data[-2:])
    with pytest.raises(MediaDecodeError, match="scans"):
        read_header(data[:-2] + scan * 1000 + data[-2:])


def test_scans_hidden_behind_a_false_end_in_a_comment_are_counted() -> None:
    data, scan = progressive()
    comment = b"\xff\xfe\0\x06\xff\xd9\xff\xd9"
    with pytest.raises(MediaDecodeError, match="scans"):
        read_header(data[:-2] + comment + scan * 1000 + data[-2:])


def test_scan_marks_in_the_tail_of_a_file_do_not_count() -> None:
    data = SAMPLES["JPEG"] + b"\xff\xda" * 10_000
    assert read_header(data).width_px == 40
