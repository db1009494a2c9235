"""How a step is run changes no answer: from a graph or not, planned ahead or not, pictures resized here or there.

In float32 with the tiny checkpoints, whose greedy tokens lead by far more than rounding: tokens must be equal.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fovea.core.params import SamplingParams
from fovea.core.types import CompletionOutput
from fovea.engine import graphs
from fovea.engine.graphs import shared_len
from fovea.llm import LLM
from fovea.pipeline.collector import Collector
from fovea.prompt.forms import parse_prompt
from tests.gpu.small import WORD_IDS, questions
from tests.oracle.checkpoints import CASES
from tests.parity.support import (
    FAMILIES,
    GREEDY,
    MIB,
    VARIANTS,
    Checkpoints,
    Engines,
    answer,
    ask_all,
    check_idle,
    leads,
    load,
    num_decided,
    question,
    run_together,
    tokens,
    words,
)

ON_CARD: Mapping[str, Any] = {"device": "cuda", "max_num_seqs": 16}
BUSY_CYCLES = 50_000_000  # some 30 ms
SWITCHES = ("enforce_eager", "overlap_scheduling", "resize_on_device")


@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_are_the_references_either_way(
    checkpoints: Checkpoints, engines: Engines, variant: str, switch: str, value: bool
) -> None:
    """Batches that fill a graph and batches that are padded to one."""
    llm = engines.get(variant, **ON_CARD, **{switch: value})
    cases = CASES[VARIANTS[variant][0]]
    for count in (1, 3, 4, 7):
        batch = [cases[i % len(cases)] for i in range(count)]
        llm.reset_prefix_cache()
        outputs = ask_all(llm, [question(case) for case in batch])
        wanted = [answer(checkpoints.folder(variant), case).greedy for case in batch]
        assert [tokens(output) for output in outputs] == wanted


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "phi3_v"])
def test_a_step_waits_for_the_pictures_that_are_encoded_beside_the_one_before(
    small: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """With a device that is busy for 30 ms before each tower: what reads too early gives other tokens."""
    asked = [prompt for prompt, _ in questions(family)] * 2
    params = dataclasses.replace(GREEDY, max_tokens=8)
    options: dict[str, Any] = {"dtype": "float32", "kv_cache_memory_bytes": 256 * MIB, "max_model_len": 4096}
    options |= {"enable_prefix_caching": False, "encoder_cache_bytes": 1, "max_num_batched_patches": 1}
    with load(small(family), device="cuda", **options) as llm:
        wanted = [tokens(ask_all(llm, [prompt], params)[0]) for prompt in asked]
        model = llm.engine.model
        encode = model.encode

        def encode_late(items: Any) -> Any:
            torch.cuda._sleep(BUSY_CYCLES)
            return encode(items)

        monkeypatch.setattr(model, "encode", encode_late)
        assert [tokens(output) for output in ask_all(llm, asked, params)] == wanted


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen2_5_vl", "phi3_v"])
def test_graphs_of_prompts_and_towers_change_no_answer(small: Callable[[str], Path], family: str) -> None:
    """The same questions again and again, together and alone: graphs are made when a size comes again."""
    asked = [prompt for prompt, _ in questions(family)]
    params = dataclasses.replace(GREEDY, max_tokens=24)
    options: dict[str, Any] = {"dtype": "float32", "kv_cache_memory_bytes": 256 * MIB, "max_model_len": 4096}
    answers = {}
    for eager in (False, True):
        with load(small(family), device="cuda", enforce_eager=eager, enable_prefix_caching=False, **options) as llm:
            runs = [[tokens(output) for output in ask_all(llm, asked, params)] for _ in range(3)]
            runs += [[tokens(ask_all(llm, [prompt], params)[0]) for prompt in asked] for _ in range(2)]
            counters = llm.engine.counters()
        assert (counters["num_prompt_graph_steps"] > 0) is not eager
        answers[eager] = runs
    assert answers[False] == answers[True]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_beginning_that_is_read_once_for_all_changes_no_answer(
    small: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Heads alone and in groups; 13 questions in graphs of 16, so that some rows are padding."""
    rng, found = random.Random(family), list[int]()
    common = [rng.choice(WORD_IDS) for _ in range(300)]
    asked = [{"prompt_token_ids": [*common, *rng.choices(WORD_IDS, k=1 + i % 5)]} for i in range(13)]

    def noted(*args: Any) -> int:
        found.append(shared_len(*args))
        return found[-1]

    monkeypatch.setattr(graphs, "shared_len", noted)
    options: dict[str, Any] = {"dtype": "float32", "kv_cache_memory_bytes": 256 * MIB, "max_model_len": 4096}
    answers = []
    for caching in (True, False):
        with load(small(family), device="cuda", enable_prefix_caching=caching, **options) as llm:
            answers.append([tokens(output) for output in ask_all(llm, asked, GREEDY)])
        assert (max(found) == 288) is caching, "whole blocks of 300 tokens"
        found.clear()
    assert answers[0] == answers[1]


def test_decode_steps_come_from_graphs_unless_told_otherwise(engines: Engines) -> None:
    for eager in (False, True):
        llm = engines.get("llava", **ON_CARD, enforce_eager=eager)
        before = llm.engine.counters()
        ask_all(llm, [question(case) for case in CASES["llava"]])
        after = llm.engine.counters()
        assert (after["num_graph_steps"] > before["num_graph_steps"]) is not eager
        assert after["num_eager_decodes"] == before["num_eager_decodes"]


