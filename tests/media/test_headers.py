"""read_header: size and orientation without a decoder, and bounded work for any bytes."""

from __future__ import annotations

import contextlib
import io
import struct
import time
import zlib

import pytest
from PIL import Image

from fovea.core.errors import MediaDecodeError, MediaError
from fovea.media.decode import decode
from fovea.media.headers import exif_orientation, read_header
from fovea.media.source import BytesSource
from tests.media.corpus import FORMATS, NOT_PICTURES, encode, encoded_samples, exif, noise, png_chunk, png_of_rgb

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


def frames(count: int) -> list[Image.Image]:
    return [Image.fromarray(noise(16, 12, seed=seed)) for seed in range(count)]


def animation(kind: str, num_frames: int = 2, **options: object) -> bytes:
    first, *rest = frames(num_frames)
    return encode(first, kind, save_all=True, append_images=rest, **options)


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    """An extended WebP of 16 x 12 whose animation flag is set."""
    vp8x = (b"VP8X", b"\x02" + bytes(3) + (15).to_bytes(3, "little") + (11).to_bytes(3, "little"))
    body = b"".join(name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in (vp8x, *chunks))
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


ANIM = (b"ANIM", bytes(6))


def anmf(image: Image.Image) -> tuple[bytes, bytes]:
    size = (15).to_bytes(3, "little") + (11).to_bytes(3, "little")
    return b"ANMF", bytes(6) + size + bytes(4) + encode(image, "WEBP", lossless=True)[12:]


def nested_webp() -> bytes:
    """libwebp shows both frames."""
    (name, first), second = map(anmf, frames(2))
    return webp(ANIM, (name, first + second[0] + struct.pack("<I", len(second[1])) + second[1]))


def fctl(number: int) -> bytes:
    return png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, 16, 12, 0, 0, 1, 10, 0, 0))


def apng(num_frames: int, *, before: bytes = b"", after: bytes = b"") -> bytes:
    claim = png_chunk(b"acTL", struct.pack(">II", num_frames, 0))
    return png_of_rgb(noise(16, 12), before=claim + before, after=after)


FDAT = png_chunk(b"fdAT", bytes(4) + zlib.compress(bytes(12 * 49)))


def several() -> dict[str, bytes]:
    """Files that some viewer shows more than one picture of, or another one than the first."""
    gif = animation("GIF")
    still = encode(frames(1)[0], "GIF").removesuffix(b";")
    return {
        "GIF": gif,
        "GIF of ten frames": animation("GIF", 10),
        "GIF that loops": animation("GIF", 3, loop=0, comment=b"x" * 2000),
        "GIF without its trailer": gif.removesuffix(b";"),
        "GIF with junk between the frames": still + bytes(100) + b"junk" + gif[gif.index(b"!\xf9", 20) :],
        "APNG": animation("PNG"),
        "APNG that hides its first picture": animation("PNG", default_image=True),
        "APNG of one frame that hides its first picture": apng(1, after=fctl(0) + FDAT),
        "APNG of 2^31 - 1 frames": apng(2**31 - 1),
        "APNG of 2^32 - 1 frames": apng(2**32 - 1),
        "PNG with other pixels in front": png_of_rgb(noise(16, 12), before=FDAT),
        "WebP": animation("WEBP"),
        "WebP without loss": animation("WEBP", lossless=True),
        "WebP with its second frame inside the first": nested_webp(),
        "WebP with Exif in front": webp((b"EXIF", exif(6)), ANIM, *map(anmf, frames(2))),
    }


def single() -> dict[str, bytes]:
    image = frames(1)[0]
    return {
        **{kind: encode(image, kind) for kind in FORMATS},
        "GIF with a palette of its own and comments": encode(image, "GIF", comment=b",!," * 500, loop=0),
        "GIF without its trailer": encode(image, "GIF").removesuffix(b";"),
        "GIF with a frame behind its trailer": encode(image, "GIF") * 2,
        "GIF with a comment behind its frame": encode(image, "GIF").removesuffix(b";") + b"!\xfe\x03,,,\0;",
        "APNG of one frame": apng(1, before=fctl(0)),
        "APNG of no frame": apng(0),
        "PNG with a claim behind its pixels": png_of_rgb(noise(16, 12), after=png_chunk(b"acTL", bytes(3) + b"\2" * 5)),
        "WebP with the animation flag and one frame": webp(ANIM, anmf(image)),
        "WebP with one frame and Exif": webp(ANIM, anmf(image), (b"EXIF", exif(6))),
    }


@pytest.mark.parametrize("name", several())
def test_a_file_of_several_pictures_is_animated(name: str) -> None:
    header = read_header(several()[name])
    assert (header.width_px, header.height_px, header.is_animated) == (16, 12, True)


@pytest.mark.filterwarnings("ignore:Invalid APNG")
@pytest.mark.parametrize("name", single())
def test_a_file_of_one_picture_is_not_animated(name: str) -> None:
    data = single()[name]
    header = read_header(data)
    assert (header.width_px, header.height_px, header.is_animated) == (16, 12, False)
    assert decode(BytesSource(data)).width_px in (12, 16)


@pytest.mark.parametrize("length", range(3))
def test_an_animated_gif_cut_off_in_its_second_header_is_still(length: int) -> None:
    still = encode(frames(1)[0], "GIF").removesuffix(b";")
    assert not read_header(still + b",\0\0"[:length]).is_animated


def test_libwebp_shows_both_of_nested_frames() -> None:
    with Image.open(io.BytesIO(nested_webp())) as image:
        assert image.n_frames == 2  # type: ignore[attr-defined]


def test_an_orientation_behind_the_frames_counts() -> None:
    assert read_header(webp(ANIM, *map(anmf, frames(2)), (b"EXIF", exif(6)))).orientation == 6


@pytest.mark.parametrize(
    "parts",
    [b"!\xfe\1x\0" * 100_000, b"!\xfe\0" * 100_000, b"x!" * 100_000, b"\1x" * 100_000],
    ids=lambda p: str(p[:5]),
)
@pytest.mark.parametrize("place", ["in the frame", "behind it"])
def test_a_gif_is_walked_in_bounded_time_behind_its_first_frame(parts: bytes, place: str) -> None:
    whole = encode(frames(1)[0], "GIF").removesuffix(b";")
    data = (whole if place == "behind it" else whole[:-1]) + parts
    start = time.perf_counter()
    with contextlib.suppress(MediaDecodeError):
        assert not read_header(data).is_animated
    assert time.perf_counter() - start < 0.25


@pytest.mark.parametrize("part", [b"!\xfe\1x\0", b"!\xfe\0"])
def test_a_flood_of_comments_behind_the_frame_of_a_gif_is_refused(part: bytes) -> None:
    with pytest.raises(MediaDecodeError, match="too many parts"):
        read_header(encode(frames(1)[0], "GIF").removesuffix(b";") + part * 100_000)


def test_a_flood_of_tiny_blocks_in_the_frame_of_a_gif_is_refused() -> None:
    with pytest.raises(MediaDecodeError, match="too many parts"):
        read_header(encode(frames(1)[0], "GIF")[:-2] + b"\1x" * 100_000)


def test_a_large_gif_is_not_taken_for_a_hostile_one() -> None:
    whole = encode(Image.fromarray(noise(2000, 1500)).quantize(256), "GIF")
    assert len(whole) > 2_500_000
    assert not read_header(whole).is_animated
    assert read_header(whole.removesuffix(b";") + whole[13 + 768 :]).is_animated
