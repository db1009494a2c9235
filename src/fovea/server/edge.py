"""The first and the last thing that happens to every request.

In this order: an id, the host, the key, then the app. Paths are taken raw from the request's target, never from a Host
header and never decoded: none of the server's paths needs an escape, so a path with one is simply unknown. Whatever
happens, there is one answer in OpenAI's shape, one log line and one step of a counter; a client that left is logged
as 499 and counted as cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fovea.core.errors import FoveaError, RouteError, UnauthorizedError
from fovea.core.server_config import ServerConfig
from fovea.server.access_log import log_request
from fovea.server.auth import Guard, challenge, header
from fovea.server.errors import (
    CANCELLED_STATUS,
    ClientGone,
    UpgradeError,
    is_client_gone,
    note_code,
    on_unexpected_error,
    refusal,
)
from fovea.server.metrics import CANCELLED, Metrics

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
PREFLIGHT_AGE_S = "600"
EXPOSED = b"x-request-id, retry-after, x-fovea-ignored"


def wrap(app: ASGIApp, config: ServerConfig, metrics: Metrics) -> Edge:
    return Edge(app, config, metrics)


def new_request_id() -> str:
    return f"req-{uuid.uuid4().hex}"


class Edge:
    """An ASGI app around another one."""

    def __init__(self, app: ASGIApp, config: ServerConfig, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._guard = Guard(config)
        self._origins = frozenset(config.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # neither lifespan nor WebSocket is offered
        given = header(scope, b"x-request-id")
        request_id = given if REQUEST_ID.fullmatch(given) else new_request_id()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        answer = Answer(send, [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")])
        try:
            await self._answer(scope, receive, answer)
        except asyncio.CancelledError:
            answer.cancelled = not answer.is_complete
            raise
        except Exception as error:
            await self._fail(error, scope, receive, answer)
        finally:
            self._end(scope, answer)

    async def run(self) -> None:
        await self._metrics.measure_lag()

    def ended_early(self, error: RouteError, client: str) -> str:
        """A request that ended before it was understood; see http.py."""
        request_id = new_request_id()
        log_request(
            request_id=request_id, method="-", path="-", status=error.status, seconds=0.0, client=client,
            fields={"code": error.code},
        )  # fmt: skip
        self._metrics.request_ended(error.status, error.code)
        return request_id

    async def _answer(self, scope: Scope, receive: Receive, answer: Answer) -> None:
        self._judge_target(scope)
        self._guard.check_host(scope)
        allowed = self._allowed_origin(scope)
        if allowed:
            answer.headers += cors_headers(allowed)
            if scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method"):
                await preflight(scope)(scope, receive, answer.send)
                return
        self._guard.check_key(scope)
        if header(scope, b"upgrade").lower() == "websocket":
            raise UpgradeError("This server does not speak WebSocket. Streams are server-sent events.")
        await self._app(scope, receive, answer.send)

    def _judge_target(self, scope: Scope) -> None:
        """The path as it was sent. Of an absolute target, the authority must be one of ours and the rest counts."""
        target = scope["raw_path"].decode("ascii", "replace")
        scheme, separator, rest = target.partition("://")
        if separator and scheme.lower() in ("http", "https"):
            authority, slash, path = rest.partition("/")
            self._guard.check_authority(authority)
            target = slash + path or "/"
        scope["path"], scope["raw_path"] = target, target.encode()

    def _allowed_origin(self, scope: Scope) -> str:
        origin = header(scope, b"origin")
        if "*" in self._origins:
            return "*"
        return origin if origin in self._origins else ""

    async def _fail(self, error: Exception, scope: Scope, receive: Receive, answer: Answer) -> None:
        """An answer for what the app let through; if one has begun, the connection is closed by whoever called."""
        if is_client_gone(error):
            answer.cancelled = True
            return
        if answer.has_begun and "error_code" in scope["state"]:
            return  # answered and logged already; Starlette raises it again for whoever runs the app
        if isinstance(error, FoveaError):
            response = refusal(error, scope)
        else:
            response = await on_unexpected_error(Request(scope), error)
        if isinstance(error, UnauthorizedError):
            response.headers["www-authenticate"] = challenge(scope)
        if not answer.has_begun:
            with contextlib.suppress(ClientGone):
                await response(scope, receive, answer.send)

    def _end(self, scope: Scope, answer: Answer) -> None:
        state = scope["state"]
        if answer.cancelled or not answer.has_begun:
            answer.status = CANCELLED_STATUS
            note_code(scope, CANCELLED)
        code = state.get("error_code")
        fields: dict[str, Any] = dict(state.get("log_fields", ()))
        if code is not None:
            fields["code"] = code
        client = scope.get("client")
        log_request(
            request_id=state["request_id"],
            method=scope["method"],
            path=scope["path"],
            status=answer.status,
            seconds=time.perf_counter() - answer.began,
            client=client[0] if client else "",
            fields=fields,
        )
        self._metrics.request_ended(answer.status, code)


class Answer:
    """What was sent so far, with the headers every answer has."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self.headers = headers
        self.began = time.perf_counter()
        self.status = 0
        self.is_complete = False
        self.cancelled = False

    @property
    def has_begun(self) -> bool:
        return self.status != 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self.headers]}
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_complete = True


def cors_headers(origin: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", EXPOSED),
        (b"vary", b"Origin"),
    ]


def preflight(scope: Scope) -> Response:
    """What a browser asks before a page of a listed origin may call; no key is sent with it, and none is needed."""
    headers = {
        "access-control-allow-methods": "GET, POST, OPTIONS",
        "access-control-allow-headers": "authorization, content-type, x-request-id, x-fovea-media",
        "access-control-max-age": PREFLIGHT_AGE_S,
    }
    asked = header(scope, b"access-control-request-headers")
    if asked and re.fullmatch(r"[A-Za-z0-9_, -]{1,1024}", asked):
        headers["access-control-allow-headers"] = asked  # SDKs send headers of their own
    return Response(status_code=204, headers=headers)
