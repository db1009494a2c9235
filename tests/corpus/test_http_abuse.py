"""H, the rows that take several connections, time or keys. The server is `small`: its deadlines are seconds."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.corpus import http_abuse
from tests.corpus.client import Reply, parse, send, talk
from tests.corpus.conftest import Servers
from tests.corpus.judge import SLOW_MACHINE, answer_of
from tests.corpus.processes import wait_until
from tests.corpus.profiles import KEY, OTHER_KEY, SMALL
from tests.corpus.routes import Request, good_body
from tests.corpus.watch import Watch, canary

KEY_LINE = f"Authorization: Bearer {KEY}"
PUBLIC = {"/health", "/health/live", "/health/ready", "/ready"}
OTHER_PATHS = (
    "/",
    "/docs",
    "/openapi.json",
    "/playground/app.js",
    "/nothing",
    "/v1/nothing",
    "/favicon.ico",
    "/redoc",
    "/v1/models/fovea-tiny",
    "/pause",
    "/metrics/",
    "//metrics",
    "/health/../metrics",
    "/ready/x",
    "/Health",
)


@pytest.fixture
def small(servers: Servers) -> Iterator[Watch]:
    watch = servers.get("small")
    yield watch
    found = watch.check()
    assert not found, "\n".join(found)


@pytest.fixture
def plain(servers: Servers) -> Iterator[Watch]:
    watch = servers.get("plain")
    yield watch
    found = watch.check()
    assert not found, "\n".join(found)


@contextlib.contextmanager
def connected(watch: Watch) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", watch.server.port), timeout=60) as connection:
        yield connection


def until_closed(connection: socket.socket) -> tuple[bytes, float]:
    """What came, and how long it took until the other side closed."""
    start = time.monotonic()
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while block := connection.recv(65536):
            data += block
    return data, time.monotonic() - start


def _document(watch: Watch) -> dict[str, dict[str, object]]:
    paths = watch.send(Request("/openapi.json", b"", ()), method="GET")[0].json["paths"]
    assert isinstance(paths, dict)
    return paths


@pytest.mark.corpus_quick
def test_every_route_but_health_needs_a_key(small: Watch) -> None:
    """H21: walks the document of the routes, and paths that are in none."""
    paths = [*_document(small), *OTHER_PATHS]
    assert len(paths) >= 20
    for path in paths:
        for method in ("GET", "POST", "PUT", "OPTIONS", "HEAD"):
            request = Request(path.replace("{model}", "fovea-tiny"), b"{}")
            status = send(small.server.port, request, method=method).status
            wanted = {200, 405} if path in PUBLIC else {401}
            assert status in wanted, f"{method} {path} without a key: {status}"


@pytest.mark.corpus
def test_a_wrong_key_is_judged_before_the_body(small: Watch) -> None:
    """A hundred megabytes are announced; nothing of them is waited for."""
    reply = talk(small.server.port, http_abuse.post("Authorization: Bearer x", body=b"", length=10**8))
    assert reply.status == 401
    assert reply.elapsed_s < 0.25 * SLOW_MACHINE + 1


@pytest.mark.corpus
def test_headers_that_trickle_are_cut_off(small: Watch) -> None:
    """H11, with 200 connections at once; others are served meanwhile."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connected(small)) for _ in range(200)]
        for connection in connections:
            connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: 127")
        start = time.monotonic()
        assert small.ask_canary() == small.canary
        for connection in connections:
            data, _ = until_closed(connection)
            assert not data or parse(data, 0, True).status == 408
        assert time.monotonic() - start < SMALL.header_timeout_s * 3 + 10


@pytest.mark.corpus
def test_a_byte_a_moment_does_not_keep_headers_alive(small: Watch) -> None:
    with connected(small) as connection:
        start = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in http_abuse.get("/v1/models", KEY_LINE, "X: " + "a" * 1000):
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
                if time.monotonic() - start > 20:
                    break
        assert time.monotonic() - start < SMALL.header_timeout_s * 3 + 5


