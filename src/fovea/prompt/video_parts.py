"""Videos in prompts: the value of multi_modal_data's "video", and the video parts of chat messages.

Contract: nothing is opened. As with pictures, an unknown key is refused, and one whose value is None is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fovea.core.errors import PromptError
from fovea.core.types import PixelBudget
from fovea.families.video import SAMPLING_KEYS, read_sampling
from fovea.media.video import is_frame
from fovea.prompt.media_parts import MediaInput, check_keys, read_pixels, read_uuid

VIDEO_URL_PART, VIDEO_OBJECT_PART = "video_url", "video"
VIDEO_PARTS = (VIDEO_URL_PART, VIDEO_OBJECT_PART)
_PIXEL_KEYS = ("max_pixels", "min_pixels")
OPTION_KEYS = (*SAMPLING_KEYS, *_PIXEL_KEYS)


def parse_videos(value: object) -> tuple[MediaInput, ...]:
    """One video or a list of them. A list of pictures is one video, and so is (frames, metadata)."""
    if value is None:
        return ()
    is_pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping)
    is_several = isinstance(value, (list, tuple)) and not is_pair and not (value and all(map(is_frame, value)))
    items = list(value) if is_several and isinstance(value, (list, tuple)) else [value]
    return tuple(_one(item, "") for item in items)


def read_video_part(kind: str, part: Mapping[str, Any], place: str, *, from_json: bool) -> MediaInput:
    """`kind` is one of VIDEO_PARTS, `place` where the part is in the request."""
    if kind == VIDEO_OBJECT_PART and from_json:
        raise PromptError(
            "A part of type video holds a Python object; here videos are parts of type video_url.",
            code="unsupported_value",
            param=f"{place}.type",
        )
    check_keys(part, ("type", kind, "uuid", *OPTION_KEYS), place)
    where = f"{place}.{kind}"
    value, options = part.get(kind), {key: (part[key], place) for key in OPTION_KEYS if part.get(key) is not None}
    if kind == VIDEO_URL_PART and isinstance(value, Mapping):
        check_keys(value, ("url", *OPTION_KEYS), where)
        for key in OPTION_KEYS:
            if value.get(key) is None:
                continue
            if key in options:
                raise PromptError(
                    f"{key} is given on the part and inside its video_url. Give it once.",
                    code="unsupported_combination",
                    param=f"{where}.{key}",
                )
            options[key] = (value[key], where)
        value = value.get("url")
    if value is None:
        raise PromptError(f"A part of type {kind} needs {kind!r}.", code="missing_required_parameter", param=where)
    if kind == VIDEO_URL_PART and not isinstance(value, str):
        raise PromptError(
            'A part of type video_url needs "video_url": {"url": "..."}.', code="invalid_type", param=where
        )
    places = {at for _, at in options.values()}
    values = {key: given for key, (given, _) in options.items()}
    at = places.pop() if len(places) == 1 else place
    return MediaInput(
        "url" if kind == VIDEO_URL_PART else "picture",
        value,
        read_uuid(part, place),
        param=where,
        budget=_budget(values, at),
        video=read_sampling(values, at),
    )


def _one(item: object, place: str) -> MediaInput:
    """A video, or {"video": a video, and options as in a content part}."""
    if not isinstance(item, Mapping):
        return MediaInput("picture", item, video=read_sampling({}, place))
    check_keys(item, (VIDEO_OBJECT_PART, *OPTION_KEYS), place or "multi_modal_data")
    if item.get(VIDEO_OBJECT_PART) is None:
        raise PromptError(
            "A video given as a dict needs 'video'.", code="missing_required_parameter", param="multi_modal_data"
        )
    return MediaInput("picture", item[VIDEO_OBJECT_PART], budget=_budget(item, place), video=read_sampling(item, place))


def _budget(values: Mapping[str, Any], place: str) -> PixelBudget | None:
    """Of one frame."""
    at = f"{place}." if place else ""
    most, least = (
        None if values.get(key) is None else read_pixels(values[key], f"{at}{key}", key) for key in _PIXEL_KEYS
    )
    if most is None and least is None:
        return None
    if most is not None and least is not None and least > most:
        raise PromptError(
            f"min_pixels is {least}, more than max_pixels, {most}.", code="invalid_value", param=f"{at}min_pixels"
        )
    return PixelBudget("auto", most, least)
