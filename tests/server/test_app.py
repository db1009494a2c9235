"""The app as a whole: its table of routes, its pages, and the unmodified OpenAI client against it over a socket."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from fovea.core.errors import UnavailableError
from fovea.core.server_config import ServerConfig
from fovea.server import pages
from fovea.server.app import build_app, endpoints
from fovea.server.edge import wrap
from fovea.server.http import Serve
from fovea.server.metrics import Metrics
from tests.server.fakes import MODEL, REPORT, WORDS, FakeService, check_refused, get, post

TEXT = "".join(WORDS)
KEY = "secret-key"
LOADED = re.compile(r"""(?:src|href)="(/[^"#]*)["#]|\bfetch\("(/[^"]*)"\)""")


@pytest.mark.parametrize(
    "path", ["/nope", "/v1", "/v1/chat", "/v1/models/x/../y", "//v1/models", "/V1/MODELS", "/v1/chat/completions/"]
)
def test_what_is_not_in_the_table_is_not_found(path: str) -> None:
    answer = get(FakeService(), path)
    assert answer.status == 404
    assert answer.error["code"] in ("not_found", "model_not_found")


def test_paths_differ_by_a_slash_at_their_end() -> None:
    assert get(FakeService(), "/v1/models/").status == 404
    assert get(FakeService(), "/health/").status == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "TRACE", "FOO", "GET"])
def test_other_methods_are_refused_with_those_allowed(method: str) -> None:
    answer = get(FakeService(), "/v1/chat/completions", method=method)
    check_refused(answer, "method_not_allowed", status=405)
    assert answer.headers["allow"] == "POST"


def test_every_get_route_answers_head() -> None:
    service = FakeService()
    for one in endpoints(service, service.metrics):
        if one.method == "GET":
            path = one.path.replace("{model:path}", MODEL)
            assert get(service, path, method="HEAD").status == get(service, path).status == 200


def test_no_accept_header_is_ever_needed() -> None:
    assert get(FakeService(), "/v1/models", {"accept": "image/png"}).status == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
def test_only_json_is_read(path: str) -> None:
    answer = post(FakeService(), path, b"model=x", {"content-type": "application/x-www-form-urlencoded"})
    check_refused(answer, "unsupported_media_type", status=415)
    check_refused(post(FakeService(), path, b"hello"), "invalid_json")


def test_pages_load_nothing_from_elsewhere_and_all_they_name_is_there() -> None:
    service = FakeService()
    served = pages.load_pages()
    for path in ("/", "/docs"):
        answer = get(service, path)
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        for match in LOADED.finditer(answer.body.decode()):
            named = match[1] or match[2]
            assert named in served or get(service, named).status == 200, named
    for path in served:
        body = get(service, path).body.decode()
        assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", body), path
        assert not re.search(r"<script(?![^>]*src=)|<style|\son[a-z]+=\"|\bstyle=\"", body), path


def test_pages_are_asked_about_again_and_not_sent_twice() -> None:
    first = get(FakeService(), "/docs/docs.js")
    assert first.headers["cache-control"] == "no-cache"
    again = get(FakeService(), "/docs/docs.js", {"if-none-match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


def test_no_other_file_is_served() -> None:
    for path in (
        "/playground/",
        "/playground/../app.py",
        "/playground/..%2fapp.py",
        "/docs/docs.html",
        "/static/docs.js",
    ):
        assert get(FakeService(), path).status == 404
    assert set(pages.load_pages()) <= {"/", "/docs"} | {
        f"/{folder}/{path.name}"
        for folder, source in (("playground", "playground"), ("docs", "static"))
        for path in (Path(pages.HERE) / source).iterdir()
    }


def test_without_the_playground_there_are_no_pages() -> None:
    service = FakeService(config=ServerConfig(playground=False))
    assert {get(service, path).status for path in ("/", "/docs", "/playground/app.js", "/docs/docs.js")} == {404}
    assert get(service, "/openapi.json").status == 200


@contextmanager
def live(service: FakeService) -> Iterator[str]:
    """The address of a server on loopback, with everything real but the service."""
    config = service.config
    metrics = Metrics(config, MODEL)
    server = Serve(wrap(build_app(service, config, metrics), config, metrics), config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    for _ in range(500):
        if server.is_listening:
            break
        threading.Event().wait(0.01)
    try:
        yield f"http://127.0.0.1:{server.port}/v1"
    finally:
        server.stop()
        thread.join(10)
        assert not thread.is_alive()


def config(**options: Any) -> ServerConfig:
    return ServerConfig(port=0, api_key=(KEY,), **options)


def client(url: str, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=10)


MESSAGES: Any = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
        ],
    }
]


