"""What a sequence knows of itself: block hashes that cover all a block depends on, and positions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from fovea.core.params import SamplingParams
from fovea.core.types import EngineRequest, MediaItem, MediaSpan
from fovea.engine.sequence import Sequence
from tests.engine.fakes import grow

KEY_A, KEY_B = b"a" * 32, b"b" * 32


def item(key: bytes, num_tokens: int) -> MediaItem:
    return MediaItem(key=key, num_tokens=num_tokens, num_patches=num_tokens, grid=(1, 1, num_tokens))


def make(**changes: Any) -> Sequence:
    """Tokens 0 to 11, a picture at [3, 7)."""
    request = EngineRequest(
        request_id="r",
        token_ids=tuple(range(12)),
        params=SamplingParams(),
        stop_token_ids=frozenset(),
        spans=(MediaSpan(3, 4),),
        media=(item(KEY_A, 4),),
    )
    return Sequence(dataclasses.replace(request, **changes), 0, None)


def hashes(sequence: Sequence, size: int = 2) -> list[bytes]:
    return list(sequence.full_block_hashes(size))


def num_equal(one: list[bytes], two: list[bytes]) -> int:
    """Blocks that both begin with; behind the first difference nothing may be equal."""
    equal = [a == b for a, b in zip(one, two, strict=False)]
    count = equal.index(False) if False in equal else len(equal)
    assert not any(equal[count:])
    return count


def test_equal_requests_have_equal_hashes() -> None:
    assert hashes(make()) == hashes(make(request_id="other"))
    assert len(hashes(make())) == 6
    assert len(hashes(make(), 5)) == 2


@pytest.mark.parametrize("place", range(12))
def test_a_changed_token_changes_its_block_and_all_behind(place: int) -> None:
    changed = tuple(99 if i == place else i for i in range(12))
    assert num_equal(hashes(make()), hashes(make(token_ids=changed))) == place // 2


def test_another_salt_shares_nothing() -> None:
    assert num_equal(hashes(make(salt=b"a")), hashes(make(salt=b"b"))) == 0
    assert num_equal(hashes(make(salt=b"a")), hashes(make())) == 0


def test_another_picture_shares_what_lies_before_it() -> None:
    assert num_equal(hashes(make()), hashes(make(media=(item(KEY_B, 4),)))) == 1


def test_a_picture_is_not_a_text_of_the_same_ids() -> None:
    assert num_equal(hashes(make()), hashes(make(spans=(), media=()))) == 1


def test_a_picture_begun_one_token_later_is_another() -> None:
    assert num_equal(hashes(make()), hashes(make(spans=(MediaSpan(4, 4),)))) == 1


def test_one_picture_is_not_two_halves_of_it() -> None:
    halves = {"spans": (MediaSpan(3, 2), MediaSpan(5, 2)), "media": (item(KEY_A, 2), item(KEY_A, 2))}
    assert num_equal(hashes(make()), hashes(make(**halves))) <= 2


def test_the_place_of_each_picture_in_a_block_counts() -> None:
    """Equal tokens, equal pictures, one border moved: the rows behind the tokens differ."""
    pair = (item(KEY_A, 4), item(KEY_B, 4))
    borders = [make(spans=(MediaSpan(2, 3), MediaSpan(5, 3)), media=pair)]
    borders += [make(spans=(MediaSpan(2, 4), MediaSpan(6, 2)), media=pair)]
    assert hashes(borders[0], 8) != hashes(borders[1], 8)


def test_pictures_in_another_order_are_others() -> None:
    pair = (item(KEY_A, 2), item(KEY_B, 2))
    spans = (MediaSpan(2, 2), MediaSpan(4, 2))
    assert num_equal(hashes(make(spans=spans, media=pair)), hashes(make(spans=spans, media=pair[::-1]))) == 1


def test_another_rotary_regime_shares_nothing() -> None:
    one, two = make(), make()
    short = hashes(one)
    two.change_regime(1)
    assert num_equal(short, hashes(two)) == 0
    one.change_regime(1)
    assert hashes(one) == hashes(two)


def test_hashes_grow_with_the_answer_and_keep_their_beginning() -> None:
    sequence = make()
    before = hashes(sequence, 5)
    for token in (50, 51, 52):
        grow(sequence, token)
    assert hashes(sequence, 5)[:2] == before
    assert len(hashes(sequence, 5)) == 3
    assert hashes(make(token_ids=(*range(12), 50, 51, 52)), 5) == hashes(sequence, 5)


def test_restart_gives_back_blocks_and_keeps_tokens() -> None:
    sequence = make()
    sequence.blocks, sequence.num_computed = [4, 2], 8
    grow(sequence, 77)
    assert sequence.restart() == [4, 2]
    assert (sequence.blocks, sequence.num_computed, sequence.generated) == ([], 0, [77])
    assert sequence.num_generated == 1


def test_positions_count_up_without_rows_of_their_own() -> None:
    assert make().positions(3, 6).tolist() == [[3, 4, 5]]


def test_positions_behind_the_prompt_follow_the_shift() -> None:
    rows = np.stack([np.arange(12), np.arange(12) * 2, np.arange(12) * 3]).astype(np.int32)
    sequence = make(positions=rows, position_delta=-4)
    assert sequence.positions(10, 12).tolist() == [[10, 11], [20, 22], [30, 33]]
    assert sequence.positions(11, 14).tolist() == [[11, 8, 9], [22, 8, 9], [33, 8, 9]]
    assert sequence.positions(13, 14).tolist() == [[9], [9], [9]]
