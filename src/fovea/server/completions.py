"""POST /v1/completions: one prompt or many, as text or token ids; choice i of prompt p has the index p * n + i."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from fovea.core.errors import BodyError
from fovea.core.types import CompletionOutput, RequestOutput
from fovea.server.answers import (
    CompletionLogprobs,
    TextChoice,
    TextCompletion,
    completion_logprobs,
    finished,
    fovea_facts,
    prompt_logprobs,
    usage,
)
from fovea.server.ask import Ask, ServiceLike
from fovea.server.asks import (
    check_text,
    check_unsupported,
    combination,
    sampling_params,
)
from fovea.server.calls import Call, MetricsLike, json_response, read_call, record
from fovea.server.chunks import Shape, TextChunks
from fovea.server.protocol import MAX_PROMPTS, CompletionBody, PromptItem
from fovea.server.stream import EventStream, merged, while_connected

DEFAULT_MAX_TOKENS = 16
Prompt = str | tuple[int, ...]


class CompletionsRoute:
    def __init__(self, service: ServiceLike, metrics: MetricsLike) -> None:
        self._service = service
        self._metrics = metrics

    async def post(self, request: Request) -> Response:
        body, call = await read_call(request, self._service, CompletionBody)
        check_unsupported(body, body.n or 1)
        asks, shape = self._asks(body, call), shape_of(body, call)
        if body.stream:
            events = self._events(asks, shape, request.scope, echo=bool(body.echo))
            return EventStream(events, self._service.config, call.headers)
        answer = self._answer(asks, shape, request.scope, echo=bool(body.echo), hides_answer=body.max_tokens == 0)
        return json_response(await while_connected(request.receive, answer), call.headers)

    def _asks(self, body: CompletionBody, call: Call) -> list[Ask]:
        prompts = prompts_of(body.prompt)
        check_text(sum(len(prompt) for prompt in prompts if isinstance(prompt, str)), self._service.config, "prompt")
        if call.wants_media and body.fovea is not None and len(prompts) > 1:
            raise combination("fovea.media is told for one prompt only.", "fovea")
        num_prompt_logprobs = body.prompt_logprobs
        if body.echo and num_prompt_logprobs is None:
            num_prompt_logprobs = body.logprobs
        params = sampling_params(
            body,
            self._service.config,
            max_tokens=max_tokens(body),
            logprobs=body.logprobs,
            prompt_logprobs=num_prompt_logprobs,
        )
        return [
            Ask(
                request_id=call.request_id if len(prompts) == 1 else f"{call.request_id}-{i}",
                params=params,
                prompt=prompt,
                salt=body.cache_salt or "",
                tenant=call.tenant,
                add_special_tokens=body.add_special_tokens is not False,
                timeout_s=body.timeout,
                num_body_bytes=0 if i else call.num_body_bytes,
            )
            for i, prompt in enumerate(prompts)
        ]

    async def _answer(
        self, asks: Sequence[Ask], shape: Shape, scope: Scope, *, echo: bool, hides_answer: bool
    ) -> TextCompletion:
        outputs = [finished(output) for output in await gathered([self._service.answer(ask) for ask in asks])]
        record(scope, self._metrics, outputs)
        choices: list[TextChoice] = []
        for ask, output in zip(asks, outputs, strict=True):
            prompt = await self._text(ask) if echo else None
            first = await self._service.detokenize(output.prompt_token_ids[:1]) if echo else ""
            for completion in output.outputs:
                made = choice(output, completion, shape, prompt, first, hides_answer=hides_answer)
                made.index = len(choices)
                choices.append(made)
        return TextCompletion(
            id=shape.id,
            created=shape.created,
            model=shape.model,
            choices=choices,
            usage=usage(outputs, num_hidden=sum(len(o.outputs) for o in outputs) if hides_answer else 0),
            fovea=fovea_facts(outputs[0]) if shape.with_media and len(outputs) == 1 else UNSET,
        )

    async def _events(
        self, asks: Sequence[Ask], shape: Shape, scope: Scope, *, echo: bool
    ) -> AsyncGenerator[bytes, None]:
        one_by_one = []
        for i, ask in enumerate(asks):
            text = await self._text(ask) if echo else ""
            one_by_one.append(TextChunks(replace(shape, first_index=i * shape.num_choices), text))
        sources = [chunks.events(self._service.stream(ask)) for ask, chunks in zip(asks, one_by_one, strict=True)]
        async for data in sources[0] if len(sources) == 1 else merged(sources):
            yield data
        outputs = [chunks.output for chunks in one_by_one]
        record(scope, self._metrics, outputs)
        yield one_by_one[0].last(outputs)

    async def _text(self, ask: Ask) -> str:
        return ask.prompt if isinstance(ask.prompt, str) else await self._service.detokenize(ask.prompt or ())


def shape_of(body: CompletionBody, call: Call) -> Shape:
    options = body.stream_options
    return Shape(
        id=f"cmpl-{call.request_id}",
        created=call.created,
        model=body.model,
        num_choices=body.n or 1,
        num_top=body.logprobs,
        with_ids=bool(body.return_token_ids),
        with_media=call.wants_media,
        with_usage=bool(options and options.include_usage),
        with_running_usage=bool(options and options.continuous_usage_stats),
    )


def max_tokens(body: CompletionBody) -> int:
    """0 asks for the prompt's own log-probabilities: one token is made and not shown."""
    if body.max_tokens != 0:
        return DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    if not body.echo or body.stream:
        raise BodyError(
            "max_tokens is 0, which needs echo: true and no stream; permitted otherwise: 1 or more.",
            code="below_min_value",
            param="max_tokens",
        )
    return 1


