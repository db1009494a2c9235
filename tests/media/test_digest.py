"""Digests and keys: equal only for equal things, and the same on every machine and day."""

from __future__ import annotations

import numpy as np
import pytest

from fovea.core.errors import EmbeddingsError
from fovea.media import array_digest, media_key, picture_digest
from tests.media.corpus import noise


def test_digests_are_stable() -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    assert picture_digest(pixels).hex() == "8c784017463e9b373fbfa4075ecae20061a69f5ab958ac70dc5da76ef3da3c76"
    assert (
        array_digest(np.arange(6, dtype="<f4").reshape(2, 3)).hex()
        == "8dee66310effe387565986d0d6e8658837f694e1bbaa92ac396b18060a4d248c"
    )
    assert (
        media_key(bytes(32), "qwen2_vl", 7, b"salt").hex()
        == "47e6467564ec2bd54dda3a50f6617f11bb0f601ce6cb0f790bd5c8569ecc4e56"
    )


def test_the_size_is_part_of_a_pictures_digest() -> None:
    pixels = noise(6, 2)
    digests = {picture_digest(pixels.reshape(h, w, 3)) for h, w in [(2, 6), (6, 2), (3, 4), (4, 3), (1, 12), (12, 1)]}
    assert len(digests) == 6


def test_one_changed_bit_changes_the_digest() -> None:
    pixels = noise(5, 4)
    changed = pixels.copy()
    changed[3, 4, 2] ^= 1
    assert picture_digest(pixels) != picture_digest(changed)


def test_memory_layout_is_not_part_of_the_digest() -> None:
    pixels = noise(5, 4)
    assert picture_digest(np.asfortranarray(pixels)) == picture_digest(pixels)
    assert picture_digest(np.repeat(pixels, 2, axis=1)[:, ::2]) == picture_digest(pixels)
    array = np.arange(12.0).reshape(3, 4)
    assert array_digest(array.T.copy().T) == array_digest(array)


def test_an_arrays_digest_covers_dtype_shape_and_values() -> None:
    zeros = np.zeros(8, dtype=np.float32)
    arrays = [zeros, zeros.reshape(2, 4), zeros.reshape(4, 2), zeros.reshape(1, 8), zeros.view(np.int32), zeros + 1]
    arrays += [zeros.astype(">f4"), np.zeros(4, np.float64), np.zeros((0, 4), np.float32), np.zeros((4, 0), np.float32)]
    assert len({array_digest(array) for array in arrays}) == len(arrays)


def test_an_array_of_objects_has_no_digest() -> None:
    with pytest.raises(EmbeddingsError, match="array of numbers"):
        array_digest(np.array([object()]))


def test_different_parts_never_give_the_same_key() -> None:
    digest = bytes(32)
    lists: list[tuple[bytes | str | int, ...]] = [
        (),
        ("",),
        (b"",),
        ("", ""),
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        (b"abc",),
        (1,),
        ("1",),
        (-1,),
        (11,),
        (1, 1),
        ("1", 1),
        (1, "1"),
    ]
    keys = {media_key(digest, *parts) for parts in lists} | {media_key(b"\1" * 32), media_key(digest + b"\0")}
    assert len(keys) == len(lists) + 2
    assert all(len(key) == 32 for key in keys)
