"""Thousands of mutated bodies and streams of bytes: answered or refused, never a 5xx, never a hang."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.corpus import http_abuse
from tests.corpus.client import talk
from tests.corpus.conftest import Servers
from tests.corpus.judge import leaks
from tests.corpus.routes import Request
from tests.corpus.watch import Watch
from tests.fuzz.bodies import mutated_body
from tests.fuzz.mutations import mutated, shown
from tests.fuzz.seeds import bodies
from tests.fuzz.table import print_table

NUM_BODIES = int(os.environ.get("FOVEA_FUZZ_BODIES", "5000"))
NUM_STREAMS = int(os.environ.get("FOVEA_FUZZ_STREAMS", "1000"))
FIRST = int(os.environ.get("FOVEA_FUZZ_FIRST", "0"))
STREAM_S = 30.0


def test_mutants_are_the_same_every_time() -> None:
    assert [mutated_body(bodies(), n) for n in range(300)] == [mutated_body(bodies(), n) for n in range(300)]
    assert len({mutated_body(bodies(), n) for n in range(300)}) > 250


@pytest.fixture
def brief(servers: Servers) -> Iterator[Watch]:
    """A server whose answers are short and whose deadlines are seconds."""
    found = servers.get("brief")
    yield found
    complaints = found.check()
    assert not complaints, "\n".join(complaints)


@pytest.mark.fuzz
def test_mutated_bodies_are_answered_or_refused(brief: Watch, capsys: pytest.CaptureFixture[str]) -> None:
    def one(number: int) -> tuple[str, str]:
        path, data = mutated_body(bodies(), number)
        request = Request(path, data)
        reply, _ = brief.send(request, timeout_s=300)
        name = f"{reply.status} {reply.error.get('code', '')}"
        good = (reply.status == 200 or 400 <= reply.status < 500) and not list(
            leaks(reply.body.decode(errors="replace"), request)
        )
        good = good and len(reply.body if reply.status >= 400 else b"") <= 4096
        return name, "" if good else f"{number}: {path} {reply.status} {reply.body[:300]!r}\n    {shown(data)}"

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(one, range(FIRST, FIRST + NUM_BODIES)))
    print_table(capsys, f"{NUM_BODIES} mutated bodies", [name for name, _ in results])
    wrong = [what for _, what in results if what]
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:10])


def _stream_seeds() -> list[bytes]:
    kept = http_abuse.head("POST /tokenize HTTP/1.1", http_abuse.JSON, "Content-Length: 40", close=False)
    return [
        http_abuse.get("/v1/models"),
        http_abuse.get("/health", "X-Request-Id: abc", "Origin: null"),
        http_abuse.post(),
        http_abuse.post("Expect: 100-continue"),
        http_abuse.chunked(http_abuse.BODY[:20], http_abuse.BODY[20:]),
        kept + b'{"model":"fovea-tiny","prompt":"abcdefg"}' + http_abuse.get("/version"),
        http_abuse.head("HEAD /metrics HTTP/1.1"),
        http_abuse.head("OPTIONS * HTTP/1.1"),
    ]


@pytest.mark.fuzz
def test_mutated_streams_are_answered_or_cut_off(brief: Watch, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = _stream_seeds()

    def one(number: int) -> tuple[str, str]:
        data = mutated(seeds, number)
        reply = talk(brief.server.port, data, timeout_s=STREAM_S)
        name = f"{reply.status or 'closed without a word'} {reply.error.get('code', '')}"
        good = reply.closed and reply.status < 500 and (not reply.raw or reply.raw.startswith(b"HTTP/1.1 "))
        return name, "" if good else f"{number}: {reply.status} {reply.raw[:300]!r}\n    {shown(data)}"

    with ThreadPoolExecutor(32) as pool:
        results = list(pool.map(one, range(FIRST, FIRST + NUM_STREAMS)))
    print_table(capsys, f"{NUM_STREAMS} mutated streams of bytes", [name for name, _ in results])
    wrong = [what for _, what in results if what]
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:10])
