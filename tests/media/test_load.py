"""The door: files, limits before cost, threads, and an import without torch."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fovea.core.errors import MediaDecodeError, MediaError, MediaLimitError, MediaSourceError
from fovea.media import FileSource, MediaLimits, load_picture, parse_url, probe_size
from tests.media.corpus import LIMITS, encode, encoded_samples, noise


def test_every_form_of_one_picture_gives_the_same_pixels_and_digest(tmp_path: Path) -> None:
    pixels = noise(9, 7)
    data = encode(Image.fromarray(pixels), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    url = parse_url(f"file://{path}", allowed_local_media_path=str(tmp_path), max_bytes=10**6)
    values = [pixels, Image.fromarray(pixels), data, bytearray(data), path, url, Image.open(path)]
    pictures = [load_picture(value, LIMITS) for value in values]
    assert len({picture.digest for picture in pictures}) == 1
    for picture in pictures:
        np.testing.assert_array_equal(picture.pixels, pixels)
    assert {probe_size(value, LIMITS).width_px for value in values} == {9}


def test_a_file_over_the_byte_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded_samples()["PNG"])
    monkeypatch.setattr("fovea.media.load.probe", lambda *_: pytest.fail("probed"))
    with pytest.raises(MediaLimitError, match="max_image_bytes"):
        load_picture(path, MediaLimits(10, 10**6, 200.0))


def test_paths_that_are_not_files_are_refused_by_name_and_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "fifo", tmp_path / "loop", Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(MediaSourceError, match="was refused"):
            load_picture(path, LIMITS)
    with pytest.raises(MediaSourceError, match="missing"):
        load_picture(tmp_path / "missing", LIMITS)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_no_file_stays_open(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(encoded_samples()["PNG"])
    (tmp_path / "bad.png").write_bytes(encoded_samples()["PNG"][:50])
    before = len(os.listdir("/proc/self/fd"))
    for path in [tmp_path, tmp_path / "good.png", tmp_path / "bad.png", tmp_path / "missing"] * 3:
        with contextlib.suppress(MediaError):
            load_picture(path, LIMITS)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_exchanged_after_it_was_judged_is_refused(tmp_path: Path) -> None:
    """Between the judging of a file:// address and its opening, a link takes the place of the file or of its folder."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    for path in (root / "a.png", root / "sub" / "b.png", outside / "a.png", outside / "b.png"):
        path.write_bytes(encoded_samples()["PNG"])
    options = {"allowed_local_media_path": str(root), "max_bytes": 10**6}
    sources = [parse_url(f"file://{root}/{name}", **options) for name in ("a.png", "sub/b.png")]  # type: ignore[arg-type]
    (root / "a.png").unlink()
    (root / "a.png").symlink_to(outside / "a.png")
    (root / "sub" / "b.png").unlink()
    (root / "sub").rmdir()
    (root / "sub").symlink_to(outside)
    for source in sources:
        with pytest.raises(MediaSourceError, match="changed while it was opened") as error:
            load_picture(source, LIMITS)
        assert str(tmp_path) not in str(error.value)


def test_a_file_exchanged_only_while_it_is_opened_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exchange is undone before the path is judged again; only the file that was opened can tell."""
    for path in (tmp_path / "good.png", tmp_path / "secret.png"):
        path.write_bytes(encoded_samples()["PNG"])
    secret = os.open(tmp_path / "secret.png", os.O_RDONLY)
    monkeypatch.setattr("fovea.media.load.os.open", lambda *_: secret)
    with pytest.raises(MediaSourceError, match="changed while it was opened"):
        load_picture(FileSource(tmp_path / "good.png", root=tmp_path), LIMITS)


def test_a_path_from_a_request_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(MediaSourceError) as error:
        load_picture(FileSource(tmp_path / "gone.png", root=tmp_path), LIMITS)
    assert "gone" not in str(error.value)


def test_one_pil_object_may_be_read_by_many_threads_at_once() -> None:
    """Pillow loads lazily from one file handle: without a lock, threads that load the same object break each other."""
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        data = encode(Image.fromarray(noise(300, 200)), kind)
        expected = load_picture(data, LIMITS).digest
        with ThreadPoolExecutor(8) as pool:
            for _ in range(5):
                image = Image.open(io.BytesIO(data))
                digests = list(pool.map(lambda value: load_picture(value, LIMITS).digest, [image] * 8))
                assert digests == [expected] * 8


def test_the_users_pil_picture_is_unchanged() -> None:
    palette = Image.fromarray(noise(20, 10)).quantize(16)
    palette.info["transparency"] = 3
    with_exif = Image.open(io.BytesIO(encode(Image.new("RGB", (20, 10)), "JPEG", exif=Image.Exif())))
    images = [
        palette,
        with_exif,
        Image.fromarray(noise(20, 10, 4)),
        Image.new("I;16", (4, 4), 700),
        Image.new("LA", (4, 4)),
    ]
    for image in images:
        image.load()
        before = (image.mode, image.size, image.tobytes(), dict(image.info), image.getpalette())
        names = set(vars(image))
        load_picture(image, LIMITS)
        assert (image.mode, image.size, image.tobytes(), dict(image.info), image.getpalette()) == before
        assert set(vars(image)) == names


def test_the_users_array_may_change_afterwards() -> None:
    array = noise(8, 8)
    picture = load_picture(array, LIMITS)
    before = picture.pixels.copy()
    array[:] = 0
    np.testing.assert_array_equal(picture.pixels, before)
    assert not picture.pixels.flags.writeable


def test_errors_never_hold_addresses_of_memory_or_foreign_text() -> None:
    for data in (
        b"\x89PNG\r\n\x1a\n",
        encoded_samples()["PNG"][:33],
        encoded_samples()["JPEG"][:-200],
        b"\xff\xd8\xff\xe0",
    ):
        with pytest.raises(MediaDecodeError) as error:
            load_picture(data, LIMITS)
        assert "0x" not in str(error.value)
        assert "object" not in str(error.value)
        assert len(str(error.value)) < 200


def test_importing_media_does_not_import_torch() -> None:
    code = "import sys, fovea.media; sys.exit(any(m.split('.')[0] in ('torch', 'transformers') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_tail_behind_the_picture_is_ignored_and_counts_as_bytes() -> None:
    tail = hashlib.sha256(b"tail").digest() * 1000
    for data in encoded_samples().values():
        assert load_picture(data + tail, LIMITS).digest == load_picture(data, LIMITS).digest
        with pytest.raises(MediaLimitError, match="max_image_bytes"):
            load_picture(data + tail, MediaLimits(len(data), 10**6, 200.0))