def test_the_openai_client_chats_and_completes() -> None:
    service = FakeService(config=config(), reports=(REPORT,))
    with live(service) as url, client(url) as api:
        chat = api.chat.completions.create(
            model=MODEL, messages=MESSAGES, n=2, logprobs=True, top_logprobs=1, extra_body={"top_k": 5}
        )
        assert [choice.message.content for choice in chat.choices] == [TEXT, TEXT]
        assert chat.choices[0].logprobs is not None
        assert chat.choices[0].logprobs.content is not None
        assert chat.choices[0].logprobs.content[0].top_logprobs[0].token == "A"
        assert chat.usage is not None
        assert chat.usage.prompt_tokens_details is not None
        assert chat.usage.prompt_tokens_details.model_dump()["image_tokens"] == 391
        assert service.asks[0].params.top_k == 5
        text = api.completions.create(model=MODEL, prompt=["a", "b"], logprobs=1, echo=True)
        assert [choice.text for choice in text.choices] == ["a" + TEXT, "b" + TEXT]
        assert [model.id for model in api.models.list()] == [MODEL, "org/name"]
        assert api.models.retrieve("org/name").id == "org/name"


def test_the_openai_client_streams() -> None:
    with live(FakeService(config=config(), reports=(REPORT,))) as url, client(url) as api:
        stream = api.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True},
            extra_body={"fovea": {"media": True}},
        )  # fmt: skip
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].model_dump()["fovea"]["media"][0]["tokens"] == 391
        texts = [c.choices[0].text for c in api.completions.create(model=MODEL, prompt="a", stream=True)]
        assert "".join(texts) == TEXT
        with api.chat.completions.stream(model=MODEL, messages=MESSAGES) as events:
            assert events.get_final_completion().choices[0].message.content == TEXT


def test_the_asynchronous_openai_client_does_too() -> None:
    async def run(url: str) -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=10) as api:
            answers = await asyncio.gather(
                *(api.chat.completions.create(model=MODEL, messages=MESSAGES) for _ in range(8))
            )
            assert {answer.choices[0].message.content for answer in answers} == {TEXT}
            text = ""
            async for chunk in await api.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True):
                text += chunk.choices[0].delta.content or ""
            assert text == TEXT

    with live(FakeService(config=config())) as url:
        asyncio.run(run(url))


def test_the_openai_client_raises_its_own_errors() -> None:
    service = FakeService(config=config())
    with live(service) as url, client(url) as api:
        with pytest.raises(openai.BadRequestError) as bad:
            api.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=3)
        assert (bad.value.code, bad.value.param, bad.value.type) == (
            "above_max_value", "temperature", "invalid_request_error"
        )  # fmt: skip
        with pytest.raises(openai.NotFoundError) as missing:
            api.chat.completions.create(model="gpt-4o", messages=MESSAGES)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.AuthenticationError):
            client(url, "wrong").models.list()
        service.before = UnavailableError("Full.", retry_after_s=3)
        for stream in (True, False):
            with pytest.raises(openai.APIStatusError) as full:
                api.chat.completions.create(model=MODEL, messages=MESSAGES, stream=stream)
            assert (full.value.status_code, full.value.code) == (503, "queue_full")
            assert full.value.response.headers["retry-after"] == "3"


@pytest.mark.parametrize("stream", [True, False])
def test_a_bug_is_an_internal_error_and_logged_once(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    service = FakeService(config=config(), before=ZeroDivisionError("secret"))
    logging.getLogger("fovea").propagate = True
    with live(service) as url, client(url) as api, pytest.raises(openai.InternalServerError) as bug:
        api.chat.completions.create(model=MODEL, messages=MESSAGES, stream=stream)
    assert bug.value.code == "internal_error"
    assert "secret" not in bug.value.message
    assert sum("failed" in record.getMessage() for record in caplog.records) == 1


def test_an_error_in_mid_stream_is_raised_by_the_openai_client() -> None:
    service = FakeService(config=config(), midway=UnavailableError("The engine died.", code="engine_dead"))
    with live(service) as url, client(url) as api:
        stream = api.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="The engine died"):
            list(stream)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_ends_its_request(stream: bool) -> None:
    service = FakeService(config=config(), words=("x",) * 1_000_000, delay_s=0.01)
    with live(service) as url:
        api = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=10 if stream else 0.3)
        if stream:
            answer = api.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
            next(iter(answer))
            answer.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                api.chat.completions.create(model=MODEL, messages=MESSAGES)
        for _ in range(500):
            if service.closed:
                break
            threading.Event().wait(0.01)
        assert (service.opened, service.closed) == (1, 1)
