"""What runs next: chunks of sequences and pictures to encode, under budgets of tokens, KV blocks and patches.

Pure Python, no tensors. Running sequences go first in order of arrival, then waiting ones. When blocks run out the
youngest running sequence is preempted: it gives its blocks back and is computed again later.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np

from fovea.core.types import MediaItem, MediaSpan
from fovea.engine.blocks import BlockPool
from fovea.engine.encoder_cache import EncoderCache
from fovea.engine.sequence import Sequence
from fovea.families.spec import RopeSpec

WORTH_WAITING_TOKENS = 64  # and half of what is left to compute of a prompt


@dataclass(frozen=True, slots=True)
class Budgets:
    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_batched_patches: int
    block_size: int
    embedding_bytes: int  # of one row of picture embeddings
    ahead_tokens: int = 256  # of an answer that are foreseen when another sequence wants to start; see _leaves_room


class Chunk(NamedTuple):
    """Tokens [start, end) of a sequence run in this step; `samples` when the token after them is wanted."""

    sequence: Sequence
    start: int
    end: int
    samples: bool

    @property
    def num_tokens(self) -> int:
        return self.end - self.start


@dataclass(slots=True)
class StepPlan:
    """Chunks of one token (decode) come first, as AttentionBatch wants them."""

    chunks: list[Chunk] = field(default_factory=list)
    encode: list[MediaItem] = field(default_factory=list)


@dataclass(slots=True)
class SchedulerStats:
    num_preemptions: int = 0
    num_regime_changes: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0


class Scheduler:
    def __init__(self, budgets: Budgets, pool: BlockPool, encoder_cache: EncoderCache[Any], rope: RopeSpec) -> None:
        self.budgets = budgets
        self.pool = pool
        self.encoder_cache = encoder_cache
        self.stats = SchedulerStats()
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._rope = rope
        # Hashes of the blocks that this plan and the one before it compute: not published until they are settled.
        self._underway: tuple[set[bytes], set[bytes]] = (set(), set())
        self._block_bits = budgets.block_size.bit_length() - 1  # it is a power of two

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def plan(self) -> StepPlan:
        """Decide one step. Blocks and embeddings of everything in the plan are secured."""
        plan = StepPlan()
        self._underway = (set(), self._underway[0])
        tokens_left = self.budgets.max_num_batched_tokens
        patches = _PatchBudget(self.budgets.max_num_batched_patches)
        for sequence in list(self.running):
            if not tokens_left:
                break
            if sequence.is_running and len(sequence.token_ids) < sequence.most_tokens:
                tokens_left -= self._plan_running(sequence, tokens_left, patches, plan)
        self._plan_new(tokens_left, patches, plan)
        self._settle_plan(plan)
        return plan

    def _plan_new(self, tokens_left: int, patches: _PatchBudget, plan: StepPlan) -> None:
        """Waiting sequences in order, but for those that find most of their prompt in the cache a step later."""
        later: list[Sequence] = []
        num_promised = sum(map(self._num_missing, self.running)) if self.waiting else 0
        while self.waiting and tokens_left and len(self.running) + len(later) < self.budgets.max_num_seqs:
            sequence = self.waiting[0]
            if plan.chunks and self._is_underway(sequence):
                later.append(self.waiting.popleft())
                continue
            planned = self._plan_waiting(sequence, tokens_left, patches, num_promised, plan)
            if not planned:
                break
            tokens_left -= planned
            num_promised += self._num_missing(sequence)
        self.waiting.extendleft(reversed(later))

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and give back all it owns."""
        (self.running if sequence.is_running else self.waiting).remove(sequence)
        sequence.is_running = False
        self._give_back(sequence)

    def takes_nothing_back(self) -> bool:
        """Whether the next plan leaves every running sequence what it has: there are blocks for all, and none changes
        its rotary regime."""
        budget, size = self.budgets.max_num_batched_tokens, self.budgets.block_size
        if self._rope.switch_tokens is not None and any(
            self._rope.regime(sequence.num_tokens) != sequence.regime for sequence in self.running
        ):
            return False
        if self.pool.num_free >= len(self.running) + budget // size:
            return True
        ends = ((sequence, min(sequence.num_tokens, sequence.num_computed + budget)) for sequence in self.running)
        missing = sum(max(0, self._num_blocks(end) - len(sequence.blocks)) for sequence, end in ends)
        return missing <= self.pool.num_free

    def launch(self, chunk: Chunk) -> None:
        """A chunk is being computed: what follows it can be planned."""
        chunk.sequence.num_computed = chunk.end

    def settle(self, chunk: Chunk) -> None:
        """A chunk has run: its full blocks can be found by others, embeddings it consumed are let go."""
        sequence, size = chunk.sequence, self.budgets.block_size
        first, last = chunk.start // size, chunk.end // size
        if first < last:
            hashes = sequence.full_block_hashes(size)
            for i in range(first, last):
                self.pool.publish(sequence.blocks[i], hashes[i])
        if sequence.held_media:
            self._release_media(sequence, chunk.end)

    def check_idle(self) -> None:
        """Our own invariants when nothing runs: all blocks are free, no embeddings are held."""
        assert not self.has_work()
        assert self.pool.num_free == self.pool.num_blocks, "an idle engine owns KV blocks"
        self.encoder_cache.check()

    def _settle_plan(self, plan: StepPlan) -> None:
        plan.chunks.sort(key=_is_prefill)
        # A sequence preempted within this plan lets go of its pictures: some may have been evicted again since.
        still_reserved = {item.key: item for item in plan.encode if item.key in self.encoder_cache}
        plan.encode = list(still_reserved.values())

    def _plan_running(self, sequence: Sequence, tokens_left: int, patches: _PatchBudget, plan: StepPlan) -> int:
        start, length = sequence.num_computed, len(sequence.token_ids)
        is_decode = length == start + 1 and start >= sequence.num_prompt_tokens
        if is_decode and start >> self._block_bits < len(sequence.blocks) and self._rope.switch_tokens is None:
            plan.chunks.append(Chunk(sequence, start, length, True))  # the usual case, in short
            return 1
        self._follow_regime(sequence)
        end = min(sequence.num_tokens, sequence.num_computed + tokens_left)
        if sequence.num_computed < sequence.num_prompt_tokens:
            end = self._secure_prompt(sequence, end, tokens_left, patches, plan)
        if end == sequence.num_computed:
            return 0
        while not self._secure_blocks(sequence, end):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return 0
        return self._add_chunk(sequence, end, plan)

    def _plan_waiting(
        self, sequence: Sequence, tokens_left: int, patches: _PatchBudget, num_promised: int, plan: StepPlan
    ) -> int:
        """num_promised: blocks that what runs still needs for the tokens it has."""
        self._follow_regime(sequence)
        cached = self._cached_blocks(sequence)
        needed = self._num_blocks(sequence.num_tokens) - len(cached)
        left = self.pool.num_free - self.pool.num_idle(cached) - needed - num_promised
        if left < 0 or not self._leaves_room(sequence, left):
            return 0
        self.pool.share(cached)
        sequence.blocks = cached
        sequence.num_computed = len(cached) * self.budgets.block_size
        end = min(sequence.num_tokens, sequence.num_computed + tokens_left)
        end = self._secure_prompt(sequence, end, tokens_left, patches, plan)
        if end == sequence.num_computed or not self._secure_blocks(sequence, end):
            self._give_back(sequence)
            return 0
        self._admit(sequence)
        return self._add_chunk(sequence, end, plan)

    def _leaves_room(self, sequence: Sequence, num_left: int) -> bool:
        """Whether what runs can go on when this one runs too: to preempt it later would waste what it computed."""
        ahead_tokens, size = self.budgets.ahead_tokens, self.budgets.block_size
        if not self.running or num_left >= (len(self.running) + 1) * self._num_blocks(ahead_tokens):
            return True
        return most_blocks_ahead([*self.running, sequence], ahead_tokens, size) <= num_left

    def _admit(self, sequence: Sequence) -> None:
        self.waiting.popleft()
        self.running.append(sequence)
        sequence.is_running = True
        if sequence.clock.scheduled is None:
            sequence.clock.scheduled = time.perf_counter()
            sequence.num_cached_tokens = sequence.num_computed
            self.stats.num_prompt_tokens += sequence.num_prompt_tokens
            self.stats.num_cached_tokens += sequence.num_computed

    def _add_chunk(self, sequence: Sequence, end: int, plan: StepPlan) -> int:
        chunk = Chunk(sequence, sequence.num_computed, end, samples=end == sequence.num_tokens)
        plan.chunks.append(chunk)
        if chunk.num_tokens > 1 and self.pool.is_caching:
            size = self.budgets.block_size
            self._underway[0].update(sequence.full_block_hashes(size)[chunk.start // size : chunk.end // size])
        return chunk.num_tokens

    def _is_underway(self, sequence: Sequence) -> bool:
        """Whether enough of it is being computed for another sequence to wait a step for that."""
        if sequence.wants_prompt_logprobs or not any(self._underway):
            return False
        hashes, size = sequence.full_block_hashes(self.budgets.block_size), self.budgets.block_size
        num_cached = len(self.pool.find(hashes))
        missing = takewhile(lambda digest: any(digest in some for some in self._underway), hashes[num_cached:])
        num_shared = size * sum(1 for _ in missing)
        return num_shared >= max(WORTH_WAITING_TOKENS, (sequence.num_tokens - size * num_cached) / 2)

    def _cached_blocks(self, sequence: Sequence) -> list[int]:
        """Blocks already computed for this beginning; at least the last token is left to compute."""
        if sequence.wants_prompt_logprobs:
            return []
        size = self.budgets.block_size
        return self.pool.find(sequence.full_block_hashes(size)[: (sequence.num_tokens - 1) // size])

    def _secure_blocks(self, sequence: Sequence, end: int) -> bool:
        missing = self._num_blocks(end) - len(sequence.blocks)
        if missing <= 0:
            return True
        taken = self.pool.take(missing)
        if taken is None:
            return False
        sequence.blocks.extend(taken)
        return True

    def _num_missing(self, sequence: Sequence) -> int:
        """Blocks for the tokens it has beyond those it owns: for most of a prompt that waits for its pictures."""
        return max(0, self._num_blocks(sequence.num_tokens) - len(sequence.blocks))

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.budgets.block_size)

    def _preempt(self, sequence: Sequence) -> None:
        """The youngest running sequence waits again; nothing of it is planned in this step yet."""
        self.stats.num_preemptions += 1
        sequence.num_preemptions += 1
        self.running.remove(sequence)
        sequence.is_running = False
        self._give_back(sequence)
        self.waiting.appendleft(sequence)

    def _follow_regime(self, sequence: Sequence) -> None:
        """A sequence that outgrew its rotary regime is computed anew in the next one, as the published code does."""
        regime = self._rope.regime(sequence.num_tokens)
        if regime == sequence.regime:
            return
        if sequence.num_computed:
            self.stats.num_regime_changes += 1
        self._give_back(sequence)
        sequence.change_regime(regime)

    def _secure_prompt(
        self, sequence: Sequence, end: int, tokens_left: int, patches: _PatchBudget, plan: StepPlan
    ) -> int:
        """_secure_media for an end that no open span crosses. num_computed: none of this prompt can run now."""
        start, spans = sequence.num_computed, sequence.request.open_spans
        if not spans:
            return self._secure_media(sequence, end, patches, plan)
        end = whole_spans(spans, start, end, start + tokens_left)
        if end == start:
            return end
        end = self._secure_media(sequence, end, patches, plan)
        return whole_spans(spans, start, end, end)

    def _secure_media(self, sequence: Sequence, end: int, patches: _PatchBudget, plan: StepPlan) -> int:
        """Hold or plan the embeddings that [num_computed, end) needs; returns a smaller end where one must wait."""
        for i, (span, item) in enumerate(zip(sequence.request.spans, sequence.request.media, strict=True)):
            if span.end <= sequence.num_computed or item.embeds is not None or i in sequence.held_media:
                continue
            if span.start >= end:
                break
            if item.key not in self.encoder_cache:
                size_bytes = item.num_tokens * self.budgets.embedding_bytes
                if not patches.allows(item.num_patches) or not self.encoder_cache.reserve(item.key, size_bytes):
                    return max(span.start, sequence.num_computed)
                patches.spend(item.num_patches)
                plan.encode.append(item)
                sequence.media_hits[i] = False
                self.encoder_cache.num_misses += 1
            else:
                self.encoder_cache.num_hits += 1
            self.encoder_cache.hold(item.key)
            sequence.held_media.add(i)
        return end

    def _give_back(self, sequence: Sequence) -> None:
        """All blocks and embeddings of a sequence; what it computed is forgotten."""
        self._release_media(sequence, sequence.num_tokens)
        self.pool.release(sequence.restart())

    def _release_media(self, sequence: Sequence, computed: int) -> None:
        for i in [i for i in sequence.held_media if sequence.request.spans[i].end <= computed]:
            self.encoder_cache.release(sequence.request.media[i].key)
            sequence.held_media.discard(i)


def whole_spans(spans: tuple[MediaSpan, ...], start: int, end: int, most: int) -> int:
    """An end as near as can be to `end`, inside no open span and at most `most`; `start` if there is none behind it."""
    crossed = next((span for span in spans if span.start < end < span.end), None)
    if crossed is None:
        return end
    if crossed.start > start:
        return crossed.start
    return crossed.end if crossed.end <= most else start


def most_blocks_ahead(sequences: list[Sequence], ahead_tokens: int, block_size: int) -> float:
    """How many blocks more than now will be in use at the worst moment, if each makes as many tokens as it may.

    All make a token a step, and give everything back at their end. Half a block for each is added for rounding. More
    than `ahead_tokens` are not foreseen: most answers end by themselves.
    """
    lengths = np.array([len(s.token_ids) for s in sequences])
    steps = np.minimum([s.most_tokens for s in sequences] - lengths, ahead_tokens)
    order = np.argsort(steps)
    steps, now = steps[order], lengths[order] / block_size
    num_alive = np.arange(len(steps), 0, -1)  # just before sequence i ends
    given_back = np.cumsum(now) - now
    return float((num_alive * (steps / block_size + 0.5) - given_back).max())


def _is_prefill(chunk: Chunk) -> bool:
    return chunk.end - chunk.start > 1


class _PatchBudget:
    """Patches left in this step; one picture larger than the whole budget is let through alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._spent = 0

    def allows(self, num_patches: int) -> bool:
        return self._spent == 0 or self._spent + num_patches <= self._limit

    def spend(self, num_patches: int) -> None:
        self._spent += num_patches
