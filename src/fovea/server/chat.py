"""POST /v1/chat/completions"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from fovea.core.types import RequestOutput
from fovea.server.answers import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    chat_logprobs,
    finished,
    fovea_facts,
    prompt_logprobs,
    usage,
)
from fovea.server.ask import Ask, ServiceLike
from fovea.server.asks import (
    chat_logprobs_wanted,
    chat_max_tokens,
    check_unsupported,
    generation_flags,
    plain_messages,
    sampling_params,
)
from fovea.server.calls import Call, MetricsLike, json_response, read_call, record
from fovea.server.chunks import ChatChunks, Shape
from fovea.server.protocol import ChatBody, decode_kwargs
from fovea.server.stream import EventStream, while_connected


class ChatRoute:
    def __init__(self, service: ServiceLike, metrics: MetricsLike) -> None:
        self._service = service
        self._metrics = metrics

    async def post(self, request: Request) -> Response:
        ask, shape, streamed, headers = await self._read(request)
        if streamed:
            return EventStream(self._events(ask, shape, request.scope), self._service.config, headers)
        output = finished(await while_connected(request.receive, self._service.answer(ask)))
        record(request.scope, self._metrics, [output])
        return json_response(whole(output, shape), headers)

    async def _read(self, request: Request) -> tuple[Ask, Shape, bool, dict[str, str]]:
        body, call = await read_call(request, self._service, ChatBody)
        check_unsupported(body, body.n or 1)
        return self._ask(body, call), shape_of(body, call), bool(body.stream), call.headers

    def _ask(self, body: ChatBody, call: Call) -> Ask:
        config = self._service.config
        params = sampling_params(
            body,
            config,
            max_tokens=chat_max_tokens(body),
            logprobs=chat_logprobs_wanted(body),
            prompt_logprobs=body.prompt_logprobs,
        )
        add, resume = generation_flags(body.add_generation_prompt, body.continue_final_message)
        return Ask(
            request_id=call.request_id,
            params=params,
            messages=plain_messages(body.messages, config),
            salt=body.cache_salt or "",
            tenant=call.tenant,
            processor_kwargs=decode_kwargs(body.mm_processor_kwargs, "mm_processor_kwargs"),
            template_kwargs=decode_kwargs(body.chat_template_kwargs, "chat_template_kwargs"),
            add_generation_prompt=add,
            continue_final_message=resume,
            add_special_tokens=body.add_special_tokens is not False,
            timeout_s=body.timeout,
            num_body_bytes=call.num_body_bytes,
        )

    async def _events(self, ask: Ask, shape: Shape, scope: Scope) -> AsyncGenerator[bytes, None]:
        chunks = ChatChunks(shape)
        async for data in chunks.events(self._service.stream(ask)):
            yield data
        record(scope, self._metrics, [chunks.output])
        yield chunks.last([chunks.output])


def shape_of(body: ChatBody, call: Call) -> Shape:
    options = body.stream_options
    return Shape(
        id=f"chatcmpl-{call.request_id}",
        created=call.created,
        model=body.model,
        num_choices=body.n or 1,
        num_top=chat_logprobs_wanted(body),
        with_ids=bool(body.return_token_ids),
        with_media=call.wants_media,
        with_usage=bool(options and options.include_usage),
        with_running_usage=bool(options and options.continuous_usage_stats),
    )


def whole(output: RequestOutput, shape: Shape) -> ChatCompletion:
    """The answer in one piece."""
    choices = [
        ChatChoice(
            index=completion.index,
            message=AssistantMessage("assistant", completion.text),
            logprobs=None
            if shape.num_top is None
            else chat_logprobs(completion.token_ids, completion.logprobs or (), shape.num_top),
            finish_reason=completion.finish_reason or "stop",
            stop_reason=completion.stop_reason,
            token_ids=completion.token_ids if shape.with_ids else UNSET,
        )
        for completion in output.outputs
    ]
    return ChatCompletion(
        id=shape.id,
        created=shape.created,
        model=shape.model,
        choices=choices,
        usage=usage([output]),
        prompt_logprobs=prompt_logprobs(output),
        prompt_token_ids=output.prompt_token_ids if shape.with_ids else UNSET,
        fovea=fovea_facts(output) if shape.with_media else UNSET,
    )
