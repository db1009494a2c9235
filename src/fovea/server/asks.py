"""From a decoded body to an Ask: the checks that need the configuration or more than one field.

Ranges of single fields are in `protocol`; what only the model can judge (token ids, lengths, processor options) is left
to the preparer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import DecodeError, UnsetType, json, to_builtins

from fovea.core.errors import BodyError, EmbeddingsError, FoveaError, SamplingError
from fovea.core.log import escaped
from fovea.core.params import SamplingParams
from fovea.core.server_config import ServerConfig
from fovea.server.protocol import (
    MAX_TOKEN_ID,
    ChatBody,
    ImageEmbedsPart,
    InputTextPart,
    Message,
    Part,
    Sampling,
    TextPart,
    Unsupported,
    Url,
    refused_fields,
)

# Values of fields of `Unsupported`, beside null, that ask for nothing.
ACCEPTED: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": ([], ["text"]),
    "documents": ([],),
    "logits_processors": ([],),
    "media_io_kwargs": ({},),
    "suffix": ("",),
    "use_beam_search": (False,),
    "echo": (False,),
}
RESPONSE_FORMATS = ("text", "json_object", "json_schema", "structural_tag")
MAX_LOOKED_AT_BYTES = 256 * 1024


def check_unsupported(body: Unsupported, num_completions: int = 1) -> None:
    """Raises BodyError for a field that this server does not have, if its value asks for something."""
    for name in refused_fields(type(body)):
        raw = getattr(body, name)
        if isinstance(raw, UnsetType):
            continue
        is_small = len(memoryview(raw)) <= MAX_LOOKED_AT_BYTES
        value = json.decode(raw) if is_small else ...
        accepted = (None, num_completions) if name == "best_of" else (None, *ACCEPTED.get(name, ()))
        if not any(value == one and type(value) is type(one) for one in accepted):
            raise _refusal(name, value)


def sampling_params(
    body: Sampling, config: ServerConfig, *, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None
) -> SamplingParams:
    """Raises SamplingError, with the code of the server's error table where it has one."""
    num_completions = body.n or 1
    if num_completions > config.max_n:
        raise SamplingError(
            f"n is {num_completions}; permitted: 1 to {config.max_n}.", code="above_max_value", param="n"
        )
    if body.stream_options is not None and not body.stream:
        raise combination("stream_options needs stream: true.", "stream_options")
    if prompt_logprobs is not None and body.stream:
        raise combination("Log-probabilities of the prompt cannot be streamed; leave out stream.", "stream")
    given: dict[str, Any] = {
        name: value
        for name in SamplingParams.__dataclass_fields__
        if name not in _MAPPED and (value := getattr(body, name, None)) is not None
    }
    return SamplingParams(
        **given,
        n=num_completions,
        max_tokens=max_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        logit_bias=_logit_bias(body.logit_bias),
    )


_MAPPED = ("n", "max_tokens", "logprobs", "prompt_logprobs", "logit_bias")


def chat_max_tokens(body: ChatBody) -> int | None:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise combination(
            f"max_tokens ({old}) and max_completion_tokens ({new}) differ; send one of them.", "max_tokens"
        )
    return new if old is None else old


def chat_logprobs_wanted(body: ChatBody) -> int | None:
    if not body.logprobs:
        if body.top_logprobs is not None:
            raise combination("top_logprobs needs logprobs: true.", "top_logprobs")
        return None
    return body.top_logprobs or 0


def generation_flags(add: bool | None, resume: bool | None) -> tuple[bool, bool]:
    """(add_generation_prompt, continue_final_message)"""
    if add and resume:
        raise combination(
            "continue_final_message and add_generation_prompt exclude each other.", "continue_final_message"
        )
    return (not resume if add is None else add, bool(resume))


def plain_messages(messages: Sequence[Message], config: ServerConfig) -> list[dict[str, Any]]:
    """The messages as plain dicts. Raises BodyError for a message without content or too much text."""
    check_text(sum(map(_num_chars, messages)), config, "messages")
    return [_plain_message(message, f"messages.{i}", config) for i, message in enumerate(messages)]


