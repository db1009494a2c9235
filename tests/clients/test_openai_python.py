"""The unmodified openai package against a running server: right answers, and errors as its exceptions."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from fovea.cli.pictures import Ask
from tests.clients.support import ASK, ASKS, KEY, MAX_BODY_BYTES, MODEL, NUM_RUNNING, messages, name_of
from tests.server_process import ServerProcess

GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0}
ENDLESS: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hello"}],
    "max_completion_tokens": 3000,
    "extra_body": {"ignore_eos": True},
}


@pytest.fixture
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


@pytest.mark.parametrize("ask", ASKS, ids=name_of)
def test_answers_are_right(ask: Ask, client: OpenAI) -> None:
    answer = client.chat.completions.create(messages=messages(ask), **GREEDY)
    assert answer.choices[0].message.content == ask.answer
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.object, answer.model) == ("chat.completion", MODEL)


@pytest.mark.parametrize("ask", ASKS, ids=name_of)
def test_streams_say_the_same_in_pieces(ask: Ask, client: OpenAI) -> None:
    options: Any = {"stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(messages=messages(ask), stream=True, **options, **GREEDY))
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == ask.answer
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    usage = chunks[-1].usage
    assert chunks[-1].choices == []
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_async_client_asks_all_at_once(server: ServerProcess) -> None:
    """More than are let in at a time, so some are refused and come again by themselves."""

    async def ask_all() -> list[str | None]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=30, timeout=120) as client:
            answers = await asyncio.gather(
                *(client.chat.completions.create(messages=messages(ask), **GREEDY) for ask in ASKS)
            )
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(ask_all()) == [ask.answer for ask in ASKS]


def test_the_async_client_streams(server: ServerProcess) -> None:
    async def stream() -> str:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, timeout=120) as client:
            chunks = await client.chat.completions.create(messages=messages(ASK), stream=True, **GREEDY)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    assert asyncio.run(stream()) == ASK.answer


def test_the_stream_helper_puts_the_answer_together(client: OpenAI) -> None:
    with client.chat.completions.stream(messages=messages(ASK), **GREEDY) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == ASK.answer
    assert kinds[-1] == "content.done"


def test_a_picture_by_url_is_fetched(client: OpenAI, pictures_url: str) -> None:
    parts = [{"type": "image_url", "image_url": {"url": f"{pictures_url}/{name}"}} for name in ASK.names]
    chat: Any = [{"role": "user", "content": [*parts, {"type": "text", "text": ASK.question}]}]
    assert client.chat.completions.create(messages=chat, **GREEDY).choices[0].message.content == ASK.answer


def test_usage_counts_pictures_and_what_was_cached(client: OpenAI) -> None:
    first = client.chat.completions.create(messages=messages(ASK), **GREEDY).usage
    again = client.chat.completions.create(messages=messages(ASK), **GREEDY).usage
    assert first is not None
    assert again is not None
    assert first.prompt_tokens_details is not None
    assert again.prompt_tokens_details is not None
    assert 0 < (again.prompt_tokens_details.image_tokens or 0) < again.prompt_tokens
    assert first.prompt_tokens_details.image_tokens == again.prompt_tokens_details.image_tokens
    assert 0 < (again.prompt_tokens_details.cached_tokens or 0) < again.prompt_tokens
    assert again.total_tokens == again.prompt_tokens + again.completion_tokens


def test_detail_low_costs_fewer_tokens(client: OpenAI) -> None:
    def image_tokens(detail: str) -> int:
        usage = client.chat.completions.create(messages=messages(ASK, detail=detail), **GREEDY).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.image_tokens or 0

    assert 0 < image_tokens("low") <= image_tokens("high")
    assert image_tokens("auto") > 0


def test_our_own_facts_pass_through(client: OpenAI) -> None:
    answer = client.chat.completions.create(messages=messages(ASK), extra_body={"fovea": {"media": True}}, **GREEDY)
    facts = (answer.model_extra or {})["fovea"]
    assert len(facts["media"]) == 1
    assert facts["media"][0]["tokens"] > 0
    assert set(facts["timings"]) >= {"ttft_s", "encode_s", "total_s"}


def test_sampling_options_mean_what_they_say(client: OpenAI) -> None:
    chat = messages(ASK)
    several = client.chat.completions.create(model=MODEL, messages=chat, n=3, temperature=0.8, seed=7)
    again = client.chat.completions.create(model=MODEL, messages=chat, n=3, temperature=0.8, seed=7)
    assert [c.index for c in several.choices] == [0, 1, 2]
    assert [c.message.content for c in several.choices] == [c.message.content for c in again.choices]
    short = client.chat.completions.create(messages=chat, max_completion_tokens=2, **GREEDY).choices[0]
    assert short.finish_reason == "length"
    stopped = client.chat.completions.create(messages=chat, stop=[" circle"], **GREEDY).choices[0]
    assert stopped.message.content == ASK.answer.partition(" circle")[0]
    logged = client.chat.completions.create(messages=chat, logprobs=True, top_logprobs=2, **GREEDY).choices[0].logprobs
    assert logged is not None
    assert logged.content is not None
    assert "".join(token.token for token in logged.content).startswith(ASK.answer)
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in logged.content)


def test_completions_take_plain_prompts(client: OpenAI) -> None:
    prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    answer = client.completions.create(prompt=prompt, max_tokens=8, **GREEDY)
    assert answer.object == "text_completion"
    pieces = client.completions.create(prompt=prompt, max_tokens=8, stream=True, **GREEDY)
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text
    assert answer.usage is not None


def test_models_are_listed_and_described(client: OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == [MODEL]
    one = client.models.retrieve(MODEL)
    assert (one.object, one.created) == ("model", models[0].created)
    assert (one.model_extra or {})["max_model_len"] > 0


def error_of(caught: pytest.ExceptionInfo[openai.APIStatusError]) -> dict[str, Any]:
    """The body's `error`, after what all of them have in common was checked."""
    error = caught.value
    assert isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}
    assert error.code == error.body["code"]
    assert error.request_id
    return error.body


