"""Typed reading of a model folder's JSON files: what is required, what has a default, what must have one value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

from fovea.core.errors import ModelError, UnsupportedModelError
from fovea.families.gguf_config import document
from fovea.families.gguf_file import is_gguf

MAX_FILE_BYTES = 256 * 1024**2

T = TypeVar("T")
_REQUIRED: Any = object()


def read_json(folder: Path, name: str, *, required: bool = False) -> dict[str, Any]:
    """The object in `folder/name`; {} if the file is absent and not required. A GGUF file counts as a folder.

    Raises ModelError if it is required and absent, or not a JSON object.
    """
    if is_gguf(folder):
        return document(folder, name)
    path = folder / name
    if not path.is_file():
        if required:
            raise ModelError(f"{folder} has no {name}: it is not a complete model folder.")
        return {}
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError):
        raise ModelError(f"{path} is not valid JSON.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} does not hold a JSON object.")
    return value


def read_text(path: Path) -> str:
    """A file of a model folder as UTF-8. Raises ModelError if it is too large or cannot be read."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_FILE_BYTES:
            raise ModelError(f"{path} has {size_bytes} bytes; the limit is {MAX_FILE_BYTES}.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ModelError(f"{path} cannot be read as UTF-8 text.") from None


def tensor_names(folder: Path) -> frozenset[str] | None:
    """Names of a checkpoint's tensors, from its index or the header of its one file; None without either.

    What is broken about these is told when the weights are loaded.
    """
    index = read_json(folder, "model.safetensors.index.json").get("weight_map")
    if isinstance(index, dict):
        return frozenset(map(str, index))
    try:
        with (folder / "model.safetensors").open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, MAX_FILE_BYTES)))
    except (OSError, ValueError, RecursionError):
        return None
    return frozenset(header) if isinstance(header, dict) else None


class Section:
    """A part of a config, read key by key with types checked."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self._where = where

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def __bool__(self) -> bool:
        return bool(self._values)

    @overload
    def get(self, kind: type[T], key: str) -> T: ...
    @overload
    def get(self, kind: type[T], key: str, default: T) -> T: ...

    def get(self, kind: type[T], key: str, default: T = _REQUIRED) -> T:
        """The value of `key`. A missing or null key gives the default, or an error that names it."""
        value = self._values.get(key)
        if value is None:
            if default is _REQUIRED:
                raise ModelError(f"{self._where} lacks {key!r}.")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ModelError(f"{self._where}: {key!r} is {value!r}, expected {kind.__name__}.")
        return value

    def count(self, key: str, default: int = _REQUIRED) -> int:
        """A whole number from 1: sizes and numbers of things."""
        value = self.get(int, key, default)
        if value < 1:
            raise ModelError(f"{self._where}: {key!r} is {value}; it must be 1 or more.")
        return value

    def positive(self, key: str, default: float = _REQUIRED) -> float:
        value = self.get(float, key, default)
        if not 0.0 < value < math.inf:
            raise ModelError(f"{self._where}: {key!r} is {value}; it must be above 0.")
        return value

    def filled(self, defaults: Mapping[str, Any]) -> Section:
        """The same with `defaults` for the keys that are not there (null is there)."""
        return Section({**defaults, **self._values}, self._where)

    def without(self, *keys: str) -> Section:
        return Section({key: value for key, value in self._values.items() if key not in keys}, self._where)

    def section(self, key: str) -> Section:
        return Section(self.get(dict, key, {}), f"{self._where}.{key}")

    def expect(self, key: str, *permitted: Any, default: Any = None) -> None:
        """Refuse the model if `key` is there with a value this code does not implement."""
        value = self._values.get(key, default)
        if value is not None and value not in permitted:
            choices = ", ".join(map(repr, permitted))
            raise UnsupportedModelError(f"{self._where}: {key!r} is {value!r}; supported: {choices}.")

    def only(self, *known: str) -> None:
        """Refuse the model if any other key is there: each would change the arithmetic."""
        unknown = sorted(key for key in self._values if key not in known and self._values[key] is not None)
        if unknown:
            raise UnsupportedModelError(f"{self._where} has {unknown[0]!r}; supported here: {', '.join(known)}.")

    def floats(self, key: str) -> tuple[float, ...]:
        values = self.get(list, key)
        if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values):
            raise ModelError(f"{self._where}: {key!r} must be a list of numbers.")
        return tuple(float(v) for v in values)
