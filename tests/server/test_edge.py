"""What happens to every request: id, host, key, origin, one answer, one line, one count."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from tests.server.wire import Reply, Server, get, post, run

KEY = "Authorization: Bearer secret"


def count(server: Server, name: str) -> dict[str, float]:
    """The samples of a counter, by the value of its own label."""
    pattern = re.compile(rf'^{name}_total{{.*?(?:code|status|reason)="(\w+)".*?}} (\S+)$', re.MULTILINE)
    return {label: float(value) for label, value in pattern.findall(server.metrics.render().decode())}


def asked(data: bytes, **options: Any) -> Reply:
    replies: list[Reply] = []

    async def test(server: Server) -> None:
        replies.append(await server.ask(data))
        line = await server.line()
        assert len(server.lines) == 1
        assert line["status"] == replies[0].status
        assert line["id"] == replies[0].headers["x-request-id"]
        assert count(server, "fovea:http_requests") == {str(replies[0].status): 1.0}

    run(test, **options)
    return replies[0]


def test_a_request_id_is_made_or_taken() -> None:
    assert re.fullmatch(r"req-[0-9a-f]{32}", asked(get()).headers["x-request-id"])
    assert asked(get("/health", "X-Request-Id: mine_1-A")).headers["x-request-id"] == "mine_1-A"


@pytest.mark.parametrize("given", ["", "10.0.0.1:5000", "a" * 65, "a b", "a/b", "a\x1bb", "é"])
def test_a_request_id_of_another_form_is_replaced(given: str) -> None:
    reply = asked(get("/health", f"X-Request-Id: {given}"))
    assert reply.headers.get("x-request-id") != given
    assert reply.status in (200, 400)


def test_refusals_carry_the_id_too() -> None:
    assert asked(get("/nothing", "X-Request-Id: mine")).headers["x-request-id"] == "mine"
    assert asked(get("/who", "X-Request-Id: mine"), api_key=("secret",)).headers["x-request-id"] == "mine"


@pytest.mark.parametrize("path", ["/who", "/metrics", "/nothing", "/", "//health", "/health%2Flive", "/%68ealth", "*"])
def test_everything_but_health_needs_the_key(path: str) -> None:
    reply = asked(get(path), api_key=("secret",))
    assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert asked(get("/health"), api_key=("secret",)).status == 200


def test_a_browser_is_asked_for_the_key() -> None:
    reply = asked(get("/", "Accept: text/html"), api_key=("secret",))
    assert (reply.status, reply.headers["www-authenticate"][:5]) == (401, "Basic")


def test_a_wrong_key_is_answered_before_the_body() -> None:
    async def test(server: Server) -> None:
        client = await server.connect()
        await client.send(get("/echo", "Content-Type: application/json", "Content-Length: 1000000", method="POST"))
        assert (await client.reply()).status == 401
        assert await client.is_ended()

    run(test, api_key=("secret",))


@pytest.mark.parametrize(
    "path",
    ["//who", "/./who", "/x/../who", "/%2e%2e/who", "/WHO", "/who/", "/who;x=1", "/%77ho", "/who%2F", "/who%00"],
)  # fmt: skip
def test_only_the_exact_path_is_the_route(path: str) -> None:
    reply = asked(get(path, KEY), api_key=("secret",))
    assert (reply.status, reply.error["code"]) == (404, "not_found")


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PUT", "DELETE", "FOO", "OPTIONS", "POST"])
def test_other_methods_are_refused_with_those_allowed(method: str) -> None:
    reply = asked(get("/who", method=method))
    assert (reply.status, reply.error["code"]) == (405, "method_not_allowed")
    assert "GET" in reply.headers["allow"]


def test_head_and_get_with_a_body_and_options_of_everything_do_not_hang() -> None:
    async def test(server: Server) -> None:
        client = await server.connect()
        await client.send(get("/health", method="HEAD"))
        assert (await client.reply(to_head=True)).status == 200
        await client.send(get("/health", "Content-Length: 2") + b"{}")
        assert (await client.reply()).status == 200
        await client.send(get("*", method="OPTIONS"))
        assert (await client.reply()).status == 404
        await client.send(get("/health"))
        assert (await client.reply()).status == 200

    run(test)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://localhost/who?a=1", 200),
        ("HTTP://localhost:80/who", 200),
        ("http://evil.test/who", 403),
        ("http://a@b/who", 400),
        ("http:///who", 400),
        ("http://localhost", 404),
        ("ftp://localhost/who", 404),
        ("localhost:80", 404),
    ],
)
def test_of_an_absolute_target_only_the_path_counts(target: str, status: int) -> None:
    reply = asked(get(target))
    assert reply.status == status
    if status == 200:
        assert b'"path":"/who"' in reply.body
    assert asked(get(target), api_key=("secret",)).status in (400, 401, 403)


def test_forwarded_headers_are_not_believed() -> None:
    async def test(server: Server) -> None:
        await server.ask(get("/who", "X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https", "X-Forwarded-Prefix: /x"))
        assert (await server.line())["client"] == "127.0.0.1"

    run(test)


@pytest.mark.parametrize(("host", "status"), [("evil.test", 403), ("x/v1/public?", 400), ("a@b", 400), ("", 400)])
def test_a_wrong_host_is_refused_with_and_without_a_key(host: str, status: int) -> None:
    assert asked(get("/who", host=host)).status == status
    assert asked(get("/health", KEY, host=host), api_key=("secret",)).status == status


def test_a_websocket_is_refused_and_other_upgrades_are_passed_over() -> None:
    reply = asked(get("/who", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"))
    assert (reply.status, reply.error["code"]) == (426, "upgrade_not_supported")
    assert asked(get("/who", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA")).status == 200


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "x"])
def test_compressed_bodies_are_refused(coding: str) -> None:
    reply = asked(post(b"\x1f\x8b", f"Content-Encoding: {coding}"))
    assert (reply.status, reply.error["code"]) == (415, "unsupported_media_type")


def test_a_multipart_body_is_refused() -> None:
    data = get("/echo", "Content-Type: multipart/form-data; boundary=x", "Content-Length: 2", method="POST") + b"{}"
    assert asked(data).status == 415


@pytest.mark.parametrize("origin", ["https://evil.test", "null", "https://good.test.evil.test"])
def test_no_page_of_another_origin_gets_cors_headers(origin: str) -> None:
    for data in (
        get("/who", f"Origin: {origin}"),
        get("/who", f"Origin: {origin}", "Access-Control-Request-Method: POST", method="OPTIONS"),
    ):
        reply = asked(data, allowed_origins=("https://good.test",))
        assert not [name for name in reply.headers if name.startswith("access-control")]


def test_a_listed_origin_may_call() -> None:
    options: dict[str, Any] = {"allowed_origins": ("https://good.test",), "api_key": ("secret",)}
    reply = asked(get("/who", "Origin: https://good.test", KEY), **options)
    assert reply.headers["access-control-allow-origin"] == "https://good.test"
    assert reply.headers["vary"] == "Origin"
    ask = ("Origin: https://good.test", "Access-Control-Request-Method: POST")
    preflight = asked(get("/echo", *ask, "Access-Control-Request-Headers: x-stainless-os", method="OPTIONS"), **options)
    assert (preflight.status, preflight.headers["access-control-allow-headers"]) == (204, "x-stainless-os")
    assert asked(get("/who", "Origin: https://good.test"), **options).status == 401


def test_the_tenant_reaches_the_app() -> None:
    body = asked(get("/who", KEY), api_key=("secret",)).body
    assert b'"tenant":""' not in body
    assert b"secret" not in body


def test_a_bug_is_one_fixed_sentence() -> None:
    reply = asked(get("/broken"))
    assert (reply.status, reply.error["type"]) == (500, "internal_error")
    assert reply.headers["x-request-id"] in reply.error["message"]
    assert not re.search(rb"0x[0-9a-f]{6,}|object at|Traceback|secret|KeyError", reply.body)


def test_refusals_are_counted_once_by_their_code() -> None:
    async def test(server: Server) -> None:
        reply = await server.ask(get("/full"))
        assert (reply.status, reply.headers["retry-after"]) == (503, "7")
        await server.ask(get("/nothing"))
        await server.ask(post(b"{"))
        await server.ask(b"nonsense\r\n\r\n")
        await server.line(4)
        assert count(server, "fovea:refusals") == {
            "queue_full": 1,
            "not_found": 1,
            "invalid_json": 1,
            "invalid_http": 1,
        }
        assert count(server, "vllm:admission_rejections") == {"queue_full": 1}
        assert count(server, "fovea:http_requests") == {"503": 1, "404": 1, "400": 2}

    run(test)


def test_nasty_text_in_a_request_stays_in_its_line() -> None:
    async def test(server: Server) -> None:
        await server.ask(get("/a%0d%0ab%1b[31m" + "x" * 4000, "User-Agent: \x7f\x80", "X-Request-Id: a;b"))
        line = await server.line()
        assert len(line["path"]) < 300
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", str(line))
        assert len(server.lines) == 1

    run(test)


def test_the_loop_lag_is_measured_while_the_server_runs() -> None:
    async def test(server: Server) -> None:
        await asyncio.sleep(0.5)
        found = re.search(rb"event_loop_lag_seconds_count{.*} (\S+)", server.metrics.render())
        assert found is not None
        assert float(found[1]) >= 1

    run(test)


def test_equal_requests_at_once_are_answered_alone() -> None:
    async def test(server: Server) -> None:
        same = post(b'{"text": "same"}', "X-Request-Id: one", "Idempotency-Key: one")
        replies = await asyncio.gather(*(server.ask(same) for _ in range(20)))
        assert {reply.body for reply in replies} == {b"same"}
        assert len(server.seen.bodies) == 20

    run(test)