def test_a_wrong_key_is_an_authentication_error(client: OpenAI) -> None:
    for key in ("sk-wrong", KEY + "x", KEY[:-1]):
        with pytest.raises(openai.AuthenticationError) as caught:
            client.with_options(api_key=key).chat.completions.create(messages=messages(ASK), **GREEDY)
        assert error_of(caught)["code"] == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key=key).models.list()


def test_an_unknown_model_or_path_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=messages(ASK))
    assert error_of(caught)["code"] == "model_not_found"
    assert error_of(caught)["param"] == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9")
    assert error_of(caught)["code"] == "model_not_found"
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model=MODEL, input="text")
    assert error_of(caught)["code"] == "not_found"


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"temperature": 3}, "temperature", "above_max_value"),
        ({"n": 1000}, "n", "above_max_value"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "below_min_value"),
        ({"messages": []}, "messages", None),
        ({"messages": [{"role": "user", "content": [{"type": "audio_url"}]}]}, "messages.0.content.0.type", None),
        ({"messages": [{"role": "user", "content": "word " * 20_000}]}, None, "context_length_exceeded"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", None),
        ({"response_format": {"type": "json_object"}}, "response_format", None),
    ],
)
def test_what_cannot_be_done_is_a_bad_request(
    options: dict[str, Any], param: str | None, code: str | None, client: OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"messages": messages(ASK), **GREEDY, **options})
    error = error_of(caught)
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param
    assert code is None or error["code"] == code


@pytest.mark.parametrize(
    "url", ["data:image/png;base64,AAAA", "http://10.0.0.1/x.png", "file:///etc/passwd", "ftp://127.0.0.1/x.png"]
)
def test_bad_pictures_are_bad_requests_that_name_the_part(url: str, client: OpenAI) -> None:
    chat: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(messages=chat, **GREEDY)
    assert error_of(caught)["param"].startswith("messages.0.content.0")


def test_a_body_that_is_too_large_is_413(client: OpenAI) -> None:
    chat: Any = [{"role": "user", "content": "x" * (MAX_BODY_BYTES + 1)}]
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(messages=chat, **GREEDY)
    assert caught.value.status_code == 413
    assert error_of(caught)["code"] == "content_too_large"


def test_errors_before_a_stream_are_errors_and_not_streams(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(messages=messages(ASK), model=MODEL, temperature=3, stream=True)
    assert error_of(caught)["param"] == "temperature"


def test_raw_responses_carry_the_request_id(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        messages=messages(ASK), extra_headers={"X-Request-Id": "mine-1"}, **GREEDY
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.headers["content-type"].startswith("application/json")
    assert raw.parse().choices[0].message.content == ASK.answer
    with client.chat.completions.with_streaming_response.create(
        messages=messages(ASK), stream=True, **GREEDY
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"


def test_a_timeout_is_the_clients_and_the_server_goes_on(client: OpenAI) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).chat.completions.create(**ENDLESS)
    assert client.chat.completions.create(messages=messages(ASK), **GREEDY).choices[0].message.content == ASK.answer


@contextlib.contextmanager
def full_house(client: OpenAI) -> Iterator[Any]:
    """As many endless streams as the server lets in. Yields the first; the others end with it or with the block."""
    with contextlib.ExitStack() as streams:
        opened = [streams.enter_context(refusable(client)) for _ in range(NUM_RUNNING)]
        yield opened[0]


def refusable(client: OpenAI) -> Any:
    """A stream, waiting a while where seats of earlier tests are still being given back."""
    for _ in range(100):
        try:
            return client.chat.completions.create(stream=True, **ENDLESS)
        except openai.InternalServerError:
            time.sleep(0.1)
    return client.chat.completions.create(stream=True, **ENDLESS)


def test_a_full_server_says_503_and_when_to_come_again(client: OpenAI) -> None:
    with full_house(client), pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(messages=messages(ASK), **GREEDY)
    assert caught.value.status_code == 503
    assert error_of(caught)["code"] == "queue_full"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30


def test_the_client_comes_again_after_the_time_it_was_told(client: OpenAI) -> None:
    """Nothing is retried by the test: the package waits as Retry-After says, and then is answered."""
    with full_house(client) as first:
        waited = []
        patient = client.with_options(max_retries=20)
        hooks = {"response": [lambda response: waited.append((response.status_code, time.monotonic()))]}
        with openai.DefaultHttpxClient(event_hooks=hooks) as http:
            task = patient.with_options(http_client=http).chat.completions.with_raw_response
            threading.Timer(1.5, first.close).start()
            raw = task.create(messages=messages(ASK), **GREEDY)
    assert raw.parse().choices[0].message.content == ASK.answer
    assert raw.retries_taken >= 1
    assert [status for status, _ in waited] == [503] * raw.retries_taken + [200]
    assert waited[1][1] - waited[0][1] >= 1
