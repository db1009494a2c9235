"""The offline face: order, errors, streams, ends; whatever a caller does, the engine is empty afterwards."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import pytest
import torch

from fovea.core.errors import (
    BatchError,
    FoveaError,
    InvalidOptionError,
    PlaceholderError,
    PromptError,
    RequestFailedError,
    SamplingError,
)
from fovea.core.params import SamplingParams
from fovea.core.turns import outside_turn
from fovea.core.types import Picture, RequestOutput
from fovea.engine import runner as runner_module
from fovea.engine import sampler
from fovea.engine.runner import Launched
from fovea.engine.scheduler import Chunk
from fovea.llm import LLM
from fovea.media.decode import decode
from fovea.media.source import MemorySource
from tests.oracle.checkpoints import CASES
from tests.parity.support import (
    FAMILIES,
    GREEDY,
    Checkpoints,
    Engines,
    answer,
    ask,
    check_idle,
    load,
    question,
    run_together,
    tokens,
    words,
)

TEXT = CASES["llava"][2].prompt
GOOD = question(CASES["llava"][0])
BAD = {"prompt": TEXT, "multi_modal_data": {"image": b"junk"}}


@pytest.fixture
def llm(engines: Engines) -> LLM:
    return engines.get("llava")


def greedy(**changes: Any) -> SamplingParams:
    return dataclasses.replace(GREEDY, **changes)


# ---------------------------------------------------------------------------------------------- batches and errors


def test_outputs_are_in_the_order_of_the_prompts(checkpoints: Checkpoints, llm: LLM) -> None:
    cases = [CASES["llava"][i] for i in (2, 0, 1, 2, 0)]
    params = [greedy(max_tokens=n) for n in (24, 1, 7, 2, 24)]
    outputs = llm.generate([question(case) for case in cases], params, use_tqdm=False)
    for output, case, param in zip(outputs, cases, params, strict=True):
        assert tokens(output) == answer(checkpoints.folder("llava"), case).greedy[: param.max_tokens]
        assert output.finished
    assert len({output.request_id for output in outputs}) == 5


def test_a_prompt_alone_and_no_prompts_at_all(llm: LLM) -> None:
    assert len(llm.generate(TEXT, GREEDY, use_tqdm=False)) == 1
    assert llm.generate([], GREEDY, use_tqdm=False) == []


def test_failures_are_returned_in_place_on_request(llm: LLM) -> None:
    outputs = llm.generate([TEXT, BAD, GOOD, BAD], GREEDY, use_tqdm=False, on_error="return")
    assert [type(output.error) for output in outputs] == [type(None), PlaceholderError, type(None), PlaceholderError]
    assert [len(output.outputs) for output in outputs] == [1, 0, 1, 0]


def test_failures_are_raised_together_with_the_answers_of_the_others(llm: LLM) -> None:
    with pytest.raises(BatchError) as caught:
        llm.generate([TEXT, BAD, GOOD, BAD], GREEDY, use_tqdm=False)
    error = caught.value
    assert [output is None for output in error.outputs] == [False, True, False, True]
    assert sorted(error.errors) == [1, 3]
    assert all(isinstance(e, PlaceholderError) for e in error.errors.values())
    assert str(error).startswith("2 of 4 requests failed; the first is number 1: The prompt has 0 places")
    kept = error.outputs[0]
    assert kept is not None
    assert tokens(kept) == tokens(ask(llm, TEXT))


def test_the_only_prompt_raises_its_own_error(llm: LLM) -> None:
    with pytest.raises(PlaceholderError):
        llm.generate([BAD], GREEDY, use_tqdm=False)
    with pytest.raises(PlaceholderError):
        llm.generate(BAD, GREEDY, use_tqdm=False)


def test_a_bad_on_error_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidOptionError, match='"raise", "return"'):
        llm.generate(TEXT, GREEDY, on_error="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ([GREEDY], "1 sampling_params were given for 2 prompts"),
        ([GREEDY] * 3, "3 sampling_params were given for 2 prompts"),
        ([GREEDY, None], "SamplingParams"),
        ([GREEDY, {"temperature": 0}], "SamplingParams"),
        ({"temperature": 0}, "SamplingParams"),
        (5, "SamplingParams"),
        ("greedy", "SamplingParams"),
    ],
    ids=str,
)
def test_bad_sampling_params_are_refused_before_anything_runs(llm: LLM, params: Any, says: str) -> None:
    steps = llm.engine.stats.num_steps
    with pytest.raises(FoveaError, match=says) as caught:
        llm.generate([TEXT, TEXT], params, use_tqdm=False)
    assert isinstance(caught.value, InvalidOptionError | SamplingError)
    assert llm.engine.stats.num_steps == steps


def test_a_picture_shown_in_many_prompts_of_a_call_is_decoded_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    want = tokens(ask(llm, GOOD))
    calls: list[object] = []

    def counted(source: MemorySource, helpers: Executor | None) -> Picture:
        calls.append(source)
        return decode(source, helpers)

    monkeypatch.setattr("fovea.pipeline.pictures.decode", counted)
    outputs = llm.generate([GOOD] * 5 + [TEXT], GREEDY, use_tqdm=False)
    assert [tokens(output) for output in outputs[:5]] == [want] * 5
    assert len(calls) == 1
    llm.generate(GOOD, GREEDY, use_tqdm=False)
    assert len(calls) == 2, "nothing is kept from one call to the next"


def test_an_error_while_preparing_that_nobody_foresaw_stays_with_its_request(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    (want,) = [tokens(ask(llm, TEXT))]
    prepare = llm._preparer.prepare

    def broken(form: Any, *args: Any, **options: Any) -> Any:
        if form.media:
            raise KeyError("a secret text")
        return prepare(form, *args, **options)

    monkeypatch.setattr(llm._preparer, "prepare", broken)
    outputs = llm.generate([GOOD, TEXT], GREEDY, use_tqdm=False, on_error="return")
    assert isinstance(outputs[0].error, RequestFailedError)
    assert "secret" not in str(outputs[0].error)
    assert tokens(outputs[1]) == want


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_that_breaks_the_tower_ends_its_request_only(
    checkpoints: Checkpoints, engines: Engines, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = engines.get(family)
    case, text = CASES[family][0], CASES[family][2]
    encode = llm.engine.model.encode

    def broken(items: Any) -> Any:
        if any((item.canvas == 0).mean() > 0.5 for item in items):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return encode(items)

    monkeypatch.setattr(llm.engine.model, "encode", broken)
    black = {"prompt": case.prompt, "multi_modal_data": {"image": torch.zeros(3, 60, 90, dtype=torch.uint8)}}
    prompts = [question(case), black, question(text), black]
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False, on_error="return")
    for output in outputs[1::2]:
        assert isinstance(output.error, RequestFailedError)
        assert "mat1" not in str(output.error)
    folder = checkpoints.folder(family)
    assert [tokens(output) for output in outputs[::2]] == [answer(folder, case).greedy, answer(folder, text).greedy]


def test_a_failing_step_is_retried_and_changes_no_draw_and_no_logprob(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sampler fails for two rows together after it drew: alone each must draw the same number again."""
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=6, ignore_eos=True, logprobs=1, prompt_logprobs=1)
    prompts = [TEXT, question(CASES["llava"][1])]
    alone = [ask(llm, prompt, params) for prompt in prompts]
    llm.reset_prefix_cache()
    real, failures = sampler.sample, list[int]()

    def flaky(logits: Any, rows: Any) -> Any:
        result = real(logits, rows)
        if len(rows) > 1:
            failures.append(len(rows))
            raise RuntimeError("out of memory")
        return result

    monkeypatch.setattr(runner_module, "sample", flaky)
    outputs = run_together(llm, prompts, [params] * 2)
    assert failures
    assert [tokens(output) for output in outputs] == [tokens(output) for output in alone]
    for output in outputs:
        assert output.prompt_logprobs is not None
        assert len(output.prompt_logprobs) == len(output.prompt_token_ids)


