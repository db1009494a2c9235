"""Digests and keys: equal only for equal things, and the same on every machine and day."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np
import pytest

from fovea.core.errors import EmbeddingsError
from fovea.media import array_digest, media_key, picture_digest
from fovea.media.digest import PIECE_BYTES
from tests.media.corpus import noise


def test_digests_are_stable() -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    assert picture_digest(pixels).hex() == "d1305117e4410ec0fdde28404fd8bab201d6774b01c274588368b8dfcd2f75e9"
    assert (
        array_digest(np.arange(6, dtype="<f4").reshape(2, 3)).hex()
        == "631f0beabf2537cb73cecc243a6a87bf0c0dc92db93bcd1e06381e4df5f57b0a"
    )
    assert (
        media_key(bytes(32), "qwen2_vl", 7, b"salt").hex()
        == "8a6a290882847257ffefad68fc6571e188f6571b57fb67797a42133176a9c837"
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


LONGER = [1, PIECE_BYTES // 3, PIECE_BYTES // 3 + 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES]  # pixels


@pytest.mark.parametrize("num_pixels", LONGER)
def test_helpers_do_not_change_the_digest(num_pixels: int) -> None:
    pixels = noise(num_pixels, 1)
    with ThreadPoolExecutor(2) as helpers:
        assert picture_digest(pixels, helpers) == picture_digest(pixels)


def test_nobody_waits_for_helpers_that_are_busy() -> None:
    pixels, release = noise(PIECE_BYTES, 1), threading.Event()
    with ThreadPoolExecutor(1) as helpers:
        busy = helpers.submit(release.wait, 60)
        found = picture_digest(pixels, helpers)
        assert not busy.done()
        release.set()
    assert found == picture_digest(pixels)


def test_every_piece_counts_and_so_does_its_place() -> None:
    """Pieces are equal in size, so that only their order tells them apart; the last one is shorter."""
    pieces = noise(PIECE_BYTES, 3).reshape(9, -1)
    whole = np.concatenate([pieces.ravel(), np.zeros(3, np.uint8)]).reshape(1, -1, 3)
    digests = {picture_digest(whole)}
    for first, second in combinations(range(9), 2):
        swapped = pieces.copy()
        swapped[[first, second]] = pieces[[second, first]]
        digests.add(picture_digest(np.concatenate([swapped.ravel(), np.zeros(3, np.uint8)]).reshape(1, -1, 3)))
    for place in (0, PIECE_BYTES - 1, PIECE_BYTES, whole.size - 1):
        changed = whole.copy()
        changed.reshape(-1)[place] ^= 1
        digests.add(picture_digest(changed))
    assert len(digests) == 1 + 36 + 4


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