@pytest.mark.corpus
def test_a_body_that_stops_is_told_so_and_cut_off(small: Watch) -> None:
    """H12"""
    reply = talk(small.server.port, http_abuse.post(KEY_LINE, length=10_000), timeout_s=30)
    assert reply.status == 408
    assert reply.error["code"] == "request_timeout"
    assert reply.closed
    assert reply.elapsed_s < SMALL.body_timeout_s * 3 + 2


@pytest.mark.corpus
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_client_that_leaves_in_its_body_costs_nothing(small: Watch, share: float) -> None:
    """H13"""
    before = small.metrics()
    data = http_abuse.post(KEY_LINE)
    end = len(data) - len(http_abuse.BODY) + int(len(http_abuse.BODY) * share)
    for _ in range(10):
        with connected(small) as connection:
            connection.sendall(data[:end])
    assert small.metrics().get("vllm:prompt_tokens_total") == before.get("vllm:prompt_tokens_total")


@pytest.mark.corpus
def test_a_client_that_closes_its_half_is_answered(small: Watch) -> None:
    """H13: nothing more to send is not the same as gone; either is allowed, a hang or an error is not."""
    reply = talk(small.server.port, http_abuse.post(KEY_LINE), half_close=True, timeout_s=30)
    assert reply.status in (0, 200)
    assert reply.closed


@pytest.mark.corpus
def test_idle_connections_are_closed(small: Watch) -> None:
    """H14"""
    with connected(small) as connection:
        connection.sendall(http_abuse.head("GET /health HTTP/1.1", close=False))
        data, seconds = until_closed(connection)
    assert parse(data, seconds, True).status == 200
    assert seconds < SMALL.keep_alive_s * 3 + 5


@pytest.mark.corpus
def test_requests_around_the_idle_limit_are_answered_or_never_begun(small: Watch) -> None:
    """H14: the second request comes when the server may just be closing."""
    request = http_abuse.head("GET /health HTTP/1.1", close=False)
    for delta_s in (-0.02, -0.01, 0.0, 0.01, 0.02) * 2:
        with connected(small) as connection:
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(SMALL.keep_alive_s + delta_s)
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                connection.sendall(request)
                data = connection.recv(65536)
                assert not data or data.startswith(b"HTTP/1.1 200")


@pytest.mark.corpus
def test_pipelined_requests_are_answered_in_order_up_to_the_bad_one(plain: Watch) -> None:
    """H16"""
    good = [http_abuse.head(f"GET /{'version' if n % 2 else 'health'} HTTP/1.1", close=False) for n in range(100)]
    good[60] = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nBad : x\r\n\r\n"
    raw = talk(plain.server.port, b"".join(good), timeout_s=30).raw
    statuses = [int(part[:3]) for part in raw.split(b"HTTP/1.1 ")[1:]]
    assert statuses[:60] == [200] * 60
    assert statuses[60:] in ([], [400])
    bodies = [b"version" in part for part in raw.split(b"HTTP/1.1 ")[1:61]]
    assert bodies == [bool(n % 2) for n in range(60)]


@pytest.mark.corpus
def test_a_smuggled_request_is_not_served(plain: Watch) -> None:
    """H08: what follows a body that could be read in two ways is never a request."""
    inner = b"GET /version HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    reply = talk(
        plain.server.port, http_abuse.post("Transfer-Encoding: chunked", body=b"0\r\n\r\n" + inner), timeout_s=30
    )
    assert reply.status == 400
    assert reply.raw.count(b"x-request-id: ") == 1


@pytest.mark.corpus
def test_100_continue_comes_for_a_body_that_is_wanted_only(plain: Watch) -> None:
    """H26"""
    with connected(plain) as connection:
        whole = http_abuse.post("Expect: 100-continue")
        connection.sendall(whole[: -len(http_abuse.BODY)])
        assert connection.recv(65536).startswith(b"HTTP/1.1 100")
        connection.sendall(http_abuse.BODY)
        data, seconds = until_closed(connection)
    assert parse(data, seconds, True).status == 200
    refused = talk(
        plain.server.port, http_abuse.post("Expect: 100-continue", body=b"", length=40 * 2**20), timeout_s=30
    )
    assert refused.status == 413
    assert b"100 Continue" not in refused.raw


