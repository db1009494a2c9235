"""Tokens become an answer: text and its pieces, stop strings, log-probabilities, metrics."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fovea.core.errors import PromptError, RequestFailedError
from fovea.core.types import Delta, EngineTimings, Logprob, TokenOutput
from fovea.llm import LLM
from fovea.pipeline.collector import AHEAD_TOKENS, Collector
from tests.oracle.checkpoints import CASES
from tests.parity.support import Engines, question
from tests.pipeline.support import prepare

TIMINGS = EngineTimings(0.1, 0.2, 0.3, 0.6, 1.0, 2)
FIRST_TIMINGS = replace(TIMINGS, decode_s=0.0)


@pytest.fixture
def llm(engines: Engines) -> LLM:
    return engines.get("llava")


class Stops:
    """What the engine was told to end."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def __call__(self, request_id: str, index: int) -> EngineTimings | None:
        self.calls.append((request_id, index))
        return TIMINGS


def collector(llm: LLM, stops: Stops | None = None, *, live: bool = False, **params: Any) -> Collector:
    return Collector(prepare(llm, "tell me", **params), llm.get_tokenizer(), stops or Stops(), live=live)


def token(token_id: int, *, index: int = 0, last: bool = False, **more: Any) -> TokenOutput:
    ended: dict[str, Any] = {"finish_reason": "length", "timings": TIMINGS} if last else {}
    return TokenOutput("r", index, token_id, **ended, **more)


def word(llm: LLM, text: str) -> int:
    return llm.get_tokenizer().token_id(f"▁{text}") or 0


def test_tokens_become_text_and_an_end(llm: LLM) -> None:
    made = collector(llm)
    made.add(token(word(llm, "river")))
    assert not made.finished
    assert made.output().outputs[0].text == " river"
    made.add(token(word(llm, "sea"), last=True))
    (completion,) = made.output().outputs
    assert (completion.text, completion.finish_reason, made.finished) == (" river sea", "length", True)
    metrics = made.output().metrics
    assert metrics is not None
    assert (metrics.queue_s, metrics.encode_s, metrics.prefill_s, metrics.num_preemptions) == (0.1, 0.2, 0.3, 2)


def test_an_answer_is_finished_when_all_its_completions_are(llm: LLM) -> None:
    made = collector(llm, n=2)
    made.add(token(word(llm, "sea"), index=1, last=True))
    assert not made.output().finished
    made.add(token(word(llm, "day"), last=True))
    assert made.finished
    assert [completion.text for completion in made.output().outputs] == [" day", " sea"]


def test_a_stop_string_over_two_tokens_ends_its_completion_only(llm: LLM) -> None:
    stops = Stops()
    made = collector(llm, stops, n=2, stop=["er s"])
    for text in ("river", "sea"):
        made.add(token(word(llm, text)))
    assert stops.calls == [("r", 0)]
    first, second = made.output().outputs
    assert (first.text, first.finish_reason, first.stop_reason) == (" riv", "stop", "er s")
    assert second.finish_reason is None
    assert not made.finished


def test_what_comes_after_a_stop_string_is_ignored(llm: LLM) -> None:
    made = collector(llm, stop=["sea"])
    for text in ("sea", "day", "day"):
        made.add(token(word(llm, text)))
    assert made.output().outputs[0].text == " "
    assert made.output().outputs[0].token_ids == (word(llm, "sea"),)


def test_a_stop_string_in_the_very_last_token_is_a_stop(llm: LLM) -> None:
    stops = Stops()
    made = collector(llm, stops, stop=["sea"])
    made.add(token(word(llm, "sea"), last=True))
    (completion,) = made.output().outputs
    assert (completion.finish_reason, completion.stop_reason) == ("stop", "sea")
    assert stops.calls == [], "the engine has ended it itself"


def test_logprobs_are_named_by_their_text(llm: LLM) -> None:
    made = collector(llm, logprobs=1, prompt_logprobs=1)
    river = word(llm, "river")
    prompt: list[dict[int, Logprob] | None] = [None, {river: Logprob(-2.0, 3)}]
    made.add(token(river, last=True, logprobs={river: Logprob(-0.5, 1)}, prompt_logprobs=prompt))
    output = made.output()
    assert output.outputs[0].logprobs == [{river: Logprob(-0.5, 1, llm.get_tokenizer().token_text(river))}]
    assert output.outputs[0].cumulative_logprob == -0.5
    assert output.prompt_logprobs == [None, {river: Logprob(-2.0, 3, llm.get_tokenizer().token_text(river))}]


def test_the_error_of_a_request_is_raised_by_its_collector(llm: LLM) -> None:
    made = collector(llm)
    error = RequestFailedError("ours")
    with pytest.raises(RequestFailedError) as caught:
        made.add(TokenOutput("r", 0, None, finish_reason="error", error=error))
    assert caught.value is error


def test_hits_are_told_picture_by_picture(llm: LLM) -> None:
    prepared = prepare(llm, question(CASES["llava"][1]))
    made = Collector(prepared, llm.get_tokenizer(), Stops(), live=False)
    assert [report.cache_hit for report in made.output().media] == [False] * 3
    made.add(token(5, last=True, media_hits=(True, False, True), num_cached_tokens=16))
    assert [report.cache_hit for report in made.output().media] == [True, False, True]
    assert made.output().num_cached_tokens == 16


# ---------------------------------------------------------------------------------------------------------- deltas


def joined(deltas: list[Delta], index: int = 0) -> str:
    return "".join(delta.text for delta in deltas if delta.index == index)