# -------------------------------------------------------------------------------------------- streams and abandoning


def test_generate_iter_gives_answers_in_order_and_failures_in_place(llm: LLM) -> None:
    outputs = list(llm.generate_iter([TEXT, BAD, GOOD], GREEDY))
    assert [type(output.error) for output in outputs] == [type(None), PlaceholderError, type(None)]
    assert tokens(outputs[0]) == tokens(ask(llm, TEXT))


def test_generate_iter_takes_prompts_only_as_there_is_room(engines: Engines) -> None:
    """An endless source: what is taken ahead is bounded, and the answers come."""
    llm, taken = engines.get("llava", max_num_seqs=2), 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield TEXT

    answers = llm.generate_iter(endless(), greedy(max_tokens=2))
    for number in range(1, 20):
        next(answers)
        assert taken <= number + 2 * llm.config.max_num_seqs + 4 * 2 + 2
    del answers
    check_idle(llm)


@pytest.mark.parametrize("num_answers", [0, 1, 2])
def test_a_stream_given_up_halfway_leaves_the_engine_idle(llm: LLM, num_answers: int) -> None:
    answers = llm.generate_iter([GOOD, TEXT, GOOD, question(CASES["llava"][1])] * 5, greedy(n=2))
    for _ in range(num_answers):
        next(answers)
    answers.close()  # type: ignore[attr-defined]
    check_idle(llm)


