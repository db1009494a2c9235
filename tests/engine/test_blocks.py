"""BlockPool against a model that keeps everything in plain dicts."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fovea.engine.blocks import BlockPool


def digest(number: int) -> bytes:
    return number.to_bytes(4, "big")


class PoolMachine(RuleBasedStateMachine):
    """Owners hold lists of blocks; `content` is what a block was published with and still holds."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: list[list[int]] = []
        self.content: dict[int, bytes] = {}
        self.caching = True
        self.pool = BlockPool(1, enable_caching=True)
        self.next_digest = 0

    @initialize(num_blocks=st.integers(1, 12), caching=st.booleans())
    def build(self, num_blocks: int, caching: bool) -> None:
        self.pool = BlockPool(num_blocks, enable_caching=caching)
        self.caching = caching

    def owned(self) -> set[int]:
        return {block for blocks in self.owners for block in blocks}

    @rule(count=st.integers(0, 13))
    def take(self, count: int) -> None:
        free = self.pool.num_blocks - len(self.owned())
        uncached = [b for b in range(self.pool.num_blocks) if b not in self.owned() and b not in self.content]
        taken = self.pool.take(count)
        if count > free:
            assert taken is None
            return
        assert taken is not None
        assert len(set(taken)) == count
        assert not self.owned() & set(taken), "a block has two owners who may both write"
        if count <= len(uncached):
            assert set(taken) <= set(uncached), "a cached block was evicted though empty ones were free"
        for block in taken:
            self.content.pop(block, None)
        self.owners.append(taken)

    @precondition(lambda self: any(self.owners))
    @rule(data=st.data(), repeat=st.booleans())
    def publish(self, data: st.DataObject, repeat: bool) -> None:
        block = data.draw(st.sampled_from(sorted(self.owned())))
        if repeat and self.content:
            name = data.draw(st.sampled_from(sorted(self.content.values())))
        else:
            self.next_digest += 1
            name = digest(self.next_digest)
        self.pool.publish(block, name)
        if self.caching and block not in self.content and name not in self.content.values():
            self.content[block] = name

    @precondition(lambda self: bool(self.owners))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.owners) - 1))
        self.pool.release(self.owners.pop(number))

    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        known = sorted(self.content.values())
        wanted = data.draw(st.lists(st.sampled_from([*known, digest(0)]), unique=True, max_size=4))
        found = self.pool.find(wanted)
        by_digest = {name: block for block, name in self.content.items()}
        expected: list[int] = []
        for name in wanted:
            if name not in by_digest:
                break
            expected.append(by_digest[name])
        assert found == expected, "find gives the longest cached beginning"
        assert self.pool.num_idle(found) == len(set(found) - self.owned())
        self.pool.share(found)
        self.owners.append(found)

    @rule()
    def reset(self) -> None:
        self.pool.reset_cache()
        self.content.clear()

    @invariant()
    def counts_add_up(self) -> None:
        self.pool.check()
        assert self.pool.num_free == self.pool.num_blocks - len(self.owned())
        assert self.pool.num_cached == len(self.content)

    def teardown(self) -> None:
        for blocks in self.owners:
            self.pool.release(blocks)
        self.pool.check()
        assert self.pool.num_free == self.pool.num_blocks


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)
TestPool = PoolMachine.TestCase


def published(pool: BlockPool, count: int, first: int = 1) -> list[int]:
    blocks = pool.take(count)
    assert blocks is not None
    for i, block in enumerate(blocks):
        pool.publish(block, digest(first + i))
    return blocks


def test_the_least_recently_used_blocks_are_evicted_first_and_the_last_of_a_sequence_before_its_first() -> None:
    pool = BlockPool(4, enable_caching=True)
    old, new = published(pool, 2, 1), published(pool, 2, 3)
    pool.release(old)
    pool.release(new)
    assert pool.take(3) == [old[1], old[0], new[1]]
    assert pool.find([digest(3)]) == [new[0]]


def test_a_shared_block_outlives_its_first_owner() -> None:
    pool = BlockPool(2, enable_caching=True)
    (block,) = published(pool, 1)
    pool.share([block])
    pool.release([block])
    assert pool.num_free == 1
    pool.release([block])
    assert pool.num_free == 2
    assert pool.find([digest(1)]) == [block]


def test_taking_more_than_there_is_takes_nothing() -> None:
    pool = BlockPool(3, enable_caching=True)
    assert pool.take(4) is None
    assert pool.num_free == 3


def test_releasing_twice_is_our_own_fault_and_loud() -> None:
    pool = BlockPool(1, enable_caching=True)
    blocks = pool.take(1)
    assert blocks is not None
    pool.release(blocks)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(blocks)


def test_an_equal_block_computed_twice_stays_private() -> None:
    pool = BlockPool(2, enable_caching=True)
    first, second = published(pool, 1), pool.take(1)
    assert second is not None
    pool.publish(second[0], digest(1))
    assert pool.find([digest(1)]) == first
    assert pool.num_cached == 1


def test_without_caching_nothing_is_found() -> None:
    pool = BlockPool(2, enable_caching=False)
    pool.release(published(pool, 2))
    assert pool.find([digest(1)]) == []
