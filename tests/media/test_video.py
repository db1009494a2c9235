"""Videos: what is taken, what is refused and before which cost, and that the frames are the right ones."""

from __future__ import annotations

import builtins
import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fovea.core.config import EngineConfig
from fovea.core.errors import MediaDecodeError, MediaError, MediaLimitError, MediaSourceError
from fovea.core.types import ImagePlan
from fovea.media import container
from fovea.media.container import container_of, decode_container
from fovea.media.source import BytesSource, FileSource, UrlSource, parse_video_url
from fovea.media.video import (
    FramesSource,
    VideoLimits,
    VideoSource,
    decode_video,
    parse_video,
    probe_video,
    video_digest,
)
from tests.media.clips import FRAMES, animation, grey_frames, mp4, number_of, sound

LIMITS = VideoLimits.from_config(EngineConfig())
CONTAINERS: dict[str, Callable[[], bytes]] = {
    "mp4-h264": lambda: mp4(),
    "mov-mpeg4": lambda: mp4(codec="mpeg4", format="mov"),
    "webm-vp9": lambda: mp4(codec="libvpx-vp9", format="webm"),
    "webm-vp8": lambda: mp4(codec="libvpx", format="webm"),
    "mkv-h264": lambda: mp4(format="matroska"),
    "gif": lambda: animation("GIF"),
    "webp": lambda: animation("WEBP"),
}


def plan(frames: int, width: int = 64, height: int = 48, slots: int = 0) -> ImagePlan:
    """Frames as they are."""
    return ImagePlan(width, height, "bicubic", width, height, (1, 1, 1), 1, 1, frames=frames, slots=slots or frames)


def frames_of(source: VideoSource) -> FramesSource:
    assert isinstance(source, FramesSource)
    return source


def parsed(value: object) -> VideoSource:
    source = parse_video(value)
    assert isinstance(source, (FramesSource, BytesSource))
    return source


