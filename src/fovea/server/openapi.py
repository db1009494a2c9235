"""The OpenAPI 3.1 document, made from the table of routes and the structs that decode and encode its bodies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import Struct, json
from starlette.requests import Request
from starlette.responses import Response

from fovea import __version__
from fovea.core.server_config import ServerConfig
from fovea.server.answers import ChatCompletionChunk, TextCompletionChunk
from fovea.server.examples import MODEL
from fovea.server.protocol import ChatBody, refused_fields

REF = "#/components/schemas/{name}"
BODY_ERRORS = ("400", "401", "403", "404", "408", "413", "415", "500", "503", "504")
PLAIN_ERRORS = ("401", "403", "503")
ERRORS: Mapping[str, str] = {
    "400": "The request is at fault: `param` names the place, `message` what is permitted.",
    "401": "An API key is asked for and none of the server's was sent.",
    "403": "This host or origin is not allowed.",
    "404": "There is no such model.",
    "408": "The body was sent too slowly.",
    "413": "The body is too large.",
    "415": "The body is not application/json, or is compressed.",
    "500": "Our fault; the message names the request's id.",
    "503": "Not now: full, loading, draining or without engine. Retry-After says when to try again.",
    "504": "It took longer than it may.",
}
ABOUT = """An OpenAI-compatible server for models that see pictures.

Unknown top-level fields are accepted; those without effect are named in the response header `X-Fovea-Ignored`. Unknown
fields inside content parts and `fovea` are errors. Fields that would change the answer but are not supported are
refused unless their value asks for nothing: {refused}.

With `stream: true` the answer is a stream of server-sent events; lines that begin with a colon keep the connection
open and mean nothing. An error in mid-stream is an event with an `error` object; no `[DONE]` follows it.

With the header `X-Fovea-Media: 1`, or `fovea: {{"media": true}}` in the body, the answer tells what was done with each
picture and where the time went.
"""


CHUNKS: Mapping[str, type[Struct]] = {
    "/v1/chat/completions": ChatCompletionChunk,
    "/v1/completions": TextCompletionChunk,
}


# What fields of bodies mean; names that are used by several bodies mean the same in all of them.
FIELDS: Mapping[str, str] = {
    "model": "One of /v1/models.",
    "messages": "The conversation so far. Pictures stand where their parts stand.",
    "prompt": "A text, token ids, or a list of either.",
    "n": "Answers to make.",
    "temperature": "How freely tokens are drawn; 0 takes the likeliest. Default 1.",
    "top_p": "Draw from the likeliest tokens that make up this share. Default 1.",
    "top_k": "Draw from so many likeliest tokens; 0 or -1: from all.",
    "min_p": "Leave out tokens less likely than this share of the likeliest.",
    "seed": "Makes the draw repeatable whatever else runs.",
    "stop": "Texts that end the answer.",
    "stop_token_ids": "Token ids that end the answer.",
    "include_stop_str_in_output": "Keep the text that ended the answer.",
    "ignore_eos": "Go on after the model's own end token.",
    "max_tokens": "Longest answer in tokens. Default: 16 for completions, up to the model's length in chat.",
    "max_completion_tokens": "OpenAI's newer name of max_tokens.",
    "min_tokens": "No end before so many tokens.",
    "presence_penalty": "Against tokens that occurred in the answer.",
    "frequency_penalty": "Against tokens by how often they occurred in the answer.",
    "repetition_penalty": "Against tokens that occurred in prompt or answer; 1 is none.",
    "logprobs": "Log-probabilities of the answer's tokens.",
    "top_logprobs": "How many likeliest tokens to name at each position; needs logprobs.",
    "prompt_logprobs": "Log-probabilities of the prompt's tokens, with so many likeliest ones; not streamed.",
    "logit_bias": "Added to the scores of tokens; keys are token ids in decimal digits.",
    "bad_words": "Texts that must not be made.",
    "allowed_token_ids": "Only these tokens can be made.",
    "skip_special_tokens": "Leave special tokens out of the text. Default true.",
    "add_special_tokens": "Put what the model expects around a text. Default true.",
    "add_generation_prompt": "Begin the assistant's turn. Default true.",
    "continue_final_message": "Go on with the last message instead of answering it.",
    "chat_template_kwargs": "Variables for the model's chat template.",
    "mm_processor_kwargs": "Picture options of the model; can lower what the operator set.",
    "return_token_ids": "Add the token ids of prompt and answer.",
    "stream": "Send the answer as server-sent events while it is made.",
    "stream_options": "What a stream tells beside the text.",
    "echo": "Put the prompt before the answer.",
    "cache_salt": "Caches are shared only between requests with the same salt.",
    "timeout": "Seconds for this request; can only shorten the server's.",
    "user": "Accepted; has no effect.",
    "fovea": "Our own options.",
    "tokens": "Token ids.",
}


class ErrorFacts(Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Struct):
    error: ErrorFacts


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One line of the table of routes. No `answer`: plain text."""

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    summary: str
    body: type[Struct] | None = None
    answer: type[Struct] | None = None
    example: Mapping[str, Any] | None = None
    needs_key: bool = True


