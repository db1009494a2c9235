"""The header of a GGUF file: metadata and a directory of tensors, every number checked against the file's size.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. Lists stay in
the file until they are asked for, and tensors altogether; what a header claims is never allocated on its word alone.
"""

from __future__ import annotations

import importlib
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

from fovea.core.errors import ModelError, UnsupportedModelError, WeightsError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 256 * 1024**2
MAX_KEYS = 4096
MAX_TENSORS = 65536
MAX_ITEMS = 2**21  # of one list; the largest vocabularies have 2**18 tokens
MAX_STRING_BYTES = 4 * 1024**2
MAX_NAME_BYTES = 256
MAX_DIMENSIONS = 4
MAX_ROW = 16384  # values of a tensor that is read as a row of numbers
DEFAULT_ALIGNMENT = 32

_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS: Mapping[int, str] = MappingProxyType(
    {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}
)

T = TypeVar("T")
_REQUIRED: Any = object()


@dataclass(frozen=True, slots=True)
class Listed:
    """A list in the metadata: `count` elements of a GGUF value type, from byte `start` of the file on."""

    kind: int
    count: int
    start: int


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in the directory: shape with the outermost dimension first, ggml's type, first byte in the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A file's header. Raises ModelError naming the key for whatever it lacks or has of another type."""

    path: Path
    size_bytes: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]

    def __contains__(self, key: str) -> bool:
        return key in self.metadata

    def get(self, kind: type[T], key: str, default: T = _REQUIRED) -> T:
        value = self.metadata.get(key)
        if value is None:
            if default is _REQUIRED:
                raise ModelError(f"{self.path} lacks the metadata {key!r}.")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            shown = "a list" if isinstance(value, Listed) else repr(value)[:60]
            raise ModelError(f"{self.path}: {key!r} is {shown}, expected {kind.__name__}.")
        return value

    def strings(self, key: str) -> list[str]:
        """The elements of a list of texts."""
        listed = self.get(Listed, key)
        if listed.kind != _STRING:
            raise ModelError(f"{self.path}: {key!r} is no list of texts.")
        with _mapped(self.path) as data:
            cursor = _Cursor(data, self.path, listed.start)
            return [cursor.text(MAX_STRING_BYTES, key) for _ in range(listed.count)]

    def numbers(self, key: str) -> tuple[float, ...]:
        """The elements of a list of numbers."""
        listed = self.get(Listed, key)
        if listed.kind not in _NUMBERS:
            raise ModelError(f"{self.path}: {key!r} is no list of numbers.")
        with _mapped(self.path) as data:
            return _Cursor(data, self.path, listed.start).numbers(_NUMBERS[listed.kind], listed.count)

    def floats_of(self, name: str) -> tuple[float, ...]:
        """The values of a small tensor of type F32."""
        entry = self.tensors[name]
        if entry.kind != 0 or len(entry.shape) != 1 or entry.shape[0] > MAX_ROW:
            raise ModelError(f"{self.path}: {name!r} must be a short row of type F32.")
        with _mapped(self.path) as data:
            return _Cursor(data, self.path, entry.start).numbers("f", entry.shape[0])


def is_gguf(path: Path) -> bool:
    """Whether a model's place is such a file, and not a folder."""
    return path.is_file()


