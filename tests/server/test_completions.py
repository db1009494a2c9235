"""Text completions: one prompt or many, texts or token ids, echo, and OpenAI's older shape of log-probabilities."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fovea.core.errors import UnavailableError
from fovea.server.answers import TextCompletion, TextCompletionChunk
from tests.server.fakes import MODEL, WORDS, FakeService, check_refused, post

PATH = "/v1/completions"
TEXT = "".join(WORDS)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "Say: ", **fields}


def test_an_answer_has_openais_shape() -> None:
    service = FakeService()
    answer = post(service, PATH, body())
    assert answer.json == {
        "id": "cmpl-req-1",
        "object": "text_completion",
        "created": answer.json["created"],
        "model": MODEL,
        "system_fingerprint": None,
        "choices": [{"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "stop", "stop_reason": None}],
        "usage": {
            "prompt_tokens": 4,
            "completion_tokens": 4,
            "total_tokens": 8,
            "prompt_tokens_details": {"cached_tokens": 3, "image_tokens": 0},
        },
    }
    assert (service.asks[0].prompt, service.asks[0].params.max_tokens) == ("Say: ", 16)


PROMPTS: list[tuple[Any, list[Any]]] = [
    ("one", ["one"]),
    (["one"], ["one"]),
    (["one", "two"], ["one", "two"]),
    ([1, 2, 3], [(1, 2, 3)]),
    ([[1, 2], [3]], [(1, 2), (3,)]),
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("prompt", "asked"), PROMPTS, ids=str)
def test_every_form_of_prompt_is_asked_for(prompt: Any, asked: list[Any], stream: bool) -> None:
    service = FakeService()
    answer = post(service, PATH, body(prompt=prompt, n=2, stream=stream))
    assert answer.status == 200
    assert sorted(map(str, (ask.prompt for ask in service.asks))) == sorted(map(str, asked))
    assert len({ask.request_id for ask in service.asks}) == len(asked)
    chunks = answer.events[:-1] if stream else [answer.json]
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert texts == dict.fromkeys(range(2 * len(asked)), TEXT)


BAD_PROMPTS: list[tuple[Any, str]] = [
    (None, "invalid_type"),
    (5, "invalid_type"),
    ([], "invalid_value"),
    ([[]], "invalid_value"),
    (["x"] * 65, "array_too_long"),
    ([[1]] * 65, "array_too_long"),
    (["x", 1], "invalid_type"),
    (["x", [1]], "invalid_type"),
    ([1, [1]], "invalid_type"),
    ([True], "invalid_type"),
    ([-1], "below_min_value"),
    ([2**63], "above_max_value"),
    ([[[1]]], "invalid_type"),
]


@pytest.mark.parametrize(("prompt", "code"), BAD_PROMPTS, ids=lambda v: str(v)[:30])
def test_bad_prompts_are_refused(prompt: Any, code: str) -> None:
    answer = post(FakeService(), PATH, body(prompt=prompt))
    check_refused(answer, code)
    assert answer.error["param"].startswith("prompt")


def test_64_prompts_are_served() -> None:
    answer = post(FakeService(), PATH, body(prompt=["x"] * 64))
    assert [choice["index"] for choice in answer.json["choices"]] == list(range(64))


@pytest.mark.parametrize("prompt", ["Say: ", [7, 8, 9]])
@pytest.mark.parametrize("stream", [True, False])
def test_echo_puts_the_prompt_first(prompt: Any, stream: bool) -> None:
    answer = post(FakeService(), PATH, body(prompt=prompt, echo=True, n=2, stream=stream))
    shown = prompt if isinstance(prompt, str) else "<7><8><9>"
    texts = {0: "", 1: ""}
    for chunk in answer.events[:-1] if stream else [answer.json]:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == {0: shown + TEXT, 1: shown + TEXT}


def test_logprobs_have_openais_older_shape() -> None:
    logprobs = post(FakeService(), PATH, body(logprobs=1)).json["choices"][0]["logprobs"]
    assert logprobs["tokens"] == list(WORDS)
    assert logprobs["token_logprobs"] == [-0.5] * 4
    assert logprobs["top_logprobs"][0] == {"A": -0.5, "\u00e9": -1.5, "z": -9999.0}
    assert logprobs["text_offset"] == [0, 1, 5, 12]


def test_streamed_logprobs_are_those_of_the_whole_answer() -> None:
    whole = post(FakeService(), PATH, body(logprobs=1)).json["choices"][0]["logprobs"]
    parts = [c["choices"][0]["logprobs"] for c in post(FakeService(), PATH, body(logprobs=1, stream=True)).events[:-1]]
    assert {key: [item for part in parts for item in part[key]] for key in whole} == whole


def test_the_prompts_own_logprobs_come_with_echo() -> None:
    service = FakeService()
    answer = post(service, PATH, body(prompt=[7, 8, 9], echo=True, logprobs=1, max_tokens=1))
    logprobs = answer.json["choices"][0]["logprobs"]
    assert service.asks[0].params.prompt_logprobs == 1
    assert logprobs["tokens"] == ["<7>", "<8>", "<9>", *WORDS]
    assert logprobs["token_logprobs"] == [None, -0.5, -0.5, -0.5, -0.5, -0.5, -0.5]
    assert logprobs["text_offset"][:4] == [0, 3, 6, 9]


def test_no_tokens_with_echo_shows_the_prompt_only() -> None:
    service = FakeService(words=("A",))
    answer = post(service, PATH, body(prompt=[7, 8], echo=True, logprobs=0, max_tokens=0))
    choice = answer.json["choices"][0]
    assert service.asks[0].params.max_tokens == 1
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]["tokens"]) == (
        "<7><8>",
        "length",
        ["<7>", "<8>"],
    )
    assert answer.json["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("fields", [{}, {"echo": True, "stream": True}])
def test_no_tokens_are_refused_otherwise(fields: dict[str, Any]) -> None:
    check_refused(post(FakeService(), PATH, body(max_tokens=0, **fields)), "below_min_value", "max_tokens")


def test_prompt_logprobs_and_streaming_exclude_each_other() -> None:
    answer = post(FakeService(), PATH, body(echo=True, logprobs=1, stream=True))
    check_refused(answer, "unsupported_combination", "stream")


def test_usage_of_a_stream_is_that_of_all_prompts() -> None:
    answer = post(FakeService(), PATH, body(prompt=["a", "b"], stream=True, stream_options={"include_usage": True}))
    last = answer.events[-2]
    assert (last["choices"], last["usage"]["completion_tokens"], last["usage"]["prompt_tokens"]) == ([], 8, 8)


@pytest.mark.parametrize("stream", [True, False])
def test_one_prompt_that_fails_ends_all(stream: bool) -> None:
    service = FakeService(midway=UnavailableError("Gone.", code="engine_dead"))
    answer = post(service, PATH, body(prompt=["a", "b", "c"], stream=stream))
    error = answer.events[-1]["error"] if stream else answer.error
    assert error["code"] == "engine_dead"
    assert service.opened == service.closed


def test_a_prompts_media_facts_are_for_one_prompt() -> None:
    answer = post(FakeService(), PATH, body(prompt=["a", "b"], fovea={"media": True}))
    check_refused(answer, "unsupported_combination", "fovea")
    assert "fovea" in post(FakeService(), PATH, body(fovea={"media": True})).json


def test_answers_and_chunks_match_the_structs_that_describe_them() -> None:
    fields = {"logprobs": 1, "return_token_ids": True, "fovea": {"media": True}}
    msgspec.convert(post(FakeService(), PATH, body(echo=True, **fields)).json, TextCompletion)
    options = {"include_usage": True, "continuous_usage_stats": True}
    service = FakeService(announces=True)
    for event in post(service, PATH, body(stream=True, stream_options=options, **fields)).events[:-1]:
        msgspec.convert(event, TextCompletionChunk)
        assert set(event) <= {*TextCompletionChunk.__struct_fields__}
