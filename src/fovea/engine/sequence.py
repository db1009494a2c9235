"""The state of one completion while it is in the engine. Pure Python; it never leaves this package."""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fovea.core.types import EngineRequest, EngineTimings, TokenLogprobs

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from fovea.engine.sampler import SamplingRow


@dataclass(slots=True)
class Clock:
    """Times of one sequence in seconds of time.perf_counter."""

    added: float = field(default_factory=time.perf_counter)
    scheduled: float | None = None
    first_token: float | None = None
    encode_s: float = 0.0

    def timings(self, num_preemptions: int) -> EngineTimings:
        now = time.perf_counter()
        scheduled = self.scheduled if self.scheduled is not None else now
        first = self.first_token if self.first_token is not None else now
        return EngineTimings(
            queue_s=scheduled - self.added,
            encode_s=self.encode_s,
            prefill_s=max(0.0, first - scheduled - self.encode_s),
            first_token_s=first - self.added,
            decode_s=now - first,
            num_preemptions=num_preemptions,
        )


class Sequence:
    """One completion of a request: its tokens, and how far their keys and values are computed.

    Ownership of its tokens' keys and values, with c = num_computed and b = block_size:

        [0, c)                      computed, in `blocks`, or being computed by a step in flight
        [c, len(token_ids))         not computed yet; blocks for a planned chunk are taken before it runs
        blocks[: c // b]            full; published under `hashes` and possibly shared with other sequences
        blocks[c // b :]            this sequence's alone

    The last `num_pending` of token_ids are being computed: numbers below 0 that say in which row of the step in flight
    they will be found, -1 for row 0.
    """

    def __init__(
        self, request: EngineRequest, index: int, generator: torch.Generator | None, max_model_len: int = sys.maxsize
    ) -> None:
        self.request = request
        self.index = index
        self.generator = generator
        self.sampling_row: SamplingRow | None = None  # made by the runner when it is first sampled
        self.token_ids: list[int] = list(request.token_ids)
        self.generated: list[int] = []
        self.num_prompt_tokens = len(request.token_ids)
        room = sys.maxsize if request.params.max_tokens is None else request.params.max_tokens
        # With so many its last token is known or being computed.
        self.most_tokens = min(max_model_len, self.num_prompt_tokens + room)
        self.num_pending = 0
        self.num_computed = 0
        self.num_cached_tokens = 0
        self.needs_output = False  # whether its next token can only be drawn when the one before is on the host
        self.is_plain = False  # whether it wants the likeliest token and nothing else; known when it was first sampled
        self.regime = 0
        self.is_running = False
        self.blocks: list[int] = []
        self.hashes: list[bytes] = []
        self._open_digests: dict[int, bytes] = {}
        self.held_media: set[int] = set()
        self.media_hits = [item.embeds is None for item in request.media]  # until the tower has to run for one
        self.prompt_logprobs: list[TokenLogprobs | None] = [None]
        self.num_preemptions = 0
        self.clock = Clock()

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_generated(self) -> int:
        return len(self.generated)

    def expect(self, row: int) -> None:
        """A step in flight computes the next token, in this row of its results."""
        self.token_ids.append(-1 - row)
        self.num_pending += 1

    def learn(self, token_id: int) -> None:
        """The oldest pending token is known."""
        self.token_ids[-self.num_pending] = token_id
        self.num_pending -= 1
        self.generated.append(token_id)

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.request.params.prompt_logprobs is not None and self.index == 0

    def positions(self, start: int, end: int) -> NDArray[np.int32]:
        """Rotary positions of tokens [start, end): [rows, end - start]; one row when all rows are equal by nature."""
        prompt, delta = self.request.positions, self.request.position_delta
        if prompt is None:
            return np.arange(start, end, dtype=np.int32)[None]
        inside = prompt[:, start : min(end, self.num_prompt_tokens)]
        after = np.arange(max(start, self.num_prompt_tokens), end, dtype=np.int32) + np.int32(delta)
        return np.concatenate((inside, np.broadcast_to(after, (len(prompt), len(after)))), axis=1)

    def full_block_hashes(self, block_size: int) -> list[bytes]:
        """A chained hash for each full block of tokens, extended as tokens arrive.

        It covers everything a block's keys depend on: all tokens up to its end, the identity and offset of every
        picture in it, all of an open span it has a part of, the rotary regime and the tenant's salt.
        """
        known, full = len(self.hashes), (self.num_tokens - self.num_pending) // block_size
        if known >= full:
            return self.hashes
        ids = np.asarray(self.token_ids[known * block_size : full * block_size], np.int64).tobytes()
        block_bytes = len(ids) // (full - known)
        spans = [(span.start, span.end, item.key) for span, item in zip(self.request.spans, self.request.media)]
        digest = self.hashes[-1] if known else self._root_hash()
        for place in range(known, full):
            start, end = place * block_size, (place + 1) * block_size
            hashed = digest + ids[(place - known) * block_bytes : (place - known + 1) * block_bytes]
            for first, last, key in spans:
                if first < end and start < last:
                    hashed += key + (start - first).to_bytes(8, "little", signed=True)
            for number, span in enumerate(self.request.open_spans):
                if span.start < end and start < span.end:
                    hashed += b"open" + (start - span.start).to_bytes(8, "little", signed=True)
                    hashed += self._open_digest(number)
            digest = hashlib.sha256(hashed).digest()
            self.hashes.append(digest)
        return self.hashes

    def _open_digest(self, number: int) -> bytes:
        """The identity of a whole open span: all its tokens see each other, so keys of its first depend on its last."""
        known = self._open_digests.get(number)
        if known is None:
            whole = self.request.open_spans[number]
            digest = hashlib.sha256(np.asarray(self.token_ids[whole.start : whole.end], np.int64).tobytes())
            for span, item in zip(self.request.spans, self.request.media, strict=True):
                if span.start < whole.end and whole.start < span.end:
                    digest.update(item.key + (whole.start - span.start).to_bytes(8, "little", signed=True))
            known = self._open_digests[number] = digest.digest()
        return known

    def _root_hash(self) -> bytes:
        salt = self.request.salt
        return hashlib.sha256(b"fovea.kv.1" + bytes([self.regime]) + len(salt).to_bytes(8, "little") + salt).digest()

    def restart(self) -> list[int]:
        """Forget everything computed (preemption, change of regime, the end). Returns the blocks to give back."""
        blocks, self.blocks = self.blocks, []
        self.num_computed = 0
        self.prompt_logprobs = [None]
        return blocks

    def change_regime(self, regime: int) -> None:
        """Rotary frequencies differ from now on: no block hash of before holds. Nothing may be computed yet."""
        assert not self.blocks
        self.regime = regime
        self.hashes = []
