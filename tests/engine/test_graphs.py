"""What sequences of a decode step begin with in common; the graphs themselves need a card (tests/gpu)."""

from __future__ import annotations

import numpy as np
import pytest

from fovea.engine.graphs import SHARED_TOKENS, shared_len

BLOCK = 16
BLOCKS = SHARED_TOKENS // BLOCK


def tables(*rows: list[int]) -> np.ndarray:
    return np.asarray(rows, np.int64)


def test_equal_blocks_at_the_beginning_are_shared() -> None:
    common = list(range(BLOCKS + 2))
    found = shared_len(tables([*common, 70, 71], [*common, 80, 81], [*common, 90, 71]), 1000, BLOCK)
    assert found == (BLOCKS + 2) * BLOCK


def test_a_sequence_keeps_a_token_of_its_own() -> None:
    """The shortest has 5 tokens in its last block, and one more row of the table that a longer one left there."""
    common = list(range(BLOCKS + 2))
    most = (BLOCKS + 1) * BLOCK + 5
    assert shared_len(tables(common, common), most, BLOCK) == (BLOCKS + 1) * BLOCK
    assert shared_len(tables(common), (BLOCKS + 1) * BLOCK, BLOCK) == (BLOCKS + 1) * BLOCK


@pytest.mark.parametrize("place", [0, 1, BLOCKS - 1])
def test_one_other_block_ends_what_is_shared(place: int) -> None:
    rows = tables(*[list(range(2 * BLOCKS))] * 5)
    rows[3, place] = 99
    assert shared_len(rows, 1000, BLOCK) == 0, "fewer tokens than are worth it"
    rows[3, place], rows[3, BLOCKS] = place, 99
    assert shared_len(rows, 1000, BLOCK) == SHARED_TOKENS


def test_equal_blocks_behind_another_are_not_shared() -> None:
    rows = tables(*[list(range(2 * BLOCKS))] * 3)
    rows[1, 0] = 99
    assert shared_len(rows, 1000, BLOCK) == 0
