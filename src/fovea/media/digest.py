"""Identities: a digest of pixels, and the key under which caches may reuse what was made from them.

Contract: equal output means equal input. Every field is tagged with its kind and its length before it is hashed, so no
two different field lists give the same byte stream. `_VERSION` changes whenever the same input would hash differently.
Keys never come from a client: a client's id is one more part that is mixed in.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fovea.core.errors import EmbeddingsError

_VERSION = 2
PIECE_BYTES = 256 * 1024  # of a picture; part of the contract
_PICTURE_TAG = b"fovea.picture"
_ARRAY_TAG = b"fovea.array"
_KEY_TAG = b"fovea.media-key"


def picture_digest(pixels: NDArray[np.uint8], helpers: Executor | None = None) -> bytes:
    """SHA-256 of an RGB picture [height, width, 3]: its size, and the SHA-256 of each piece of its pixels.

    helpers: threads that hash some of the pieces if they have nothing else to do. The digest is the same without.
    """
    height_px, width_px, _ = pixels.shape
    hasher = _hasher(_PICTURE_TAG)
    hasher.update(struct.pack(">QQQ", width_px, height_px, pixels.nbytes))
    flat = np.ascontiguousarray(pixels).reshape(-1)
    pieces = [flat[start : start + PIECE_BYTES] for start in range(0, len(flat), PIECE_BYTES)]
    for digest in map(_sha256, pieces) if helpers is None else _helped(pieces, helpers):
        hasher.update(digest)
    return hasher.digest()


def array_digest(array: NDArray[Any]) -> bytes:
    """SHA-256 of an array of numbers, such as embeddings: dtype with byte order, shape, and values."""
    if array.dtype.kind not in "biufc":
        raise EmbeddingsError(f"Embeddings must be an array of numbers, not of dtype {array.dtype.str[:20]}.")
    dtype = array.dtype.str.encode("ascii")
    hasher = _hasher(_ARRAY_TAG)
    hasher.update(struct.pack(">QQ", len(dtype), array.ndim) + dtype)
    hasher.update(struct.pack(f">{array.ndim}QQ", *array.shape, array.nbytes))
    hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hasher.digest()


def media_key(digest: bytes, *parts: bytes | str | int) -> bytes:
    """32 bytes that identify a medium together with everything that changes what is made of it.

    The order of `parts` matters, and so does their kind: 1, "1" and b"1" are three different parts.
    """
    hasher = _hasher(_KEY_TAG)
    for part in (digest, *parts):
        kind, value = _encode(part)
        hasher.update(kind + struct.pack(">Q", len(value)) + value)
    return hasher.digest()


def _sha256(piece: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(piece.data).digest()


def _helped(pieces: Sequence[NDArray[np.uint8]], helpers: Executor) -> list[bytes]:
    """The pieces' digests. Helpers begin with the first ones, the caller with the last, and nobody waits for a helper
    that has not begun: it may be waiting itself."""
    offered = [helpers.submit(_sha256, piece) for piece in pieces[:-1]]
    own: dict[int, bytes] = {}
    for number in reversed(range(len(pieces))):
        if number == len(offered) or offered[number].cancel():
            own[number] = _sha256(pieces[number])
    return [own[number] if number in own else offered[number].result() for number in range(len(pieces))]


def _hasher(tag: bytes) -> hashlib._Hash:
    return hashlib.sha256(struct.pack(">QQ", _VERSION, len(tag)) + tag)


def _encode(part: bytes | str | int) -> tuple[bytes, bytes]:
    if isinstance(part, bytes):
        return b"b", part
    if isinstance(part, str):
        return b"s", part.encode("utf-8", "surrogatepass")
    return b"i", str(int(part)).encode("ascii")
