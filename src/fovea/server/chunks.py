"""Deltas as the events of a stream, in the bytes that go out.

Encoding is on the path of every token of every stream, so what all events of an answer share is encoded once, and a
delta that is just text costs one encoding of that text. `Chunks` has what chat and completions share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from msgspec import json

from fovea.core.types import Delta, RequestOutput
from fovea.server.answers import (
    chat_logprobs,
    check_end,
    completion_logprobs,
    finished,
    fovea_facts,
    usage,
)
from fovea.server.stream import line_safe


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What an answer is to look like.

    num_top: likeliest tokens to name at each position; None: no log-probabilities.
    first_index: the index of the first choice of this prompt; num_choices: how many it has.
    """

    id: str
    created: int
    model: str
    num_choices: int = 1
    first_index: int = 0
    num_top: int | None = None
    with_ids: bool = False
    with_media: bool = False
    with_usage: bool = False
    with_running_usage: bool = False


class Chunks(ABC):
    """The events of one prompt's answer."""

    object_name: str

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        about = {
            "id": shape.id,
            "object": self.object_name,
            "created": shape.created,
            "model": shape.model,
            "system_fingerprint": None,
        }
        self._head = b"data: " + json.encode(about)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if shape.with_usage or shape.with_running_usage else b"]}\n\n"
        self._has_extras = shape.num_top is not None or shape.with_ids
        self._begun = [False] * shape.num_choices
        self._prepared: RequestOutput | None = None
        self._owes_prompt_ids = shape.with_ids
        self._num_answer_tokens = 0

    async def events(self, items: AsyncGenerator[Delta | RequestOutput, None]) -> AsyncGenerator[bytes, None]:
        """The events of a service's stream up to the last choice's end; then `output` is the finished output."""
        async with aclosing(items):
            async for item in items:
                if isinstance(item, Delta):
                    yield self.delta(item)
                elif item.finished:
                    self.output = finished(item)
                else:
                    self._prepared = item

    def delta(self, delta: Delta) -> bytes:
        """The event for a delta; nothing if it would say nothing. Raises the error of a completion that has failed."""
        begun = self._begun[delta.index]
        self._num_answer_tokens += len(delta.token_ids)
        if delta.finish_reason is not None:
            check_end(delta.finish_reason)
            ending = b',"finish_reason":"%s","stop_reason":%s' % (
                delta.finish_reason.encode(),
                line_safe(json.encode(delta.stop_reason)),
            )
        elif begun and not delta.text and not (self._has_extras and delta.token_ids):
            return b""
        else:
            ending = b',"finish_reason":null'
        self._begun[delta.index] = True
        choice = self.choice(delta, is_first=not begun)
        if self.shape.with_ids:
            ending += b',"token_ids":' + json.encode(delta.token_ids)
        return b'%s{"index":%d,%s%s}%s' % (
            self._head,
            self.shape.first_index + delta.index,
            choice,
            ending,
            self._ending() if self._prepared is not None else self._tail,
        )

    @abstractmethod
    def choice(self, delta: Delta, *, is_first: bool) -> bytes:
        """The members of a choice object between its index and its finish_reason."""

    def last(self, outputs: list[RequestOutput]) -> bytes:
        """The event without choices, for what is known at the end only and was asked for."""
        members = b""
        if self.shape.with_usage:
            members += b',"usage":' + json.encode(usage(outputs))
        if self.shape.with_media:
            members += b',"fovea":' + json.encode(fovea_facts(outputs[0]))
        if self._owes_prompt_ids and len(outputs) == 1:
            members += b',"prompt_token_ids":' + json.encode(outputs[0].prompt_token_ids)
        return self._head + b"]" + members + b"}\n\n" if members else b""

    def _ending(self) -> bytes:
        """The members behind the choices where the prompt's length is known already."""
        prepared = self._prepared
        if prepared is None:
            return self._tail
        members = b"]"
        if self._owes_prompt_ids:
            self._owes_prompt_ids = False
            members += b',"prompt_token_ids":' + json.encode(prepared.prompt_token_ids)
        if self.shape.with_running_usage:
            running = usage([prepared])
            running.completion_tokens = self._num_answer_tokens
            running.total_tokens = running.prompt_tokens + running.completion_tokens
            return members + b',"usage":' + json.encode(running) + b"}\n\n"
        return members + self._tail[1:]

    output: RequestOutput


class ChatChunks(Chunks):
    object_name = "chat.completion.chunk"

    def choice(self, delta: Delta, *, is_first: bool) -> bytes:
        logprobs = b"null"
        if self.shape.num_top is not None:
            logprobs = line_safe(json.encode(chat_logprobs(delta.token_ids, delta.logprobs or (), self.shape.num_top)))
        role = b'"role":"assistant",' if is_first else b""
        return b'"delta":{%s"content":%s},"logprobs":%s' % (role, line_safe(json.encode(delta.text)), logprobs)


class TextChunks(Chunks):
    """`echo` is the prompt's text, sent before the answer's."""

    object_name = "text_completion"

    def __init__(self, shape: Shape, echo: str = "") -> None:
        super().__init__(shape)
        self._echo = echo
        self._offsets = [len(echo)] * shape.num_choices

    def choice(self, delta: Delta, *, is_first: bool) -> bytes:
        logprobs = b"null"
        if self.shape.num_top is not None:
            start = self._offsets[delta.index]
            made = completion_logprobs(delta.token_ids, delta.logprobs or (), start)
            self._offsets[delta.index] = start + sum(map(len, made.tokens))
            logprobs = line_safe(json.encode(made))
        text = self._echo + delta.text if is_first else delta.text
        return b'"text":%s,"logprobs":%s' % (line_safe(json.encode(text)), logprobs)
