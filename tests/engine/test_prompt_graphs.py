"""What a graph of prompts is told is what an eager step is told, padded; the graphs themselves need a card."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from fovea.core.params import SamplingParams
from fovea.core.types import EngineRequest
from fovea.engine.batch import build_batch
from fovea.engine.encoder_cache import EncoderCache
from fovea.engine.graphs import Recorded, Recorder, Shared
from fovea.engine.memory import MemoryPlan
from fovea.engine.prompt_graphs import FIRST_TOKENS, SECOND_TOKENS, WORTH_TOKENS, PromptGraphs, _Inputs
from fovea.engine.scheduler import Chunk
from fovea.engine.sequence import Sequence
from fovea.families.registry import load_family
from fovea.families.spec import MoeSpec
from fovea.models.moe import FEW_TOKENS
from fovea.models.vlm import VLM
from tests.parity.support import Checkpoints

BLOCK_SIZE, NUM_BLOCKS = 4, 50
CPU = torch.device("cpu")


class FakeGraph:
    """In the place of torch.cuda.CUDAGraph."""

    num_replays = 0

    def replay(self) -> None:
        self.num_replays += 1


class FakeRecorder(Recorder):
    """Records without a card; `has_memory` or not."""

    def __init__(self, logits: Tensor) -> None:
        self.is_on, self.has_memory, self.num_graphs, self._made = True, True, 0, logits

    def record(self, body: Callable[[], Tensor]) -> Recorded:
        if not self.has_memory:
            raise torch.OutOfMemoryError
        self.num_graphs += 1
        graph: Any = FakeGraph()
        return graph, self._made


@pytest.fixture
def graphs(checkpoints: Checkpoints) -> PromptGraphs:
    with torch.device("meta"):
        model = VLM(load_family(checkpoints.folder("qwen2_vl")).spec)
    model = model.to_empty(device=CPU).requires_grad_(False)
    for parameter in model.parameters():
        parameter.data.zero_()
    plan = MemoryPlan(0, 0, 0, 0, NUM_BLOCKS, BLOCK_SIZE, 100, 100)
    last, logits = torch.arange(90, 98), torch.zeros(8, model.spec.decoder.vocab_size)
    arrivals, nothing = torch.zeros(64, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    shared = Shared(model, model.make_rope(), [], last, logits, arrivals, nothing, plan, FakeRecorder(logits))
    made = PromptGraphs(shared, 8192)
    vars(made)["_rehearse"] = lambda size: None  # what a graph holds runs on a card only
    made._launch_tokens = 1536  # as of a larger model
    return made


def chunk(start: int, end: int, blocks: list[int], length: int, params: SamplingParams | None = None) -> Chunk:
    positions = np.stack([np.arange(length), np.arange(length) // 2, np.arange(length) // 3]).astype(np.int32)
    made = EngineRequest(
        "r", tuple(range(100, 100 + length)), params or SamplingParams(), frozenset(), positions=positions
    )
    sequence = Sequence(made, 0, None)
    sequence.blocks, sequence.num_computed = blocks, start
    return Chunk(sequence, start, end, samples=end == length)


STEP = [chunk(7, 8, [7, 2], 8), chunk(0, 6, [3, 8], 6), chunk(2, 5, [4, 6], 20), chunk(0, 9, [9, 10, 11], 9)]


def test_the_inputs_are_those_of_an_eager_step_and_the_padding_belongs_to_nobody(graphs: PromptGraphs) -> None:
    model = graphs._shared.model
    batch = build_batch(STEP, model.make_rope(), BLOCK_SIZE, CPU)
    graphs._flat.fill_(-7)
    size = graphs._sizes_for(STEP)[0]
    assert (size.tokens, size.sequences) == (32, 8)
    sent = graphs._send(STEP, size)
    tokens, count = 19, 4
    assert sent.token_ids[:tokens].tolist() == batch.token_ids.tolist()
    assert sent.slots[:tokens].tolist() == batch.attention.slots.tolist()
    assert sent.slots[tokens:].unique().tolist() == [NUM_BLOCKS * BLOCK_SIZE]
    assert batch.attention.positions is not None
    assert torch.equal(sent.positions[:, :tokens], batch.attention.positions.expand(len(sent.positions), -1))
    assert sent.kv_lens.tolist() == [*batch.attention.kv_lens, 0, 0, 0, 0]
    assert sent.starts.tolist() == [0, 1, 7, 10, 19, 19, 19, 19, 19]
    assert sent.last_rows[:count].tolist() == [0, 6, 9, 18]
    assert sent.sampled[:3].tolist() == [0, 1, 3], "the third chunk does not reach the end of its prompt"
    for i, one in enumerate(STEP):
        blocks = one.sequence.blocks
        assert sent.tables[i, : len(blocks)].tolist() == blocks
    for part in (sent.token_ids, sent.regimes, sent.slots, sent.positions, sent.last_rows, sent.tables):
        assert part.data_ptr() % 16 == sent.flat.data_ptr() % 16, "or Triton compiles kernels anew"


def test_every_size_has_room_in_the_one_buffer(graphs: PromptGraphs) -> None:
    for size in graphs._sizes:
        parts = _Inputs.over(graphs._flat, size, graphs._rows, graphs._blocks)
        assert parts.tables.shape == (size.sequences, -(-100 // BLOCK_SIZE))
    assert [size.sequences for size in graphs._sizes] == [8] * len(graphs._sizes)


def test_a_run_puts_embeddings_in_place_and_gives_a_row_for_each_that_samples(graphs: PromptGraphs) -> None:
    cache: EncoderCache[Tensor] = EncoderCache(1)
    graphs._shared.model.decoder.embed.weight.data[:] = torch.arange(len(graphs._shared.model.decoder.embed.weight))[
        :, None
    ]
    assert not graphs.fits(STEP), "wanted for the first time"
    assert graphs.fits(STEP)
    logits, tokens = graphs.run(STEP, cache)
    assert len(logits) == len(tokens) == 3
    assert graphs._x[:19, 0].tolist() == [107, *range(100, 106), *range(102, 105), *range(100, 109)]


def test_a_graph_is_made_when_its_size_is_wanted_for_the_second_time_and_only_then(graphs: PromptGraphs) -> None:
    recorder = graphs._shared.recorder
    assert isinstance(recorder, FakeRecorder)
    other = [chunk(0, 100, [1], 100)]
    assert [graphs.fits(step) for step in (STEP, other, STEP, STEP, other)] == [False, False, True, True, True]
    assert recorder.num_graphs == 2
    recorder.is_on = False
    assert graphs.fits(STEP), "what is there stays in use"
    assert not any(graphs.fits([chunk(0, 300, [1], 300)]) for _ in range(3))


def test_until_then_a_graph_does_that_takes_less_time_than_launching_kernels(graphs: PromptGraphs) -> None:
    for tokens in (1600, 600):
        assert [graphs.fits([chunk(0, tokens, [1], tokens)]) for _ in range(2)] == [False, True]
    sizes = [graphs._made(graphs._sizes_for([chunk(0, count, [1], count)])) for count in (10, 130, 600, 641, 1600)]
    assert [size and size.tokens for size in sizes] == [640, 640, 640, None, 1664]
    assert graphs._made(graphs._sizes_for([chunk(0, 1200, [1], 1200)])), "little more padding does always"
    small = [chunk(0, 130, [1], 130)]
    assert graphs.fits(small), "the first time"
    assert graphs.fits(small)
    made = graphs._made(graphs._sizes_for(small))
    assert made is not None
    assert made.tokens == 192, "the second time it gets its own"


def test_steps_of_many_sequences_make_do_with_a_larger_graph_while_that_is_cheaper(graphs: PromptGraphs) -> None:
    """Of 144 tokens: 192 would do, 512 is there."""
    graphs.capture()
    many = [chunk(0, 48, [1], 48) for _ in range(3)]
    used = []
    for _ in range(2 + WORTH_TOKENS // (512 - 192)):
        assert graphs.fits(many)
        made = graphs._made(graphs._sizes_for(many))
        assert made is not None
        used.append(made.tokens)
    assert used[:-1] == [512] * (len(used) - 1)
    assert used[-1] == 192


def test_some_graphs_are_made_at_the_start_and_serve_sizes_that_come_for_the_first_time(graphs: PromptGraphs) -> None:
    graphs.capture()
    assert [graphs.fits([chunk(0, count, [1], count)]) for count in (8190, 1100, 1)] == [True, True, True]
    assert not graphs.fits([chunk(0, 7600, [1], 7600)]), "too much padding"


def test_larger_graphs_are_made_at_the_start_only_of_models_that_compute_faster_than_they_are_launched(
    graphs: PromptGraphs,
) -> None:
    for launch_tokens, wanted in ((1000, ()), (4500, (3072, 3584, 4096)), (9000, SECOND_TOKENS)):
        graphs._graphs.clear()
        graphs._launch_tokens = launch_tokens
        graphs.capture()
        assert sorted({size.tokens for size in graphs._graphs}) == [*FIRST_TOKENS, *wanted, 8192]


def test_how_long_a_token_takes_is_the_models_own(graphs: PromptGraphs) -> None:
    """Qwen2-VL-2B computes 9,000 tokens while its layers are launched, LLaVA-1.5-7B 2,100."""
    shared = graphs._shared
    qwen = (28, 1536, 8960, 12, 2)
    llava = (32, 4096, 11008, 32, 32)
    for sizes, tokens in ((qwen, 9000), (llava, 2075)):
        names = ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads")
        changes: dict[str, Any] = dict(zip(names, sizes, strict=True))
        decoder = dataclasses.replace(shared.model.spec.decoder, head_dim=128, **changes)
        model = cast(Any, SimpleNamespace(spec=dataclasses.replace(shared.model.spec, decoder=decoder), device=CPU))
        model.dtype = torch.bfloat16
        made = PromptGraphs(dataclasses.replace(shared, model=model), 64)
        assert made._launch_tokens == pytest.approx(tokens, rel=0.02)


def test_without_memory_for_a_graph_steps_run_without_and_no_more_are_tried(graphs: PromptGraphs) -> None:
    recorder = graphs._shared.recorder
    assert isinstance(recorder, FakeRecorder)
    recorder.has_memory = False
    assert not any(graphs.fits(STEP) for _ in range(3))
    recorder.has_memory = True
    assert not any(graphs.fits(STEP) for _ in range(3))


def test_experts_that_are_chosen_on_the_host_are_in_no_graph(graphs: PromptGraphs) -> None:
    shared = graphs._shared
    moe = MoeSpec(layers=(0,), num_experts=4, top_k=2, width=8)
    decoder = dataclasses.replace(shared.model.spec.decoder, moe=moe)
    shared.model.spec = dataclasses.replace(shared.model.spec, decoder=decoder)
    assert max(size.tokens for size in PromptGraphs(shared, 8192)._sizes) == FEW_TOKENS


def test_steps_that_need_more_than_the_last_tokens_or_are_too_many_run_without(graphs: PromptGraphs) -> None:
    scored = chunk(0, 6, [3, 8], 6, SamplingParams(prompt_logprobs=0))
    for step in ([*STEP, scored], STEP * 3, [chunk(0, 9000, [1], 9000)]):
        assert not any(graphs.fits(step) for _ in range(3))
