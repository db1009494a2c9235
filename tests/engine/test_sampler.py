"""The sampler against a plain numpy model of vLLM's order, and its promises about independence and failure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fovea.core.params import SamplingParams
from fovea.engine.sampler import (
    BROKEN,
    NOT_FINITE,
    SamplingRow,
    choose,
    is_random,
    make_generator,
    prompt_logprobs,
    sample,
)

VOCAB = 50
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
Array = NDArray[np.float64]


def row(
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    *,
    stop: Sequence[int] = (),
    bad: tuple[tuple[int, ...], ...] = (),
    number: int = 0,
    **params: Any,
) -> SamplingRow:
    options = SamplingParams(**{"temperature": 0.0, "max_tokens": None, **params})
    return SamplingRow(options, prompt, output, frozenset(stop), bad, make_generator(options, 7, number, 0))


def random_logits(rows: int = 1, vocab: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def greedy(logits: torch.Tensor, *rows: SamplingRow) -> list[int]:
    return sample(logits, rows).token_ids


def reference_logits(logits: Array, row: SamplingRow) -> Array:
    """One row after all processors, before temperature."""
    params, out = row.params, list(row.output_token_ids)
    values = logits.astype(np.float64).copy()
    if params.allowed_token_ids:
        banned = np.ones(len(values), bool)
        banned[list(params.allowed_token_ids)] = False
        values[banned] = -np.inf
    for word in row.bad_words:
        if len(word) == 1 or tuple(out[-(len(word) - 1) :]) == word[:-1]:
            values[word[-1]] = -np.inf
    for token, bias in (params.logit_bias or {}).items():
        values[token] += bias
    if len(out) < params.min_tokens:
        values[list(row.stop_token_ids)] = -np.inf
    for token in {*row.prompt_token_ids, *out}:
        penalty = params.repetition_penalty
        values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
    for token in set(out):
        values[token] -= params.frequency_penalty * out.count(token) + params.presence_penalty
    return values


def reference_probabilities(logits: Array, params: SamplingParams) -> Array:
    """Distribution of the draw: temperature, min_p, top_k, top_p."""
    values = logits / params.temperature
    probs = np.exp(values - values.max())
    probs[probs < params.min_p] = 0
    if params.top_k > 0:
        probs[values < np.sort(values)[-min(params.top_k, len(values))]] = 0
    probs /= probs.sum()
    if params.top_p < 1:
        order = np.argsort(-probs, kind="stable")
        before = np.cumsum(probs[order]) - probs[order]
        probs[order[before >= params.top_p]] = 0
    result: Array = probs / probs.sum()
    return result


# --- greedy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_greedy_takes_the_likeliest_token(device: str, dtype: torch.dtype) -> None:
    logits = random_logits(5).to(device, dtype)
    assert greedy(logits, *[row() for _ in range(5)]) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_greedy_ties_go_to_the_lowest_id_on_both_paths(device: str) -> None:
    logits = torch.zeros(2, VOCAB, device=device)
    logits[:, [9, 4, 30]] = 1.0
    assert greedy(logits, row(), row()) == [4, 4]
    assert greedy(logits, row(), row(logit_bias={30: 0.0})) == [4, 4]


def test_top_k_of_one_is_greedy_and_draws_nothing() -> None:
    logits = random_logits()
    lone = row(temperature=5.0, top_k=1)
    assert lone.generator is None
    assert greedy(logits, lone) == logits.argmax(-1).tolist()


def test_logits_are_left_as_they_were() -> None:
    logits = random_logits(2)
    before = logits.clone()
    sample(logits, [row(logit_bias={1: 50}), row(temperature=1.0, top_p=0.5, logprobs=3)])
    assert torch.equal(logits, before)


def test_an_empty_batch_is_an_empty_answer() -> None:
    assert sample(torch.zeros(0, VOCAB), []).token_ids == []


# --- processors -------------------------------------------------------------------------------------------------------

PROCESSORS = [
    row(allowed_token_ids=[3, 8, 41]),
    row(allowed_token_ids=[3, 3, 8]),
    row(output=[1, 2, 3], bad=((5,), (2, 3, 9), (1, 3, 8))),
    row(logit_bias={7: 100.0, 11: -100.0}),
    row(output=[4], stop=[0, 1, 2], min_tokens=2),
    row(output=[4, 4], stop=[0, 1, 2], min_tokens=2),
    row(prompt=[1, 1, 5], output=[6, 7], repetition_penalty=1.8),
    row(prompt=[1, 1, 5], output=[6, 7], repetition_penalty=0.5),
    row(prompt=[1, 2], output=[3, 3, 3, 4], frequency_penalty=1.5),
    row(prompt=[1, 2], output=[3, 3, 3, 4], presence_penalty=-2.0),
]


@pytest.mark.parametrize("number", range(len(PROCESSORS)))
def test_each_processor_agrees_with_the_reference(number: int) -> None:
    chosen = PROCESSORS[number]
    for seed in range(20):
        logits = random_logits(seed=seed)
        assert greedy(logits, chosen) == [int(reference_logits(logits[0].numpy(), chosen).argmax())]


ids = st.integers(0, VOCAB - 1)


@st.composite
def any_row(draw: st.DrawFn) -> SamplingRow:
    params: dict[str, Any] = {
        "repetition_penalty": draw(st.sampled_from([1.0, 0.7, 1.3])),
        "frequency_penalty": draw(st.sampled_from([0.0, -1.0, 0.5])),
        "presence_penalty": draw(st.sampled_from([0.0, 1.5])),
        "min_tokens": draw(st.integers(0, 4)),
        "logit_bias": draw(st.none() | st.dictionaries(ids, st.sampled_from([-5.0, 2.0]), max_size=4)),
        "allowed_token_ids": draw(st.none() | st.lists(ids, min_size=8, max_size=12)),
    }
    return row(
        draw(st.lists(ids, max_size=6)),
        draw(st.lists(ids, max_size=6)),
        stop=draw(st.lists(ids, max_size=2)),
        bad=tuple(map(tuple, draw(st.lists(st.lists(ids, min_size=1, max_size=2), max_size=3)))),
        **params,
    )


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(any_row(), min_size=1, max_size=5), seed=st.integers(0, 10**6))
def test_random_mixtures_agree_with_the_reference(rows: list[SamplingRow], seed: int) -> None:
    logits = random_logits(len(rows), seed=seed)
    for chosen, one, values in zip(greedy(logits, *rows), rows, logits.numpy(), strict=True):
        expected = reference_logits(values, one)
        best = expected.max()
        if np.isinf(best):
            assert chosen == BROKEN
        else:
            assert expected[chosen] == pytest.approx(best, abs=1e-4)


def test_client_ids_beyond_the_vocabulary_change_nothing() -> None:
    logits = random_logits()
    far = [VOCAB, VOCAB + 1000, 2**100]
    plain = logits.argmax(-1).tolist()
    assert greedy(logits, row(logit_bias=dict.fromkeys(far, 100.0))) == plain
    assert greedy(logits, row(stop=far, min_tokens=3)) == plain
    assert (
        greedy(
            logits,
            row(prompt=[VOCAB, 2**40, -1], output=[VOCAB, 2**40, -1], repetition_penalty=2.0, frequency_penalty=1.0),
        )
        == plain
    )
    assert greedy(logits, row(bad=((VOCAB,), (2**100,)))) == plain
    assert greedy(logits, row(allowed_token_ids=[*far, 5])) == [5]
    assert greedy(logits, row(allowed_token_ids=far)) == [BROKEN]


# --- failing alone ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9, "min_p": 0.1}])
@pytest.mark.parametrize("poison", [float("nan"), float("-inf"), float("inf")])
def test_a_broken_row_fails_alone(device: str, options: dict[str, Any], poison: float) -> None:
    logits = random_logits(3).to(device)
    alone = sample(logits, [row(number=i, logprobs=2, **options) for i in range(3)])
    logits[1] = poison
    beside = sample(logits, [row(number=i, logprobs=2, **options) for i in range(3)])
    assert beside.token_ids == [alone.token_ids[0], NOT_FINITE, alone.token_ids[2]]
    assert beside.logprobs == [alone.logprobs[0], None, alone.logprobs[2]]


def test_one_nan_is_enough_to_break_a_row() -> None:
    logits = random_logits(1)
    logits[0, 17] = float("nan")
    assert greedy(logits, row()) == [NOT_FINITE]
    assert greedy(logits, row(temperature=1.0)) == [NOT_FINITE]
    assert greedy(
        logits,
        row(allowed_token_ids=[3]),
    ) == [NOT_FINITE]


def test_a_row_with_everything_banned_is_broken() -> None:
    logits = random_logits(2)
    banned = row(temperature=1.0, top_k=5, allowed_token_ids=[3], bad=((3,),))
    assert greedy(logits, banned, row()) == [BROKEN, int(logits[1].argmax())]


def test_masked_tokens_in_the_models_own_logits_are_never_drawn() -> None:
    logits = torch.full((1, VOCAB), -torch.inf)
    logits[0, [3, 9]] = 0.0
    one = row(temperature=100.0)
    assert {greedy(logits, one)[0] for _ in range(50)} == {3, 9}


# --- distribution -----------------------------------------------------------------------------------------------------

DRAWS = 20_000
# 99.99 % quantiles of chi-square are below degrees + 4.3 * sqrt(2 * degrees) + 10 for 1 to 50 degrees of freedom.


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"temperature": 1.5, "top_k": 5},
        {"temperature": 1.5, "top_p": 0.8},
        {"temperature": 2.0, "min_p": 0.1},
        {"temperature": 2.0, "min_p": 0.05, "top_k": 12, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 10_000},
    ],
)
def test_draws_follow_the_reference_distribution(options: dict[str, Any]) -> None:
    logits = random_logits(vocab=20, seed=3)
    one = row(seed=11, **options)
    counts = np.zeros(20)
    for _ in range(DRAWS // 500):
        for token in choose(logits.expand(500, -1), [one] * 500).tolist():
            counts[token] += 1
    expected = reference_probabilities(logits[0].double().numpy(), one.params) * DRAWS
    assert counts[expected == 0].sum() == 0
    seen = expected >= 5
    degrees = seen.sum() - 1
    chi_square = ((counts[seen] - expected[seen]) ** 2 / expected[seen]).sum()
    assert chi_square < degrees + 4.3 * (2 * degrees) ** 0.5 + 10


def test_truncation_keeps_exactly_the_reference_tokens() -> None:
    for seed in range(30):
        logits = random_logits(vocab=12, seed=seed)
        one = row(temperature=2.0, top_p=0.7, top_k=6, number=seed)
        expected = reference_probabilities(logits[0].double().numpy(), one.params)
        drawn = set(choose(logits.expand(400, -1), [one] * 400).tolist())
        assert drawn <= set(np.flatnonzero(expected).tolist())


def test_top_k_keeps_all_ties_at_its_border() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    one = row(temperature=1.0, top_k=2)
    assert {greedy(logits, one)[0] for _ in range(200)} == {0, 1, 2, 3}


def test_top_p_keeps_all_ties_at_its_border_and_the_ids_decide_nothing() -> None:
    """The likeliest has 0.4 of the mass; of four that share the rest top_p needs two."""
    logits = torch.tensor([[0.15, 0.4, 0.15, 0.15, 0.15]]).log()
    found = {sample(logits, [row(temperature=1.0, top_p=0.6, number=seed)]).token_ids[0] for seed in range(200)}
    assert found == {0, 1, 2, 3, 4}


def test_a_tiny_top_p_leaves_the_likeliest_token() -> None:
    logits = random_logits()
    one = row(temperature=10.0, top_p=1e-6)
    assert {greedy(logits, one)[0] for _ in range(20)} == {int(logits.argmax())}


@pytest.mark.parametrize("temperature", [1e-9, 1e-4, 100.0])
def test_extreme_temperatures_and_logits_stay_finite(temperature: float) -> None:
    logits = torch.tensor([[3e38, -3e38, 0.0, 2.9e38]])
    assert greedy(logits, row(temperature=temperature)) == [0]


# --- independence -----------------------------------------------------------------------------------------------------

NEIGHBOURS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 7},
    {"temperature": 1.0, "min_p": 0.05, "repetition_penalty": 1.2},
    {"temperature": 2.0, "logit_bias": {3: 4.0}},
    {"temperature": 1.0, "top_p": 0.5, "logprobs": 2},
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vocab", [50, 1001, 32003])
def test_a_rows_tokens_do_not_depend_on_its_neighbours_or_its_place(device: str, vocab: int) -> None:
    """Ten steps for each row: alone, among others, and in reverse order give the same tokens."""
    size, steps = len(NEIGHBOURS), 10
    logits = [random_logits(size, vocab, seed=step).to(device) for step in range(steps)]

    def run(order: Sequence[int]) -> dict[int, list[int]]:
        rows = {i: row(prompt=[1, 2, 3], output=[4], number=i, **NEIGHBOURS[i]) for i in order}
        tokens: dict[int, list[int]] = {i: [] for i in order}
        for step in range(steps):
            found = choose(logits[step][list(order)], [rows[i] for i in order]).tolist()
            for i, token in zip(order, found, strict=True):
                tokens[i].append(token)
        return tokens

    together = run(range(size))
    assert run(list(reversed(range(size)))) == together
    for i in range(size):
        assert run([i]) == {i: together[i]}


def test_completions_of_one_seed_differ_and_repeat() -> None:
    params = SamplingParams(temperature=1.0, seed=5, n=4)
    logits = torch.zeros(1, 1000)

    def completion(request: int, index: int) -> list[int]:
        one = SamplingRow(params, [], [], generator=make_generator(params, 0, request, index))
        return [greedy(logits, one)[0] for _ in range(8)]

    first = [completion(0, index) for index in range(4)]
    assert len({tuple(tokens) for tokens in first}) == 4
    assert first == [completion(99, index) for index in range(4)]


def test_without_a_seed_requests_differ_and_an_engine_seed_repeats_them() -> None:
    params = SamplingParams(temperature=1.0)

    def draw(engine_seed: int, request: int, index: int = 0) -> float:
        generator = make_generator(params, engine_seed, request, index)
        return torch.rand((), generator=generator).item()

    assert draw(0, 1) == draw(0, 1)
    assert len({draw(0, 1), draw(0, 2), draw(1, 1), draw(0, 1, 1)}) == 4


def test_a_greedy_request_needs_no_generator() -> None:
    assert make_generator(SamplingParams(temperature=0.0, seed=3), 0, 0, 0) is None
    assert not is_random(SamplingParams(temperature=1e-6))


# --- log-probabilities ------------------------------------------------------------------------------------------------


def test_logprobs_are_of_the_raw_logits_with_the_chosen_token_first() -> None:
    logits = random_logits()
    raw = logits.log_softmax(-1)[0]
    order = raw.argsort(descending=True).tolist()
    forced = order[6]
    found = sample(logits, [row(allowed_token_ids=[forced], logprobs=3)])
    entry = found.logprobs[0]
    assert found.token_ids == [forced]
    assert entry is not None
    assert list(entry) == [forced, *order[:3]]
    assert [entry[i].rank for i in entry] == [7, 1, 2, 3]
    for token, logprob in entry.items():
        assert logprob.logprob == pytest.approx(raw[token].item())


def test_the_chosen_token_is_not_listed_twice() -> None:
    entry = sample(random_logits(), [row(logprobs=3)]).logprobs[0]
    assert entry is not None
    assert [logprob.rank for logprob in entry.values()] == [1, 2, 3]


def test_rows_ask_for_logprobs_independently() -> None:
    found = sample(random_logits(4), [row(), row(logprobs=0), row(logprobs=2), row(logprobs=20)])
    assert [None if entry is None else len(entry) for entry in found.logprobs] == [None, 1, 2, 20]


def test_equal_tokens_share_a_rank() -> None:
    entry = sample(torch.tensor([[0.0, 1.0, 1.0, -1.0]]), [row(logprobs=4)]).logprobs[0]
    assert entry is not None
    assert {token: logprob.rank for token, logprob in entry.items()} == {1: 1, 2: 1, 0: 3, 3: 4}


def test_more_logprobs_than_tokens_gives_all_tokens() -> None:
    entry = sample(torch.zeros(1, 5), [row(logprobs=20)]).logprobs[0]
    assert entry is not None
    assert len(entry) == 5


def test_prompt_logprobs_follow_the_given_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(7)
    following = [3, 1, 4, 1, 5, 9, 2]
    expected = logits.log_softmax(-1)
    whole = prompt_logprobs(logits, following, 2)
    monkeypatch.setattr("fovea.engine.sampler.LOGPROBS_CHUNK_ELEMENTS", 3 * VOCAB)
    assert prompt_logprobs(logits, following, 2) == whole
    for i, token in enumerate(following):
        assert whole[i][token].logprob == pytest.approx(expected[i, token].item())
        assert whole[i][token].rank == int((expected[i] > expected[i, token]).sum()) + 1
        assert len(whole[i]) in (2, 3)
    assert prompt_logprobs(logits[:0], [], 2) == []
