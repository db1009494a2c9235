"""probe: limits are judged from headers, before anything is paid for."""

from __future__ import annotations

import io
import time
import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fovea.core.config import EngineConfig
from fovea.core.errors import MediaDecodeError, MediaLimitError
from fovea.core.server_config import ServerConfig
from fovea.media import ArraySource, BytesSource, MediaLimits, PilSource, load_picture, probe, probe_size
from tests.media.corpus import (
    FORMATS,
    LIMITS,
    encode,
    encoded_samples,
    exif,
    huge_headers,
    noise,
    png_chunk,
    png_of_rgb,
)


@pytest.mark.parametrize("kind", FORMATS)
def test_size_format_and_bytes_are_reported(kind: str) -> None:
    data = encoded_samples()[kind]
    found = probe(BytesSource(data), LIMITS)
    assert (found.width_px, found.height_px, found.format, found.num_bytes) == (40, 20, kind.lower(), len(data))


def test_sizes_of_arrays_and_pil_pictures_are_reported() -> None:
    array = probe(ArraySource(noise(7, 5)), LIMITS)
    assert (array.width_px, array.height_px, array.format, array.num_bytes) == (7, 5, "array", 105)
    image = probe(PilSource(Image.new("L", (7, 5))), LIMITS)
    assert (image.width_px, image.height_px, image.format, image.num_bytes) == (7, 5, "pil", 35)


@pytest.mark.parametrize("name", huge_headers())
def test_a_huge_picture_is_refused_in_milliseconds_without_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fovea.media.load.decode", lambda _: pytest.fail("decoded"))
    data = huge_headers()[name]
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(MediaLimitError, match="max_image_pixels permits 64,000,000"):
                load_picture(data, LIMITS)
        assert time.perf_counter() - start < 0.05
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [np.zeros((0, 5, 3), np.uint8), np.zeros((5, 0), np.uint8), Image.new("RGB", (0, 4))])
def test_a_picture_without_pixels_is_refused(value: object) -> None:
    with pytest.raises(MediaLimitError, match="at least 1 x 1"):
        probe_size(value, LIMITS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_an_encoded_picture_of_width_zero_is_refused(kind: str) -> None:
    data = bytearray(encoded_samples()[kind])
    at, length = {"PNG": (16, 4), "JPEG": (data.find(b"\xff\xc0") + 5, 4), "GIF": (6, 2)}[kind]
    data[at : at + length] = bytes(length)
    if kind == "GIF":
        frame = data.index(b",", 13 + 768)
        data[frame + 5 : frame + 7] = bytes(2)
    with pytest.raises(MediaLimitError, match="at least 1 x 1"):
        probe(BytesSource(bytes(data)), LIMITS)


def test_each_limit_holds_exactly_at_its_value() -> None:
    data = encode(Image.new("RGB", (40, 20)), "PNG")
    good = MediaLimits(max_bytes=len(data), max_pixels=800, max_aspect=2.0)
    probe_size(data, good)
    for option, limits in {
        "max_image_bytes": MediaLimits(len(data) - 1, 800, 2.0),
        "max_image_pixels": MediaLimits(len(data), 799, 2.0),
        "max_image_aspect": MediaLimits(len(data), 800, 1.99),
    }.items():
        with pytest.raises(MediaLimitError, match=option):
            probe_size(data, limits)


@pytest.mark.parametrize("size_px", [(201, 1), (1, 201), (52_800, 44)])
def test_elongated_pictures_are_refused_in_every_form(size_px: tuple[int, int]) -> None:
    image = Image.new("L", size_px)
    for value in (image, np.asarray(image), encode(image, "PNG")):
        with pytest.raises(MediaLimitError, match="max_image_aspect permits 200"):
            probe_size(value, LIMITS)


def test_pixel_limits_hold_for_arrays_and_pil_pictures() -> None:
    limits = MediaLimits(10**6, 99, 200.0)
    for value in (noise(10, 10), Image.new("RGB", (10, 10))):
        with pytest.raises(MediaLimitError, match="10 x 10 pixels, 100 in all"):
            probe_size(value, limits)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_reported_size_is_the_upright_one(kind: str, orientation: int) -> None:
    data = encode(Image.new("RGB", (40, 20)), kind, exif=exif(orientation))
    expected = (20, 40) if orientation >= 5 else (40, 20)
    for value in (data, Image.open(io.BytesIO(data))):
        found = probe_size(value, LIMITS)
        assert (found.width_px, found.height_px) == expected
        picture = load_picture(value, LIMITS)
        assert (picture.width_px, picture.height_px) == expected


def test_an_orientation_after_the_pixels_of_a_png_counts_in_every_form() -> None:
    data = png_of_rgb(noise(4, 2), after=png_chunk(b"eXIf", exif(6)[6:]))
    for value in (data, Image.open(io.BytesIO(data))):
        found = probe_size(value, LIMITS)
        assert (found.width_px, found.height_px) == (2, 4)
        assert load_picture(value, LIMITS).pixels.shape == (4, 2, 3)


def test_a_pil_picture_whose_file_is_gone_is_refused() -> None:
    file = io.BytesIO(encoded_samples()["PNG"])
    image = Image.open(file)
    file.close()
    with pytest.raises(MediaDecodeError, match="still open"):
        probe_size(image, LIMITS)


def test_pillows_own_guard_neither_warns_nor_interferes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in FORMATS:
            load_picture(encoded_samples()[kind], LIMITS)
    assert before == 89_478_485, "Something changed Pillow's global limit."


def test_limits_come_from_the_options() -> None:
    config = EngineConfig(max_image_bytes=5, max_image_pixels=6, max_image_aspect=7.0)
    assert MediaLimits.from_config(config) == MediaLimits(5, 6, 7.0)
    assert MediaLimits.from_config(config).allow_animated


def test_a_server_takes_no_animations() -> None:
    limits = MediaLimits.from_config(ServerConfig())
    assert not limits.allow_animated
    assert limits.max_pixels == ServerConfig().max_image_pixels


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_refused_where_it_is_not_allowed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(noise(8, 8))
    data = encode(image, kind, save_all=True, append_images=[Image.fromarray(noise(8, 8, seed=1))])
    still = replace(LIMITS, allow_animated=False)
    assert probe(BytesSource(encode(image, kind)), still).width_px == 8
    assert load_picture(data, LIMITS).width_px == 8
    monkeypatch.setattr("fovea.media.load.decode", lambda _: pytest.fail("decoded"))
    with pytest.raises(MediaDecodeError, match="Send the frames you mean as separate pictures") as caught:
        load_picture(data, still)
    assert (caught.value.code, caught.value.status) == ("animated_image_not_supported", 400)
