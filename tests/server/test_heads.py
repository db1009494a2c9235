"""Heads are judged alike however they are cut into packets."""

from __future__ import annotations

import pytest

from fovea.server.heads import MAX_HEAD_BYTES, MAX_HEADERS, MAX_TARGET_BYTES, judge_head

GOOD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"


def status(data: bytes) -> int:
    error = judge_head(data)
    return error.status if error is not None else 200


def test_no_prefix_of_a_good_head_is_refused() -> None:
    assert [status(GOOD[:n]) for n in range(len(GOOD) + 1)] == [200] * (len(GOOD) + 1)


def test_what_follows_the_head_is_not_judged() -> None:
    assert status(GOOD + b"{\n \0}" + b"x" * MAX_HEAD_BYTES) == 200


@pytest.mark.parametrize(("over", "wanted"), [(0, 200), (1, 431)])
def test_the_number_of_headers_has_an_exact_limit(over: int, wanted: int) -> None:
    lines = b"A: 1\r\n" * (MAX_HEADERS - 1 + over)
    assert status(b"GET / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n") == wanted


@pytest.mark.parametrize(("over", "wanted"), [(0, 200), (1, 414)])
def test_the_address_has_an_exact_limit(over: int, wanted: int) -> None:
    target = b"/" + b"a" * (MAX_TARGET_BYTES - 1 + over)
    assert status(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n") == wanted


@pytest.mark.parametrize(("over", "wanted"), [(0, 200), (1, 431)])
def test_the_size_of_the_head_has_an_exact_limit(over: int, wanted: int) -> None:
    start = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
    assert status(start + b"a" * (MAX_HEAD_BYTES - len(start) - 2 + over) + b"\r\n\r\n") == wanted


@pytest.mark.parametrize(
    "lines",
    [
        b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
        b"transfer-encoding : chunked\r\ncontent-length: 2\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding:\r\n",
        b"Content-Length: 2\r\ncontent-length: 3\r\n",
        b"Content-Length: +2\r\n",
        b"Content-Length:\r\n",
        b"Content-Length: \xd9\xa2\r\n",
    ],
)
def test_the_end_of_a_body_is_said_once_and_plainly(lines: bytes) -> None:
    assert status(b"POST / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n") == 400
    assert status(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n") == 200
