"""The way of a request through the server: a seat, its pictures, tokens from the engine, an answer.

admit     refused here if the server is full, before anything is paid for
fetch     web pictures, all at once, by media.fetch
prepare   template, tokens, decoding: in a worker process that can be killed
run       the engine's process; tokens are collected here
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fovea.core.errors import DeadlineError, MediaError, MediaLimitError, PromptError
from fovea.core.server_config import ServerConfig
from fovea.core.types import Delta, EngineTimings, MediaReport, MediaSpan, RequestOutput
from fovea.families.spec import ModelPath
from fovea.ipc.blob import blob_bytes, write_blob
from fovea.ipc.messages import Counts, Done, FetchedWire, Task, ids_from_wire, params_to_wire, request_from_wire
from fovea.ipc.prepare_pool import PreparePool
from fovea.ipc.supervisor import Flight, Supervisor
from fovea.media.fetch import FetchPolicy, fetch
from fovea.media.load import Fetched
from fovea.pipeline.collector import Collector
from fovea.pipeline.preparer import Counted, Prepared
from fovea.prompt.chat import chat_media
from fovea.prompt.forms import MediaInput
from fovea.prompt.tokenizer import Tokenizer
from fovea.server.admission import Admission, Reading, Seat
from fovea.server.ask import Ask, ServiceStatus

T = TypeVar("T")


class Service:
    def __init__(
        self,
        config: ServerConfig,
        model_names: tuple[str, ...],
        tokenizer: Tokenizer,
        pool: PreparePool,
        engine: Supervisor,
        admission: Admission,
    ) -> None:
        self.config = config
        self.model_names = model_names
        self.created = int(time.time())
        self._tokenizer = tokenizer
        self._pool = pool
        self._engine = engine
        self._admission = admission
        self._fetch_policy = FetchPolicy.from_config(config)
        self._numbers = itertools.count()

    @property
    def max_model_len(self) -> int:
        return self._engine.facts.max_model_len if self._engine.facts is not None else 0

    @property
    def max_images(self) -> int:
        return self.config.image_limit() if self._takes_pictures else 0

    @property
    def model_path(self) -> ModelPath:
        """Who runs the model: Fovea's own modules, or transformers in one way or another."""
        return "fused" if self._engine.facts is None else self._engine.facts.path

    @property
    def max_videos(self) -> int:
        return self.config.video_limit() if self._engine.facts is not None and self._engine.facts.takes_videos else 0

    @property
    def _takes_pictures(self) -> bool:
        return self._engine.facts is None or self._engine.facts.takes_pictures

    @property
    def _resizes_on_device(self) -> bool:
        return self._engine.facts is not None and self.config.resizes_on(self._engine.facts.device)

    @property
    def _pixel_cap(self) -> int:
        return self.config.pixel_cap(self._engine.facts.device) if self._engine.facts is not None else 0

    @property
    def status(self) -> ServiceStatus:
        if self._admission.draining:
            return "draining"
        return "dead" if self._engine.state == "gone" else self._engine.state

    @property
    def is_live(self) -> bool:
        return self._engine.state in ("ready", "loading") and not self._pool.is_broken

    def reading(self) -> Reading:
        self._engine.check_ready()
        return self._admission.reading()

    async def answer(self, ask: Ask) -> RequestOutput:
        async with contextlib.aclosing(self._run(ask, live=False)) as events:
            answers = [event async for event in events if isinstance(event, RequestOutput)]
        assert answers, "a request ends with an output or an error"
        return answers[-1]

    async def stream(self, ask: Ask) -> AsyncGenerator[Delta | RequestOutput, None]:
        async with contextlib.aclosing(self._run(ask, live=True)) as events:
            async for event in events:
                yield event

    async def count(self, ask: Ask) -> Counted:
        deadline = self._deadline(ask)
        self._engine.check_ready()
        with self._admission.admit(ask.num_body_bytes) as seat:
            fetched = await _until(deadline, self._fetch(ask, seat))
            task = self._task(ask, time.perf_counter(), fetched, count=True)
            message, blob = await self._prepare(task, fetched, deadline)
        if blob is not None:
            os.close(blob)
        assert isinstance(message, Counts), "what was asked for"
        spans = tuple(MediaSpan(start, length) for start, length in message.spans)
        return Counted(ids_from_wire(message.token_ids), spans, _reports(message.reports))

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        wrong = next((token for token in token_ids if not 0 <= token < self._tokenizer.vocab_size), None)
        if wrong is not None:
            raise PromptError(
                f"tokens has {wrong}; permitted: 0 to {self._tokenizer.vocab_size - 1}.",
                code="below_min_value" if wrong < 0 else "above_max_value",
                param="tokens",
            )
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False)

    async def _run(self, ask: Ask, *, live: bool) -> AsyncGenerator[Delta | RequestOutput, None]:
        deadline = self._deadline(ask)
        arrived = time.perf_counter()
        self._engine.check_ready()
        with self._admission.admit(ask.num_body_bytes) as seat:
            fetched = await _until(deadline, self._fetch(ask, seat))
            task = self._task(ask, arrived, fetched)
            message, blob = await self._prepare(task, fetched, deadline)
            assert isinstance(message, Done), "what was asked for"
            flight = Flight(task.request_id, message.request, blob)  # owns the blob from here on
            try:
                seat.add_pixel_bytes(blob_bytes(blob))
                request = request_from_wire(message.request, None)
                seat.add_tokens(len(request.token_ids))
                reports = _reports(message.reports)
                prepared = Prepared(request, message.text, reports, arrived, message.prompt_s, message.media_s)
                collector = Collector(prepared, self._tokenizer, self._stop, live=live)
                self._engine.submit(flight)
                if live:
                    yield collector.output()
                while not collector.finished:
                    for token in await _until(deadline, flight.take()):
                        seat.started()
                        collector.add(token)
                    if live:
                        for delta in collector.deltas():
                            yield delta
                flight.is_finished = True
                yield collector.output()
            finally:
                self._engine.end(flight)

    async def _prepare(
        self, task: Task, fetched: dict[str, Fetched], deadline: float
    ) -> tuple[Done | Counts, int | None]:
        blob = write_blob([item.data for item in fetched.values()]) if fetched else None
        try:
            reply = await _until(deadline, self._pool.prepare(task, blob))
        finally:
            if blob is not None:
                os.close(blob)
        return reply.message, reply.blob

    async def _fetch(self, ask: Ask, seat: Seat) -> dict[str, Fetched]:
        """The web pictures of the request, each address once."""
        media = self._pictures(ask.messages) if ask.messages is not None else []
        if media and not self._takes_pictures:
            raise MediaError(
                "The model is one of text alone and takes no pictures. Leave them out or use a model that sees.",
                code="unsupported_value",
                param=media[0].param or "messages",
            )
        self._check_counts(media)
        videos = replace(self._fetch_policy, max_bytes=self.config.max_video_bytes)
        urls: dict[str, tuple[str, FetchPolicy]] = {}  # with the place of the first of each
        for m in media:
            if m.kind == "url" and m.value[:5].lower().startswith("http"):
                urls.setdefault(m.value, (m.param, self._fetch_policy if m.video is None else videos))
        total_bytes = 0
        fetched: dict[str, Fetched] = {}

        async def fetch_one(url: str) -> None:
            nonlocal total_bytes
            started = time.perf_counter()
            try:
                data = await fetch(url, urls[url][1])
            except MediaError as error:
                error.param = error.param or urls[url][0] or None
                raise
            total_bytes += len(data)
            seat.add_media_bytes(len(data))
            if total_bytes > self.config.max_request_media_bytes:
                raise MediaLimitError(
                    f"The request's media have more than {self.config.max_request_media_bytes:,} bytes (option "
                    "max_request_media_bytes). Send fewer or smaller ones.",
                    code="media_too_large",
                    param="messages",
                )
            fetched[url] = Fetched(data, time.perf_counter() - started)

        try:
            async with asyncio.TaskGroup() as group:
                for url in urls:
                    group.create_task(fetch_one(url))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return {url: fetched[url] for url in urls}

    def _check_counts(self, media: Sequence[MediaInput]) -> None:
        videos = [m for m in media if m.video is not None]
        facts = self._engine.facts
        if videos and facts is not None and not facts.takes_videos:
            raise MediaError(
                "The model takes no videos. Give the frames you mean as several images, or use a model that does.",
                code="unsupported_value",
                param=videos[0].param or "messages",
            )
        for kind, count, limit in (
            ("pictures", len(media) - len(videos), self.config.image_limit()),
            ("videos", len(videos), self.config.video_limit()),
        ):
            if count > limit:
                raise MediaLimitError(
                    f"The request has {count} {kind}; limit_mm_per_prompt allows {limit}.",
                    code="too_many_media_items",
                    param="messages",
                )

    def _pictures(self, messages: list[dict[str, Any]]) -> list[MediaInput]:
        return chat_media(messages, allow_embeds=self.config.enable_mm_embeds, from_json=True)

    def _task(self, ask: Ask, arrived: float, fetched: dict[str, Fetched], *, count: bool = False) -> Task:
        places, offset = [], 0
        for url, item in fetched.items():
            places.append(FetchedWire(url, offset, len(item.data), item.seconds))
            offset += len(item.data)
        return Task(
            request_id=str(next(self._numbers)),  # ours: what a client calls its request is no identity
            arrived=arrived,
            max_model_len=self.max_model_len,
            params=params_to_wire(ask.params),
            messages=ask.messages,
            prompt=list(ask.prompt) if isinstance(ask.prompt, tuple) else ask.prompt,
            salt=_salt(ask),
            processor_kwargs=dict(ask.processor_kwargs),
            template_kwargs=dict(ask.template_kwargs),
            add_generation_prompt=ask.add_generation_prompt,
            continue_final_message=ask.continue_final_message,
            add_special_tokens=ask.add_special_tokens,
            fetched=places,
            count=count,
            resize_on_device=self._resizes_on_device,
            pixel_cap=self._pixel_cap,
        )

    def _stop(self, request_id: str, index: int) -> EngineTimings | None:
        self._engine.stop(request_id, index)
        return None

    def _deadline(self, ask: Ask) -> float:
        timeout_s = min(self.config.request_timeout_s, ask.timeout_s or self.config.request_timeout_s)
        return asyncio.get_running_loop().time() + timeout_s


async def _until(deadline: float, work: Awaitable[T]) -> T:
    """Raises DeadlineError when the request's time is over."""
    try:
        async with asyncio.timeout_at(deadline):
            return await work
    except TimeoutError:
        raise DeadlineError(
            "The request took longer than it may (option request_timeout_s, or the request's own timeout)."
        ) from None


def _salt(ask: Ask) -> str:
    """What separates tenants in every cache: the client's salt and, if asked for, who it is."""
    if not ask.tenant:
        return ask.salt
    digest = hashlib.sha256(len(ask.tenant).to_bytes(8, "little") + ask.tenant.encode() + ask.salt.encode())
    return digest.hexdigest()


def _reports(values: list[dict[str, Any]]) -> tuple[MediaReport, ...]:
    return tuple(MediaReport(**report) for report in values)
