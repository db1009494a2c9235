"""Mutated bodies: bytes of JSON, or values inside it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from tests.fuzz.mutations import mutated

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    0.5,
    -0.0,
    1e308,
    1e-320,
    2**31,
    2**63,
    2**64,
    -(2**63) - 1,
    "",
    "a",
    "5",
    "null",
    "a" * 300,
    "é\u0301",
    "\0",
    "\u202e",
    "<|image_pad|>",
    "data:image/png;base64,",
    "data:",
    "http://127.0.0.1/",
    "file:///etc/passwd",
    [],
    [[]],
    {},
    {"": None},
    [None],
    ["a"] * 5,
    [1, 2, 3],
    {"type": "text"},
    {"type": "text", "text": "a"},
    {"url": "x"},
    {"a": {"b": {"c": []}}},
    [[[[[]]]]],
)
ODD_KEYS = (
    "",
    "type",
    "text",
    "content",
    "image_url",
    "url",
    "model",
    "__class__",
    "n",
    "stream",
    "detail",
    "uuid",
    "a\0",
    "é",
)
RAW_VALUES = (
    "NaN",
    "Infinity",
    "1e999",
    "-",
    "01",
    '"\\ud800"',
    '"\\u0000"',
    "9" * 400,
    "[" * 70,
    "{}{}",
    "'a'",
    "undefined",
)


def mutated_body(seeds: Sequence[tuple[str, bytes]], number: int) -> tuple[str, bytes]:
    """(path, mutant `number`): a third in their bytes, two thirds in their values."""
    rng = random.Random(f"body-{number}")
    path, data = rng.choice(seeds)
    if rng.random() < 1 / 3:
        return path, mutated([data], number)
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = _changed(value, rng)
    text = json.dumps(value)
    if rng.random() < 0.1:
        spot = rng.choice([at for at, char in enumerate(text) if char in ":,["] or [0]) + 1
        text = text[:spot] + rng.choice(RAW_VALUES) + ("" if rng.random() < 0.5 else ",") + text[spot:]
    return path, text.encode("utf-8", "surrogatepass")


def _changed(value: Any, rng: random.Random) -> Any:
    """The same with one spot exchanged, taken out, doubled or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        return _changed_object(dict(value), rng)
    if isinstance(value, list) and value and rng.random() < 0.9:
        return _changed_list(list(value), rng)
    return rng.choice(ODD_VALUES)


def _changed_object(value: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    key = rng.choice(list(value))
    match rng.randrange(6):
        case 0:
            del value[key]
        case 1:
            value[rng.choice(ODD_KEYS)] = value.pop(key)
        case 2:
            value[rng.choice(ODD_KEYS)] = rng.choice(ODD_VALUES)
        case _:
            value[key] = _changed(value[key], rng)
    return value


def _changed_list(value: list[Any], rng: random.Random) -> list[Any]:
    at = rng.randrange(len(value))
    match rng.randrange(6):
        case 0:
            del value[at]
        case 1:
            value = value * rng.choice((2, 20, 300))
        case 2:
            value.insert(at, rng.choice(ODD_VALUES))
        case _:
            value[at] = _changed(value[at], rng)
    return value
