"""What people type, as values: numbers, switches, lists, mappings. ArgumentTypeError says what cannot be read."""

from __future__ import annotations

import argparse
import json
import re
from types import MappingProxyType
from typing import Any

# vLLM's: small letters are decimal, capitals binary. 32k is 32,000 and 32K is 32,768.
_UNITS = MappingProxyType({"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30})
_WHOLE = re.compile(r"([+-]?\d+(?:\.\d+)?)([kmgKMG]?)")


def parse_whole(text: str) -> int:
    """A whole number, with k, m, g for thousands and K, M, G for 1024s."""
    match = _WHOLE.fullmatch(text)
    value = float(match[1]) * _UNITS[match[2]] if match else 0.5
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number (32k and 32K are understood)")
    return int(value)


def parse_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def parse_mapping(text: str) -> dict[str, Any]:
    """key=value pairs with commas between, or a JSON object."""
    if text.lstrip().startswith("{"):
        try:
            value = json.loads(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON") from None
        return dict(value)
    pairs = [pair.partition("=") for pair in text.split(",")]
    if any(not key.strip() or not equals for key, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f'{text!r} is neither key=value nor a JSON object like {{"image": 2}}')
    return {key.strip(): _parse_value(value.strip()) for key, _, value in pairs}


def parse_list(text: str) -> list[str]:
    """Texts with commas between, or a JSON list of texts; nothing at all is an empty list."""
    if text.lstrip().startswith('["') or text.strip() == "[]":
        try:
            items = json.loads(text)
        except ValueError:
            items = None
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise argparse.ArgumentTypeError("it looks like JSON but is no list of texts")
        return items
    return [item.strip() for item in text.split(",")] if text.strip() else []


def parse_switch(text: str) -> bool:
    """A switch as variables and files give it; on the command line it is --name or --no-name."""
    value = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in value:
        raise argparse.ArgumentTypeError(f"{text!r} is none of 1, true, yes, on, 0, false, no, off")
    return value[text.lower()]


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
