"""The pool of KV blocks: who owns which, and which can be found again by the hash of what they hold.

A block is in exactly one state:

    free, empty      in `_free`, no hash
    free, cached     in `_free`, hash in `_by_hash`: reusable until evicted, oldest first
    owned            reference count > 0; hash in `_by_hash` once its tokens are computed and it is full
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class BlockPool:
    """Accounting only; no tensors."""

    def __init__(self, num_blocks: int, *, enable_caching: bool) -> None:
        self.num_blocks = num_blocks
        self.is_caching = enable_caching
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._references = [0] * num_blocks
        self._hash_of: dict[int, bytes] = {}
        self._by_hash: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self._by_hash)

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest cached beginning of `hashes`. They are not taken."""
        found = []
        for digest in hashes:
            block = self._by_hash.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def num_idle(self, blocks: Iterable[int]) -> int:
        """How many of these are free, so that sharing them uses up free blocks."""
        return sum(1 for block in blocks if not self._references[block])

    def share(self, blocks: Iterable[int]) -> None:
        """Become one more owner of blocks that `find` returned."""
        for block in blocks:
            self._references[block] += 1
            self._free.pop(block, None)

    def take(self, count: int) -> list[int] | None:
        """`count` empty blocks, or None if there are not so many; then nothing is taken."""
        if count > len(self._free):
            return None
        taken = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._references[block] = 1
            taken.append(block)
        return taken

    def publish(self, block: int, digest: bytes) -> None:
        """Make a full, computed block findable. If an equal one is, this one stays private."""
        if self.is_caching and block not in self._hash_of and digest not in self._by_hash:
            self._hash_of[block] = digest
            self._by_hash[digest] = block

    def release(self, blocks: Iterable[int]) -> None:
        """Give up ownership; the last blocks of a sequence are evicted first, since fewer others begin with them."""
        for block in reversed(list(blocks)):
            assert self._references[block] > 0, "a block was released twice"
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if block not in self._hash_of:
                    self._free.move_to_end(block, last=False)

    def forget(self, blocks: Iterable[int]) -> list[int]:
        """What these hold can't be trusted: nobody finds them any more. Returns those without an owner."""
        unowned = []
        for block in blocks:
            self._forget(block)
            if not self._references[block]:
                self._free.move_to_end(block, last=False)
                unowned.append(block)
        return unowned

    def repair(self) -> None:
        """Nobody owns a block, whatever was written down: all are free and empty."""
        self._references = [0] * self.num_blocks
        self._free = OrderedDict.fromkeys(range(self.num_blocks))
        self.reset_cache()

    def reset_cache(self) -> None:
        """Forget all hashes; owned blocks stay owned."""
        self._hash_of.clear()
        self._by_hash.clear()

    def check(self) -> None:
        """Our own invariants, in time linear in the number of blocks: for tests."""
        owned = sum(1 for count in self._references if count)
        assert owned + len(self._free) == self.num_blocks, "a KV block is neither free nor owned"
        assert all(self._references[block] == 0 for block in self._free), "an owned KV block is in the free list"
        assert {self._by_hash[digest] for digest in self._by_hash} == set(self._hash_of), "block hashes disagree"

    def _forget(self, block: int) -> None:
        digest = self._hash_of.pop(block, None)
        if digest is not None:
            del self._by_hash[digest]