def test_a_chat_stream_given_up_halfway_leaves_the_engine_idle(llm: LLM) -> None:
    stream = llm.stream_chat([{"role": "user", "content": "What is a day?"}], GREEDY)
    assert len(next(stream).outputs[0].token_ids) == 1
    stream.close()  # type: ignore[attr-defined]
    check_idle(llm)


def test_a_source_of_prompts_that_raises_is_passed_on_and_leaves_the_engine_idle(llm: LLM) -> None:
    class OwnError(Exception):
        pass

    def source() -> Iterator[object]:
        for _ in range(30):
            yield TEXT
        raise OwnError

    seen: list[RequestOutput] = []
    with pytest.raises(OwnError):
        seen.extend(llm.generate_iter(source(), GREEDY))
    check_idle(llm)
    assert all(output.error is None for output in seen)


def test_an_interrupted_call_leaves_the_engine_idle(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    (want,) = [tokens(ask(llm, TEXT))]
    step, count = llm.engine.step, 0

    def interrupted() -> Any:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return step()

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([TEXT, GOOD], GREEDY, use_tqdm=False)
    check_idle(llm)
    assert tokens(ask(llm, TEXT)) == want


def test_calls_may_be_made_while_a_stream_is_open(checkpoints: Checkpoints, llm: LLM) -> None:
    """A judge that is asked about each answer as it comes; neither call may take the other's tokens."""
    folder = checkpoints.folder("llava")
    want = [answer(folder, case).greedy for case in CASES["llava"]]
    seen = []
    for output in llm.generate_iter([question(case) for case in CASES["llava"]], GREEDY):
        seen.append(tokens(output))
        assert tokens(ask(llm, TEXT)) == want[2]
    assert seen == want


def test_two_streams_may_be_read_in_turns(llm: LLM) -> None:
    messages = [[{"role": "user", "content": text}] for text in ("What is a day?", "How do you do?")]
    want = [list(llm.stream_chat(m, GREEDY))[-1].outputs[0].token_ids for m in messages]
    streams = [llm.stream_chat(m, GREEDY) for m in messages]
    last: list[RequestOutput | None] = [None, None]
    open_streams = [0, 1]
    while open_streams:
        for i in list(open_streams):
            output = next(streams[i], None)
            if output is None:
                open_streams.remove(i)
            else:
                last[i] = output
    assert [output.outputs[0].token_ids for output in last if output is not None] == want


@pytest.mark.parametrize("takes_turns", [False, True])
def test_several_threads_may_call_at_once(
    checkpoints: Checkpoints, llm: LLM, monkeypatch: pytest.MonkeyPatch, takes_turns: bool
) -> None:
    """takes_turns: loops as on a GPU, where each leaves its turn in the middle of a step to wait for the device."""
    folder, forward = checkpoints.folder("llava"), llm.engine._forward

    def waited_for(chunks: list[Chunk]) -> Launched:
        with outside_turn():
            time.sleep(0.001)
        return forward(chunks)

    if takes_turns:
        monkeypatch.setattr(llm, "_loop_waits", True)
        monkeypatch.setattr(llm.engine, "_forward", waited_for)
    want = [answer(folder, case).greedy for case in CASES["llava"]]

    def work(number: int) -> list[list[int]]:
        cases = CASES["llava"][number % 3 :] + CASES["llava"][: number % 3]
        outputs = llm.generate([question(case) for case in cases], GREEDY, use_tqdm=False)
        return [tokens(output) for output in outputs]

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(work, range(8)))
    for number, result in enumerate(results):
        assert result == want[number % 3 :] + want[: number % 3]


