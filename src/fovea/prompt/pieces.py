"""Which stretches of a rendered prompt a client wrote: marks nobody can guess around its texts, and the pieces between.

Messages are plain JSON data here, copied, so that a template never meets an object of the caller's.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fovea.core.errors import PromptError

Message = Mapping[str, Any]

MAX_DEPTH = 32
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_REASONING = ("reasoning_content", "thinking", "reasoning")


class Piece(NamedTuple):
    """A stretch of a prompt; `trusted` is False where its text comes from the request."""

    text: str
    trusted: bool


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A copy made of plain JSON types, without keys that are None, as transformers makes it."""
    chat = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise PromptError(
                f"Message {number} must be a mapping with role and content.",
                code="invalid_type",
                param=f"messages.{number}",
            )
        plain = {key: value for key, value in plain_data(message, MAX_DEPTH).items() if value is not None}
        role = plain.get("role")
        if not isinstance(role, str) or not _ROLE.fullmatch(role):
            raise PromptError(
                f"Message {number} needs a role made of letters, such as user or assistant.",
                code="invalid_value",
                param=f"messages.{number}.role",
            )
        reasoning = next((plain[name] for name in _REASONING if name in plain), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        chat.append(plain)
    return chat


def plain_data(value: Any, depth: int) -> Any:
    """Rebuilt from exact JSON types, so that a template never meets a method we do not know."""
    if depth == 0:
        raise PromptError(
            f"Messages and template variables may be nested at most {MAX_DEPTH} deep.", code="invalid_value"
        )
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {str(key): plain_data(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(item, depth - 1) for item in value]
    return f"<{type(value).__name__}>"


Place = tuple[int, int | None]  # message, part (None: the content is the text)


def texts_of(chat: list[dict[str, Any]]) -> dict[Place, str]:
    """Every text of the content of every message, by place."""
    texts: dict[Place, str] = {}
    for number, message in enumerate(chat):
        content = message.get("content")
        if isinstance(content, str):
            texts[number, None] = content
        for index, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                texts[number, index] = part["text"]
    return texts


def replace_texts(chat: list[dict[str, Any]], texts: Mapping[Place, str]) -> list[dict[str, Any]]:
    """A copy of `chat` with the texts at some places exchanged."""
    changed = []
    for number, message in enumerate(chat):
        content = message.get("content")
        if isinstance(content, list):
            parts = [{**p, "text": texts[number, i]} if (number, i) in texts else p for i, p in enumerate(content)]
            message = {**message, "content": parts}
        elif (number, None) in texts:
            message = {**message, "content": texts[number, None]}
        changed.append(message)
    return changed


def with_tag(chat: list[dict[str, Any]], tag: str) -> list[dict[str, Any]]:
    last = [place for place in texts_of(chat) if place[0] == len(chat) - 1]
    if not last:
        raise PromptError(
            "continue_final_message: the final message has no text to continue.",
            code="invalid_value",
            param="continue_final_message",
        )
    return replace_texts(chat, {last[-1]: texts_of(chat)[last[-1]] + tag})


def other_strings(chat: list[dict[str, Any]], marked: Collection[Place]) -> list[str]:
    """All strings of the messages except the marked texts."""
    return strings_of(replace_texts(chat, dict.fromkeys(marked, "")))


def strings_of(value: Any) -> list[str]:
    """All strings inside plain data, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (key, *strings_of(item))]
    if isinstance(value, list):
        return [text for item in value for text in strings_of(item)]
    return []


def squeeze(text: str) -> str:
    return "".join(text.split())


def any_of(strings: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(set(strings) - {""}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


class Marks:
    """Marks around texts, and inside every special token a text spells, so that no part of a text with a whole special
    token comes out without a mark. A mark is private-use characters and a random number for each request."""

    def __init__(self, texts: Mapping[Place, str], special: re.Pattern[str]) -> None:
        self.texts_of = texts
        self._places = list(texts)
        self._special = special
        self._nonce = secrets.token_hex(8)
        self._pattern = re.compile(f"\ue000{self._nonce}([obc])([0-9]+)\ue001")

    def usable(self) -> frozenset[Place]:
        return frozenset(place for place, text in self.texts_of.items() if text.strip())

    def apply(self, chat: list[dict[str, Any]], marked: Collection[Place]) -> list[dict[str, Any]]:
        """Mark texts. Blanks around a text stay outside, for templates that trim."""
        changed = {}
        for number, place in enumerate(self._places):
            if place in marked:
                text = self.texts_of[place]
                start, end = len(text) - len(text.lstrip()), len(text.rstrip())
                opening, breaking, closing = (f"\ue000{self._nonce}{kind}{number}\ue001" for kind in "obc")
                core = _break(self._special, text[start:end], breaking)
                changed[place] = text[:start] + opening + core + closing + text[end:]
        return replace_texts(chat, changed)

    def split(self, text: str, marked: Collection[Place]) -> tuple[list[Piece], frozenset[Place]]:
        """Pieces of a rendered text, and the places whose marks came out whole around their unchanged text."""
        fields = self._pattern.split(text)  # text, kind, number, text, kind, number, ..., text
        pieces = PieceList()
        pieces.add(fields[0], trusted=True)
        whole: dict[int, bool] = {}
        opened: int | None = None
        core = ""
        for kind, digits, following in zip(fields[1::3], fields[2::3], fields[3::3], strict=True):
            number = int(digits)
            good = opened == (None if kind == "o" else number)
            if kind == "c":
                good = good and core == self.texts_of[self._places[number]].strip()
                opened, core = None, ""
            else:
                opened, core = number, core + following
            whole[number] = whole.get(number, True) and good
            pieces.add(following, trusted=kind == "c")
        if opened is not None:
            whole[opened] = False
        return pieces.items, frozenset(self._places[n] for n, good in whole.items() if good) & frozenset(marked)


def _break(pattern: re.Pattern[str], text: str, mark: str) -> str:
    """Put `mark` after the first character of every match."""
    return pattern.sub(lambda found: found.group()[:1] + mark + found.group()[1:], text)


class PieceList:
    """A list of pieces in which neighbours of equal trust are one."""

    def __init__(self) -> None:
        self.items: list[Piece] = []

    def add(self, text: str, *, trusted: bool) -> None:
        if text and self.items and self.items[-1].trusted == trusted:
            self.items[-1] = Piece(self.items[-1].text + text, trusted)
        elif text:
            self.items.append(Piece(text, trusted))