@pytest.mark.corpus
def test_spoofed_keys_in_other_places_do_not_count(small: Watch) -> None:
    lines = (f"X-Api-Key: {KEY}", f"Cookie: key={KEY}", f"Proxy-Authorization: Bearer {KEY}", f"api-key: {KEY}")
    for line in lines:
        assert talk(small.server.port, http_abuse.get("/v1/models", line)).status == 401


@pytest.mark.corpus
def test_both_keys_are_taken(small: Watch) -> None:
    for key in (KEY, OTHER_KEY):
        assert talk(small.server.port, http_abuse.get("/v1/models", f"Authorization: Bearer {key}")).status == 200


@pytest.mark.corpus
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("wait_s", [0.0, 0.01, 0.03, 0.1, 0.3])
def test_a_client_that_leaves_in_its_answer_frees_everything(plain: Watch, streams: bool, wait_s: float) -> None:
    """H29, P52: whatever the request has come to."""
    body = {
        **json.loads(canary().body),
        "max_tokens": 2000,
        "ignore_eos": True,
        "n": 8,
        "temperature": 1,
        "stream": streams,
    }
    data = http_abuse.post(body=json.dumps(body).encode())
    for _ in range(3):
        with connected(plain) as connection:
            connection.sendall(data)
            time.sleep(wait_s)
    assert wait_until(lambda: not plain.metrics().get("fovea:requests_in_house"), 2 * SLOW_MACHINE)


@pytest.mark.corpus
def test_a_client_that_leaves_after_the_first_chunk_frees_all_rows(plain: Watch) -> None:
    """P52"""
    body = {**good_body("chat_stream"), "max_tokens": 3000, "ignore_eos": True, "n": 8, "temperature": 1}
    with connected(plain) as connection:
        connection.sendall(http_abuse.post(body=json.dumps(body).encode()))
        data = b""
        while b"data: " not in data:
            data += connection.recv(65536)
    assert wait_until(lambda: not plain.metrics().get("vllm:num_requests_running"), 1 * SLOW_MACHINE + 1)


@pytest.mark.corpus
def test_equal_requests_at_once_are_each_answered(plain: Watch) -> None:
    """H35"""
    headers = (("Content-Type", "application/json"), ("Idempotency-Key", "same"))
    request = Request("/v1/chat/completions", json.dumps(good_body("chat")).encode(), headers)
    with ThreadPoolExecutor(8) as pool:
        replies: list[Reply] = [reply for reply, _ in pool.map(lambda _: plain.send(request), range(16))]
    assert {reply.status for reply in replies} == {200}
    assert len({reply.json["id"] for reply in replies}) == len(replies)
    assert len({answer_of(reply) for reply in replies}) == 1


@pytest.mark.corpus
def test_a_request_id_of_a_client_comes_back_if_it_is_harmless(plain: Watch) -> None:
    """H18"""
    good = send(plain.server.port, Request("/version", b"", ()), "abc_DEF-123", method="GET")
    assert good.headers["x-request-id"] == "abc_DEF-123"
    for odd in ("127.0.0.1:80", "a b", "a" * 65, "é", "<script>", "a;b"):
        reply = send(plain.server.port, Request("/version", b"", (("X-Request-Id", odd),)), method="GET")
        assert reply.status == 200
        assert reply.headers["x-request-id"] not in ("", odd)


@pytest.mark.corpus
def test_large_and_odd_texts_make_one_short_log_line_each(plain: Watch) -> None:
    """H32; the lines themselves are looked at by the fixture."""
    for text in ("a\r\nfovea I forged line", "\x1b[31mred", "x" * 2**20):
        body = json.dumps({**good_body("chat"), "model": text, "user": text}).encode()
        assert plain.send(Request("/v1/chat/completions", body))[0].status in (400, 404)
