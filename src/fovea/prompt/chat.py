"""Chat messages to a PromptForm: typed parts become template text and a list of media.

Pictures stand where their parts stand. What a user types is never read as a placeholder or a special token.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from fovea.core.errors import PromptError
from fovea.families.base import Family
from fovea.prompt.forms import (
    MAX_SALT_CHARS,
    MAX_UUID_CHARS,
    MediaInput,
    PromptForm,
    checked_mapping,
    checked_text,
    parse_media,
)
from fovea.prompt.pieces import Piece
from fovea.prompt.template import ChatTemplate

IMAGE_PARTS = ("image_url", "input_image", "image_pil", "image", "image_embeds")
TEXT_PARTS = ("text", "input_text")


def build_chat(
    messages: Sequence[Mapping[str, Any]],
    template: ChatTemplate,
    family: Family,
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
    processor_kwargs: Mapping[str, Any] | None = None,
    salt: str = "",
) -> PromptForm:
    """Raises PromptError for messages or parts of unknown form."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise PromptError("messages must be a list with at least one message.")
    marks = _Marks(family)
    as_parts = template.content_format == "openai"
    media: list[MediaInput] = []
    plain = [_plain_message(message, media, marks, as_parts=as_parts) for message in messages]
    pieces = template.render_pieces(
        plain,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        variables=checked_mapping(template_kwargs, "chat_template_kwargs"),
    )
    return PromptForm(
        pieces=tuple(part for piece in pieces for part in marks.resolve(piece)),
        media=tuple(media),
        processor_kwargs=checked_mapping(processor_kwargs, "mm_processor_kwargs"),
        salt=checked_text(salt, "cache_salt", MAX_SALT_CHARS),
    )


class _Marks:
    """Unguessable stand-ins for pictures in templates that take a message's content as one string."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._nonce = secrets.token_hex(16)
        self._count = 0

    def next(self) -> str:
        self._count += 1
        return f"\ue010{self._nonce}.{self._count}\ue011"

    def resolve(self, piece: Piece) -> list[Piece]:
        """The piece with the family's own text for each picture in place of its mark."""
        fields = re.split(f"\ue010{self._nonce}\\.([0-9]+)\ue011", piece.text)  # text, number, text, number, ..., text
        pieces = [Piece(fields[0], piece.trusted)]
        for number, text in zip(fields[1::2], fields[2::2], strict=True):
            pieces += [Piece(self._family.image_text(int(number)), True), Piece(text, piece.trusted)]
        return [part for part in pieces if part.text]


def _plain_message(
    message: Mapping[str, Any], media: list[MediaInput], marks: _Marks, *, as_parts: bool
) -> dict[str, Any]:
    """The message as the template wants it, its media appended to `media`."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise PromptError("A message must be a dict with 'role' and 'content'.")
    content = message.get("content", "")
    parts = [content] if isinstance(content, str) else content
    if not isinstance(parts, (list, tuple)):
        raise PromptError(f"A message's content is text or a list of parts, not {type(content).__name__}.")
    rendered: list[dict[str, str]] = []
    for part in parts:
        item = _plain_part(part)
        if isinstance(item, str):
            rendered.append({"type": "text", "text": item})
        else:
            media.append(item)
            rendered.append({"type": "image"})
    rest = {key: value for key, value in message.items() if key != "content"}
    if as_parts:
        return {**rest, "content": rendered}
    return {**rest, "content": "".join(p["text"] if p["type"] == "text" else marks.next() for p in rendered)}


def _plain_part(part: object) -> str | MediaInput:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise PromptError(f"A content part is text or a dict, not {type(part).__name__}.")
    kind = part.get("type") or next((k for k in (*TEXT_PARTS, *IMAGE_PARTS) if k in part), None)
    if kind in TEXT_PARTS:
        text = part.get("text")
        if not isinstance(text, str):
            raise PromptError("A text part needs 'text'.")
        return text
    if kind not in IMAGE_PARTS:
        known = ", ".join((*TEXT_PARTS, *IMAGE_PARTS))
        raise PromptError(f"Unknown content part {str(kind)[:40]!r}; known: {known}.")
    return _image_part(kind, part)


def _image_part(kind: str, part: Mapping[str, Any]) -> MediaInput:
    uuid = part.get("uuid") or ""
    if not isinstance(uuid, str) or len(uuid) > MAX_UUID_CHARS:
        raise PromptError(f"A part's uuid must be text of at most {MAX_UUID_CHARS} characters.")
    if kind in ("image_url", "input_image"):
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, Mapping) else url
        if not isinstance(url, str):
            raise PromptError('An image_url part needs {"url": "..."}.')
        return MediaInput("url", url, uuid)
    value = part.get(kind)
    if value is None:
        raise PromptError(f"A part of type {kind} needs {kind!r}.")
    inputs = parse_media({"image": value})
    if len(inputs) != 1:
        raise PromptError(f"A part of type {kind} holds one picture, not {len(inputs)}; use one part for each.")
    return MediaInput(inputs[0].kind, inputs[0].value, uuid, inputs[0].grid)
