"""What pictures and videos of prompts have in common: the noun, unknown keys, uuids, numbers of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fovea.core.errors import PromptError, nearest
from fovea.core.types import PixelBudget, Sampling

MAX_BUDGET_PIXELS = 2**53  # a number every JSON reader has exactly; what a model permits is far less
MAX_UUID_CHARS = 256


@dataclass(frozen=True, slots=True)
class MediaInput:
    """One picture as handed in: `picture` is whatever media.source parses, `url` a URL part, `embeds` an array.

    `video` set means a video, and says which of its frames are wanted: then `picture` is what media.video parses.
    `param` is its place in the request, such as "messages.0.content.1.image_url"; "" if it has none that tells more.
    """

    kind: Literal["picture", "url", "embeds"]
    value: Any
    uuid: str = ""
    grid: tuple[int, int, int] | None = None
    param: str = ""
    budget: PixelBudget | None = None
    video: Sampling | None = None

    @property
    def noun(self) -> str:
        return "Picture" if self.video is None else "Video"


def check_keys(values: Mapping[str, Any], known: tuple[str, ...], place: str, kind: str = "A video part") -> None:
    for key, value in values.items():
        if key not in known and value is not None:
            raise PromptError(
                f"{kind} has no key {str(key)[:40]!r}; known here: {', '.join(known)}.{nearest(str(key)[:40], known)}",
                code="unsupported_value",
                param=f"{place}.{str(key)[:40]}" if isinstance(key, str) and key.isidentifier() else place,
            )


def read_uuid(part: Mapping[str, Any], place: str) -> str:
    uuid = part.get("uuid")
    if uuid is None:
        return ""
    if not isinstance(uuid, str) or len(uuid) > MAX_UUID_CHARS or not is_unicode(uuid):
        code = "string_too_long" if isinstance(uuid, str) and len(uuid) > MAX_UUID_CHARS else "invalid_type"
        raise PromptError(
            f"A part's uuid must be valid text of at most {MAX_UUID_CHARS} characters.",
            code=code,
            param=f"{place}.uuid",
        )
    return uuid


def read_pixels(value: object, where: str, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise PromptError(f"{key} must be a whole number of pixels from 1.", code="invalid_type", param=where)
    if value < 1:
        raise PromptError(f"{key} must be 1 or more.", code="below_min_value", param=where)
    if value > MAX_BUDGET_PIXELS:
        raise PromptError(f"{key} must be at most {MAX_BUDGET_PIXELS}.", code="above_max_value", param=where)
    return value


def is_unicode(text: str) -> bool:
    """False for halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
