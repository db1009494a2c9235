"""Chat completions: what is asked of the service, and OpenAI's objects, whole and streamed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fovea.core.errors import DeadlineError, UnavailableError
from fovea.core.server_config import ServerConfig
from fovea.server.answers import ChatCompletion, ChatCompletionChunk
from tests.server.fakes import (
    MODEL,
    PROMPT_IDS,
    REPORT,
    WORDS,
    FakeService,
    chat_body,
    check_refused,
    post,
)

CHAT = "/v1/chat/completions"
TEXT = "".join(WORDS)
USAGE = {
    "prompt_tokens": 4,
    "completion_tokens": 4,
    "total_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 3, "image_tokens": 391},
}
MEDIA = {
    "original": [640, 480],
    "used": [644, 476],
    "tokens": 391,
    "token_grid": [17, 23],
    "bytes": 12345,
    "cache_hit": True,
    "fetch_s": 0.25,
    "decode_s": 0.01,
    "resize_s": 0.002,
}
STREAM: dict[str, Any] = {"stream": True}
WITH_USAGE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def test_an_answer_has_openais_shape() -> None:
    answer = post(FakeService(reports=(REPORT,)), CHAT, chat_body())
    created = answer.json["created"]
    assert isinstance(created, int)
    assert answer.json == {
        "id": "chatcmpl-req-1",
        "object": "chat.completion",
        "created": created,
        "model": MODEL,
        "system_fingerprint": None,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": TEXT, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": USAGE,
    }


def test_the_service_is_asked_for_what_the_body_says() -> None:
    service = FakeService(config=ServerConfig(isolate_api_keys=True))
    body = chat_body(
        temperature=0.5, top_p=0.9, top_k=40, min_p=0.1, seed=-1, stop=["END"], stop_token_ids=[9], ignore_eos=True,
        max_completion_tokens=7, min_tokens=2, presence_penalty=1, frequency_penalty=-1, repetition_penalty=1.5,
        logprobs=True, top_logprobs=3, prompt_logprobs=2, logit_bias={"17": -5}, bad_words=["bad"],
        allowed_token_ids=[1, 2], skip_special_tokens=False, include_stop_str_in_output=True, n=2, cache_salt="salt",
        timeout=3, chat_template_kwargs={"a": 1}, mm_processor_kwargs={"max_pixels": 5}, continue_final_message=True,
        add_special_tokens=False,
    )  # fmt: skip
    assert post(service, CHAT, body).status == 200
    ask = service.asks[0]
    params = ask.params
    assert (params.temperature, params.top_p, params.top_k, params.min_p, params.seed) == (0.5, 0.9, 40, 0.1, -1)
    assert (params.stop, params.stop_token_ids, params.ignore_eos) == (["END"], [9], True)
    assert (params.max_tokens, params.min_tokens, params.n) == (7, 2, 2)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (1, -1, 1.5)
    assert (params.logprobs, params.prompt_logprobs, params.logit_bias) == (3, 2, {17: -5})
    assert (params.bad_words, params.allowed_token_ids) == (["bad"], [1, 2])
    assert (params.skip_special_tokens, params.include_stop_str_in_output) == (False, True)
    assert (ask.salt, ask.tenant, ask.timeout_s, ask.request_id) == ("salt", "key-1", 3, "req-1")
    assert (ask.template_kwargs, ask.processor_kwargs) == ({"a": 1}, {"max_pixels": 5})
    assert (ask.add_generation_prompt, ask.continue_final_message, ask.add_special_tokens) == (False, True, False)
    assert ask.num_body_bytes == len(msgspec.json.encode(body))


def test_defaults_are_openais() -> None:
    service = FakeService()
    post(service, CHAT, chat_body())
    params = service.asks[0].params
    assert (params.temperature, params.top_p, params.n, params.max_tokens, params.logprobs) == (1.0, 1.0, 1, None, None)
    assert (service.asks[0].add_generation_prompt, service.asks[0].tenant, service.asks[0].timeout_s) == (
        True,
        "",
        None,
    )


def test_messages_go_on_as_they_came() -> None:
    service = FakeService()
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "input_text", "text": "Really."}]},
        {
            "role": "user",
            "name": "ann",
            "content": [
                {"type": "image_url", "image_url": "https://example.com/a.png", "uuid": "u", "detail": "low"},
                {"type": "image_url", "image_url": {"url": "data:,x", "detail": "high", "max_pixels": 9}},
                {"type": "input_image", "image_url": "data:,y", "min_pixels": 4},
                {"type": "text", "text": "What?"},
            ],
        },
        {"role": "assistant", "content": "A dog."},
        {"role": "tool", "content": "7", "tool_call_id": "c1"},
        {"role": "function", "content": "7", "name": "f"},
    ]
    assert post(service, CHAT, chat_body(messages=messages)).status == 200
    assert service.asks[0].messages == messages


def test_an_answer_sent_back_by_a_client_is_a_message() -> None:
    """openai-python's message.model_dump() has fields that are null or that no template knows."""
    service = FakeService()
    dumped = {
        "role": "assistant", "content": None, "refusal": None, "annotations": None, "audio": None,
        "function_call": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "not json"}}],
    }  # fmt: skip
    assert post(service, CHAT, chat_body(messages=[dumped])).status == 200
    assert service.asks[0].messages == [{"role": "assistant", "content": "", "tool_calls": dumped["tool_calls"]}]


