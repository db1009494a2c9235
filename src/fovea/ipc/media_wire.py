"""Pictures and embeddings of a request on the wire: what they are goes into the message, their arrays into the blob.

Contract: an array comes out as a view into the blob, and nothing on the wire can point outside of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from fovea.core.errors import RequestFailedError
from fovea.core.types import ImagePlan, MediaItem
from fovea.ipc.blob import ALIGNMENT_BYTES

Dtype = Literal["<f4", "<f8", "<i4", "<i8", "|u1", "|i1", "|b1"]


class Place(msgspec.Struct, frozen=True, array_like=True):
    """An array in a blob: uint8 [height, width, 3] of pixels, or float32 [rows, width] of embeddings."""

    offset: int
    shape: tuple[int, ...]


class TypedPlace(msgspec.Struct, frozen=True, array_like=True):
    """Any other array of numbers: its dtype by its short name ("<f4")."""

    dtype: Dtype
    place: Place


class MediaWire(msgspec.Struct, frozen=True, array_like=True):
    """A MediaItem."""

    key: bytes
    num_tokens: int
    num_patches: int
    grid: tuple[int, int, int]
    canvas: Place | None
    embeds: Place | None
    pixels: Place | None = None
    plan: ImagePlan | None = None
    arrays: dict[str, TypedPlace] | None = None
    ids: tuple[int, ...] | None = None


class _Parts:
    """The parts of a blob, as they are laid behind one another."""

    def __init__(self) -> None:
        self.parts: list[memoryview | bytes] = []
        self._num_bytes = 0
        self._known: dict[int, Place] = {}  # by id: one array may stand for several pictures of a request

    def place(self, array: NDArray[Any] | None) -> Place | None:
        if array is None:
            return None
        if id(array) not in self._known:
            padding = -self._num_bytes % ALIGNMENT_BYTES
            data = np.ascontiguousarray(array)
            self.parts += [bytes(padding), data.reshape(-1).view(np.uint8).data]
            self._known[id(array)] = Place(self._num_bytes + padding, data.shape)
            self._num_bytes += padding + data.nbytes
        return self._known[id(array)]

    def places(self, arrays: Mapping[str, NDArray[Any]] | None) -> dict[str, TypedPlace] | None:
        if arrays is None:
            return None
        return {name: self._typed(array) for name, array in arrays.items()}

    def _typed(self, array: NDArray[Any]) -> TypedPlace:
        place = self.place(array)
        assert place is not None, "an array was given"
        return TypedPlace(cast(Dtype, array.dtype.str), place)


def media_to_wire(media: Sequence[MediaItem]) -> tuple[list[MediaWire], list[memoryview | bytes]]:
    """The messages, and the parts of the blob."""
    blob = _Parts()
    wire = [
        MediaWire(
            key=item.key,
            num_tokens=item.num_tokens,
            num_patches=item.num_patches,
            grid=item.grid,
            canvas=blob.place(item.canvas),
            embeds=blob.place(item.embeds),
            pixels=blob.place(item.pixels),
            plan=item.plan,
            arrays=blob.places(item.arrays),
            ids=item.ids,
        )
        for item in media
    ]
    return wire, [part for part in blob.parts if len(part)]


def media_from_wire(wire: MediaWire, blob: memoryview | None) -> MediaItem:
    """Without a blob: neither pixels, with their plan, nor embeddings, nor other arrays."""
    return MediaItem(
        key=wire.key,
        num_tokens=wire.num_tokens,
        num_patches=wire.num_patches,
        grid=wire.grid,
        canvas=_array(blob, wire.canvas, np.dtype(np.uint8)),
        embeds=_array(blob, wire.embeds, np.dtype(np.float32)),
        pixels=_array(blob, wire.pixels, np.dtype(np.uint8)),
        plan=None if blob is None else wire.plan,
        arrays=None if blob is None or wire.arrays is None else _arrays(blob, wire.arrays),
        ids=wire.ids,
    )


def _arrays(blob: memoryview, places: dict[str, TypedPlace]) -> dict[str, NDArray[Any]]:
    made = {name: _array(blob, typed.place, np.dtype(typed.dtype)) for name, typed in places.items()}
    return {name: array for name, array in made.items() if array is not None}


def _array(blob: memoryview | None, place: Place | None, dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """A view into the blob. Raises RequestFailedError if it would lie outside."""
    if blob is None or place is None:
        return None
    count = 1
    for length in place.shape:
        count *= length
    if min(place.shape) < 1 or place.offset < 0 or place.offset + count * dtype.itemsize > blob.nbytes:
        raise RequestFailedError("A picture's place in shared memory lies outside of it.")
    return np.frombuffer(blob, dtype, count, place.offset).reshape(place.shape)
