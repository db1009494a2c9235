"""The one door: a form becomes a request, judged before it costs; tokens become an answer."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from fovea import pipeline
from fovea.core.errors import MediaLimitError, RequestFailedError
from fovea.core.params import SamplingParams
from fovea.core.types import EngineTimings, Logprob, TokenOutput
from fovea.llm import LLM
from fovea.pipeline import Collector, Prepared
from fovea.prompt.forms import parse_prompt
from tests.bad_input.harness import image
from tests.oracle.checkpoints import CASES
from tests.parity.support import FAMILIES, Engines, question

TIMINGS = EngineTimings(0.1, 0.2, 0.3, 0.6, 1.0, 2)


@pytest.fixture
def llm(engines: Engines) -> LLM:
    return engines.get("llava")


def prepare(llm: LLM, prompt: object, **params: Any) -> Prepared:
    return llm._preparer.prepare(parse_prompt(prompt), SamplingParams(**params), "r", time.perf_counter())


# ------------------------------------------------------------------------------------------------------ Preparer


@pytest.mark.parametrize("family", FAMILIES)
def test_spans_and_media_belong_together(engines: Engines, family: str) -> None:
    llm = engines.get(family)
    request = prepare(llm, question(CASES[family][1])).request
    placeholder = llm.get_tokenizer().token_id(llm.family.placeholder)
    assert len(request.spans) == len(request.media) == 3
    for span, item in zip(request.spans, request.media, strict=True):
        assert span.length == item.num_tokens
        assert set(request.token_ids[span.start : span.end]) == {placeholder}
        assert item.canvas is not None
        assert len(item.key) == 32
    assert request.token_ids.count(placeholder or -1) == sum(span.length for span in request.spans)
    assert (request.positions is None) == (family != "qwen2_vl")


def test_the_key_of_a_picture_covers_all_that_changes_its_rows(engines: Engines) -> None:
    llm = engines.get("qwen2_vl")
    prompt = {"prompt": CASES["qwen2_vl"][0].prompt, "multi_modal_data": {"image": image()}}
    changed: list[dict[str, Any]] = [
        {},
        {"multi_modal_data": {"image": image(2)}},
        {"cache_salt": "a"},
        {"cache_salt": "b"},
        {"multi_modal_uuids": {"image": ["a"]}},
        {"mm_processor_kwargs": {"max_pixels": 784 * 4}},
    ]
    keys = [prepare(llm, {**prompt, **change}).request.media[0].key for change in changed]
    assert len(set(keys)) == len(keys)
    assert prepare(llm, prompt).request.media[0].key == keys[0]


def test_the_version_of_a_family_is_part_of_the_key(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    before = prepare(llm, question(CASES["llava"][0])).request.media[0].key
    monkeypatch.setattr(type(llm.family), "version", 2)
    assert prepare(llm, question(CASES["llava"][0])).request.media[0].key != before


def test_nothing_is_decoded_before_all_is_judged(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of three pictures is over a limit: the first two were not decoded."""
    llm = engines.get("llava", max_image_pixels=10_000)
    monkeypatch.setattr(pipeline, "decode", lambda *_: pytest.fail("a picture was decoded"))
    prompt = {"prompt": "<image><image><image>", "multi_modal_data": {"image": [image(), image(), image(1, 200, 200)]}}
    with pytest.raises(MediaLimitError, match="200 x 200"):
        prepare(llm, prompt)


def test_stop_ids_are_the_model_s_and_the_request_s(llm: LLM) -> None:
    assert prepare(llm, "a").request.stop_token_ids == {2}
    assert prepare(llm, "a", stop_token_ids=[7]).request.stop_token_ids == {2, 7}
    assert prepare(llm, "a", stop_token_ids=[7], ignore_eos=True).request.stop_token_ids == {7}


def test_bad_words_are_banned_at_the_start_and_after_a_space(engines: Engines) -> None:
    tokenizer = engines.get("qwen2_vl").get_tokenizer()
    words = prepare(engines.get("qwen2_vl"), "a", bad_words=["river", " sea"]).request.bad_words
    assert {tokenizer.decode(list(word)) for word in words} == {"river", " river", " sea"}


def test_importing_the_pipeline_leaves_torch_out() -> None:
    """A server's front plans requests without an engine."""
    code = "import sys, fovea.pipeline; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------------------------ Collector


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
