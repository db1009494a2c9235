"""Payloads on routes: the good body of every route, and what a case makes of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.corpus.case import Body, Fields, Messages, Parts, Payload, Route

PATHS: dict[Route, str] = {
    "chat": "/v1/chat/completions",
    "chat_stream": "/v1/chat/completions",
    "completions": "/v1/completions",
    "completions_stream": "/v1/completions",
    "tokenize_chat": "/tokenize",
    "tokenize_text": "/tokenize",
    "detokenize": "/detokenize",
}
MODEL = "fovea-tiny"
MAX_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Request:
    """`streams`: the answer, if it is one, comes as server-sent events."""

    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)
    streams: bool = False


def good_body(route: Route) -> dict[str, Any]:
    sampling = {"max_tokens": MAX_TOKENS, "temperature": 0, "model": MODEL}
    match route:
        case "chat" | "chat_stream":
            body = {**sampling, "messages": [{"role": "user", "content": "Hello there"}]}
            return {**body, "stream": True} if route == "chat_stream" else body
        case "completions" | "completions_stream":
            body = {**sampling, "prompt": "Hello there"}
            return {**body, "stream": True} if route == "completions_stream" else body
        case "tokenize_chat":
            return {"model": MODEL, "messages": [{"role": "user", "content": "Hello there"}]}
        case "tokenize_text":
            return {"model": MODEL, "prompt": "Hello there"}
        case "detokenize":
            return {"model": MODEL, "tokens": [32, 577, 447]}


def build(route: Route, payload: Payload) -> Request:
    """`Wire` payloads are no requests; runner.py sends them as they are."""
    body = good_body(route)
    streams = route.endswith("_stream")
    match payload:
        case Body(data, headers):
            return Request(PATHS[route], data, headers, streams)
        case Parts(parts):
            body["messages"] = [{"role": "user", "content": list(parts)}]
        case Messages(messages):
            body["messages"] = messages
        case Fields(fields):
            body |= fields
        case _:
            raise TypeError(f"{type(payload).__name__} is no body")
    if route in ("chat", "chat_stream") and isinstance(payload, Parts):
        body.setdefault("fovea", {"media": True})
    return Request(PATHS[route], json.dumps(body, separators=(",", ":")).encode(), streams=streams)


def image(url: str, **fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def text(value: str = "What is in this picture?") -> dict[str, Any]:
    return {"type": "text", "text": value}