@pytest.mark.parametrize("variant", FAMILIES)
def test_graphs_give_the_log_probabilities_of_eager_steps_in_bfloat16(engines: Engines, variant: str) -> None:
    """The same kernels on the same shapes: a batch of four fills its graph. Up to the first token that is a toss-up."""
    params = dataclasses.replace(GREEDY, logprobs=2)
    prompts: list[object] = [question(case) for case in (*CASES[variant], CASES[variant][0])]
    options = {**ON_CARD, "dtype": "bfloat16", "enable_prefix_caching": False}
    graph, eager = (
        [o.outputs[0] for o in run_together(engines.get(variant, **options, enforce_eager=e), prompts, [params] * 4)]
        for e in (False, True)
    )
    compared = [num_decided(leads(completion), 0.1) for completion in eager]
    assert sum(compared) >= 8, "the checkpoint says too little"
    for decided, one, other in zip(compared, graph, eager, strict=True):
        assert one.token_ids[:decided] == other.token_ids[:decided]
        for token, a, b in zip(one.token_ids[:decided], one.logprobs or (), other.logprobs or ()):
            assert a[token].logprob == pytest.approx(b[token].logprob, abs=0.1)


# --- planned ahead or not --------------------------------------------------------------------------------------------


def odd_params(llm: LLM, number: int) -> SamplingParams:
    """One of many ways to ask, by its number."""
    rng = random.Random(number)
    stop_ids = rng.sample(words(llm), 2)
    ways: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.0, "stop_token_ids": stop_ids},
        {"temperature": 0.0, "stop": ["e", "ri"], "min_tokens": 3},
        {"temperature": 0.9, "seed": number},
        {"temperature": 0.9, "seed": number, "n": 3, "stop_token_ids": stop_ids},
        {"temperature": 0.7, "seed": number, "top_p": 0.9, "top_k": 20},
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"temperature": 0.8, "seed": number, "presence_penalty": 0.5, "frequency_penalty": 0.5},
        {"temperature": 0.0, "logprobs": 2},
        {"temperature": 0.0, "logit_bias": {stop_ids[0]: 3.0}},
        {"temperature": 0.6, "seed": number, "n": 2, "stop": ["a"]},
    ]
    return SamplingParams(max_tokens=rng.randint(1, 30), ignore_eos=True, **ways[number % len(ways)])


def run(llm: LLM, variant: str, count: int, aborts: Mapping[int, int]) -> list[list[CompletionOutput] | None]:
    """`count` odd requests of which two more arrive in each step. `aborts`: of request i, so many steps after it came.

    None for those that were given up before they were done.
    """
    cases = CASES[VARIANTS[variant][0]]
    prepared = []
    for i in range(count):
        form = parse_prompt(question(cases[(2, 0, 2, 1)[i % 4]]))
        prepared.append(llm._preparer.prepare(form, odd_params(llm, i), f"odd {i}", time.perf_counter()))
    ids = [p.request.request_id for p in prepared]
    collectors = {
        p.request.request_id: Collector(p, llm.get_tokenizer(), llm.engine.stop, live=False) for p in prepared
    }
    gone: set[str] = set()
    step = 0
    while step * 2 < count or llm.engine.has_work():
        for p in prepared[step * 2 : step * 2 + 2]:
            llm.engine.add(p.request)
        for i in [i for i, after in aborts.items() if step == i // 2 + after and not collectors[ids[i]].finished]:
            llm.engine.abort(ids[i])
            gone.add(ids[i])
        for token in llm.engine.step():
            assert token.request_id not in gone, "a token of a request that was given up"
            if not collectors[token.request_id].finished:
                collectors[token.request_id].add(token)
        step += 1
    check_idle(llm)
    return [None if name in gone else collectors[name].output().outputs for name in ids]


@pytest.mark.parametrize("variant", FAMILIES)
def test_planning_ahead_changes_no_answer(engines: Engines, variant: str) -> None:
    """Stops, lengths, several completions, seeds and penalties, with requests that arrive and leave in between."""
    aborts = {1: 1, 4: 3, 12: 0, 13: 5, 20: 2}
    ahead, plain = (
        run(engines.get(variant, **ON_CARD, overlap_scheduling=value), variant, 33, aborts) for value in (True, False)
    )
    assert sum(one is not None and other is not None for one, other in zip(ahead, plain, strict=True)) >= 28
    for one, other in zip(ahead, plain, strict=True):
        if one is not None and other is not None:
            assert _essence(one) == _essence(other)


def _essence(completions: Sequence[CompletionOutput]) -> list[Any]:
    return [(c.index, c.token_ids, c.text, c.finish_reason, c.stop_reason) for c in completions]


@pytest.mark.parametrize("overlap", [True, False])
def test_a_seeded_request_draws_the_same_beside_any_neighbours(engines: Engines, overlap: bool) -> None:
    llm = engines.get("llava", **ON_CARD, overlap_scheduling=overlap)
    prompt, params = question(CASES["llava"][0]), SamplingParams(temperature=0.9, seed=5, n=2, max_tokens=24)
    alone = ask_all(llm, [prompt], params)[0]
    crowd = [odd_params(llm, i) for i in range(9)]
    beside = ask_all(llm, [prompt] * 10, [*crowd[:5], params, *crowd[5:]])[5]
    assert _essence(alone.outputs) == _essence(beside.outputs)
