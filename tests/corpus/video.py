"""V: video and sound. Videos are judged before they are decoded; sound is refused without a fetch."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from functools import cache
from typing import Any

from PIL import Image

from tests.corpus.case import Case, Expect, Fields, Parts, Route, answered, case, refused
from tests.corpus.routes import text
from tests.corpus.scene import Scene

CHATS: tuple[Route, ...] = ("chat", "chat_stream", "tokenize_chat")
FRAME = "iVBORw0KGgo="
MP4 = "data:video/mp4;base64,AAAAIGZ0eXBpc29t"
PLACE = "messages.0.content.0"


def _refused(code: str, place: str = "") -> Expect:
    return refused(code, param=PLACE + place, hits=0, within_s=0.25)


@cache
def _gif(frames: int, side: int = 32, duration_ms: int = 100) -> str:
    """An animation as an address."""
    file = io.BytesIO()
    levels = [Image.new("P", (side, side), n % 256) for n in range(frames)]
    levels[0].save(file, "GIF", save_all=True, append_images=levels[1:], duration=duration_ms, optimize=False)
    return "data:image/gif;base64," + base64.b64encode(file.getvalue()).decode()


def _video(url: str, **options: object) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}, **options}


PARTS: dict[str, tuple[dict[str, Any], Expect]] = {
    "V01-5000-frames": (
        _video("data:video/jpeg;base64," + ",".join([FRAME] * 5000)),
        _refused("invalid_data_url", ".video_url"),
    ),
    "V04-fps": (_video(MP4, fps=1e9), _refused("above_max_value", ".fps")),
    "V04-no-fps": (_video(MP4, fps=0), _refused("below_min_value", ".fps")),
    "V06-max-frames": (_video(MP4, max_frames=10**6), _refused("unknown_parameter", ".max_frames")),
    "V06-more-frames-than-the-limit": (_video(_gif(200), num_frames=200), _refused("video_too_long", ".video_url")),
    "V07-num-frames": (_video(MP4, num_frames=2**63), _refused("above_max_value", ".num_frames")),
    "V07-no-frames": (_video(MP4, num_frames=0), _refused("below_min_value", ".num_frames")),
    "V07-less-than-none": (_video(MP4, num_frames=-1), _refused("below_min_value", ".num_frames")),
    "V07-half-a-frame": (_video(MP4, num_frames=1.5), _refused("invalid_type", ".num_frames")),
    "V07-both": (_video(MP4, num_frames=4, fps=2), _refused("unsupported_combination", ".fps")),
    "V12-long": (_video(_gif(20, duration_ms=60_000)), _refused("video_too_long", ".video_url")),
    "V13-many-pixels": (_video(_gif(2, side=16_000)), refused("image_too_many_pixels", hits=0)),
    "V15-hls": (_video("concat:/etc/passwd|/etc/hosts"), _refused("media_url_not_allowed", ".video_url")),
    "V15-playlist": (
        _video("data:video/mp4;base64," + base64.b64encode(b"#EXTM3U\nhttp://127.0.0.1/a.ts\n").decode()),
        _refused("invalid_video", ".video_url"),
    ),
    "V15-file": (_video("file:///etc/passwd"), _refused("media_url_not_allowed", ".video_url")),
    "V19-image": (_video(f"data:image/png;base64,{FRAME}"), _refused("invalid_data_url", ".video_url")),
    "V19-image-as-video": (_video(f"data:video/mp4;base64,{FRAME}"), _refused("invalid_video", ".video_url")),
    "V20-video": ({"type": "video", "video": [FRAME] * 3}, _refused("unsupported_value")),
    "V20-embeds": ({"type": "video_embeds", "video_embeds": FRAME}, _refused("unsupported_value")),
    "V21-input-audio": (
        {"type": "input_audio", "input_audio": {"data": FRAME, "format": "wav"}},
        _refused("unsupported_value"),
    ),
    "V21-audio-embeds": ({"type": "audio_embeds", "audio_embeds": FRAME}, _refused("unsupported_value")),
    "V21-file": ({"type": "file", "file": {"file_id": "file-1"}}, _refused("unsupported_value")),
}


def _part(part: dict[str, Any]) -> Callable[[Scene], Parts]:
    return lambda _: Parts([part, text()])


def _fetched(kind: str) -> Callable[[Scene], Parts]:
    return lambda scene: Parts([{"type": kind, kind: {"url": scene.url("good")}}, text()])


def _video_as_image(_: Scene) -> Parts:
    return Parts([{"type": "image_url", "image_url": {"url": "data:video/mp4;base64,AAAAIGZ0eXBpc29t"}}, text()])


CASES: tuple[Case, ...] = (
    *(
        case(id, _part(part), expect, routes=CHATS, flags="quick" if id[:3] in ("V01", "V06") else "")
        for id, (part, expect) in PARTS.items()
    ),
    case(
        "V10-mp4",
        _part(_video(MP4)),
        refused("invalid_video", "unsupported_value", hits=0),  # the latter without PyAV
        routes=CHATS,
    ),
    case("V15-url", _fetched("video_url"), refused("invalid_video", within_s=2), routes=CHATS, profile="open"),
    case("V21-audio-url", _fetched("audio_url"), _refused("unsupported_value"), routes=CHATS, profile="open"),
    case(
        "V16-two",
        lambda _: Parts([_video(_gif(4)), _video(_gif(4)), text()]),
        refused("too_many_media_items", hits=0),
        routes=CHATS,
    ),
    case("V20-gif", _part(_video(_gif(8))), answered(), routes=CHATS),
    case("V20-gif-sampled", _part(_video(_gif(8), num_frames=2, max_pixels=5000)), answered(), routes=CHATS),
    case(
        "V19-video-as-image",
        _video_as_image,
        refused("invalid_data_url", "invalid_image", "unsupported_image_format"),
        routes=CHATS,
    ),
    case(
        "V09-media-io-kwargs",
        lambda _: Fields({"media_io_kwargs": {"video": {"num_frames": -1}}}),
        refused("unsupported_value", param="media_io_kwargs"),
        routes=CHATS,
    ),
)