def test_a_null_detail_is_the_default() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:,x", "detail": None}}
    service = FakeService()
    assert post(service, CHAT, chat_body(messages=[{"role": "user", "content": [part]}])).status == 200
    assert service.asks[0].messages == [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}
    ]


def test_equal_limits_by_either_name_are_fine() -> None:
    service = FakeService()
    assert post(service, CHAT, chat_body(max_tokens=5, max_completion_tokens=5)).status == 200
    assert service.asks[0].params.max_tokens == 5


def test_logprobs_have_openais_shape() -> None:
    answer = post(FakeService(), CHAT, chat_body(logprobs=True, top_logprobs=2))
    content = answer.json["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == list(WORDS)
    assert content[0] == {
        "token": "A",
        "logprob": -0.5,
        "bytes": [65],
        "top_logprobs": [
            {"token": "A", "logprob": -0.5, "bytes": [65]},
            {"token": "\u00e9", "logprob": -1.5, "bytes": [0xC3, 0xA9]},
        ],
    }


def test_minus_infinity_is_a_number_in_json() -> None:
    answer = post(FakeService(), CHAT, chat_body(logprobs=True, top_logprobs=3))
    assert answer.json["choices"][0]["logprobs"]["content"][0]["top_logprobs"][2]["logprob"] == -9999.0


def test_logprobs_without_top_logprobs_name_the_chosen_token_only() -> None:
    answer = post(FakeService(), CHAT, chat_body(logprobs=True))
    assert [entry["top_logprobs"] for entry in answer.json["choices"][0]["logprobs"]["content"]] == [[]] * 4


def test_several_choices_are_numbered() -> None:
    answer = post(FakeService(), CHAT, chat_body(n=3, stop="END"))
    assert [choice["index"] for choice in answer.json["choices"]] == [0, 1, 2]
    assert {choice["stop_reason"] for choice in answer.json["choices"]} == {"END"}
    assert answer.json["usage"]["completion_tokens"] == 12


def test_vllms_extras_are_there_when_asked_for() -> None:
    answer = post(FakeService(), CHAT, chat_body(return_token_ids=True, prompt_logprobs=1))
    assert answer.json["prompt_token_ids"] == list(PROMPT_IDS)
    assert answer.json["choices"][0]["token_ids"] == [100, 101, 102, 103]
    assert answer.json["prompt_logprobs"][0] is None
    assert answer.json["prompt_logprobs"][1]["5"] == {"logprob": -0.5, "rank": 1, "decoded_token": "<5>"}


@pytest.mark.parametrize("by_header", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_what_was_done_with_pictures_is_told_on_request(by_header: bool, stream: bool) -> None:
    headers = {"X-Fovea-Media": "1"} if by_header else {}
    body = chat_body(stream=stream, **({} if by_header else {"fovea": {"media": True}}))
    answer = post(FakeService(reports=(REPORT,)), CHAT, body, headers)
    last = answer.events[-2] if stream else answer.json
    assert last["fovea"]["media"] == [MEDIA]
    assert last["fovea"]["cached_tokens"] == 3
    assert set(last["fovea"]["timings"]) == {
        "prompt_s", "media_s", "queue_s", "encode_s", "prefill_s", "decode_s", "ttft_s", "total_s"
    }  # fmt: skip
    assert last["fovea"]["timings"]["ttft_s"] == 0.07


def test_nothing_of_it_is_told_without() -> None:
    service = FakeService(reports=(REPORT,))
    assert "fovea" not in post(service, CHAT, chat_body()).json
    assert all("fovea" not in event for event in post(service, CHAT, chat_body(**STREAM)).events)


def test_a_stream_is_the_answer_in_chunks() -> None:
    answer = post(FakeService(), CHAT, chat_body(**STREAM))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "content-length" not in answer.headers
    *chunks, done = answer.events
    assert done == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": "A"}
    assert "".join(delta["content"] for delta in deltas) == TEXT
    assert all("role" not in delta for delta in deltas[1:])
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert {(c["id"], c["object"], c["model"]) for c in chunks} == {("chatcmpl-req-1", "chat.completion.chunk", MODEL)}
    assert all(isinstance(chunk["created"], int) and "usage" not in chunk for chunk in chunks)


def test_usage_comes_in_a_chunk_without_choices() -> None:
    answer = post(FakeService(reports=(REPORT,)), CHAT, chat_body(**WITH_USAGE))
    *chunks, last, done = answer.events
    assert (last["choices"], last["usage"], done) == ([], USAGE, "[DONE]")
    assert all(chunk["usage"] is None for chunk in chunks)


def test_running_usage_counts_up_once_the_prompt_is_known() -> None:
    body = chat_body(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    *chunks, last, _ = post(FakeService(announces=True), CHAT, body).events
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 4]
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {4}
    assert last["usage"]["total_tokens"] == 8
    *chunks, last, _ = post(FakeService(), CHAT, body).events
    assert all(chunk["usage"] is None for chunk in chunks)


def test_a_stream_of_several_choices_keeps_them_apart() -> None:
    *chunks, _ = post(FakeService(), CHAT, chat_body(n=2, logprobs=True, **STREAM)).events
    for index in (0, 1):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(choice["delta"]["content"] for choice in mine) == TEXT
        assert mine[0]["delta"]["role"] == "assistant"
        assert [c["finish_reason"] for c in mine] == [None, None, None, "stop"]
        assert [c["logprobs"]["content"][0]["token"] for c in mine] == list(WORDS)


def test_streamed_token_ids_are_those_of_the_whole_answer() -> None:
    for service in (FakeService(), FakeService(announces=True)):
        *chunks, _ = post(service, CHAT, chat_body(return_token_ids=True, **STREAM)).events
        ids = [token for chunk in chunks for choice in chunk["choices"] for token in choice["token_ids"]]
        assert ids == [100, 101, 102, 103]
        assert [chunk["prompt_token_ids"] for chunk in chunks if "prompt_token_ids" in chunk] == [list(PROMPT_IDS)]


def test_a_choice_without_text_still_has_role_and_end() -> None:
    *chunks, _ = post(FakeService(words=("",)), CHAT, chat_body(**STREAM)).events
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [{"role": "assistant", "content": ""}]
    assert chunks[0]["choices"][0]["finish_reason"] == "stop"


def test_deltas_that_say_nothing_are_not_sent() -> None:
    *chunks, _ = post(FakeService(words=("a", "", "", "b")), CHAT, chat_body(**STREAM)).events
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["a", "b"]


def test_text_with_line_separators_stays_one_line() -> None:
    words = ("a\u2028b", "\u2029", "\x85", "\r\n", "\u00e9\U0001f600")
    answer = post(FakeService(words=words), CHAT, chat_body(logprobs=True, **STREAM))
    assert all(len(block.splitlines()) == 1 for block in answer.body.decode().strip().split("\n\n"))
    assert "".join(c["choices"][0]["delta"]["content"] for c in answer.events[:-1]) == "".join(words)


def test_answers_and_chunks_match_the_structs_that_describe_them() -> None:
    """The structs make the OpenAPI document; chunks are written by hand beside them."""
    service = FakeService(reports=(REPORT,), announces=True)
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 1, "return_token_ids": True, "fovea": {"media": True}}
    msgspec.convert(post(service, CHAT, chat_body(prompt_logprobs=1, **fields)).json, ChatCompletion)
    options = {"include_usage": True, "continuous_usage_stats": True}
    for body in (chat_body(**STREAM), chat_body(stream=True, stream_options=options, **fields)):
        for event in post(service, CHAT, body).events[:-1]:
            msgspec.convert(event, ChatCompletionChunk, strict=True)
            allowed = {*ChatCompletionChunk.__struct_fields__}
            assert set(event) <= allowed


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UnavailableError("Full.", retry_after_s=7), 503, "queue_full"),
        (DeadlineError("Too slow."), 504, "deadline_exceeded"),
        (ZeroDivisionError("secret"), 500, "internal_error"),
    ],
)
def test_errors_before_the_first_token_have_a_status(
    error: Exception, status: int, code: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = FakeService(before=error)
    try:
        answer = post(service, CHAT, chat_body(stream=stream))
    except ZeroDivisionError:  # the framework answers, then raises again for whoever runs it
        return
    check_refused(answer, code, status=status)
    assert answer.headers.get("retry-after") == ("7" if status == 503 else None)
    assert service.opened == service.closed == 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reason", ["abort", "error", None])
def test_an_answer_that_did_not_end_well_is_an_error(reason: str | None, stream: bool) -> None:
    answer = post(FakeService(finish_reason=reason, words=("a",)), CHAT, chat_body(stream=stream))
    if reason is None and stream:
        assert answer.events[-1]["error"]["code"] == "internal_error"
    else:
        check_refused(answer, "internal_error", status=500)


@pytest.mark.parametrize("stream", [True, False])
def test_finished_answers_are_observed_once(stream: bool) -> None:
    service = FakeService()
    post(service, CHAT, chat_body(stream=stream))
    assert [output.request_id for output in service.metrics.observed] == ["req-1"]
