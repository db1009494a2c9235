"""A service without an engine, and a client that speaks ASGI to an app in the same loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec
from starlette.types import ASGIApp

from fovea.core.server_config import ServerConfig
from fovea.core.types import (
    CompletionOutput,
    Delta,
    Logprob,
    MediaReport,
    MediaSpan,
    RequestMetrics,
    RequestOutput,
    TokenLogprobs,
)
from fovea.pipeline.preparer import Counted
from fovea.server.admission import Admission, Reading
from fovea.server.app import build_app
from fovea.server.ask import Ask, ServiceStatus

MODEL = "fovea-tiny"
WORDS = ("A", " red", " square", ".")
REPORT = MediaReport(
    original_width_px=640,
    original_height_px=480,
    width_px=644,
    height_px=476,
    num_tokens=391,
    token_rows=17,
    token_columns=23,
    num_bytes=12345,
    fetch_s=0.25,
    decode_s=0.01,
    resize_s=0.002,
    cache_hit=True,
)
TIMINGS = RequestMetrics(
    prompt_s=0.001,
    media_s=0.02,
    queue_s=0.003,
    encode_s=0.04,
    prefill_s=0.05,
    decode_s=0.06,
    ttft_s=0.07,
    total_s=0.13,
    num_preemptions=0,
)
PROMPT_IDS = (1, 5, 6, 7)


def logprobs_of(token_id: int, text: str) -> TokenLogprobs:
    return {
        token_id: Logprob(-0.5, 1, text),
        901: Logprob(-1.5, 2, "\u00e9"),
        902: Logprob(float("-inf"), 3, "z"),
    }


@dataclass
class FakeService:
    """Answers every prompt with `words`, one delta for each; keeps what it was asked.

    before, midway: what to raise before the first token, or after the second. hang: never give a token. opened, closed:
    how many answers began and how many of them came to an end, of whatever kind.
    """

    config: ServerConfig = field(default_factory=ServerConfig)
    model_names: tuple[str, ...] = (MODEL, "org/name")
    max_model_len: int = 4096
    created: int = 1_700_000_000
    status: ServiceStatus = "ready"
    is_live: bool = True
    words: Sequence[str] = WORDS
    before: Exception | None = None
    midway: Exception | None = None
    hang: bool = False
    announces: bool = False
    delay_s: float = 0.0
    finish_reason: Any = "stop"
    reports: tuple[MediaReport, ...] = ()
    asks: list[Ask] = field(default_factory=list)
    metrics: FakeMetrics = field(default_factory=lambda: FakeMetrics())
    opened: int = 0
    closed: int = 0

    @property
    def model_path(self) -> Literal["fused"]:
        return "fused"

    @property
    def max_images(self) -> int:
        return self.config.image_limit()

    @property
    def max_videos(self) -> int:
        return self.config.video_limit()

    def reading(self) -> Reading:
        return Admission(self.config).reading()

    async def answer(self, ask: Ask) -> RequestOutput:
        async for item in self.stream(ask):
            if isinstance(item, RequestOutput) and item.finished:
                return item
        raise AssertionError

    async def stream(self, ask: Ask) -> AsyncGenerator[Delta | RequestOutput, None]:
        self.asks.append(ask)
        self.opened += 1
        try:
            if self.before is not None:
                raise self.before
            if self.announces:
                yield replace(self._output(ask), outputs=[], finished=False)
            if self.hang:
                await asyncio.Event().wait()
            for i, word in enumerate(self.words):
                if i == 2 and self.midway is not None:
                    raise self.midway
                await asyncio.sleep(self.delay_s)
                for index in range(ask.params.n):
                    yield self._delta(ask, index, i, word)
            yield self._output(ask)
        finally:
            self.closed += 1

    async def count(self, ask: Ask) -> Counted:
        self.asks.append(ask)
        if self.before is not None:
            raise self.before
        return Counted((1, 2, 3, 4), (MediaSpan(1, 2),) if self.reports else (), self.reports)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return "".join(f"<{token_id}>" for token_id in token_ids)

    def _delta(self, ask: Ask, index: int, i: int, word: str) -> Delta:
        last = i == len(self.words) - 1
        return Delta(
            index=index,
            text=word,
            token_ids=(100 + i,),
            logprobs=None if ask.params.logprobs is None else [logprobs_of(100 + i, word)],
            finish_reason=self.finish_reason if last else None,
            stop_reason="END" if last and ask.params.stop else None,
        )

    def _output(self, ask: Ask) -> RequestOutput:
        prompt_ids = ask.prompt if isinstance(ask.prompt, tuple) else PROMPT_IDS
        wants_prompt = ask.params.prompt_logprobs is not None
        ids = tuple(100 + i for i in range(len(self.words)))
        return RequestOutput(
            request_id=ask.request_id,
            prompt=ask.prompt if isinstance(ask.prompt, str) else None,
            prompt_token_ids=prompt_ids,
            outputs=[
                CompletionOutput(
                    index=i,
                    text="".join(self.words),
                    token_ids=ids,
                    logprobs=None
                    if ask.params.logprobs is None
                    else [logprobs_of(t, w) for t, w in zip(ids, self.words, strict=True)],
                    finish_reason=self.finish_reason,
                    stop_reason="END" if ask.params.stop else None,
                )
                for i in range(ask.params.n)
            ],
            finished=True,
            prompt_logprobs=[None, *(logprobs_of(t, f"<{t}>") for t in prompt_ids[1:])] if wants_prompt else None,
            num_cached_tokens=3,
            media=self.reports,
            metrics=TIMINGS,
        )


@dataclass
class FakeMetrics:
    observed: list[RequestOutput] = field(default_factory=list)

    def observe(self, output: RequestOutput) -> None:
        self.observed.append(output)

    def render(self) -> bytes:
        return b"fovea:up 1\n"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    @property
    def events(self) -> list[Any]:
        """The data of the events; [DONE] stays text."""
        found = []
        for block in self.body.decode().split("\n\n"):
            if block.startswith("data: "):
                data = block.removeprefix("data: ")
                assert "\n" not in data
                found.append(data if data == "[DONE]" else msgspec.json.decode(data))
        return found


def app_of(service: FakeService) -> ASGIApp:
    return build_app(service, service.config, service.metrics)


def post(service: FakeService, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return asyncio.run(
        request(app_of(service), "POST", path, data, {"content-type": "application/json", **(headers or {})})
    )


def get(service: FakeService, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Answer:
    return asyncio.run(request(app_of(service), method, path, b"", headers or {}))


async def request(
    app: ASGIApp,
    method: str,
    path: str,
    data: bytes,
    headers: Mapping[str, str],
    *,
    gone: asyncio.Event | None = None,
    on_body: Callable[[bytes], None] = lambda data: None,
    timeout_s: float = 10.0,
) -> Answer:
    """One request. The client leaves when `gone` is set; `on_body` sees each piece of the answer."""
    gone = gone or asyncio.Event()
    to_send = [{"type": "http.request", "body": data, "more_body": False}]
    status, sent_headers, pieces, ended = 0, {}, [], False

    async def receive() -> dict[str, Any]:
        if to_send:
            return to_send.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status, sent_headers, ended
        assert not ended, "nothing may follow the end of an answer"
        if message["type"] == "http.response.start":
            assert status == 0, "an answer has one head"
            status = message["status"]
            sent_headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in message["headers"]}
        else:
            assert status, "the head comes first"
            pieces.append(message.get("body", b""))
            ended = not message.get("more_body", False)
            on_body(pieces[-1])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path.partition("?")[0],
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
        "state": {"request_id": "req-1", "tenant": "key-1"},
    }
    async with asyncio.timeout(timeout_s):
        await app(scope, receive, send)
    assert ended or gone.is_set()
    return Answer(status, sent_headers, b"".join(pieces))


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], **fields}


def check_refused(answer: Answer, code: str, param: str | None = None, status: int = 400) -> None:
    assert (answer.status, answer.error["code"]) == (status, code), answer.body
    assert param is None or answer.error["param"] == param, answer.body
    assert len(answer.body) <= 4096
