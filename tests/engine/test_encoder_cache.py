"""EncoderCache against a model that keeps everything in a plain list, least recently used first."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fovea.engine.encoder_cache import EncoderCache

KEYS = [bytes([i]) for i in range(6)]


class CacheMachine(RuleBasedStateMachine):
    """`entries`: key, bytes, holders, in order of use."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: EncoderCache[str] = EncoderCache(0)
        self.entries: list[tuple[bytes, int, int]] = []

    @initialize(capacity=st.integers(0, 30))
    def build(self, capacity: int) -> None:
        self.cache = EncoderCache(capacity)

    def holders(self, key: bytes) -> int | None:
        return next((held for name, _, held in self.entries if name == key), None)

    @rule(key=st.sampled_from(KEYS), num_bytes=st.integers(1, 12))
    def reserve(self, key: bytes, num_bytes: int) -> None:
        if self.holders(key) is not None:
            return
        held_bytes = sum(size for _, size, held in self.entries if held)
        fits = held_bytes + num_bytes <= self.cache.capacity_bytes
        assert self.cache.reserve(key, num_bytes) == fits
        if not fits:
            return
        while sum(size for _, size, _ in self.entries) + num_bytes > self.cache.capacity_bytes:
            self.entries.remove(next(entry for entry in self.entries if not entry[2]))
        self.entries.append((key, num_bytes, 0))
        self.cache.fill(key, key.hex())

    @rule(key=st.sampled_from(KEYS), by=st.sampled_from([1, -1]))
    def hold_or_release(self, key: bytes, by: int) -> None:
        entry = next((entry for entry in self.entries if entry[0] == key), None)
        if entry is None or entry[2] + by < 0:
            return
        index = self.entries.index(entry)
        changed = (key, entry[1], entry[2] + by)
        if by > 0:
            self.cache.hold(key)
            self.entries.pop(index)
            self.entries.append(changed)
        else:
            self.cache.release(key)
            self.entries[index] = changed

    @rule(key=st.sampled_from(KEYS))
    def discard(self, key: bytes) -> None:
        self.cache.discard(key)
        self.entries = [entry for entry in self.entries if entry[0] != key]

    @rule()
    def clear_idle(self) -> None:
        self.cache.clear_idle()
        self.entries = [entry for entry in self.entries if entry[2]]

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert {key for key in KEYS if key in self.cache} == {key for key, _, _ in self.entries}
        assert len(self.cache) == len(self.entries)
        assert self.cache.used_bytes == sum(size for _, size, _ in self.entries) <= self.cache.capacity_bytes
        for key, _, _ in self.entries:
            assert self.cache.get(key) == key.hex()


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)
TestCache = CacheMachine.TestCase


def test_what_is_held_is_never_evicted() -> None:
    cache: EncoderCache[str] = EncoderCache(10)
    assert cache.reserve(b"a", 6)
    cache.hold(b"a")
    assert cache.reserve(b"b", 4)
    assert not cache.reserve(b"c", 5)
    assert b"b" in cache, "a refused reservation evicts nothing"
    assert cache.reserve(b"c", 4)
    assert b"b" not in cache
    assert b"a" in cache


def test_using_embeddings_before_they_are_made_is_our_own_fault_and_loud() -> None:
    cache: EncoderCache[str] = EncoderCache(10)
    cache.reserve(b"a", 6)
    with pytest.raises(AssertionError, match="before they were made"):
        cache.get(b"a")


def test_held_embeddings_in_an_idle_engine_are_our_own_fault_and_loud() -> None:
    cache: EncoderCache[str] = EncoderCache(10)
    cache.reserve(b"a", 6)
    cache.check()
    cache.hold(b"a")
    with pytest.raises(AssertionError, match="held by nobody"):
        cache.check()
    cache.release(b"a")
    with pytest.raises(AssertionError, match="released twice"):
        cache.release(b"a")


def test_releasing_what_was_discarded_is_fine() -> None:
    cache: EncoderCache[str] = EncoderCache(10)
    cache.reserve(b"a", 6)
    cache.hold(b"a")
    cache.discard(b"a")
    cache.release(b"a")
    cache.check()
