"""A step is launched before the one before it is settled: nobody can tell from the answers."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from fovea.core.params import SamplingParams
from fovea.core.types import EngineRequest, TokenOutput
from fovea.engine.loop import Engine
from tests.engine.fakes import GREEDY, expected_tokens, make_engine, make_request, media_item, run_all, token_ids


def text(name: str, *ids: int, stop: frozenset[int] = frozenset(), **params: Any) -> EngineRequest:
    return make_request(name, ids or (1, 2, 3), params=dataclasses.replace(GREEDY, **params), stop=stop)


def random_requests(rng: random.Random, count: int) -> list[EngineRequest]:
    """Short and long prompts, equal beginnings, pictures, several completions, ends by length and by stop tokens."""
    requests = []
    for number in range(count):
        layout: list[Any] = [rng.randrange(3) for _ in range(rng.randint(1, 25))]
        if rng.random() < 0.4:
            layout.insert(rng.randint(0, len(layout)), media_item(f"picture {rng.randrange(4)}", rng.randint(2, 9)))
        params = dataclasses.replace(GREEDY, max_tokens=rng.randint(1, 14), n=1, temperature=0.0)
        request = make_request(f"r{number}", layout, params=params)
        want = expected_tokens(request, params.max_tokens or 0)
        stop = frozenset({rng.choice(want)}) if rng.random() < 0.5 else frozenset()
        requests.append(dataclasses.replace(request, stop_token_ids=stop))
    return requests


def until_stop(request: EngineRequest) -> list[int]:
    tokens = expected_tokens(request, request.params.max_tokens or 0)
    ends = [place for place, token in enumerate(tokens) if token in request.stop_token_ids]
    return tokens[: ends[0] + 1] if ends else tokens


@pytest.mark.parametrize("seed", range(40))
def test_answers_are_the_same_with_overlap(seed: int) -> None:
    """Small pools preempt, budgets split prompts, a rotary regime changes in the middle of some answers."""
    rng = random.Random(seed)
    requests = random_requests(rng, rng.randint(1, 12))
    options: dict[str, Any] = {
        "num_blocks": rng.choice((14, 20, 64)),
        "max_num_seqs": rng.choice((2, 5, 16)),
        "max_num_batched_tokens": rng.choice((7, 16, 64)),
        "switch": rng.choice((None, 20)),
        "caching": rng.random() < 0.7,
    }
    engine, _ = make_engine(overlap=True, **options)
    got = run_all(engine, requests)
    plain, _ = make_engine(overlap=False, **options)
    want = run_all(plain, requests)
    for request in requests:
        name = request.request_id
        assert token_ids(got[name]) == token_ids(want[name]), name
        assert [output.finish_reason for output in got[name]] == [output.finish_reason for output in want[name]]
        if options["switch"] is None:
            assert token_ids(got[name]) == until_stop(request)


def test_the_next_step_is_launched_before_tokens_are_given() -> None:
    engine, runner = make_engine(overlap=True)
    engine.add(text("a"))
    assert engine.step() == []
    assert [output.token_id for output in engine.step()] == expected_tokens(text("a"), 1)
    assert len(runner.forwards) == 2
    assert engine.stats.num_overlapped_steps == 1


def test_an_end_by_length_costs_no_step_more() -> None:
    requests = [text("a", max_tokens=5), text("b", 4, 5, max_tokens=9), text("c", *range(40), max_tokens=1)]
    forwards = []
    for overlap in (False, True):
        engine, runner = make_engine(overlap=overlap)
        run_all(engine, requests)
        forwards.append(sum(len(forward) for forward in runner.forwards))
    assert forwards[0] == forwards[1]


def test_an_end_by_a_token_costs_one_step_more_that_nobody_sees() -> None:
    want = expected_tokens(text("a"), 8)
    engine, runner = make_engine(overlap=True)
    request = text("a", stop=frozenset({want[3]}), max_tokens=8)
    got = run_all(engine, [request])["a"]
    assert token_ids(got) == want[: want.index(want[3]) + 1]
    assert sum(num_tokens == 1 for forward in runner.forwards for _, num_tokens in forward) == len(got)
    assert not engine.has_work()


@pytest.mark.parametrize(
    "params",
    [{"repetition_penalty": 1.1}, {"frequency_penalty": 0.5}, {"presence_penalty": 0.5}, {"logprobs": 2}],
    ids=str,
)
def test_what_needs_the_tokens_on_the_host_waits_for_them(params: dict[str, Any]) -> None:
    engine, _ = make_engine(overlap=True)
    run_all(engine, [text("a", **params)])
    assert engine.stats.num_overlapped_steps == 0


def test_aborted_while_in_flight_frees_everything_and_harms_nobody() -> None:
    for stop_after in range(1, 9):
        engine, _ = make_engine(overlap=True)
        other = text("b", 7, 8)
        engine.add(text("a"))
        engine.add(other)
        outputs: list[TokenOutput] = []
        for _ in range(stop_after):
            outputs += engine.step()
        engine.abort("a")
        outputs += finish(engine)
        assert token_ids([output for output in outputs if output.request_id == "b"]) == expected_tokens(other, 8)


def finish(engine: Engine) -> list[TokenOutput]:
    outputs = []
    while engine.has_work():
        outputs += engine.step()
    engine.scheduler.check_idle()
    assert not engine.stats.num_idle_repairs
    return outputs


def test_a_request_whose_forward_fails_while_another_step_is_in_flight_fails_alone() -> None:
    engine, runner = make_engine(overlap=True)
    good = [text("a"), text("b", 7, 8)]
    for request in good:
        engine.add(request)
    outputs = engine.step()
    runner.bad_requests = {"bad"}
    engine.add(text("bad", 9, 9, 9))
    outputs += finish(engine)
    for request in good:
        got = [output for output in outputs if output.request_id == request.request_id]
        assert token_ids(got) == expected_tokens(request, 8)
    assert [output.finish_reason for output in outputs if output.request_id == "bad"] == ["error"]


def test_numbers_that_are_not_finite_end_their_request_one_step_late_and_leave_nothing() -> None:
    engine, runner = make_engine(overlap=True)
    runner.not_finite = {"bad"}
    good = text("a", 7, 8)
    outputs = run_all(engine, [text("bad"), good])
    assert token_ids(outputs["a"]) == expected_tokens(good, 8)
    assert [output.finish_reason for output in outputs["bad"]] == ["error"]
    assert runner.cleared


def test_seeds_draw_the_same_whatever_is_in_flight() -> None:
    """A failed step takes back what it drew, and only that."""
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=6, ignore_eos=True)
    states = []
    for overlap in (False, True):
        engine, runner = make_engine(overlap=overlap)
        runner.bad_requests = {"bad"}
        engine.add(make_request("a", (1, 2), params=params))
        engine.step()
        engine.add(text("bad", 9, 9))
        outputs = finish(engine)
        states.append(token_ids([output for output in outputs if output.request_id == "a"])[-4:])
    assert states[0] == states[1]