def prompts_of(prompt: str | list[PromptItem]) -> list[Prompt]:
    """One or many prompts, each a text or token ids. Raises BodyError for a mixture, or for too many."""
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(item, int) for item in prompt):
        return [tuple(item for item in prompt if isinstance(item, int))]
    if len(prompt) > MAX_PROMPTS:
        raise BodyError(
            f"prompt has {len(prompt)} prompts; permitted: {MAX_PROMPTS}.", code="array_too_long", param="prompt"
        )
    texts: list[Prompt] = [item for item in prompt if isinstance(item, str)]
    lists: list[Prompt] = [tuple(item) for item in prompt if isinstance(item, list)]
    if len(prompt) not in (len(texts), len(lists)):
        raise BodyError(
            "prompt mixes texts, token ids and lists of token ids; send one kind.", code="invalid_type", param="prompt"
        )
    if () in lists:
        raise BodyError("prompt holds an empty list of token ids.", code="invalid_value", param="prompt")
    return texts or lists


def choice(
    output: RequestOutput,
    completion: CompletionOutput,
    shape: Shape,
    prompt: str | None,
    first_token: str,
    *,
    hides_answer: bool,
) -> TextChoice:
    """`prompt` is the text to put before the answer, None: no echo."""
    text = (prompt or "") + ("" if hides_answer else completion.text)
    logprobs = None
    if shape.num_top is not None:
        logprobs = completion_logprobs((), (), 0)
        if prompt is not None:
            extend(logprobs, completion_logprobs(output.prompt_token_ids, output.prompt_logprobs or (), 0, first_token))
        if not hides_answer:
            extend(logprobs, completion_logprobs(completion.token_ids, completion.logprobs or (), len(prompt or "")))
    return TextChoice(
        index=completion.index,
        text=text,
        logprobs=logprobs,
        finish_reason="length" if hides_answer else completion.finish_reason,
        stop_reason=None if hides_answer else completion.stop_reason,
        token_ids=(() if hides_answer else completion.token_ids) if shape.with_ids else UNSET,
        prompt_token_ids=output.prompt_token_ids if shape.with_ids else UNSET,
        prompt_logprobs=prompt_logprobs(output),
    )


def extend(logprobs: CompletionLogprobs, more: CompletionLogprobs) -> None:
    logprobs.tokens += more.tokens
    logprobs.token_logprobs += more.token_logprobs
    logprobs.top_logprobs += more.top_logprobs
    logprobs.text_offset += more.text_offset


async def gathered(work: Sequence[Coroutine[Any, Any, RequestOutput]]) -> list[RequestOutput]:
    """All results, in order. The first error is raised once the others have been ended."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
