"""V: video and sound. Fovea takes neither: every form is refused as such, without a fetch and without a look inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.corpus.case import Case, Fields, Parts, Route, case, refused
from tests.corpus.routes import text
from tests.corpus.scene import Scene

CHATS: tuple[Route, ...] = ("chat", "chat_stream", "tokenize_chat")
UNSUPPORTED = refused("unsupported_value", param="messages.0.content.0", hits=0, within_s=0.25)
FRAME = "iVBORw0KGgo="

PARTS: dict[str, dict[str, Any]] = {
    "V01-5000-frames": {
        "type": "video_url",
        "video_url": {"url": "data:video/jpeg;base64," + ",".join([FRAME] * 5000)},
    },
    "V04-fps": {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}, "fps": 1e9},
    "V06-max-frames": {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}, "max_frames": 10**6},
    "V07-num-frames": {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}, "num_frames": 2**63},
    "V10-mp4": {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAAIGZ0eXBpc29t"}},
    "V15-hls": {"type": "video_url", "video_url": {"url": "concat:/etc/passwd|/etc/hosts"}},
    "V15-file": {"type": "video_url", "video_url": {"url": "file:///etc/passwd"}},
    "V19-image": {"type": "video_url", "video_url": {"url": f"data:image/png;base64,{FRAME}"}},
    "V20-video": {"type": "video", "video": [FRAME] * 3},
    "V20-embeds": {"type": "video_embeds", "video_embeds": FRAME},
    "V21-input-audio": {"type": "input_audio", "input_audio": {"data": FRAME, "format": "wav"}},
    "V21-audio-embeds": {"type": "audio_embeds", "audio_embeds": FRAME},
    "V21-file": {"type": "file", "file": {"file_id": "file-1"}},
}
FETCHED = {"V15-url": "video_url", "V21-audio-url": "audio_url"}


def _part(part: dict[str, Any]) -> Callable[[Scene], Parts]:
    return lambda _: Parts([part, text()])


def _fetched(kind: str) -> Callable[[Scene], Parts]:
    return lambda scene: Parts([{"type": kind, kind: {"url": scene.url("good")}}, text()])


def _video_as_image(_: Scene) -> Parts:
    return Parts([{"type": "image_url", "image_url": {"url": "data:video/mp4;base64,AAAAIGZ0eXBpc29t"}}, text()])


CASES: tuple[Case, ...] = (
    *(
        case(id, _part(part), UNSUPPORTED, routes=CHATS, flags="quick" if id[:3] in ("V01", "V06") else "")
        for id, part in PARTS.items()
    ),
    *(case(id, _fetched(kind), UNSUPPORTED, routes=CHATS, profile="open") for id, kind in FETCHED.items()),
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
