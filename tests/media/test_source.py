"""parse_image and parse_url: what is taken, what is refused, and what the refusals say."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fovea.core.errors import MediaError, MediaLimitError, MediaSourceError
from fovea.media import ArraySource, BytesSource, FileSource, ImageSource, PilSource, UrlSource, parse_image, parse_url
from fovea.media.fetch import FetchPolicy
from fovea.media.load import open_source
from tests.media.corpus import LIMITS, encoded_samples, noise

PNG = encoded_samples()["PNG"]
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


def take(url: str, allowed: str | Path = "", max_bytes: int = 10**6) -> ImageSource:
    return parse_url(url, allowed_local_media_path=str(allowed), max_bytes=max_bytes)


def test_a_pil_picture_stays_itself() -> None:
    image = Image.new("RGB", (2, 3))
    source = parse_image(image)
    assert isinstance(source, PilSource)
    assert source.image is image


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_any_kind_are_copied_to_bytes(kind: type) -> None:
    assert parse_image(kind(PNG)) == BytesSource(PNG)


def test_a_path_is_trusted_and_a_source_passes_through() -> None:
    source = parse_image(Path("/some/file.png"))
    assert source == FileSource(Path("/some/file.png"), root=None)
    assert parse_image(source) is source


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4), (1, 1, 3), (3, 1, 3), (3, 3, 3), (3, 4, 4)])
def test_arrays_are_height_width_channels_and_never_guessed(shape: tuple[int, ...]) -> None:
    source = parse_image(np.zeros(shape, dtype=np.uint8))
    assert isinstance(source, ArraySource)
    assert source.array.shape == shape


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "uint16", "bool", "object", "int8"])
def test_arrays_of_another_dtype_are_refused_by_name(dtype: str) -> None:
    with pytest.raises(MediaSourceError, match=rf"{dtype} array of shape \(4, 5, 3\).*uint8 \[height, width, 3\]"):
        parse_image(np.zeros((4, 5, 3), dtype=dtype))


@pytest.mark.parametrize("shape", [(), (5,), (4, 5, 2), (4, 5, 5), (1, 4, 5, 3), (3, 8, 9)])
def test_arrays_of_another_layout_are_refused_by_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(MediaSourceError, match="of shape") as error:
        parse_image(np.zeros(shape, dtype=np.uint8))
    assert str(shape) in str(error.value)


def test_a_channels_first_array_gets_a_hint() -> None:
    with pytest.raises(MediaSourceError, match=r"array\.transpose\(1, 2, 0\)"):
        parse_image(np.zeros((3, 8, 9), dtype=np.uint8))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tensors_are_channels_first_as_in_torchvision(channels: int) -> None:
    torch = pytest.importorskip("torch")
    pixels = noise(3, 2, channels)
    source = parse_image(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
    assert isinstance(source, ArraySource)
    np.testing.assert_array_equal(source.array, pixels)


def test_tensors_of_another_kind_are_refused() -> None:
    torch = pytest.importorskip("torch")
    cases = {
        "float32 tensor": torch.zeros(3, 4, 5),
        r"permute\(2, 0, 1\)": torch.zeros(8, 5, 3, dtype=torch.uint8),
        r"shape \(4, 5\)": torch.zeros(4, 5, dtype=torch.uint8),
        "no plain data": torch.zeros(3, 4, 5, dtype=torch.uint8, device="meta"),
    }
    for message, tensor in cases.items():
        with pytest.raises(MediaSourceError, match=message):
            parse_image(tensor)


@pytest.mark.parametrize("value", ["cat.png", "https://example.com/a.png"])
def test_text_is_refused_without_repeating_it(value: str) -> None:
    with pytest.raises(MediaSourceError, match=r"pathlib\.Path") as error:
        parse_image(value)
    assert value not in str(error.value)


@pytest.mark.parametrize("value", [None, 3, [1, 2], {"url": "x"}, object()])
def test_other_kinds_are_refused_by_type(value: object) -> None:
    with pytest.raises(MediaSourceError, match=type(value).__name__):
        parse_image(value)


@pytest.mark.parametrize(
    "header",
    [
        "data:image/png;base64,",
        "DATA:IMAGE/PNG;BASE64,",
        "data:image/jpeg;base64,",
        "data:image/svg+xml;base64,",
        "data:image/png;charset=utf-8;base64,",
        "data:image/png;name=../../x;base64,",
    ],
)
def test_data_urls_are_decoded_and_the_bytes_decide(header: str) -> None:
    assert take(header + base64.b64encode(PNG).decode()) == BytesSource(PNG)


@pytest.mark.parametrize(
    "url",
    [
        "data:",
        "data:,",
        "data:image/png",
        "data:image/png;base64",
        "data:image/png;base64,",
        "data:image/png," + "%89PNG",
        "data:;base64,aGk=",
        "data:text/html;base64,aGk=",
        "data:application/pdf;base64,aGk=",
        "data:video/jpeg;base64,aGk=",
        "data:image/png;base64;base64,aGk=",
        "data: image/png;base64,aGk=",
        "data:image/" + "x" * 10_000 + ";base64,aGk=",
        "data:image/png;base64,@@@@",
        "data:image/png;base64,aG k=",
        "data:image/png;base64,aGk=\n",
        "data:image/png;base64, aGk=",
        "data:image/png;base64,a-_=",
        "data:image/png;base64,aGk",
        "data:image/png;base64,aGk==",
        "data:image/png;base64,aGk=aGk=",
        "data:image/png;base64,aGk%3D",
        "data:image/png;base64,\u00e9\u00e9\u00e9\u00e9",
    ],
)
def test_bad_data_urls_are_refused(url: str) -> None:
    with pytest.raises(MediaSourceError, match="data URL"):
        take(url)


def test_the_size_of_a_data_url_is_judged_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    for num_bytes in (9, 10, 11, 12):
        url = "data:image/png;base64," + base64.b64encode(bytes(num_bytes)).decode()
        assert take(url, max_bytes=num_bytes) == BytesSource(bytes(num_bytes))
        with monkeypatch.context() as patch:
            patch.setattr("binascii.a2b_base64", lambda *_, **__: pytest.fail("decoded"))
            with pytest.raises(MediaLimitError, match="max_image_bytes"):
                take(url, max_bytes=num_bytes - 1)


@pytest.mark.parametrize("url", ["http://a.test/a.png", "HTTPS://a.test", "https://user:secret@a.test/", "http:"])
def test_web_addresses_are_kept_and_judged_where_they_are_fetched(url: str) -> None:
    source = take(url)
    assert source == UrlSource(url)
    assert parse_image(source) is source


@pytest.mark.parametrize(
    "url",
    ["ftp://h/a", "gopher:x", "javascript:alert(1)", "a.png", "/etc/passwd", "", " data:image/png;base64,aGk=", "//h"],
)
def test_other_addresses_are_refused_by_scheme_only(url: str) -> None:
    with pytest.raises(MediaSourceError, match="scheme") as error:
        take(url)
    assert not url or url not in str(error.value)


def test_a_long_scheme_is_cut() -> None:
    with pytest.raises(MediaSourceError) as error:
        take("x" * 5000 + "://h")
    assert len(str(error.value)) < 300


def test_urls_that_are_not_text_are_refused() -> None:
    with pytest.raises(MediaSourceError, match="must be text"):
        take(b"data:image/png;base64,aGk=")  # type: ignore[arg-type]


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """An allowed folder, a secret beside it, and ways to get from one to the other."""
    allowed = tmp_path / "allowed"
    (allowed / "sub dir").mkdir(parents=True)
    (tmp_path / "allowed-not").mkdir()
    for name in ("secret.png", "allowed/a.png", "allowed/sub dir/b#1.png", "allowed-not/c.png"):
        (tmp_path / name).write_bytes(PNG)
    (allowed / "inside.png").symlink_to(allowed / "a.png")
    (allowed / "escape.png").symlink_to(tmp_path / "secret.png")
    (allowed / "escape").symlink_to(tmp_path)
    (allowed / "loop").symlink_to(allowed / "loop")
    os.mkfifo(allowed / "fifo.png")
    return allowed


@pytest.mark.parametrize(
    "name", ["a.png", "sub%20dir/b%231.png", "sub dir/b%231.png", "inside.png", "sub dir/../a.png"]
)
@pytest.mark.parametrize("prefix", ["file://", "file://localhost", "FILE://", "file:"])
def test_files_below_the_allowed_folder_are_taken(shelf: Path, prefix: str, name: str) -> None:
    source = take(f"{prefix}{shelf}/{name}", shelf)
    assert isinstance(source, FileSource)
    assert source.root == shelf.resolve()
    assert source.path.read_bytes() == PNG


def test_an_allowed_folder_that_is_a_link_works(shelf: Path) -> None:
    link = shelf.parent / "link"
    link.symlink_to(shelf)
    assert isinstance(take(f"file://{link}/a.png", link), FileSource)


@pytest.mark.parametrize(
    "tail",
    [
        "/../secret.png",
        "/%2e%2e/secret.png",
        "/..%2fsecret.png",
        "/escape.png",
        "/escape/secret.png",
        "-not/c.png",
        "/missing.png",
        "/",
        "",
        "/sub dir",
        "/fifo.png",
        "/loop",
        "/a.png?x",
        "/a.png#x",
        "/a.png%00",
        "/a.png\0",
        "/a.png\n",
        "/%ff%fe",
        "/" + "x" * 10_000,
        "/" + "x" * 300,
    ],
)
def test_all_other_files_are_refused_with_one_and_the_same_text(shelf: Path, tail: str) -> None:
    with pytest.raises(MediaSourceError) as wrong:
        take(f"file://{shelf}{tail}", shelf)
    with pytest.raises(MediaSourceError) as missing:
        take(f"file://{shelf}/no-such-file", shelf)
    assert str(wrong.value) == str(missing.value)
    assert str(shelf) not in str(wrong.value)


@pytest.mark.parametrize("url", ["file://other-host{}/a.png", "file://..{}/a.png", "file:a.png", "file://[::1{}/a.png"])
def test_other_hosts_and_relative_paths_are_refused(shelf: Path, url: str) -> None:
    with pytest.raises(MediaSourceError, match="allowed_local_media_path"):
        take(url.format(shelf), shelf)


def test_files_are_off_until_a_folder_is_allowed(shelf: Path) -> None:
    with pytest.raises(MediaSourceError, match="allowed_local_media_path"):
        take(f"file://{shelf}/a.png")
    with pytest.raises(MediaSourceError, match="allowed_local_media_path"):
        take(f"file://{shelf}/a.png", shelf / "not-there")


def test_random_text_is_never_anything_but_a_media_error() -> None:
    rng = np.random.default_rng(3)
    pieces = ["data:", "image/png", ";base64", ",", "file://", "/", "..", "%2e", "\0", "=", "a", "\ud800", "http:", "["]
    for _ in range(500):
        url = "".join(rng.choice(pieces, rng.integers(0, 9)))
        with pytest.raises(MediaError):
            open_source(take(url, "/nowhere"), LIMITS, FetchPolicy(1, 5.0, frozenset()))
