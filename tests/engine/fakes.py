"""An engine without a model: requests by numbers, a world that checks every plan, a runner whose tokens are hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Rows
from typing import Any, cast

import torch

from fovea.core.params import SamplingParams
from fovea.core.types import EngineRequest, Logprob, MediaItem, MediaSpan, TokenOutput
from fovea.engine.blocks import BlockPool
from fovea.engine.encoder_cache import EncoderCache
from fovea.engine.loop import Engine
from fovea.engine.memory import MemoryPlan
from fovea.engine.runner import Launched, Runner
from fovea.engine.sampler import NOT_FINITE, Sampled
from fovea.engine.scheduler import Budgets, Chunk, Scheduler, StepPlan
from fovea.engine.sequence import Sequence
from fovea.families.spec import RopeRegime, RopeSpec

EMBEDDING_BYTES = 4
VOCABULARY = 1000
MAX_PICTURE_PATCHES = 100
GREEDY = SamplingParams(temperature=0.0, max_tokens=8)


def media_item(name: str, num_tokens: int, num_patches: int | None = None, *, embeds: bool = False) -> MediaItem:
    key = hashlib.sha256(name.encode()).digest()
    rows = cast(Any, object()) if embeds else None
    return MediaItem(key, num_tokens, num_tokens if num_patches is None else num_patches, (1, 1, 1), embeds=rows)


def make_request(
    name: str,
    layout: Rows[int | MediaItem],
    *,
    params: SamplingParams = GREEDY,
    salt: bytes = b"",
    stop: frozenset[int] = frozenset(),
) -> EngineRequest:
    """`layout`: token ids and pictures in order."""
    ids: list[int] = []
    spans, media = [], []
    for part in layout:
        if isinstance(part, MediaItem):
            spans.append(MediaSpan(len(ids), part.num_tokens))
            media.append(part)
            ids += [VOCABULARY - 1] * part.num_tokens
        else:
            ids.append(part)
    return EngineRequest(name, tuple(ids), params, stop, tuple(spans), tuple(media), salt=salt)


def rope(switch: int | None = None) -> RopeSpec:
    return RopeSpec((RopeRegime(1e4),) * (1 if switch is None else 2), switch_tokens=switch)


def make_scheduler(
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    max_num_seqs: int = 16,
    max_num_batched_tokens: int = 64,
    max_num_batched_patches: int = 64,
    encoder_bytes: int = 1024,
    caching: bool = True,
    switch: int | None = None,
    ahead_tokens: int = 0,
) -> Scheduler:
    """Nothing is foreseen by default, so that sequences are preempted."""
    budgets = Budgets(
        max_num_seqs, max_num_batched_tokens, max_num_batched_patches, block_size, EMBEDDING_BYTES, ahead_tokens
    )
    pool = BlockPool(num_blocks, enable_caching=caching)
    return Scheduler(budgets, pool, EncoderCache(encoder_bytes), rope(switch))


class World:
    """What a model would have in its pages: `slots` holds for each slot the identity of the whole prefix up to it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.slots: dict[int, bytes] = {}
        self.last: list[int] = []  # tokens of the last step by row, which a step in flight finds on the device

    def check(self, plan: StepPlan) -> None:
        """Every promise a plan makes to the runner."""
        budgets, chunks = self.scheduler.budgets, plan.chunks
        assert sum(chunk.num_tokens for chunk in chunks) <= budgets.max_num_batched_tokens
        assert len(self.scheduler.running) <= budgets.max_num_seqs
        assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks), "a sequence is planned twice"
        lengths = [chunk.num_tokens for chunk in chunks]
        assert all(lengths), "a chunk is empty"
        assert lengths == sorted(lengths, key=lambda length: length != 1), "decode chunks come first"
        self._check_encode(plan)
        for chunk in chunks:
            self._check_chunk(chunk, plan)
        self._check_owners(chunks)

    def _check_encode(self, plan: StepPlan) -> None:
        patches = [item.num_patches for item in plan.encode]
        assert sum(patches) <= self.scheduler.budgets.max_num_batched_patches or len(patches) == 1
        assert len({item.key for item in plan.encode}) == len(plan.encode), "a picture is encoded twice"
        assert all(item.key in self.scheduler.encoder_cache for item in plan.encode)

    def _check_chunk(self, chunk: Chunk, plan: StepPlan) -> None:
        sequence = chunk.sequence
        assert sequence in self.scheduler.running
        assert chunk.start == sequence.num_computed < chunk.end <= sequence.num_tokens
        assert len(sequence.blocks) * self.scheduler.budgets.block_size >= chunk.end
        made = {item.key for item in plan.encode}
        for i, (span, item) in enumerate(zip(sequence.request.spans, sequence.request.media, strict=True)):
            if span.start < chunk.end and chunk.start < span.end and item.embeds is None:
                assert i in sequence.held_media, "embeddings are used that nobody holds"
                cache = self.scheduler.encoder_cache
                assert item.key in made or cache.get(item.key) == item.key
        prefix = identities(sequence)
        for place in range(chunk.start):
            assert self.slots.get(self._slot(sequence, place)) == prefix[place], "a cached key is not of this prefix"

    def _check_owners(self, chunks: list[Chunk]) -> None:
        """What is written is nobody else's, and cannot be found by its hash yet."""
        size = self.scheduler.budgets.block_size
        owners: dict[int, list[int]] = {}
        for sequence in self.scheduler.running:
            for block in sequence.blocks:
                owners.setdefault(block, []).append(id(sequence))
        for chunk in chunks:
            for block in chunk.sequence.blocks[chunk.start // size :]:
                assert owners[block] == [id(chunk.sequence)], "a block that is written has two owners"
                assert self.scheduler.pool._references[block] == 1
                assert block not in self.scheduler.pool._hash_of, "a block that is written can be found"

    def run(self, plan: StepPlan) -> None:
        """Encode and compute, as the runner would."""
        for item in plan.encode:
            self.scheduler.encoder_cache.fill(item.key, item.key)
        for chunk in plan.chunks:
            prefix = identities(chunk.sequence, self.last)
            for place in range(chunk.start, chunk.end):
                self.slots[self._slot(chunk.sequence, place)] = prefix[place]

    def _slot(self, sequence: Sequence, place: int) -> int:
        size = self.scheduler.budgets.block_size
        return sequence.blocks[place // size] * size + place % size


def identities(sequence: Sequence, last: Rows[int] = ()) -> list[bytes]:
    """For each token the identity of all that its key depends on. Written apart from Sequence's own hashes.

    last: the tokens that pending ones stand for.
    """
    rows: dict[int, bytes] = {}
    for span, item in zip(sequence.request.spans, sequence.request.media, strict=True):
        rows |= {place: item.key + b"%d" % (place - span.start) for place in range(span.start, span.end)}
    for whole in sequence.request.open_spans:
        # A key inside depends on all of the range.
        inside = b"|".join(rows.get(i, b"%d" % sequence.token_ids[i]) for i in range(whole.start, whole.end))
        for place in range(whole.start, whole.end):
            rows[place] = (
                rows.get(place, b"%d" % sequence.token_ids[place]) + b"open%d" % (place - whole.start) + inside
            )
    chain, found = sequence.request.salt + b"|%d" % sequence.regime, []
    for place, known in enumerate(sequence.token_ids):
        token = last[-1 - known] if known < 0 and last else known
        chain = hashlib.md5(chain + rows.get(place, b"%d" % token)).digest()
        found.append(chain)
    return found


class FakeRunner:
    """Tokens are hashes of the prefix, so an answer depends on the request alone, as a model's does.

    `bad_pictures`, `bad_requests`: raise when these are run, together with whatever else is in the same call.
    `not_finite`: these requests' numbers are not; `broken_pictures`: the next forward says so of these.
    `banned`: for these prefixes no token can be produced.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.world = World(scheduler)
        self.bad_pictures: set[bytes] = set()
        self.bad_requests: set[str] = set()
        self.vocab_size = VOCABULARY
        self.cleared: list[int] = []
        self.sound = True
        self.not_finite: set[str] = set()
        self.broken_pictures: list[bytes] = []
        self.banned: set[tuple[str, int, int]] = set()  # request, completion, number of its generated tokens
        self.forwards: list[list[tuple[str, int]]] = []

    def encode(self, items: list[MediaItem]) -> float:
        if any(item.key in self.bad_pictures for item in items):
            raise RuntimeError("a kernel failed")
        for item in items:
            self.world.scheduler.encoder_cache.fill(item.key, item.key)
        return 0.0

    def forward(self, chunks: list[Chunk]) -> Launched:
        if any(chunk.sequence.request.request_id in self.bad_requests for chunk in chunks):
            raise RuntimeError("a kernel failed")
        self.forwards.append([(chunk.sequence.request.request_id, chunk.num_tokens) for chunk in chunks])
        self.world.run(StepPlan(chunks))
        sampling = [chunk.sequence for chunk in chunks if chunk.samples]
        ids = [self._token(sequence) for sequence in sampling]
        self.world.last = ids
        broken, self.broken_pictures = self.broken_pictures, []
        sampled = Sampled(list(ids), [{token: Logprob(-1.0, 1)} for token in ids])
        return Launched(sampled, None, tuple(broken), torch.zeros(len(broken), dtype=torch.bool))

    def is_sound(self) -> bool:
        return self.sound

    def clear(self, blocks: list[int]) -> None:
        self.cleared += blocks

    def _token(self, sequence: Sequence) -> int:
        if sequence.request.request_id in self.not_finite:
            return NOT_FINITE
        if (sequence.request.request_id, sequence.index, sequence.num_generated + sequence.num_pending) in self.banned:
            return -1
        return int.from_bytes(identities(sequence, self.world.last)[-1][:4], "big") % VOCABULARY


def make_engine(
    *, max_model_len: int = 128, seed: int = 0, overlap: bool = False, **options: Any
) -> tuple[Engine, FakeRunner]:
    scheduler = make_scheduler(**options)
    runner = FakeRunner(scheduler)
    plan = MemoryPlan(
        weights_bytes=0,
        workspace_bytes=0,
        encoder_cache_bytes=scheduler.encoder_cache.capacity_bytes,
        kv_bytes=0,
        num_blocks=scheduler.pool.num_blocks,
        block_size=scheduler.budgets.block_size,
        max_model_len=max_model_len,
        max_picture_patches=MAX_PICTURE_PATCHES,
    )
    return Engine(cast(Runner, runner), scheduler, scheduler.encoder_cache, plan, seed, overlap=overlap), runner


def run_all(engine: Engine, requests: Rows[EngineRequest], most_steps: int = 2000) -> dict[str, list[TokenOutput]]:
    """Add all, step until idle. The outputs of each request in order."""
    for request in requests:
        engine.add(request)
    outputs: dict[str, list[TokenOutput]] = {request.request_id: [] for request in requests}
    for _ in range(most_steps):
        if not engine.has_work():
            engine.scheduler.check_idle()
            assert not engine.stats.num_idle_repairs
            assert not engine._requests
            return outputs
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    raise AssertionError("the engine does not come to an end")


def token_ids(outputs: Rows[TokenOutput], index: int = 0) -> list[int]:
    return [output.token_id for output in outputs if output.index == index and output.token_id is not None]


def expected_tokens(request: EngineRequest, count: int) -> list[int]:
    """What FakeRunner makes of a request, whatever else happens."""
    sequence = Sequence(request, 0, None)
    for _ in range(count):
        grow(sequence, int.from_bytes(identities(sequence)[-1][:4], "big") % VOCABULARY)
    return sequence.generated


def grow(sequence: Sequence, token_id: int) -> None:
    """As if a step had made this token."""
    sequence.expect(0)
    sequence.learn(token_id)