def document(endpoints: list[Endpoint], config: ServerConfig) -> bytes:
    shown_bodies = [one.body for one in endpoints if one.body]
    types = [*shown_bodies, *(one.answer for one in endpoints if one.answer), *CHUNKS.values(), ErrorAnswer]
    _, schemas = json.schema_components(types, ref_template=REF)
    for body in shown_bodies:
        properties = schemas[body.__name__]["properties"]
        for name in refused_fields(body):
            del properties[name]
        for name, field in properties.items():
            field["description"] = FIELDS[name]
        if "n" in properties:
            properties["n"]["anyOf"][0]["maximum"] = config.max_n
    refused = ", ".join(f"`{name}`" for name in refused_fields(ChatBody))
    paths: dict[str, Any] = {}
    for one in endpoints:
        paths.setdefault(one.path.replace(":path}", "}"), {})[one.method.lower()] = _operation(one, config)
    return json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Fovea",
                "version": __version__,
                "description": ABOUT.format(refused=refused),
            },
            "paths": paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


def example_of(endpoint: Endpoint, config: ServerConfig) -> dict[str, Any]:
    """The body to show, with the name of a model that is served."""
    name = (config.served_model_name or (config.model,))[0]
    return {key: name if value == MODEL else value for key, value in (endpoint.example or {}).items()}


def _operation(endpoint: Endpoint, config: ServerConfig) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": f"{endpoint.method.lower()}{endpoint.path}".replace("/", "_").split(":")[0].replace("{", ""),
        "responses": {
            "200": {"description": _description(endpoint), "content": _content(endpoint)},
            **{status: _error(status) for status in (BODY_ERRORS if endpoint.body else PLAIN_ERRORS)},
        },
    }
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": REF.format(name=endpoint.body.__name__)},
                    "example": example_of(endpoint, config),
                }
            },
        }
    if "{model:path}" in endpoint.path:
        operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
        operation["responses"]["404"] = _error("404")
    if endpoint.needs_key and (config.api_key or config.api_key_file):
        operation["security"] = [{"key": []}]
    return operation


def _description(endpoint: Endpoint) -> str:
    if endpoint.path not in CHUNKS:
        return "The answer."
    name = CHUNKS[endpoint.path].__name__
    return f"The answer. With stream: true, events whose data is a {name} each; the last one's is [DONE]."


def _content(endpoint: Endpoint) -> dict[str, Any]:
    if endpoint.answer is None:
        return {"text/plain": {"schema": {"type": "string"}}}
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": REF.format(name=endpoint.answer.__name__)}}}
    if endpoint.path in CHUNKS:
        content["text/event-stream"] = {}  # no schema: some readers hold it against the stream, some against each event
    return content


def _error(status: str) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": ERRORS[status],
        "content": {"application/json": {"schema": {"$ref": REF.format(name="ErrorAnswer")}}},
    }
    if status == "503":
        described["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return described