@pytest.mark.parametrize("live", [True, False])
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.integers(0, 330), min_size=1, max_size=24), cuts=st.sets(st.integers(0, 24)), stop=st.booleans())
def test_the_texts_of_the_deltas_joined_are_the_text(
    live: bool, ids: list[int], cuts: set[int], stop: bool, engines: Engines
) -> None:
    llm = engines.get("llava")
    made = collector(llm, live=live, stop=["er s", "ea"] if stop else None)
    deltas: list[Delta] = []
    for i, token_id in enumerate(ids):
        made.add(token(token_id, last=i == len(ids) - 1))
        if i in cuts:
            deltas += made.deltas()
    deltas += made.deltas()
    (completion,) = made.output().outputs
    assert joined(deltas) == completion.text
    assert tuple(t for delta in deltas for t in delta.token_ids) == completion.token_ids
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == (completion.finish_reason, completion.stop_reason)
    assert all(delta.finish_reason is None for delta in deltas[:-1])
    assert made.deltas() == []


@pytest.mark.parametrize("count", [1, AHEAD_TOKENS - 1, AHEAD_TOKENS, 5 * AHEAD_TOKENS + 3])
def test_writing_ahead_changes_no_text(llm: LLM, count: int) -> None:
    """Ids drawn at random, so that characters are cut, and two completions that grow in turns."""
    ids = np.random.default_rng(count).integers(0, llm.family.spec.decoder.vocab_size, (2, count)).tolist()
    plain, eager = collector(llm, n=2), collector(llm, n=2)
    num_written = 0
    for place in range(count):
        for index in (0, 1):
            for one in (plain, eager):
                one.add(token(ids[index][place], index=index, last=place == count - 1))
        if eager.is_behind:
            eager.write_ahead()
            num_written += 1
            assert not eager.is_behind
    assert num_written == 2 * count // AHEAD_TOKENS
    assert [o.text for o in eager.output().outputs] == [o.text for o in plain.output().outputs]
    assert [o.text for o in eager.output().outputs] == [o.text for o in plain.output().outputs], "asked once more"


def test_text_that_cannot_be_made_fails_with_its_own_answer(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    one = collector(llm)
    for place in range(AHEAD_TOKENS):
        one.add(token(word(llm, "a"), last=place == AHEAD_TOKENS - 1))

    def fails(*_: object, **__: object) -> str:
        raise PromptError("no text")

    with monkeypatch.context() as broken:
        broken.setattr(type(llm.get_tokenizer()), "decode", fails)
        one.write_ahead()
        with pytest.raises(PromptError, match="no text"):
            one.output()
    assert one.output().outputs[0].text.split() == ["a"] * AHEAD_TOKENS


def test_nobody_is_behind_whose_text_is_made_as_it_comes_or_not_wanted(llm: LLM) -> None:
    for one in (collector(llm, live=True), collector(llm, stop=["zz"]), collector(llm, detokenize=False)):
        for _ in range(2 * AHEAD_TOKENS):
            one.add(token(word(llm, "a")))
        assert not one.is_behind


def test_each_delta_is_about_one_completion_with_news(llm: LLM) -> None:
    made = collector(llm, live=True, n=3)
    for index in (2, 0, 2):
        made.add(token(word(llm, "sea"), index=index))
    assert [(d.index, d.text, len(d.token_ids)) for d in made.deltas()] == [(2, " sea sea", 2), (0, " sea", 1)]
    assert made.deltas() == []


def test_deltas_hold_the_log_probabilities_of_their_tokens(llm: LLM) -> None:
    made = collector(llm, live=True, logprobs=0)
    ids = [word(llm, text) for text in ("river", "sea", "day")]
    seen = []
    for i, token_id in enumerate(ids):
        made.add(token(token_id, last=i == 2, logprobs={token_id: Logprob(-float(i), 1)}))
        seen += made.deltas()
    assert [list(entry) for delta in seen for entry in delta.logprobs or []] == [[i] for i in ids]
    assert collector(llm, live=True).deltas() == []


def test_text_held_for_a_stop_string_is_given_when_the_request_is_cut_off(llm: LLM) -> None:
    made = collector(llm, live=True, stop=["sea shell"])
    made.add(token(word(llm, "sea")))
    made.add(TokenOutput("r", 0, None, finish_reason="abort", timings=TIMINGS))
    assert joined(made.deltas()) == made.output().outputs[0].text == " sea"


# --------------------------------------------------------------------------------------------------------- metrics


def test_timings_may_come_with_the_first_token_alone(llm: LLM) -> None:
    """The engine is elsewhere: what it would have said at the end is worked out from the clock here."""
    made = Collector(prepare(llm, "tell", stop=["day"]), llm.get_tokenizer(), lambda *_: None, live=True)
    made.add(token(word(llm, "sea"), timings=FIRST_TIMINGS))
    time.sleep(0.02)
    made.add(token(word(llm, "day")))
    metrics = made.output().metrics
    assert metrics is not None
    assert (metrics.queue_s, metrics.prefill_s, metrics.num_preemptions) == (0.1, 0.3, 2)
    assert 0.02 <= metrics.decode_s <= metrics.total_s


def test_the_metrics_of_a_finished_answer_stand_still(llm: LLM) -> None:
    made = collector(llm)
    made.add(token(word(llm, "sea"), last=True))
    before = made.output().metrics
    time.sleep(0.01)
    assert made.output().metrics == before
    assert before is not None
    assert 0 < before.prompt_s < before.ttft_s <= before.total_s
