"""What is wrong with a decoded body, in our words.

The parser's message is only a source: it is matched against the forms known here, and anything else becomes one fixed
sentence. The place is looked up in the type, for what is allowed, and in small bodies, for what was sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import msgspec.inspect

from fovea.core.errors import BodyError
from fovea.core.log import escaped

MAX_SHOWN_BODY_BYTES = 64 * 1024  # of larger bodies, what was sent is not looked up
MAX_SHOWN_CHOICES = 12

PLACE = re.compile(r" - at `(?:key` in `)?\$?([^`]*)`$", re.DOTALL)
STEP = re.compile(r"\.([A-Za-z_]\w*)|\[(\d+)\]")
NAMES = {
    "int": "an integer",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "null": "null",
    "array": "a list",
    "object": "an object",
    "bytes": "base64 text",
}

Found = tuple[str, str]  # code, and the rest of a sentence that begins with the place
Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], Found]]


def violation(text: str, data: bytes, type: type[Any]) -> BodyError:
    """The error for a msgspec.ValidationError with this `text`, raised by decoding `data` as `type`."""
    place = PLACE.search(text)
    path = steps(place[1]) if place else []
    said = text[: place.start()] if place else text
    field = re.match(r"Object (missing required|contains unknown) field `(.*)`$", said, re.DOTALL)
    if field is not None:
        where = dotted([*path, escaped(field[2])])
        if field[1] == "missing required":
            return BodyError(f"{where} is missing.", code="missing_required_parameter", param=where)
        return BodyError(f"{where} is not a known field.", code="unknown_parameter", param=where)
    code, rest = explain(said, path, type)
    where = dotted(path)
    subject = where or "The body"
    if place and "[...]" in place[1]:
        return BodyError(f"An entry of {subject} {rest}.", code=code, param=where or None)
    return BodyError(f"{subject} {rest}{sent(data, path)}.", code=code, param=where or None)


def steps(place: str) -> list[str]:
    """["messages", "0", "content"] of ".messages[0].content"; it ends at a map, whose keys are not told."""
    return [match[1] or match[2] for match in STEP.finditer(place.partition("[...]")[0])]


def dotted(path: list[str]) -> str:
    return ".".join(path)


def explain(said: str, path: list[str], type: type[Any]) -> Found:
    for pattern, make in RULES:
        match = pattern.fullmatch(said)
        if match is not None:
            return make(match)
    if said.startswith(("Invalid value", "Invalid enum value")):
        choices = allowed(type, path)
        listed = f"; allowed: {', '.join(choices[:MAX_SHOWN_CHOICES])}" if choices else ""
        return "invalid_value", f"is not one of the values it may have{listed}"
    if said.startswith("Expected"):
        return "invalid_type", "has the wrong type"
    return "invalid_value", "does not have a permitted value"


def bound(match: re.Match[str]) -> Found:
    number = match[2].removesuffix(".0")
    return {
        ">=": ("below_min_value", f"must be at least {number}"),
        ">": ("below_min_value", f"must be more than {number}"),
        "<=": ("above_max_value", f"must be at most {number}"),
        "<": ("above_max_value", f"must be less than {number}"),
    }[match[1]]


def length(match: re.Match[str]) -> Found:
    kind, sign, number = match[1], match[2], match[3]
    unit = {"str": "characters", "bytes": "bytes"}.get(kind, "entries")
    if sign == "<=":
        return (
            "string_too_long" if kind in ("str", "bytes") else "array_too_long"
        ), f"may have {number} {unit} at most"
    return "invalid_value", f"must have {'at least ' if sign else ''}{number} {unit}"


def wrong_type(match: re.Match[str]) -> Found:
    wanted = " or ".join(NAMES.get(name.strip(), "another type") for name in match[1].split("|"))
    got = f", not {NAMES.get(match[2], 'what was sent')}" if match[2] else ""
    return "invalid_type", f"must be {wanted}{got}"


def invalid(rest: str) -> Callable[[re.Match[str]], Found]:
    return lambda match: ("invalid_value", match.expand(rest))


RULES: tuple[Rule, ...] = (
    (re.compile(r"Expected `(\w+)` of length (?:(<=|>=) )?(\d+)"), length),
    (re.compile(r"Expected `(?:int|float)` (>=|<=|>|<) (\S+)"), bound),
    (re.compile(r"Expected `([\w |]+)`(?:, got `(\w+)`)?"), wrong_type),
    (re.compile(r"Expected `\w+` that's a multiple of (\S+)"), invalid(r"must be a multiple of \1")),
    (re.compile(r"Expected `str` matching regex .*", re.DOTALL), invalid("does not have the right form")),
    (re.compile(r"(?:Integer value|Number) out of range"), invalid("is beyond what a number may be")),
    (re.compile(r"Invalid base64 encoded string"), invalid("is not base64 text")),
)


def allowed(type: type[Any], path: list[str]) -> list[str]:
    """The values that the field at `path` may have, if it has a list of them."""
    here = [msgspec.inspect.type_info(type)]
    for depth, step in enumerate(path):
        last = depth == len(path) - 1
        tags = [
            quoted(t.tag)
            for t in alternatives(here)
            if isinstance(t, msgspec.inspect.StructType) and t.tag_field == step
        ]
        if last and tags:
            return sorted(tags)
        here = [inner for t in alternatives(here) for inner in children(t, step)]
    return sorted(quoted(v) for t in alternatives(here) if isinstance(t, msgspec.inspect.LiteralType) for v in t.values)


def quoted(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def alternatives(types: list[msgspec.inspect.Type]) -> Iterator[msgspec.inspect.Type]:
    for one in types:
        if isinstance(one, msgspec.inspect.UnionType):
            yield from alternatives(list(one.types))
        elif isinstance(one, msgspec.inspect.Metadata):
            yield from alternatives([one.type])
        else:
            yield one


def children(type: msgspec.inspect.Type, step: str) -> Iterator[msgspec.inspect.Type]:
    if isinstance(type, msgspec.inspect.StructType):
        yield from (field.type for field in type.fields if field.encode_name == step)
    elif isinstance(type, msgspec.inspect.ListType | msgspec.inspect.VarTupleType):
        yield type.item_type


def sent(data: bytes, path: list[str]) -> str:
    """ "; it is 9": the number or short text at `path`, in bodies that are cheap to read again."""
    if len(data) > MAX_SHOWN_BODY_BYTES or not path:
        return ""
    try:
        value = msgspec.json.decode(data)
        for step in path:
            value = value[int(step)] if isinstance(value, list) else value[step]
        shown = quoted(value)
    except (msgspec.MsgspecError, KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError):
        return ""
    return f"; it is {escaped(shown)}" if isinstance(value, int | float | str) else ""