@pytest.mark.parametrize("kind", CONTAINERS)
def test_files_give_their_size_times_and_frames(kind: str) -> None:
    source = BytesSource(CONTAINERS[kind]())
    clip = probe_video(source, LIMITS)
    assert (clip.width_px, clip.height_px, clip.num_frames) == (64, 48, FRAMES)
    assert clip.fps == pytest.approx(4.0, rel=0.1)
    assert clip.times_s == pytest.approx([n / 4 for n in range(FRAMES)], abs=2e-3)
    assert not clip.is_sampled
    for indices in ((0,), (FRAMES - 1,), (1, 6, 7, 11), tuple(range(FRAMES))):
        canvas = decode_video(source, indices, plan(len(indices)), LIMITS)
        assert [number_of(frame) for frame in canvas] == list(indices)


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_a_turned_video_comes_out_upright(turn: int) -> None:
    stored = np.zeros((48, 64, 3), np.uint8)
    stored[:24, :32] = 255
    source = BytesSource(mp4([Image.fromarray(stored)] * 3, rotation=turn))
    clip = probe_video(source, LIMITS)
    want = np.rot90(stored, turn // 90)
    assert (clip.height_px, clip.width_px) == want.shape[:2]
    (frame,) = decode_video(source, [1], plan(1, clip.width_px, clip.height_px), LIMITS)
    assert np.abs(frame.astype(int) - want).mean() < 12


def test_free_slots_hold_the_last_frame() -> None:
    canvas = decode_video(parsed(grey_frames(3)), (0, 1, 2), plan(3, slots=4), LIMITS)
    assert [number_of(frame) for frame in canvas] == [0, 1, 2, 2]
    assert not canvas.flags.writeable


def test_only_stretches_with_wanted_frames_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    data = mp4(grey_frames(60), gop=10)
    frames_as_they_are = container._frames

    def noted(*args: Any) -> Iterator[Any]:
        for frame in frames_as_they_are(*args):
            seen.append(frame)
            yield frame

    monkeypatch.setattr(container, "_frames", noted)
    assert [number_of(frame) for frame in decode_container(data, [52], 10**6)] == [1]  # 52 * 20 is 1040 = 4 * 256 + 16
    assert len(seen) <= 10


ARRAY = np.stack([np.asarray(frame) for frame in grey_frames(4)])


@pytest.mark.parametrize("value", [list(ARRAY), ARRAY, grey_frames(4), (ARRAY, {}), (grey_frames(4), {"fps": None})])
def test_frames_come_as_arrays_and_as_pictures(value: object) -> None:
    source = parsed(value)
    clip = probe_video(source, LIMITS)
    assert (clip.num_frames, clip.fps, clip.times_s, clip.is_sampled) == (4, None, (), True)
    np.testing.assert_array_equal(decode_video(source, range(4), plan(4), LIMITS), ARRAY)


def test_a_tensor_has_channels_first() -> None:
    torch = pytest.importorskip("torch")
    source = parsed(torch.from_numpy(ARRAY).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(decode_video(source, range(4), plan(4), LIMITS), ARRAY)


@pytest.mark.parametrize(
    ("metadata", "fps", "times"),
    [
        ({"fps": 2}, 2.0, (0.0, 0.5, 1.0, 1.5)),
        ({"fps": 10, "frames_indices": [0, 10, 20, 30], "total_num_frames": 40}, 1.0, (0.0, 1.0, 2.0, 3.0)),
        ({"timestamps": [0, 1, 2, 4]}, 0.75, (0.0, 1.0, 2.0, 4.0)),
        ({"duration": 8.0, "total_num_frames": 4}, 0.5, (0.0, 2.0, 4.0, 6.0)),
        ({"fps": 4.0, "video_backend": "opencv", "width": 64, "do_sample_frames": False}, 4.0, (0, 0.25, 0.5, 0.75)),
    ],
)
def test_metadata_tells_times(metadata: dict[str, Any], fps: float, times: tuple[float, ...]) -> None:
    source = frames_of(parsed((ARRAY, metadata)))
    assert source.fps == pytest.approx(fps)
    assert source.times_s == pytest.approx(times)


@pytest.mark.parametrize(
    "metadata",
    [
        {"fps": 0},
        {"fps": -1.0},
        {"fps": float("nan")},
        {"fps": float("inf")},
        {"fps": "2"},
        {"fps": True},
        {"timestamps": [0, 1, 2]},
        {"timestamps": [0, 2, 1, 3]},
        {"timestamps": [0, 1, 2, float("inf")]},
        {"timestamps": [-1, 1, 2, 3]},
        {"timestamps": 7},
        {"timestamps": ["a"] * 4},
        {"timestamps": [0, 1, 2, 3], "duration": 2.0},
        {"frames_indices": [0, 1, 2, 9], "total_num_frames": 9, "fps": 2},
        {"total_num_frames": 3},
        {"total_num_frames": 0},
        {"frame_rate": 2},
    ],
)
def test_metadata_that_lies_is_refused(metadata: dict[str, Any]) -> None:
    with pytest.raises(MediaSourceError, match="metadata can't be right"):
        parse_video((ARRAY, metadata))


@pytest.mark.parametrize(
    "value",
    [
        "clip.mp4",
        Image.new("RGB", (4, 4)),
        [],
        np.zeros((0, 4, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 5), np.uint8),
        [1, 2],
        ["a.png"],
        7,
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_video_is_refused(value: object) -> None:
    with pytest.raises(MediaSourceError) as caught:
        parse_video(value)
    assert "0x" not in str(caught.value)


def _empty_webm() -> bytes:
    return b"\x1a\x45\xdf\xa3" + bytes(64)


BROKEN: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"#EXTM3U\nhttp://127.0.0.1/a.ts\n",
    "ftyp alone": lambda: b"\0\0\0\x18ftypisom\0\0\0\0isommp42",
    "empty webm": _empty_webm,
    "cut in the middle": lambda: mp4()[: len(mp4()) // 2],
    "sound": sound,
    "picture": lambda: _png(),
    "still gif": lambda: animation("GIF", grey_frames(1)),
    "still webp": lambda: animation("WEBP", grey_frames(1)),
    "cut gif": lambda: animation("GIF")[:120],
    "avi": lambda: b"RIFF\x10\0\0\0AVI LIST" + bytes(64),
    "mpeg-ts": lambda: b"G@\0\x10" * 64,
}


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_and_foreign_files_are_refused(kind: str) -> None:
    data = BROKEN[kind]()
    if container_of(data) is not None:
        pytest.importorskip("av")
    with pytest.raises(MediaDecodeError) as caught:
        decode_video(BytesSource(data), [0], plan(1), LIMITS) if probe_video(BytesSource(data), LIMITS) else None
    assert caught.value.code == "invalid_video"
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize("kind", ["mp4-h264", "webm-vp9", "gif", "webp"])
def test_any_cut_and_any_flipped_byte_gives_frames_or_our_own_error(kind: str) -> None:
    data = CONTAINERS[kind]()
    rng = np.random.default_rng(1)
    for _ in range(60):
        bad = bytearray(data)
        for _ in range(3):
            bad[rng.integers(len(bad))] = rng.integers(256)
        cut = bytes(bad[: rng.integers(1, len(bad) + 1)])
        with contextlib.suppress(MediaError):  # anything else fails the test
            clip = probe_video(BytesSource(cut), LIMITS)
            decode_video(BytesSource(cut), [0], plan(1, clip.width_px, clip.height_px), LIMITS)


def test_a_header_may_claim_any_length() -> None:
    """The frames count, not what the header says of them: the duration fields say a hundred years."""
    data = bytearray(mp4(codec="mpeg4"))
    for box, offset in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
        at = data.index(box)
        data[at + offset : at + offset + 4] = b"\x7f\xff\xff\xff"
    clip = probe_video(BytesSource(bytes(data)), LIMITS)
    assert clip.num_frames == FRAMES
    assert clip.times_s[-1] == pytest.approx(2.75, abs=0.01)


def test_each_limit_is_named() -> None:
    data = mp4()
    for limits, option in (
        (replace(LIMITS, picture=replace(LIMITS.picture, max_bytes=100)), "max_video_bytes"),
        (replace(LIMITS, max_seconds=2.0), "max_video_seconds"),
        (replace(LIMITS, picture=replace(LIMITS.picture, max_pixels=64 * 48 - 1)), "max_image_pixels"),
    ):
        for source in (BytesSource(data), BytesSource(animation("GIF"))):
            if option == "max_video_bytes" or len(source.data):
                with pytest.raises(MediaLimitError, match=option):
                    probe_video(source, limits)


def test_frames_that_would_be_huge_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(LIMITS, picture=replace(LIMITS.picture, max_pixels=10_000))
    data = mp4([Image.new("RGB", (1024, 1024))])
    monkeypatch.setattr(container, "_upright_size", lambda *_: pytest.fail("a frame was decoded"))
    with pytest.raises(MediaLimitError, match="max_image_pixels") as caught:
        probe_video(BytesSource(data), small)
    assert caught.value.code == "image_too_many_pixels"


def test_a_codec_outside_the_list_is_refused() -> None:
    data = mp4(codec="mjpeg", format="mov") if _has("mjpeg") else b""
    with pytest.raises(MediaDecodeError) as caught:
        probe_video(BytesSource(data), LIMITS)
    assert caught.value.code == "invalid_video"


def _has(codec: str) -> bool:
    try:
        mp4(codec=codec, format="mov")
    except Exception:
        return False
    return True


def test_without_pyav_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    data = mp4()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MediaDecodeError, match=r"fovea-vlm\[video\]"):
        probe_video(BytesSource(data), LIMITS)
    assert probe_video(BytesSource(animation("GIF")), LIMITS).num_frames == FRAMES


def test_a_mov_file_opens_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its data reference is made to name a file that is there."""
    other = tmp_path / "other.mp4"
    other.write_bytes(mp4())
    data = mp4(format="mov", codec="mpeg4")
    at = data.index(b"dref")
    named = b"alis\0\0\0\0" + str(other).encode()
    entry = (len(named) + 4).to_bytes(4, "big") + named
    broken = data[: at + 12] + entry + data[at + 24 :]
    opened = []
    monkeypatch.setattr(builtins, "open", lambda *args, **_: opened.append(args))
    with pytest.raises(MediaError):
        decode_video(BytesSource(broken), [0], plan(1), LIMITS) if probe_video(BytesSource(broken), LIMITS) else None
    assert not opened


def test_frames_of_several_sizes_are_refused() -> None:
    frames: list[object] = [*grey_frames(2), Image.new("RGB", (10, 10))]
    with pytest.raises(MediaDecodeError, match="one size"):
        probe_video(parsed(frames), LIMITS)


def test_addresses() -> None:
    def read(url: str) -> object:
        return parse_video_url(url, allowed_local_media_path="", max_bytes=100)

    assert read("data:video/mp4;base64,AAAA") == BytesSource(b"\0\0\0")
    assert read("data:image/gif;base64,AAAA") == BytesSource(b"\0\0\0")
    assert read("https://example.org/a.mp4") == UrlSource("https://example.org/a.mp4")
    for url, code in (
        ("data:image/png;base64,AAAA", "invalid_data_url"),
        ("data:video/mp4,AAAA", "invalid_data_url"),
        ("data:video/jpeg;base64,AAAA,AAAA", "invalid_data_url"),
        ("data:video/mp4;base64," + "A" * 200, "media_too_large"),
        ("file:///etc/passwd", "media_url_not_allowed"),
        ("concat:/etc/passwd", "media_url_not_allowed"),
        ("rtsp://127.0.0.1/", "media_url_not_allowed"),
    ):
        with pytest.raises(MediaError) as caught:
            read(url)
        assert caught.value.code == code
        assert "passwd" not in str(caught.value)


def test_a_local_file_lies_below_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "a.gif"
    inside.write_bytes(animation("GIF"))
    found = parse_video_url(inside.as_uri(), allowed_local_media_path=str(tmp_path), max_bytes=100)
    assert found == FileSource(inside.resolve(), tmp_path.resolve())
    with pytest.raises(MediaSourceError):
        parse_video_url("file:///etc/hosts", allowed_local_media_path=str(tmp_path), max_bytes=100)


def test_the_digest_covers_frames_order_and_times() -> None:
    canvas = ARRAY
    digests = {
        video_digest(canvas, ()),
        video_digest(canvas[::-1], ()),
        video_digest(canvas[:3], ()),
        video_digest(canvas, (0.0, 1.0, 2.0, 3.0)),
        video_digest(canvas, (0.0, 1.0, 2.0, 4.0)),
        video_digest(canvas.reshape(4, 64, 48, 3), ()),
    }
    assert len(digests) == 6
