"""The engine loop: ends, stops, aborts; and a failure stays with the request that causes it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fovea.core.errors import MediaLimitError, PromptTooLongError, RequestFailedError, SamplingError
from fovea.core.params import SamplingParams
from fovea.core.types import ROW, EngineRequest, MediaItem, TokenOutput
from tests.engine.fakes import (
    EMBEDDING_BYTES,
    GREEDY,
    expected_tokens,
    make_engine,
    make_request,
    media_item,
    run_all,
    token_ids,
)


def text(name: str, *ids: int, **params: Any) -> EngineRequest:
    return make_request(name, ids or (1, 2, 3), params=dataclasses.replace(GREEDY, **params))


def shown(name: str, *layout: int | MediaItem, **params: Any) -> EngineRequest:
    return make_request(name, layout, params=dataclasses.replace(GREEDY, **params))


def error_of(outputs: list[TokenOutput]) -> str:
    """The text of the one error that ended a request."""
    (error,) = [output.error for output in outputs if output.error is not None]
    assert isinstance(error, RequestFailedError | SamplingError)
    assert outputs[-1].error is error
    assert outputs[-1].finish_reason == "error"
    return str(error)


def test_every_request_gets_its_own_tokens_and_one_end() -> None:
    engine, _ = make_engine(max_num_batched_tokens=5)
    requests = [text("a"), text("b", 5, 6, max_tokens=3), text("c", *range(30))]
    outputs = run_all(engine, requests)
    for request in requests:
        got = outputs[request.request_id]
        assert token_ids(got) == expected_tokens(request, request.params.max_tokens or 0)
        assert [output.finish_reason for output in got] == [None] * (len(got) - 1) + ["length"]
        assert [output.timings is not None for output in got] == [True] + [False] * (len(got) - 2) + [True]


@pytest.mark.parametrize("own", [True, False], ids=["stop_token_ids", "the model's end"])
def test_a_stop_token_ends_and_only_the_request_s_own_is_named(own: bool) -> None:
    want = expected_tokens(text("a"), 8)
    params = dataclasses.replace(GREEDY, stop_token_ids=[want[3]] if own else None)
    engine, _ = make_engine()
    got = run_all(engine, [make_request("a", (1, 2, 3), params=params, stop=frozenset({want[3]}))])["a"]
    assert token_ids(got) == want[:4]
    assert (got[-1].finish_reason, got[-1].stop_token_id) == ("stop", want[3] if own else None)


def test_before_min_tokens_a_stop_token_does_not_end() -> None:
    want = expected_tokens(text("a"), 8)
    for min_tokens, length in ((0, 4), (3, 4), (4, 8)):
        params = dataclasses.replace(GREEDY, min_tokens=min_tokens)
        engine, _ = make_engine()
        got = run_all(engine, [make_request("a", (1, 2, 3), params=params, stop=frozenset({want[3]}))])["a"]
        assert len(token_ids(got)) == length


def test_the_model_s_length_ends_an_answer_without_max_tokens() -> None:
    engine, _ = make_engine(max_model_len=20)
    got = run_all(engine, [text("a", max_tokens=None)])["a"]
    assert len(token_ids(got)) == 17
    assert got[-1].finish_reason == "length"


def test_text_between_a_picture_s_rows_has_to_be_the_prompt_s() -> None:
    engine, _ = make_engine()
    for ids in ((ROW, 4, ROW, ROW), (ROW, 0), (0,)):
        item = dataclasses.replace(media_item("a", 3), ids=ids)
        with pytest.raises(RequestFailedError, match="not those of the prompt"):
            engine.add(shown("a", 1, item))


def test_a_prompt_that_leaves_no_room_for_a_token_is_refused() -> None:
    engine, _ = make_engine(max_model_len=20)
    engine.add(text("fits", *range(19)))
    with pytest.raises(PromptTooLongError, match=r"20 tokens; max_model_len is 20"):
        engine.add(text("a", *range(20)))
    assert list(run_all(engine, [])) == ["fits"]


def test_a_picture_that_can_never_be_kept_is_refused() -> None:
    engine, _ = make_engine(encoder_bytes=10 * EMBEDDING_BYTES)
    engine.add(shown("fits", media_item("p", 10), 1))
    with pytest.raises(MediaLimitError, match=r"Picture 2 makes 44 bytes .* encoder_cache_bytes is 40"):
        engine.add(shown("a", media_item("p", 10), 1, media_item("q", 11), 1))
    engine.add(shown("own rows", media_item("r", 11, embeds=True), 1))
    run_all(engine, [])


def test_a_picture_that_memory_was_not_planned_for_is_refused() -> None:
    engine, _ = make_engine()
    with pytest.raises(MediaLimitError, match=r"Picture 1 has 101 patches; memory is planned for 100"):
        engine.add(shown("a", media_item("p", 4, 101), 1))


def test_completions_of_a_request_share_its_prompt_and_end_one_by_one() -> None:
    engine, runner = make_engine(block_size=2)
    got = run_all(engine, [text("a", *range(9), n=3)])["a"]
    want = expected_tokens(text("a", *range(9)), 8)
    assert [token_ids(got, index) for index in range(3)] == [want] * 3
    assert sum(count for step in runner.forwards for _, count in step if count > 1) == 9, "the prompt ran once"
    assert sorted(output.index for output in got if output.finish_reason) == [0, 1, 2]


@pytest.mark.parametrize("caching", [True, False])
def test_an_aborted_request_is_gone_with_all_it_owns(caching: bool) -> None:
    for num_steps in range(6):
        engine, _ = make_engine(max_num_batched_tokens=4, caching=caching)
        engine.add(shown("gone", 1, media_item("p", 7), 2, n=3))
        engine.add(text("stays"))
        outputs = [output for _ in range(num_steps) for output in engine.step()]
        engine.abort("gone")
        while engine.has_work():
            new = engine.step()
            assert {output.request_id for output in new} == {"stays"}
            outputs += new
        engine.scheduler.check_idle()
        stays = [output for output in outputs if output.request_id == "stays"]
        assert token_ids(stays) == expected_tokens(text("stays"), 8)


def test_aborting_what_is_unknown_or_over_is_fine() -> None:
    engine, _ = make_engine()
    engine.abort("never seen")
    run_all(engine, [text("a")])
    engine.abort("a")
    assert engine.stop("a", 0) is None
    engine.scheduler.check_idle()


def test_stopping_one_completion_leaves_the_others() -> None:
    engine, _ = make_engine()
    engine.add(text("a", n=2))
    seen: list[TokenOutput] = []
    while len(token_ids(seen, 1)) < 2:
        seen += engine.step()
    assert engine.stop("a", 0) is not None
    assert engine.stop("a", 0) is None
    while engine.has_work():
        seen += engine.step()
    assert token_ids(seen, 1) == expected_tokens(text("a"), 8)
    assert len(token_ids(seen, 0)) < 8
    engine.scheduler.check_idle()


def test_a_failing_picture_ends_only_the_requests_that_show_it() -> None:
    engine, runner = make_engine()
    bad, good = media_item("bad", 4), media_item("good", 4)
    runner.bad_pictures = {bad.key}
    requests = [
        shown("one", 1, good, 2),
        shown("two", 1, bad, 2),
        shown("three", 3, good, bad, 2),
        text("four", 9),
        shown("five", 8, good, 2),
    ]
    outputs = run_all(engine, requests)
    for request in (requests[0], requests[3], requests[4]):
        assert token_ids(outputs[request.request_id]) == expected_tokens(request, 8)
    for name in ("two", "three"):
        assert error_of(outputs[name]) == "A picture of this request could not be encoded."
        assert token_ids(outputs[name]) == []
    assert engine.stats.num_failed_requests == 2
    assert bad.key not in engine.scheduler.encoder_cache


def test_a_picture_that_failed_is_tried_again_for_the_next_request() -> None:
    engine, runner = make_engine()
    picture = media_item("p", 4)
    runner.bad_pictures = {picture.key}
    error_of(run_all(engine, [shown("a", picture, 1)])["a"])
    runner.bad_pictures = set()
    request = shown("b", picture, 1)
    assert token_ids(run_all(engine, [request])["b"]) == expected_tokens(request, 8)


def test_a_failing_picture_in_the_middle_of_a_prompt_ends_its_request_later() -> None:
    engine, runner = make_engine(max_num_batched_tokens=4)
    bad = media_item("bad", 6)
    runner.bad_pictures = {bad.key}
    outputs = run_all(engine, [shown("a", *range(10), bad, 1), text("b")])
    error_of(outputs["a"])
    assert token_ids(outputs["b"]) == expected_tokens(text("b"), 8)


@pytest.mark.parametrize("caching", [True, False])
def test_a_failing_picture_of_several_completions_is_one_failure(caching: bool) -> None:
    engine, runner = make_engine(caching=caching, block_size=16, encoder_bytes=4 * EMBEDDING_BYTES)
    bad, other = media_item("bad", 4), media_item("other", 4)
    runner.bad_pictures = {bad.key}
    outputs = run_all(engine, [shown("a", bad, 1, n=3), shown("b", other, 1, n=2)])
    error_of(outputs["a"])
    assert engine.stats.num_failed_requests == 1
    assert token_ids(outputs["b"], 1) == expected_tokens(shown("b", other, 1), 8)


def test_a_request_that_fails_in_the_model_fails_alone() -> None:
    engine, runner = make_engine()
    requests = [text("one", 1), text("two", 2), text("three", 3), text("late", 4)]
    runner.bad_requests = {"two"}
    outputs = run_all(engine, requests)
    assert error_of(outputs["two"]) == "The model failed on this request."
    for request in (requests[0], requests[2], requests[3]):
        assert token_ids(outputs[request.request_id]) == expected_tokens(request, 8)
    assert engine.stats.num_failed_requests == 1
    assert engine.stats.num_retried_steps == 1


def test_a_request_that_begins_to_fail_while_it_decodes_fails_alone() -> None:
    engine, runner = make_engine()
    requests = [text("one", 1, n=2), text("two", 2, n=2), text("three", 3)]
    for request in requests:
        engine.add(request)
    outputs: list[TokenOutput] = []
    for _ in range(4):
        outputs += engine.step()
    runner.bad_requests = {"two"}
    while engine.has_work():
        outputs += engine.step()
    engine.scheduler.check_idle()
    by_name = {r.request_id: [o for o in outputs if o.request_id == r.request_id] for r in requests}
    error_of(by_name["two"])
    for index in range(2):
        assert token_ids(by_name["one"], index) == expected_tokens(text("one", 1), 8)
    assert token_ids(by_name["three"]) == expected_tokens(text("three", 3), 8)


def test_when_all_requests_fail_the_engine_is_idle_and_goes_on() -> None:
    engine, runner = make_engine()
    runner.bad_requests = {"a", "b"}
    outputs = run_all(engine, [text("a"), text("b")])
    error_of(outputs["a"])
    error_of(outputs["b"])
    assert token_ids(run_all(engine, [text("c")])["c"]) == expected_tokens(text("c"), 8)


def test_no_token_to_produce_is_an_error_of_that_request_alone() -> None:
    engine, runner = make_engine()
    runner.banned = {("a", 0, 3)}
    outputs = run_all(engine, [text("a"), text("b")])
    assert token_ids(outputs["a"]) == expected_tokens(text("a"), 3)
    assert error_of(outputs["a"]).startswith("No token can be produced")
    assert token_ids(outputs["b"]) == expected_tokens(text("b"), 8)


@pytest.mark.parametrize("when", range(4))
@pytest.mark.parametrize("index", range(2))
def test_a_completion_without_a_token_ends_its_siblings_in_the_same_step(index: int, when: int) -> None:
    """The siblings are in the batch that is being settled: they own nothing any more when it is their turn."""
    engine, runner = make_engine(block_size=2)
    runner.banned = {("a", index, when)}
    outputs = run_all(engine, [text("a", *range(9), n=3), text("b", *range(9))])
    error_of(outputs["a"])
    assert engine.stats.num_failed_requests == 1
    assert token_ids(outputs["b"]) == expected_tokens(text("b", *range(9)), 8)


def test_nothing_hidden_the_engine_counts_what_it_did() -> None:
    engine, _ = make_engine()
    picture = media_item("p", 4)
    run_all(engine, [shown("a", picture, 1), shown("b", picture, 2)])
    stats = engine.stats
    assert stats.num_generated_tokens == 16
    assert stats.num_pictures_encoded == 1
    assert stats.num_steps == 8
    assert stats.num_tokens == 2 * (5 + 7)
    assert (stats.num_failed_requests, stats.num_retried_steps) == (0, 0)


def test_reset_caches_forgets_blocks_and_embeddings_but_not_those_in_use() -> None:
    engine, _ = make_engine(block_size=2)
    picture = media_item("p", 4)
    run_all(engine, [shown("a", picture, 1)])
    engine.add(shown("b", 1, 2, picture, 5))
    engine.step()
    engine.reset_caches()
    outputs: list[TokenOutput] = []
    while engine.has_work():
        outputs += engine.step()
    assert token_ids(outputs) == expected_tokens(shown("b", 1, 2, picture, 5), 8)[1:]
    engine.reset_caches()
    assert engine.scheduler.pool.num_cached == len(engine.scheduler.encoder_cache) == 0


def test_sampling_params_are_what_the_request_says() -> None:
    assert SamplingParams().max_tokens == 16, "vLLM's default"
