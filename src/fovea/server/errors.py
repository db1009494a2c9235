"""Errors as clients see them: OpenAI's shape, our own words, at most 4 KiB.

Only the message of an error that a request caused is shown. What the operator's errors say (model folders, options) and
what foreign exceptions say stays in the log: a client gets one fixed sentence and the request id. As a second wall,
every message loses control characters and whatever looks like an address of an object.

Handlers have Starlette's signature; `exception_handlers()` is what an app takes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from fovea.core.errors import (
    DeadlineError,
    FoveaError,
    MethodNotAllowedError,
    NotFoundError,
    RequestError,
    RouteError,
    UnavailableError,
)
from fovea.core.log import escaped

logger = logging.getLogger("fovea.server")

MAX_MESSAGE_BYTES = 1700  # JSON may double them; with the rest they stay below 4 KiB
MAX_PARAM_BYTES = 200
CANCELLED_STATUS = 499  # nginx's number for a client that left; never sent

TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")
Handler = Callable[[Request, Exception], Awaitable[Response]]


class ClientGone(RouteError):
    """The client hung up, or took nothing of its answer for too long. Nobody is left to answer to."""

    code = "cancelled"
    status = CANCELLED_STATUS


class UriTooLongError(RouteError):
    code = "uri_too_long"
    status = 414


class UpgradeError(RouteError):
    code = "upgrade_not_supported"
    status = 426


class HeadersTooLargeError(RouteError):
    code = "headers_too_large"
    status = 431


def bounded(text: str, max_bytes: int) -> str:
    return escaped(text, max_bytes).encode()[:max_bytes].decode("utf-8", "ignore")


def error_type(status: int) -> str:
    return TYPES.get(status, "invalid_request_error" if 400 <= status < 500 else "internal_error")


def internal_message(request_id: str) -> str:
    return f"Something went wrong on our side. The server's log tells more about request {request_id}."


def error_body(error: FoveaError, request_id: str) -> dict[str, Any]:
    """OpenAI's error object, for answers and for error events in a stream."""
    if isinstance(error, RequestError):
        status, code, param, message = error.status, error.code, error.param, str(error)
    else:
        status, code, param, message = 500, "internal_error", None, ""
    shown = ADDRESS.sub("0x...", bounded(message, MAX_MESSAGE_BYTES)).replace("object at", "object")
    return {
        "error": {
            "message": shown or internal_message(request_id),
            "type": error_type(status),
            "param": None if param is None else bounded(param, MAX_PARAM_BYTES),
            "code": code,
        }
    }


def error_response(error: FoveaError, request_id: str) -> Response:
    status = error.status if isinstance(error, RequestError) else 500
    headers = {"retry-after": str(error.retry_after_s)} if isinstance(error, UnavailableError) else {}
    if isinstance(error, DeadlineError):
        headers["x-should-retry"] = "false"  # or OpenAI's clients would ask twice more what took too long once
    if error.code == "draining":
        headers["connection"] = "close"  # another server may take the next one
    content = msgspec.json.encode(error_body(error, request_id))
    return Response(content, status, headers, media_type="application/json")


def request_id_of(scope: Mapping[str, Any]) -> str:
    return str(scope.get("state", {}).get("request_id", "unknown"))


def note_code(scope: Mapping[str, Any], code: str) -> None:
    """The access log and the count of refusals read the code from here."""
    scope.get("state", {})["error_code"] = code


def refusal(error: FoveaError, scope: Mapping[str, Any]) -> Response:
    """The answer to a request that ends with `error`, noted for log and metrics."""
    note_code(scope, error.code if isinstance(error, RequestError) else "internal_error")
    request_id = request_id_of(scope)
    if not isinstance(error, RequestError):
        logger.error("request %s failed", request_id, exc_info=error)
    return error_response(error, request_id)


async def on_fovea_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, FoveaError):
        return await on_unexpected_error(request, error)
    return refusal(error, request.scope)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405; nothing else of its texts is passed on."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 405 and isinstance(error, HTTPException):
        allowed = (error.headers or {}).get("Allow", "")
        hint = f" It allows {allowed}." if allowed else ""
        response = refusal(MethodNotAllowedError(f"This path does not take this method.{hint}"), request.scope)
        response.headers["allow"] = allowed
        return response
    if status == 404:
        return refusal(NotFoundError("There is nothing at this path. /docs lists what there is."), request.scope)
    return await on_unexpected_error(request, error)


async def on_unexpected_error(request: Request, error: Exception) -> Response:
    """A bug of ours, confined to this request: the log has it, the client has a fixed sentence."""
    if is_client_gone(error):
        return refusal(ClientGone("The client left."), request.scope)
    logger.error("request %s failed", request_id_of(request.scope), exc_info=error)
    note_code(request.scope, "internal_error")
    return error_response(FoveaError(), request_id_of(request.scope))


def is_client_gone(error: BaseException) -> bool:
    """Whether a client that left is behind this; frameworks wrap what a route lets through."""
    return isinstance(error, ClientGone) or isinstance(error.__cause__ or error.__context__, ClientGone)


def exception_handlers() -> dict[Any, Handler]:
    return {FoveaError: on_fovea_error, HTTPException: on_http_exception, Exception: on_unexpected_error}
