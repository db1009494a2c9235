"""Is an answer right? Each function gives complaints in words; none means yes."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable

from tests.corpus.case import Expect
from tests.corpus.client import Reply
from tests.corpus.routes import Request
from tests.corpus.scene import SECRET

MAX_REFUSAL_BYTES = 4096
MAX_ECHO_CHARS = 200
SLOW_MACHINE = 4.0
SPARE_S = 1.0
# By status, as the documentation has it; () is any.
TYPES: dict[int, tuple[str, ...]] = {
    400: ("invalid_request_error",),
    401: ("authentication_error",),
    403: ("permission_error",),
    404: ("invalid_request_error",),
    405: ("invalid_request_error",),
    408: ("timeout_error",),
    413: ("invalid_request_error",),
    414: ("invalid_request_error",),
    415: ("invalid_request_error",),
    431: ("invalid_request_error",),
    503: ("overloaded_error", "service_unavailable_error"),
    504: ("timeout_error",),
}
LEAK = re.compile(
    r"Traceback|File \"|line \d+, in|object at|0x[0-9a-f]{6,}|\bErrno\b|<class '|site-packages|\.py\b"
    r"|(?:/usr|/etc|/var|/home|/root|/tmp|/work|/proc)/[\w.-]+|Pillow|PIL\.|msgspec|starlette|uvicorn|torch"
)


def complaints(
    reply: Reply, expect: Expect, request: Request | None = None, *, slack: float = SLOW_MACHINE
) -> list[str]:
    """All that is wrong with `reply`; `request` is what was sent, whose own words may come back."""
    found = list(_unsound(reply, request))
    if reply.status not in expect.statuses:
        found.append(f"status {reply.status}, expected {' or '.join(map(str, expect.statuses))}: {_shown(reply)}")
        return found
    if reply.status >= 400:
        found += _refusal(reply, expect, slack)
    elif reply.status == 200 and request is not None and request.streams:
        found += _stream(reply)
    if expect.closes and not reply.closed:
        found.append("the connection stays open")
    return found


def _refusal(reply: Reply, expect: Expect, slack: float) -> Iterable[str]:
    code, param = reply.error.get("code"), reply.error.get("param")
    if expect.codes and code not in expect.codes:
        yield f"code {code!r}, expected {' or '.join(expect.codes)}: {_shown(reply)}"
    if expect.param and not _is_below(param, expect.param):
        yield f"param {param!r}, expected {expect.param!r}: {_shown(reply)}"
    message = str(reply.error.get("message", ""))
    for part in expect.says:
        if part.lower() not in message.lower():
            yield f"the message does not say {part!r}: {_shown(reply)}"
    bound_s = expect.within_s * slack + SPARE_S
    if reply.elapsed_s > bound_s:
        yield f"refused after {reply.elapsed_s:.2f} s, permitted are {expect.within_s:g} s (here {bound_s:g})"


def _is_below(param: object, wanted: str) -> bool:
    return isinstance(param, str) and (param == wanted or param.startswith(wanted + "."))


def _unsound(reply: Reply, request: Request | None) -> Iterable[str]:
    """What is wrong whatever was expected: 5xx without a word, leaks, bodies out of shape."""
    if reply.status == 0:
        if reply.raw:
            yield f"an answer that is not HTTP: {reply.raw[:200]!r}"
        return
    if not reply.complete:
        yield "the body was cut off"
    if reply.status in (500, 501, 502):
        yield f"status {reply.status} is a bug: {_shown(reply)}"
    if "x-request-id" not in reply.headers:
        yield "no X-Request-Id"
    if "server" in reply.headers:
        yield f"the server names itself: {reply.headers['server']!r}"
    if reply.status < 400:
        return
    if len(reply.body) > MAX_REFUSAL_BYTES:
        yield f"the error has {len(reply.body)} bytes"
    yield from leaks(reply.body.decode("utf-8", "replace"), request)
    error = reply.error
    if reply.body and set(error) != {"message", "type", "param", "code"}:
        yield f"the body is not in the shape of an error: {_shown(reply)}"
    elif reply.body:
        kinds = TYPES.get(reply.status, ())
        if kinds and error["type"] not in kinds:
            yield f"type {error['type']!r} for status {reply.status}"
        if not str(error["message"]).rstrip().endswith((".", "?", "!", ")", "'", '"')):
            yield f"the message is no sentence: {error['message']!r}"


def leaks(text: str, request: Request | None = None) -> Iterable[str]:
    """Words of ours in an error; what the client sent may be repeated."""
    sent = "" if request is None else (request.path + request.body[:100_000].decode("utf-8", "replace"))
    words = [match[0] for match in LEAK.finditer(text) if match[0].rstrip(".-") not in sent]
    words += [name for name in (SECRET, socket.gethostname()) if len(name) > 3 and name in text and name not in sent]
    if words:
        yield f"leaks {sorted(set(words))}: {text[:300]!r}"


def _stream(reply: Reply) -> Iterable[str]:
    if "text/event-stream" not in reply.headers.get("content-type", ""):
        yield f"content type {reply.headers.get('content-type')!r} of a stream"
    events = reply.events()
    if not events or events[-1] != "[DONE]":
        yield f"the stream does not end with [DONE]: {events[-1:]}"


def _shown(reply: Reply) -> str:
    return repr(reply.body[:400].decode("utf-8", "replace"))


def answer_of(reply: Reply) -> tuple[object, ...]:
    """What an answer says, in a form that is equal for equal answers of one route."""
    if reply.headers.get("content-type", "").startswith("text/event-stream"):
        choices = [choice for chunk in reply.chunks() for choice in chunk.get("choices", [])]
        texts: dict[int, str] = {}
        for choice in choices:
            piece = choice.get("text") if "text" in choice else choice.get("delta", {}).get("content")
            texts[choice["index"]] = texts.get(choice["index"], "") + (piece or "")
        return tuple(texts[index] for index in sorted(texts))
    data = reply.json
    if "tokens" in data:
        return (tuple(data["tokens"]),)
    if "choices" in data:
        texts_now = (c["text"] if "text" in c else c["message"]["content"] for c in data["choices"])
        return (*texts_now, data["usage"]["prompt_tokens"])
    return (data.get("prompt"),)


def media_of(reply: Reply) -> list[dict[str, object]]:
    """The pictures the answer tells about, [] if it does not."""
    chunks = reply.chunks() if reply.headers.get("content-type", "").startswith("text/event-stream") else [reply.json]
    told = [chunk["fovea"]["media"] for chunk in chunks if chunk.get("fovea", {}).get("media")]
    return list(told[-1]) if told else []