def test_a_bad_conversation_raises_from_its_stream(llm: LLM) -> None:
    with pytest.raises(PromptError):
        list(llm.stream_chat([{"role": "user", "content": 5}], GREEDY))


def test_a_closed_llm_says_so(checkpoints: Checkpoints) -> None:
    with load(checkpoints.folder("llava")) as llm:
        ask(llm, TEXT)
    with pytest.raises(FoveaError, match="closed"):
        llm.generate(TEXT, GREEDY, use_tqdm=False)


# ------------------------------------------------------------------------------------------------- ends of an answer


def test_an_answer_ends_at_max_tokens(llm: LLM) -> None:
    (completion,) = ask(llm, TEXT, greedy(max_tokens=5)).outputs
    assert (len(completion.token_ids), completion.finish_reason, completion.stop_reason) == (5, "length", None)


def test_an_answer_ends_at_the_length_of_the_model(engines: Engines) -> None:
    llm = engines.get("llava", max_model_len=30)
    for max_tokens in (None, 1000):
        output = ask(llm, TEXT, greedy(max_tokens=max_tokens))
        assert len(output.prompt_token_ids) + len(tokens(output)) == 30
        assert output.outputs[0].finish_reason == "length"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_s_own_end_ends_an_answer_without_a_reason(engines: Engines, family: str) -> None:
    llm = engines.get(family)
    end = {"llava": "</s>", "phi3_v": "<|end|>"}.get(family, "<|im_end|>")
    token = llm.get_tokenizer().token_id(end)
    assert token is not None
    params = SamplingParams(temperature=0.0, max_tokens=8, logit_bias={token: 100.0})
    (completion,) = ask(llm, CASES[family][2].prompt, params).outputs
    assert (completion.token_ids, completion.finish_reason, completion.stop_reason) == ((token,), "stop", None)
    assert completion.text == ""
    shown = dataclasses.replace(params, skip_special_tokens=False)
    assert ask(llm, CASES[family][2].prompt, shown).outputs[0].text.strip() == end
    (ignoring,) = ask(llm, CASES[family][2].prompt, dataclasses.replace(params, ignore_eos=True)).outputs
    assert (ignoring.token_ids, ignoring.finish_reason) == ((token,) * 8, "length")


def test_before_min_tokens_the_model_s_end_cannot_be_produced(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=8, min_tokens=3, logit_bias={2: 100.0})
    (completion,) = ask(llm, TEXT, params).outputs
    assert len(completion.token_ids) == 4
    assert completion.token_ids.index(2) == 3
    assert completion.finish_reason == "stop"


def test_an_own_stop_token_ends_and_is_named(llm: LLM) -> None:
    want = tokens(ask(llm, TEXT))
    (completion,) = ask(llm, TEXT, greedy(stop_token_ids=[want[4]])).outputs
    end = want.index(want[4]) + 1
    assert list(completion.token_ids) == want[:end]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", want[4])


@pytest.mark.parametrize("included", [False, True])
def test_a_stop_string_ends_and_is_cut_off_unless_wanted(llm: LLM, included: bool) -> None:
    allowed = greedy(allowed_token_ids=words(llm))
    whole = ask(llm, TEXT, allowed).outputs[0].text
    stop = whole.split()[3][1:3]
    params = dataclasses.replace(allowed, stop=["zzz", stop], include_stop_str_in_output=included)
    (completion,) = ask(llm, TEXT, params).outputs
    end = whole.index(stop)
    assert completion.text == whole[: end + len(stop) * included]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
    check_idle(llm)


def test_a_stop_string_before_min_tokens_does_not_end(llm: LLM) -> None:
    params = greedy(allowed_token_ids=words(llm), stop=[" "], min_tokens=5)
    (completion,) = ask(llm, TEXT, params).outputs
    assert 5 < len(completion.token_ids) <= 7
    assert completion.finish_reason == "stop"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_does_not_depend_on_how_it_was_put_together(engines: Engines, family: str) -> None:
    """In one piece at the end, piece by piece for stop strings, or as a stream: the leading space too."""
    llm, prompt = engines.get(family), CASES[family][2].prompt
    allowed = words(llm)
    params = greedy(allowed_token_ids=allowed, max_tokens=8)
    whole = ask(llm, prompt, params).outputs[0].text
    pieces = ask(llm, prompt, dataclasses.replace(params, stop=["zzz"])).outputs[0].text
    messages = [{"role": "user", "content": "Tell me"}]
    (chatted,) = llm.chat(messages, params, use_tqdm=False)
    streamed = list(llm.stream_chat(messages, params))[-1]
    assert whole == pieces
    assert whole.startswith(" ")
    assert chatted.outputs[0].text == streamed.outputs[0].text


