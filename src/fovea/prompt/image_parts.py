"""Image parts of chat messages: which keys they may have, and what a MediaInput becomes of them.

Contract: nothing is opened. A key that is not known is refused, so that a misspelt pixel cap never passes silently; a
key whose value is None counts as absent. Errors say where they are ("messages.0.content.1.detail").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fovea.core.errors import EmbeddingsError, MediaError, MediaSourceError, PromptError
from fovea.core.types import Detail, PixelBudget
from fovea.media.embeds import parse_embeds
from fovea.prompt.forms import EMBEDS_KEYS, MediaInput, parse_media
from fovea.prompt.media_parts import check_keys, read_pixels, read_uuid

URL_PARTS = ("image_url", "input_image")
OBJECT_PARTS = ("image_pil", "image")
EMBEDS_PART = "image_embeds"
IMAGE_PARTS = (*URL_PARTS, *OBJECT_PARTS, EMBEDS_PART)
TEXT_PARTS = ("text", "input_text")

MAX_EMBEDS_BYTES = 64 * 1024**2
_KIND = "An image part"
_BUDGET_KEYS = ("detail", "max_pixels", "min_pixels")
_DETAILS: tuple[Detail, ...] = ("auto", "low", "high")


class PartReader:
    """`parse_embeds` False leaves embeddings that came as text unread."""

    def __init__(self, *, allow_embeds: bool, from_json: bool, parse_embeds: bool = True) -> None:
        self._allow_embeds = allow_embeds
        self.from_json = from_json
        self._parse_embeds = parse_embeds

    def read(self, kind: str, part: Mapping[str, Any], place: str) -> MediaInput:
        """`kind` is one of IMAGE_PARTS, `place` where the part is in the request."""
        if self.from_json and kind in OBJECT_PARTS:
            raise PromptError(
                f"A part of type {kind} holds a Python object; here pictures are parts of type image_url.",
                code="unsupported_value",
                param=f"{place}.type",
            )
        if kind in URL_PARTS:
            return _read_url(kind, part, place)
        if kind == EMBEDS_PART:
            return self._read_embeds(part, place)
        check_keys(part, ("type", kind, "uuid", *_BUDGET_KEYS), place, _KIND)
        return _one_input(kind, part.get(kind), part, place, _budget({place: part}))

    def _read_embeds(self, part: Mapping[str, Any], place: str) -> MediaInput:
        check_keys(part, ("type", "uuid", *EMBEDS_KEYS), place, _KIND)
        if not self._allow_embeds:
            raise EmbeddingsError(
                "image_embeds parts are switched off here (option enable_mm_embeds). Send the picture.",
                code="embeddings_disabled",
                param=place,
            )
        where = f"{place}.{EMBEDS_PART}"
        value, grid = part.get(EMBEDS_PART), part.get("image_grid_thw")
        if self.from_json and value is not None and not isinstance(value, str):
            raise EmbeddingsError(
                "image_embeds must be base64 text of a safetensors or .npy file.", code="invalid_type", param=where
            )
        if isinstance(value, str):
            if not self._parse_embeds:
                return MediaInput("embeds", value, read_uuid(part, place), param=where)
            try:
                value = parse_embeds(value, MAX_EMBEDS_BYTES)
            except EmbeddingsError as error:
                raise EmbeddingsError(str(error), code=error.code, param=where) from None
        if grid is not None:
            value = {EMBEDS_PART: value, "image_grid_thw": grid}
        return _one_input(EMBEDS_PART, value, part, place, None)


def _read_url(kind: str, part: Mapping[str, Any], place: str) -> MediaInput:
    check_keys(part, ("type", "image_url", "uuid", *_BUDGET_KEYS), place, _KIND)
    where = f"{place}.image_url"
    value = part.get("image_url")
    parts = {place: part}
    if isinstance(value, Mapping):
        check_keys(value, ("url", *_BUDGET_KEYS), where, _KIND)
        parts[where] = value
        value = value.get("url")
    if not isinstance(value, str):
        code = "missing_required_parameter" if value is None else "invalid_type"
        raise PromptError(f'A part of type {kind} needs "image_url": {{"url": "..."}}.', code=code, param=where)
    return MediaInput("url", value, read_uuid(part, place), param=where, budget=_budget(parts))


def _one_input(kind: str, value: object, part: Mapping[str, Any], place: str, budget: PixelBudget | None) -> MediaInput:
    where = f"{place}.{kind}"
    if value is None:
        raise PromptError(f"A part of type {kind} needs {kind!r}.", code="missing_required_parameter", param=where)
    try:
        inputs = parse_media({"image": value})
    except MediaError as error:
        raise type(error)(str(error), code=error.code, param=error.param or where) from None
    if len(inputs) != 1:
        raise PromptError(
            f"A part of type {kind} holds one picture, not {len(inputs)}; use one part for each.",
            code="invalid_value",
            param=where,
        )
    return MediaInput(
        inputs[0].kind, inputs[0].value, read_uuid(part, place), inputs[0].grid, param=where, budget=budget
    )


def _budget(parts: Mapping[str, Mapping[str, Any]]) -> PixelBudget | None:
    """From the part and from inside its image_url, by place; each key once."""
    found: dict[str, tuple[Any, str]] = {}
    for place, values in parts.items():
        for key in _BUDGET_KEYS:
            if values.get(key) is None:
                continue
            if key in found:
                raise PromptError(
                    f"{key} is given on the part and inside its image_url. Give it once.",
                    code="unsupported_combination",
                    param=f"{place}.{key}",
                )
            found[key] = (values[key], f"{place}.{key}")
    if not found:
        return None
    most, least = (read_pixels(*found[key], key) if key in found else None for key in ("max_pixels", "min_pixels"))
    if most is not None and least is not None and least > most:
        raise MediaSourceError(
            f"min_pixels is {least}, more than max_pixels, {most}.", code="invalid_value", param=found["min_pixels"][1]
        )
    return PixelBudget(_detail(*found["detail"]) if "detail" in found else "auto", most, least)


def _detail(value: object, where: str) -> Detail:
    for detail in _DETAILS:
        if value == detail and isinstance(value, str):
            return detail
    raise PromptError(
        f"detail must be one of {', '.join(_DETAILS)}.",
        code="invalid_value" if isinstance(value, str) else "invalid_type",
        param=where,
    )
