"""decode: what a person sees is what the model gets, for every mode and format; broken files are refused."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fovea.core.errors import MediaDecodeError, MediaError
from fovea.media import ArraySource, BytesSource, PilSource, decode, load_picture, picture_digest
from tests.media.corpus import (
    FORMATS,
    LIMITS,
    LOSSLESS,
    encode,
    encoded_samples,
    exif,
    noise,
    over_white,
    png,
    png_chunk,
    png_of_rgb,
)


def pixels_of(value: object) -> NDArray[np.uint8]:
    return load_picture(value, LIMITS).pixels


def test_the_picture_is_contiguous_read_only_and_named_by_its_pixels() -> None:
    picture = decode(BytesSource(encoded_samples()["PNG"]))
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.flags.c_contiguous
    assert not picture.pixels.flags.writeable
    assert picture.digest == picture_digest(picture.pixels)


@pytest.mark.parametrize("size_px", [(1, 1), (1, 3), (3, 1), (3, 3), (4, 4), (3, 4)])
def test_tiny_pictures_keep_their_shape_in_every_form(size_px: tuple[int, int]) -> None:
    pixels = noise(*size_px)
    image = Image.fromarray(pixels)
    for value in (pixels, image, encode(image, "PNG"), encode(image, "WEBP", lossless=True)):
        np.testing.assert_array_equal(pixels_of(value), pixels)


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_equals_pillow(kind: str) -> None:
    data = encoded_samples()[kind]
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(pixels_of(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_opaque_modes_equal_pillows_conversion(mode: str) -> None:
    base = Image.fromarray(noise(16, 9))
    image = Image.new("LAB", (16, 9), (120, 130, 90)) if mode == "LAB" else base.convert(mode)
    np.testing.assert_array_equal(pixels_of(image), np.asarray(image.convert("RGB")))


def test_grey_arrays_become_grey_pictures() -> None:
    grey = noise(5, 4, 1)
    for array in (grey, grey[:, :, 0]):
        np.testing.assert_array_equal(pixels_of(array), np.repeat(grey, 3, axis=2))


@pytest.mark.parametrize("kind", LOSSLESS)
def test_alpha_is_laid_over_white(kind: str) -> None:
    rgba = noise(64, 64, 4)
    image = Image.fromarray(rgba)
    for value in (rgba, image, encode(image, kind, **LOSSLESS[kind])):
        np.testing.assert_array_equal(pixels_of(value), over_white(rgba))


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBa"])
def test_every_mode_with_alpha_is_laid_over_white(mode: str) -> None:
    rgba = Image.fromarray(noise(32, 32, 4))
    image = rgba.convert("LA").convert(mode) if mode in ("La", "PA") else rgba.convert(mode)
    reference = (image.convert("LA") if mode == "La" else image).convert("RGBA")
    np.testing.assert_array_equal(pixels_of(image), over_white(np.asarray(reference)))


def test_a_transparent_colour_of_rgb_is_white_and_not_the_hidden_colour() -> None:
    pixels = np.array([[[0, 0, 0], [1, 2, 3], [0, 0, 1]]], dtype=np.uint8)
    data = png_of_rgb(pixels, before=png_chunk(b"tRNS", struct.pack(">HHH", 0, 0, 0)))
    expected = [[[255, 255, 255], [1, 2, 3], [0, 0, 1]]]
    for value in (data, Image.open(io.BytesIO(data))):
        assert pixels_of(value).tolist() == expected


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_white_at_every_depth(depth: int) -> None:
    levels = 2**depth - 1
    values = sorted({0, 1, levels // 2, levels})
    bits = "".join(f"{value:0{depth}b}" for value in values)
    row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    data = png((len(values), 1), [row], depth=depth, colour=0, before=png_chunk(b"tRNS", struct.pack(">H", 1)))
    expected = [255 if value == 1 else (value * 510 + levels) // (2 * levels) for value in values]
    assert pixels_of(data)[0, :, 0].tolist() == expected


def test_a_transparent_colour_of_16_bit_rgb_is_white() -> None:
    row = struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0xFF00, 0x0100, 0)
    data = png((2, 1), [row], depth=16, before=png_chunk(b"tRNS", row[:6]))
    assert pixels_of(data).tolist() == [[[255, 255, 255], [255, 1, 0]]]


def test_palettes_with_one_or_many_transparent_entries_are_laid_over_white() -> None:
    palette = png_chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60, 70, 80, 90]))
    for alphas, expected in [
        (bytes([0]), [[255] * 3, [40, 50, 60], [70, 80, 90]]),
        (bytes([255, 0]), [[10, 20, 30], [255] * 3, [70, 80, 90]]),
        (bytes([0, 51, 255]), [[255] * 3, [212, 214, 216], [70, 80, 90]]),
    ]:
        data = png((3, 1), [bytes([0, 1, 2])], colour=3, before=palette + png_chunk(b"tRNS", alphas))
        for value in (data, Image.open(io.BytesIO(data))):
            assert pixels_of(value)[0].tolist() == expected


def test_a_palette_index_out_of_range_is_black() -> None:
    data = png((2, 1), [bytes([1, 200])], colour=3, before=png_chunk(b"PLTE", bytes([9, 9, 9, 7, 8, 9])))
    assert pixels_of(data)[0].tolist() == [[7, 8, 9], [0, 0, 0]]


def test_a_transparent_gif_is_laid_over_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putpixel((1, 0), 1)
    assert pixels_of(encode(image, "GIF", transparency=0))[0].tolist() == [[255, 255, 255], [0, 200, 0]]


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    values = [0, 127, 128, 129, 255, 256, 257, 32768, 65406, 65407, 65535]
    expected = [0, 0, 0, 1, 1, 1, 1, 128, 254, 255, 255]
    assert [(v + 128) // 257 for v in values] == [round(v / 257) for v in values]
    expected = [round(v / 257) for v in values]
    data = png((len(values), 1), [struct.pack(f">{len(values)}H", *values)], depth=16, colour=0)
    array = np.array([values])
    forms = [
        data,
        Image.open(io.BytesIO(data)),
        Image.fromarray(array.astype("<u2")),
        Image.fromarray(array.astype("<i4")),
        Image.frombytes("I;16B", array.shape[::-1], array.astype(">u2").tobytes()),
    ]
    assert {image.mode for image in forms if isinstance(image, Image.Image)} == {"I", "I;16", "I;16B"}
    for value in forms:
        assert pixels_of(value)[0].tolist() == [[grey] * 3 for grey in expected]


def test_16_bit_colour_keeps_its_high_bytes() -> None:
    data = png((1, 1), [struct.pack(">HHH", 0x1234, 0x8000, 0xFFFF)], depth=16)
    assert pixels_of(data).tolist() == [[[0x12, 0x80, 0xFF]]]


def test_modes_without_a_known_range_are_refused_with_a_way_out() -> None:
    with pytest.raises(MediaDecodeError, match='mode "F".*Scale'):
        decode(PilSource(Image.new("F", (2, 2), 0.5)))
    for value in (-1, 65536):
        with pytest.raises(MediaDecodeError, match='mode "I".*outside 0..65535'):
            decode(PilSource(Image.new("I", (2, 2), value)))


def test_an_adobe_cmyk_jpeg_has_its_true_colours() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = pixels_of(encode(cmyk, "JPEG", quality=100))[8, 8]
    assert red[0] > 240
    assert max(red[1], red[2]) < 15


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(kind: str, orientation: int) -> None:
    base = Image.fromarray(np.asarray(Image.open(io.BytesIO(encoded_samples()["PNG"]))))
    data = encode(base, kind, exif=exif(orientation))
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    for value in (data, Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(pixels_of(value), expected)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert pixels_of(data)[4, 4].tolist() == [250, 0, 0]


def test_a_pil_animation_is_the_frame_it_stands_at() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    image = Image.open(io.BytesIO(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    image.seek(1)
    assert pixels_of(image)[4, 4].tolist() == [0, 250, 0]
    assert image.tell() == 1


def test_colour_profiles_change_nothing() -> None:
    image = Image.fromarray(noise(8, 8))
    for profile in (b"broken", bytes(5_000_000)):
        np.testing.assert_array_equal(
            pixels_of(encode(image, "JPEG", icc_profile=profile)), pixels_of(encode(image, "JPEG"))
        )


def test_a_header_that_lies_about_the_size_is_refused() -> None:
    """A second header chunk: what was judged would not be what is decoded."""
    small, large = png_of_rgb(noise(1, 1)), png_of_rgb(noise(300, 300))
    data = large[:8] + small[8:33] + large[8:]
    with pytest.raises(MediaDecodeError, match="contradicts itself"):
        decode(BytesSource(data))
    webp = bytearray(encode(Image.new("RGBA", (20, 10), (1, 2, 3, 4)), "WEBP"))
    assert webp[12:16] == b"VP8X"
    webp[24] = 200
    with pytest.raises(MediaDecodeError):
        decode(BytesSource(bytes(webp)))


def test_a_stereo_jpeg_is_its_first_picture() -> None:
    left, right = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 200, 0))
    data = encode(left, "MPO", save_all=True, append_images=[right])
    np.testing.assert_array_equal(pixels_of(data), pixels_of(encode(left, "JPEG")))


def test_arrays_without_pixels_are_refused_even_without_a_probe() -> None:
    for shape in ((0, 3, 3), (3, 0, 4), (0, 0)):
        with pytest.raises(MediaDecodeError, match="no pixels"):
            decode(ArraySource(np.zeros(shape, dtype=np.uint8)))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_anywhere_is_refused_or_whole_and_never_filled_up(kind: str) -> None:
    data = encode(Image.fromarray(noise(40, 20)), kind)
    whole = load_picture(data, LIMITS).digest
    for length in sorted({*range(0, len(data), max(1, len(data) // 150)), *range(len(data) - 20, len(data))}):
        try:
            picture = load_picture(data[:length], LIMITS)
        except MediaError:
            continue
        assert picture.digest == whole, f"cut to {length} of {len(data)} bytes"
        assert length >= len(data) - 24, "only checksums and the end mark may be missing"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("form", ["bytes", "pil"])
def test_mutated_files_are_refused_or_read_and_nothing_else(kind: str, form: str) -> None:
    data = encoded_samples()[kind]
    rng = np.random.default_rng(FORMATS.index(kind))
    for _ in range(100):
        value: object = mutate(data, rng)
        if form == "pil":
            try:
                value = Image.open(io.BytesIO(mutate(data, rng)))
            except Exception:
                continue
        try:
            pixels = load_picture(value, LIMITS).pixels
        except MediaError as error:
            message = str(error)
        else:
            message = ""
            assert pixels.shape[2:] == (3,)
        assert "0x" not in message


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """A few flipped bytes, most of them in the header, and sometimes a cut, a doubled or a swapped part."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        end = len(changed) if rng.random() < 0.4 else min(len(changed), 64)
        changed[rng.integers(0, end)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(0, 256))])
    start, stop = sorted(int(n) for n in rng.integers(0, len(changed), 2))
    match rng.integers(0, 6):
        case 0:
            del changed[start : min(stop, start + 40)]
        case 1:
            changed[start:start] = changed[start:stop]
        case 2:
            changed[start:stop] = changed[start:stop][::-1]
    return bytes(changed)