def has_magic(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def gguf_package() -> ModuleType:
    """Which knows ggml's types. Raises ModelError where it is not installed."""
    try:
        return importlib.import_module("gguf")
    except ImportError:
        raise ModelError(
            "Reading GGUF files needs the gguf package: pip install 'fovea-vlm[gguf]', or pip install gguf."
        ) from None


def read_gguf(path: Path) -> GgufFile:
    """Raises WeightsError for a file that is cut short or damaged, UnsupportedModelError for another version."""
    try:
        status = path.stat()
    except OSError:
        raise WeightsError(f"{path} cannot be read.") from None
    return _read(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=2)
def _read(path: Path, size_bytes: int, changed_ns: int) -> GgufFile:
    """`changed_ns` is there so that a file that was replaced is read again."""
    with _mapped(path) as data:
        cursor = _Cursor(data, path, 0)
        if cursor.take(len(MAGIC)) != MAGIC:
            raise WeightsError(f"{path} is no GGUF file.")
        version = cursor.number("I")
        if version not in VERSIONS:
            kind = "big-endian" if not version & 0xFFFF else f"version {version}"
            raise UnsupportedModelError(f"{path} is a GGUF file, {kind}; supported: versions 2 and 3, little-endian.")
        num_tensors, num_keys = cursor.number("Q"), cursor.number("Q")
        if num_tensors > MAX_TENSORS or num_keys > MAX_KEYS:
            raise WeightsError(
                f"{path} claims {num_tensors:,} tensors and {num_keys:,} metadata keys; the limits are {MAX_TENSORS:,} "
                f"and {MAX_KEYS:,}."
            )
        metadata = _read_metadata(cursor, int(num_keys))
        tensors = _read_directory(cursor, int(num_tensors), _alignment(metadata, path))
    return GgufFile(path, size_bytes, MappingProxyType(metadata), MappingProxyType(tensors))


def _mapped(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # an empty file cannot be mapped
        raise WeightsError(f"{path} cannot be read or is empty.") from None


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.text(MAX_NAME_BYTES, "a key")
        if key in metadata:
            raise WeightsError(f"{cursor.path} has the metadata {key!r} twice.")
        metadata[key] = _read_value(cursor, cursor.number("I"), key)
    return metadata


def _read_value(cursor: _Cursor, kind: float, key: str) -> Any:
    if kind == _STRING:
        return cursor.text(MAX_STRING_BYTES, key)
    if kind == _ARRAY:
        return _read_list(cursor, key)
    if kind not in _NUMBERS:
        raise WeightsError(f"{cursor.path}: {key!r} has the unknown type {kind}.")
    value = cursor.number(_NUMBERS[int(kind)])
    if kind != _BOOL:
        return value
    if value not in (0, 1):
        raise WeightsError(f"{cursor.path}: {key!r} is {value}, which is neither false nor true.")
    return bool(value)


def _read_list(cursor: _Cursor, key: str) -> Listed:
    kind, count = int(cursor.number("I")), int(cursor.number("Q"))
    if count > MAX_ITEMS:
        raise WeightsError(f"{cursor.path}: {key!r} claims {count:,} elements; the limit is {MAX_ITEMS:,}.")
    listed = Listed(kind, count, cursor.place)
    if kind == _STRING:
        for _ in range(count):
            cursor.skip(cursor.length(MAX_STRING_BYTES, key))
    elif kind in _NUMBERS:
        cursor.skip(count * struct.calcsize(_NUMBERS[kind]))
    else:
        raise WeightsError(f"{cursor.path}: {key!r} is a list of the unsupported type {kind}.")
    return listed


def _alignment(metadata: Mapping[str, Any], path: Path) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 2**20 or value & (value - 1):
        raise WeightsError(f"{path}: 'general.alignment' must be a power of two up to {2**20:,}.")
    return value


def _read_directory(cursor: _Cursor, count: int, alignment: int) -> dict[str, TensorEntry]:
    found = []
    for _ in range(count):
        name = cursor.text(MAX_NAME_BYTES, "a tensor's name")
        dimensions = cursor.number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise WeightsError(f"{cursor.path}: the tensor {name!r} claims {dimensions} dimensions.")
        shape = tuple(int(cursor.number("Q")) for _ in range(int(dimensions)))[::-1]
        found.append((name, shape, int(cursor.number("I")), int(cursor.number("Q"))))
    first = -(-cursor.place // alignment) * alignment
    entries: dict[str, TensorEntry] = {}
    for name, shape, kind, offset in found:
        if name in entries:
            raise WeightsError(f"{cursor.path} has the tensor {name!r} twice.")
        # No type of ggml has less than one bit for a value; the exact size is checked where types are known.
        room_bits = 8 * (cursor.size - first - offset)
        if offset % alignment or min(shape) < 1 or math.prod(shape) > room_bits:
            raise WeightsError(
                f"{cursor.path}: the tensor {name!r} of shape {list(shape)} does not lie inside the file's "
                f"{cursor.size:,} bytes; the file may be cut short."
            )
        entries[name] = TensorEntry(name, shape, kind, first + offset)
    return entries


class _Cursor:
    """A place in a mapped file that only moves on, and never beyond the end."""

    def __init__(self, data: mmap.mmap, path: Path, place: int) -> None:
        self.path = path
        self.place = place
        self.size = len(data)
        self._data = data
        self._end = min(self.size, place + MAX_HEADER_BYTES)

    def skip(self, num_bytes: int) -> int:
        """Where it was before."""
        start = self.place
        if num_bytes > self._end - start:
            raise WeightsError(f"{self.path}: the header goes beyond the end; the file is cut short or damaged.")
        self.place = start + num_bytes
        return start

    def take(self, num_bytes: int) -> bytes:
        start = self.skip(num_bytes)
        return self._data[start : start + num_bytes]

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        form = struct.Struct(f"<{count}{code}")
        return form.unpack_from(self._data, self.skip(form.size))

    def length(self, most: int, what: str) -> int:
        num_bytes = int.from_bytes(self.take(8), "little")
        if num_bytes > most:
            raise WeightsError(f"{self.path}: {what!r} has {num_bytes:,} bytes; the limit is {most:,}.")
        return num_bytes

    def text(self, most: int, what: str) -> str:
        try:
            return self.take(self.length(most, what)).decode()
        except UnicodeDecodeError:
            raise WeightsError(f"{self.path}: {what!r} is not valid UTF-8.") from None
