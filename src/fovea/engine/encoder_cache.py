"""Pictures' embeddings, kept by identity within a byte budget.

An entry is reserved when a step plans to encode its picture, filled when the tower has run, and held by every sequence
that has not consumed all its positions yet. Entries nobody holds stay for later, least recently used out first.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Entry(Generic[T]):
    num_bytes: int
    holders: int = 0
    value: T | None = None


class EncoderCache(Generic[T]):
    """`T` is whatever the runner stores: a tensor. Only its size is known here."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.num_hits = 0
        self.num_misses = 0
        self._entries: OrderedDict[bytes, _Entry[T]] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    @property
    def is_held(self) -> bool:
        """Whether anybody still needs an entry."""
        return any(entry.holders for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def reserve(self, key: bytes, num_bytes: int) -> bool:
        """Make room for a new entry; False if what is held leaves too little. Nothing is evicted then."""
        assert key not in self._entries
        idle_bytes = sum(entry.num_bytes for entry in self._entries.values() if not entry.holders)
        if self.used_bytes - idle_bytes + num_bytes > self.capacity_bytes:
            return False
        while self.used_bytes + num_bytes > self.capacity_bytes:
            oldest = next(other for other, entry in self._entries.items() if not entry.holders)
            self.discard(oldest)
        self._entries[key] = _Entry(num_bytes)
        self.used_bytes += num_bytes
        return True

    def fill(self, key: bytes, value: T) -> None:
        self._entries[key].value = value

    def get(self, key: bytes) -> T:
        """The value of a held entry."""
        entry = self._entries[key]
        assert entry.value is not None, "embeddings were used before they were made"
        return entry.value

    def hold(self, key: bytes) -> None:
        self._entries[key].holders += 1
        self._entries.move_to_end(key)

    def release(self, key: bytes) -> None:
        entry = self._entries.get(key)
        if entry is not None:
            assert entry.holders > 0, "embeddings were released twice"
            entry.holders -= 1

    def discard(self, key: bytes) -> None:
        """Drop an entry, held or not (its encoding failed)."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.used_bytes -= entry.num_bytes

    def drop(self, key: bytes) -> None:
        """Forget an entry unless somebody holds it."""
        if key in self._entries and not self._entries[key].holders:
            self.discard(key)

    def repair(self) -> None:
        """Nobody holds anything, whatever was written down: all is forgotten."""
        self._entries.clear()
        self.used_bytes = 0

    def clear_idle(self) -> None:
        for key in [key for key, entry in self._entries.items() if not entry.holders]:
            self.discard(key)

    def check(self) -> None:
        """Our own invariants; called when the engine is idle and after tests."""
        assert self.used_bytes == sum(entry.num_bytes for entry in self._entries.values())
        assert self.used_bytes <= self.capacity_bytes
        assert not any(entry.holders for entry in self._entries.values()), "embeddings held by nobody"