def test_without_detokenize_there_is_no_text(llm: LLM) -> None:
    want = tokens(ask(llm, TEXT))
    output = ask(llm, TEXT, greedy(detokenize=False))
    assert output.outputs[0].text == ""
    assert tokens(output) == want


# ------------------------------------------------------------------------------------------------- steering an answer


def test_only_allowed_tokens_are_produced(llm: LLM) -> None:
    allowed = words(llm)
    assert set(tokens(ask(llm, TEXT, greedy(allowed_token_ids=allowed)))) <= set(allowed)


def test_a_request_that_may_produce_nothing_fails_alone(llm: LLM) -> None:
    want = tokens(ask(llm, TEXT))
    nothing = greedy(allowed_token_ids=[318], bad_words=["river"], n=2)
    outputs = llm.generate([TEXT, TEXT, TEXT], [GREEDY, nothing, GREEDY], use_tqdm=False, on_error="return")
    assert isinstance(outputs[1].error, SamplingError)
    assert outputs[1].error.code == "unsupported_combination"
    assert "No token can be produced" in str(outputs[1].error)
    assert [tokens(outputs[i]) for i in (0, 2)] == [want, want]


def test_completions_that_run_dry_together_fail_alone(llm: LLM) -> None:
    """The first "river" is permitted, a second is not: both completions stop in one step of many blocks."""
    params = greedy(allowed_token_ids=[words(llm)[0]], bad_words=["river river"], n=3)
    long = {"prompt": TEXT + " river" * 40}
    outputs = llm.generate([long, TEXT], [params, GREEDY], use_tqdm=False, on_error="return")
    assert isinstance(outputs[0].error, SamplingError)
    assert tokens(outputs[1]) == tokens(ask(llm, TEXT))


def test_bad_words_are_never_produced(llm: LLM) -> None:
    allowed = greedy(allowed_token_ids=words(llm), max_tokens=12)
    text = ask(llm, TEXT, allowed).outputs[0].text
    banned = text.split()[0]
    steered = ask(llm, TEXT, dataclasses.replace(allowed, bad_words=[banned])).outputs[0].text
    assert banned in text
    assert banned not in steered


def test_logit_bias_decides(llm: LLM) -> None:
    assert tokens(ask(llm, TEXT, greedy(logit_bias={318: 100.0}, max_tokens=3))) == [318] * 3
    first = tokens(ask(llm, TEXT))[0]
    assert tokens(ask(llm, TEXT, greedy(logit_bias={first: -100.0}, max_tokens=1))) != [first]


@pytest.mark.parametrize("option", ["stop_token_ids", "allowed_token_ids", "logit_bias"])
def test_tokens_beyond_the_vocabulary_are_refused(llm: LLM, option: str) -> None:
    size = llm.family.spec.decoder.vocab_size
    value: Any = {size: 1.0} if option == "logit_bias" else [size]
    with pytest.raises(SamplingError, match=f"{option} has {size}; the vocabulary ends at {size - 1}"):
        ask(llm, TEXT, greedy(**{option: value}))


def test_metrics_tell_where_the_time_went(llm: LLM) -> None:
    output = ask(llm, GOOD)
    metrics = output.metrics
    assert metrics is not None
    parts = (metrics.media_s, metrics.queue_s, metrics.encode_s, metrics.prefill_s, metrics.decode_s)
    assert all(part >= 0 for part in parts)
    assert 0 < metrics.ttft_s < metrics.total_s
    assert sum(parts) <= metrics.total_s * 1.01


def test_a_context_that_does_not_fit_is_shortened_and_said(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("fovea"), "propagate", True)
    with caplog.at_level("WARNING", logger="fovea"):
        llm = LLM(str(checkpoints.folder("llava")), dtype="float32", kv_cache_memory_bytes=256 * 1024, use_tqdm=False)
    assert llm.engine.plan.max_model_len < llm.family.spec.decoder.max_positions
    assert f"max_model_len is {llm.engine.plan.max_model_len} instead of" in caplog.text