def check_text(num_chars: int, config: ServerConfig, param: str) -> None:
    if num_chars > config.max_text_chars:
        raise BodyError(
            f"{param} has {num_chars} characters of text; permitted: {config.max_text_chars}.",
            code="string_too_long",
            param=param,
        )


def _plain_message(message: Message, place: str, config: ServerConfig) -> dict[str, Any]:
    plain: dict[str, Any] = to_builtins(
        Message(
            role=message.role,
            name=message.name,
            tool_call_id=message.tool_call_id,
            tool_calls=message.tool_calls,
        )
    )
    if message.content is None:
        if message.role in ("system", "developer", "user"):
            raise BodyError(
                f"{place}.content is missing or null; expected text or a list of content parts.",
                code="missing_required_parameter",
                param=f"{place}.content",
            )
        plain["content"] = ""
    elif isinstance(message.content, str):
        plain["content"] = message.content
    else:
        plain["content"] = [_plain_part(p, f"{place}.content.{i}", config) for i, p in enumerate(message.content)]
    return plain


def _plain_part(part: Part, place: str, config: ServerConfig) -> dict[str, Any]:
    if not isinstance(part, ImageEmbedsPart):
        return to_builtins(part)  # type: ignore[no-any-return]  # a struct becomes a dict
    if not config.enable_mm_embeds:
        raise EmbeddingsError(
            "This server takes no image_embeds parts; its operator can allow them with --enable-mm-embeds.",
            code="embeddings_disabled",
            param=place,
        )
    try:
        value = json.decode(part.image_embeds, type=Url)
    except DecodeError:
        raise EmbeddingsError(
            "image_embeds must be base64 text of a safetensors or .npy file.",
            code="invalid_embeddings",
            param=f"{place}.image_embeds",
        ) from None
    plain = {"type": "image_embeds", "image_embeds": value, "image_grid_thw": part.image_grid_thw, "uuid": part.uuid}
    return {key: value for key, value in plain.items() if value is not None}


def _num_chars(message: Message) -> int:
    calls = sum(len(call.function.arguments) for call in message.tool_calls or ())
    if message.content is None or isinstance(message.content, str):
        return calls + len(message.content or "")
    return calls + sum(len(part.text) for part in message.content if isinstance(part, (TextPart, InputTextPart)))


def _logit_bias(bias: dict[str, float] | None) -> dict[int, float] | None:
    if bias is None:
        return None
    for key in bias:
        if not (key.isascii() and key.isdigit() and (key == "0" or key[0] != "0")):
            raise SamplingError(
                f"logit_bias has the key '{escaped(key)}'; keys are token ids in plain decimal digits.",
                code="invalid_value",
                param="logit_bias",
            )
        if len(key) > 10 or int(key) > MAX_TOKEN_ID:
            raise SamplingError(
                f"logit_bias has the key {key}; token ids end at {MAX_TOKEN_ID}.",
                code="above_max_value",
                param="logit_bias",
            )
    return {int(key): value for key, value in bias.items()}


def _refusal(name: str, value: Any) -> FoveaError:
    if name == "chat_template":
        return BodyError(
            "A request cannot bring a chat template; the operator sets it with --chat-template.",
            code="chat_template_not_allowed",
            param=name,
        )
    if name == "tool_choice":
        return BodyError("tool_choice needs tools, which this server does not offer.", code="invalid_value", param=name)
    if name == "response_format":
        kind = value.get("type") if isinstance(value, dict) else None
        if kind not in RESPONSE_FORMATS:
            return BodyError(
                'response_format must be an object whose type is known, such as {"type": "text"}.',
                code="invalid_value",
                param=name,
            )
    accepted = "null" if name not in ACCEPTED else f"null or {json.encode(ACCEPTED[name][-1]).decode()}"
    accepted = "the value of n" if name == "best_of" else accepted
    return BodyError(
        f"{name} is not supported; leave it out (permitted: {accepted}).", code="unsupported_value", param=name
    )


def combination(message: str, param: str) -> BodyError:
    return BodyError(message, code="unsupported_combination", param=param)
