"""Error bodies: OpenAI's shape, small, and nothing of ours in them."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from fovea.core import errors
from fovea.core.errors import FoveaError, ModelError, RequestError, RequestFailedError, UnavailableError
from fovea.server.errors import (
    ClientGone,
    error_body,
    error_response,
    exception_handlers,
    is_client_gone,
    on_fovea_error,
    on_http_exception,
    on_unexpected_error,
)

MAX_BODY_BYTES = 4096


def request() -> Request:
    return Request({"type": "http", "method": "GET", "path": "/x", "headers": [], "state": {"request_id": "req-1"}})


def content(response: Response) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bytes(response.body))["error"]
    return found


@pytest.mark.parametrize(
    ("error", "status", "type", "code"),
    [
        (errors.BodyError("x"), 400, "invalid_request_error", "invalid_json"),
        (errors.UnauthorizedError("x"), 401, "authentication_error", "invalid_api_key"),
        (errors.ForbiddenError("x"), 403, "permission_error", "host_not_allowed"),
        (errors.NotFoundError("x"), 404, "invalid_request_error", "not_found"),
        (errors.MethodNotAllowedError("x"), 405, "invalid_request_error", "method_not_allowed"),
        (errors.SlowClientError("x"), 408, "timeout_error", "request_timeout"),
        (errors.ContentTooLargeError("x"), 413, "invalid_request_error", "content_too_large"),
        (errors.UnsupportedTypeError("x"), 415, "invalid_request_error", "unsupported_media_type"),
        (errors.RequestFailedError("x"), 500, "internal_error", "request_failed"),
        (errors.UnavailableError("x"), 503, "overloaded_error", "queue_full"),
        (errors.DeadlineError("x"), 504, "timeout_error", "deadline_exceeded"),
        (
            errors.MediaLimitError("x", code="too_many_media_items"),
            400,
            "invalid_request_error",
            "too_many_media_items",
        ),
    ],
)
def test_status_type_and_code_belong_together(error: FoveaError, status: int, type: str, code: str) -> None:
    response = error_response(error, "req-1")
    assert response.status_code == status
    assert content(response) == {"message": "x", "type": type, "param": None, "code": code}
    assert response.headers["content-type"] == "application/json"


def test_what_is_full_says_when_to_come_back() -> None:
    response = error_response(UnavailableError("full", retry_after_s=7), "req-1")
    assert response.headers["retry-after"] == "7"
    assert "connection" not in response.headers


def test_a_draining_server_lets_go_of_the_connection() -> None:
    response = error_response(UnavailableError("bye", code="draining"), "req-1")
    assert response.headers["connection"] == "close"


@given(message=st.text(max_size=5000), param=st.text(max_size=500))
def test_bodies_stay_small_and_printable_whatever_a_message_holds(message: str, param: str) -> None:
    response = error_response(RequestError(message, param=param), "req-1")
    assert len(bytes(response.body)) <= MAX_BODY_BYTES
    assert not any(ord(character) < 32 for character in content(response)["message"])


@pytest.mark.parametrize("text", ["\0" * 5000, '"' * 5000, "\\" * 5000, "\u2028" * 5000, "🙂" * 5000, "\ud800" * 5000])
def test_the_worst_texts_stay_below_the_limit(text: str) -> None:
    assert len(bytes(error_response(RequestError(text, param=text), "r" * 64).body)) <= MAX_BODY_BYTES


def test_addresses_of_objects_never_leave() -> None:
    shown = error_body(RequestError("cannot read <BytesIO object at 0x7f5061ae3580>"), "req-1")["error"]["message"]
    assert "0x7f" not in shown
    assert "object at" not in shown


@pytest.mark.parametrize("error", [ModelError("/models/secret is broken"), FoveaError("why"), RequestFailedError()])
def test_errors_of_the_operator_are_one_fixed_sentence_with_the_request_id(error: FoveaError) -> None:
    shown = error_body(error, "req-1")["error"]
    assert "req-1" in shown["message"]
    assert "secret" not in shown["message"]
    assert shown["type"] == "internal_error"


def test_an_unexpected_error_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    asked = request()
    with caplog.at_level(logging.ERROR, logger="fovea.server"):
        try:
            raise KeyError("/srv/secret")
        except KeyError as error:
            response = asyncio.run(on_unexpected_error(asked, error))
    assert response.status_code == 500
    assert content(response)["code"] == "internal_error"
    assert b"secret" not in bytes(response.body)
    assert "secret" in caplog.text
    assert asked.scope["state"]["error_code"] == "internal_error"


def test_starlettes_own_errors_take_our_shape() -> None:
    asked = request()
    missing = asyncio.run(on_http_exception(asked, HTTPException(404)))
    assert (missing.status_code, content(missing)["code"]) == (404, "not_found")
    wrong = asyncio.run(on_http_exception(asked, HTTPException(405, headers={"Allow": "POST"})))
    assert (wrong.status_code, content(wrong)["code"], wrong.headers["allow"]) == (405, "method_not_allowed", "POST")
    odd = asyncio.run(on_http_exception(asked, HTTPException(418, detail="/srv/secret")))
    assert (odd.status_code, b"secret" in bytes(odd.body)) == (500, False)


def test_a_code_is_noted_for_log_and_metrics() -> None:
    asked = request()
    asyncio.run(on_fovea_error(asked, UnavailableError("full")))
    assert asked.scope["state"]["error_code"] == "queue_full"


def test_a_client_that_left_is_recognised_behind_wrappers() -> None:
    wrapped = RuntimeError("response already started")
    wrapped.__cause__ = ClientGone("gone")
    assert is_client_gone(ClientGone("gone"))
    assert is_client_gone(wrapped)
    assert not is_client_gone(RuntimeError())


def test_handlers_cover_everything_an_app_can_raise() -> None:
    assert set(exception_handlers()) == {FoveaError, HTTPException, Exception}
