"""Chat messages to a PromptForm: typed parts become template text and a list of media.

Pictures stand where their parts stand. What a user types is never read as a placeholder or a special token.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fovea.core.errors import PromptError
from fovea.families.base import Family
from fovea.prompt.forms import MAX_SALT_CHARS, MediaInput, PromptForm, checked_mapping, checked_text
from fovea.prompt.image_parts import IMAGE_PARTS, TEXT_PARTS, PartReader
from fovea.prompt.pieces import Piece
from fovea.prompt.template import ChatTemplate
from fovea.prompt.video_parts import VIDEO_PARTS, read_video_part


@dataclass(frozen=True, slots=True)
class _Message:
    """A message with its content taken apart; `rest` is what else it has."""

    parts: tuple[str | MediaInput, ...]
    rest: Mapping[str, Any]


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
    allow_embeds: bool = True,
    from_json: bool = False,
) -> PromptForm:
    """Raises PromptError or MediaError for messages or parts of unknown form.

    from_json: the messages came as text, so parts that hold Python objects are refused.
    """
    read = _read_messages(messages, PartReader(allow_embeds=allow_embeds, from_json=from_json))
    media = _media_of(read)
    family.check_media(len(media), sum(one.video is not None for one in media))
    marks = _Marks(family)
    as_parts = template.content_format == "openai"
    pieces = template.render_pieces(
        [_plain_message(message, marks, as_parts=as_parts) for message in read],
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        variables=checked_mapping(template_kwargs, "chat_template_kwargs"),
    )
    return PromptForm(
        pieces=tuple(part for piece in pieces for part in marks.resolve(piece)),
        media=media,
        processor_kwargs=checked_mapping(processor_kwargs, "mm_processor_kwargs"),
        salt=checked_text(salt, "cache_salt", MAX_SALT_CHARS),
    )


def chat_media(
    messages: Sequence[Mapping[str, Any]], *, allow_embeds: bool = True, from_json: bool = False
) -> list[MediaInput]:
    """The pictures of the messages in order, checked as `build_chat` does, which will cost more.

    The value of embeddings that came as text is that text still.
    """
    reader = PartReader(allow_embeds=allow_embeds, from_json=from_json, parse_embeds=False)
    return list(_media_of(_read_messages(messages, reader)))


class _Marks:
    """Unguessable stand-ins for pictures in templates that take a message's content as one string."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._nonce = secrets.token_hex(16)
        self._counts = {"image": 0, "video": 0}

    def next(self, kind: str) -> str:
        self._counts[kind] += 1
        return f"\ue010{self._nonce}.{kind}{self._counts[kind]}\ue011"

    def resolve(self, piece: Piece) -> list[Piece]:
        """The piece with the family's own text for each picture in place of its mark."""
        fields = re.split(f"\ue010{self._nonce}\\.(image|video)([0-9]+)\ue011", piece.text)
        pieces = [Piece(fields[0], piece.trusted)]
        for kind, number, text in zip(fields[1::3], fields[2::3], fields[3::3], strict=True):
            mark = self._family.video_text if kind == "video" else self._family.image_text
            pieces += [Piece(mark(int(number)), True), Piece(text, piece.trusted)]
        return [part for part in pieces if part.text]


def _read_messages(messages: Sequence[Mapping[str, Any]], reader: PartReader) -> list[_Message]:
    if not isinstance(messages, (list, tuple)):
        raise PromptError("messages must be a list with at least one message.", code="invalid_type", param="messages")
    if not messages:
        raise PromptError("messages must be a list with at least one message.", code="invalid_value", param="messages")
    return [_read_message(message, reader, f"messages.{i}") for i, message in enumerate(messages)]


def _read_message(message: Mapping[str, Any], reader: PartReader, place: str) -> _Message:
    if not isinstance(message, Mapping):
        raise PromptError("A message must be a dict with 'role' and 'content'.", code="invalid_type", param=place)
    role = message.get("role")
    if not isinstance(role, str):
        code = "missing_required_parameter" if role is None else "invalid_type"
        raise PromptError("A message must be a dict with 'role' and 'content'.", code=code, param=f"{place}.role")
    content = message.get("content", "")
    rest = {key: value for key, value in message.items() if key != "content"}
    if isinstance(content, str):
        return _Message((content,), rest)
    if not isinstance(content, (list, tuple)):
        raise PromptError(
            f"A message's content is text or a list of parts, not {type(content).__name__}.",
            code="invalid_type",
            param=f"{place}.content",
        )
    return _Message(tuple(_read_part(part, reader, f"{place}.content.{j}") for j, part in enumerate(content)), rest)


def _read_part(part: object, reader: PartReader, place: str) -> str | MediaInput:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise PromptError(
            f"A content part is text or a dict, not {type(part).__name__}.", code="invalid_type", param=place
        )
    kind = part.get("type") or next((k for k in (*TEXT_PARTS, *IMAGE_PARTS, *VIDEO_PARTS) if k in part), None)
    if kind in TEXT_PARTS:
        text = part.get("text")
        if not isinstance(text, str):
            code = "missing_required_parameter" if text is None else "invalid_type"
            raise PromptError("A text part needs 'text'.", code=code, param=f"{place}.text")
        return text
    if kind in VIDEO_PARTS:
        return read_video_part(kind, part, place, from_json=reader.from_json)
    if kind not in IMAGE_PARTS:
        known = ", ".join((*TEXT_PARTS, *IMAGE_PARTS, *VIDEO_PARTS))
        name = repr(kind[:40]) if isinstance(kind, str) else f"of a type that is a {type(kind).__name__}"
        raise PromptError(
            f"Unknown content part {name}; known: {known}.",
            code="unsupported_value",
            param=f"{place}.type",
        )
    return reader.read(kind, part, place)


def _media_of(messages: Sequence[_Message]) -> tuple[MediaInput, ...]:
    return tuple(part for message in messages for part in message.parts if isinstance(part, MediaInput))


def _plain_message(message: _Message, marks: _Marks, *, as_parts: bool) -> dict[str, Any]:
    """The message as the template wants it."""
    content: str | list[dict[str, str]]
    if as_parts:
        content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": _kind(p)} for p in message.parts]
    else:
        content = "".join(p if isinstance(p, str) else marks.next(_kind(p)) for p in message.parts)
    return {**message.rest, "content": content}


def _kind(media: MediaInput) -> str:
    return "image" if media.video is None else "video"
