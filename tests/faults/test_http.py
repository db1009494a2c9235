"""F19, F21, F24, F25, F36, R1, R2, R5: clients that leave or stop reading, upstreams in trouble, poisoned batches."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.corpus.upstream import Upstream
from tests.faults.support import (
    JSON,
    QUESTIONS,
    SLOW_MACHINE,
    Site,
    about,
    body,
    canvas_size,
    faults,
    leave_after_tokens,
    metrics,
    new_picture,
    picture,
    post,
    rarely,
    report,
    site,
    until,
)

TOWER_NAN = (140, 84)
NUM_LEAVERS = 20


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


@pytest.fixture(scope="module")
def house() -> Iterator[Site]:
    env = faults(
        "forward_error",
        "sampler_error",
        "nan_row",
        "memory_error",
        "prepare_segfault",
        "prepare_panic",
        "prepare_ids",
        "prepare_hang",
        tower_nan=canvas_size(new_picture(*TOWER_NAN)),
        step_s=0.003,
    )
    flags = ("--allowed-media-networks", "127.0.0.0/8", "--prepare-timeout-s", "2", "--stall-timeout-s", "1")
    with site(*flags, "--media-fetch-timeout-s", "3", env=env) as made:
        yield made


def send_and_leave(port: int, wanted: dict[str, Any], after_s: float, *, reset: bool = False) -> None:
    """Close the connection so long after the request was sent, whatever has come back."""
    data = json.dumps(wanted).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"{head}{len(data)}\r\n\r\n".encode() + data)
        time.sleep(after_s)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def half_a_request(port: int, *, num_bytes: int) -> None:
    data = json.dumps(body("Hello")).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    whole = f"{head}{len(data)}\r\n\r\n".encode() + data
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(whole[:num_bytes])


def silent_url(upstream: Upstream) -> str:
    return f"http://127.0.0.1:{upstream.port}/s0/silent/a.png"


PHASES: dict[str, Callable[[Site, Upstream], None]] = {
    "headers": lambda where, _: half_a_request(where.port, num_bytes=40),
    "body": lambda where, _: half_a_request(where.port, num_bytes=200),
    "fetch": lambda where, up: send_and_leave(where.port, body("Hello", url=silent_url(up)), 0.2),
    "prepare": lambda where, _: send_and_leave(where.port, body(about("prepare_hang")), 0.2),
    "decode a picture": lambda where, _: send_and_leave(where.port, body("Look", url=new_picture(600, 600)), 0.01),
    "queue": lambda where, _: send_and_leave(where.port, body("Hello", max_tokens=1000), 0.0, reset=True),
    "prefill": lambda where, _: send_and_leave(where.port, body("word " * 1500, max_tokens=1000), 0.05),
    "tokens, streamed": lambda where, _: leave_after_tokens(where, "Hello", max_tokens=1000),
    "tokens, not streamed": lambda where, _: send_and_leave(where.port, body("Hello", max_tokens=1000), 0.3),
    "the last chunk": lambda where, _: leave_after_tokens(where, "Hello", max_tokens=4, num_tokens=4),
}


@pytest.mark.parametrize("phase", rarely(PHASES, ["fetch", "queue", "tokens, streamed"]))
def test_work_for_a_client_that_left_stops(house: Site, upstream: Upstream, phase: str) -> None:
    with house.beside():
        PHASES[phase](house, upstream)
        seconds = until(lambda: metrics(house.port)["fovea:requests_in_house"] <= len(QUESTIONS), 1.0 * SLOW_MACHINE)
    report(f"left at {phase}", gone=seconds, whole=house.check_whole())


@pytest.mark.faults
@pytest.mark.parametrize("phase", PHASES)
def test_many_clients_that_leave_at_once_leave_nothing(house: Site, upstream: Upstream, phase: str) -> None:
    with house.beside(), ThreadPoolExecutor(NUM_LEAVERS) as pool:
        for future in [pool.submit(PHASES[phase], house, upstream) for _ in range(NUM_LEAVERS)]:
            future.result()
        seconds = until(lambda: metrics(house.port)["fovea:requests_in_house"] <= len(QUESTIONS), 1.0 * SLOW_MACHINE)
    report(f"{NUM_LEAVERS} left at {phase}", gone=seconds, whole=house.check_whole())


@pytest.mark.faults
def test_readers_that_stop_are_cut_off_and_hold_up_nobody(house: Site) -> None:
    """F21. They take a few kilobytes and then nothing; what the server keeps for each is bounded."""
    wanted = body("Tell me all.", stream=True, max_tokens=3000, logprobs=True, top_logprobs=20)
    stalled = [connect_small(house.port) for _ in range(16)]
    for connection in stalled:
        connection.request("POST", "/v1/chat/completions", json.dumps(wanted), JSON)
    with house.beside():
        pass
    seconds = until(lambda: metrics(house.port)["fovea:requests_in_house"] == 0, 30 * SLOW_MACHINE)
    report("stalled readers", gone=seconds)
    for connection in stalled:
        connection.close()
    house.check_whole()


def connect_small(port: int) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.sock = socket.socket()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sock.connect(("127.0.0.1", port))
    return connection


TROUBLES = ["silent", "pause", "reset", "short", "error", "missing", "loop", "drip", "endless"]


@pytest.mark.parametrize("trouble", rarely(TROUBLES, ["reset"]))
def test_an_upstream_in_trouble_costs_its_own_request(house: Site, upstream: Upstream, trouble: str) -> None:
    with house.beside():
        answer = house.ask("What is this?", url=f"http://127.0.0.1:{upstream.port}/s1/{trouble}")
    assert answer.status == 400
    assert answer.code in ("media_fetch_failed", "media_too_large", "media_url_not_allowed", "invalid_image")
    assert answer.elapsed_s < 11
    report(f"upstream {trouble}", answer=answer.elapsed_s)
    house.check_whole()


@pytest.mark.faults
def test_a_name_nobody_knows_is_a_refusal(house: Site) -> None:
    with house.beside():
        answer = house.ask("What is this?", url="http://pictures.invalid/a.png")
    assert answer.status == 400
    assert answer.elapsed_s < 3.5 + SLOW_MACHINE
    report("resolver", answer=answer.elapsed_s)


# --- poison -----------------------------------------------------------------------------------------------------------


def cut_png() -> str:
    return picture()[:3000]


NO_PICTURE = "data:image/png;base64,bm8gcGljdHVyZQ=="
POISON: dict[str, tuple[dict[str, Any], set[str]]] = {
    "address": (body("Hello", url="http://10.0.0.1/a.png"), {"media_url_not_allowed", "media_fetch_failed"}),
    "bytes": (
        body("Hello", url="data:image/png;base64,bm8gcGljdHVyZQ=="),
        {"invalid_image", "unsupported_image_format"},
    ),
    "decode": (body("Hello", url=cut_png()), {"invalid_image", "invalid_data_url"}),
    "resize": (body("Hello", url=new_picture(900, 3)), {"above_max_value", "invalid_image"}),
    "template": (
        {**body("Hello"), "messages": [{"role": "nobody", "content": "x"}]},
        {"invalid_prompt", "invalid_value", "chat_template_error"},
    ),
    "crash": (body(about("prepare_segfault")), {"invalid_image"}),
    "panic": (body(about("prepare_panic")), {"request_failed"}),
    "ids": (body(about("prepare_ids")), {"invalid_prompt", "above_max_value"}),
    "length": (body("word " * 5000), {"context_length_exceeded"}),
    "tower": (body("Hello", url=new_picture(*TOWER_NAN)), {"numerical_error"}),
    "prefill": (body(about("forward_error")), {"request_failed"}),
    "memory": (body(about("memory_error")), {"out_of_memory"}),
    "logits": (body(about("nan_row")), {"numerical_error"}),
    "sampler": (body(about("sampler_error")), {"request_failed"}),
    "no token": (body("Hello", allowed_token_ids=[5], stop_token_ids=[5], min_tokens=4), {"unsupported_combination"}),
    "parameters": (body("Hello", temperature=-1.0), {"invalid_value", "below_min_value"}),
}
NUM_GOOD = 15


def poison_batch(where: Site, stage: str, order: int, expected: list[list[int]]) -> None:
    wanted, codes = POISON[stage]
    batch = [body(f"{QUESTIONS[i % 8]} {i}", stream=bool(i % 2)) for i in range(NUM_GOOD)]
    places = list(range(NUM_GOOD + 1))
    random.Random(order).shuffle(places)
    with ThreadPoolExecutor(NUM_GOOD + 1) as pool:
        futures = {i: pool.submit(post, where.port, wanted if i == NUM_GOOD else batch[i]) for i in places}
    answers = [futures[i].result() for i in range(NUM_GOOD + 1)]
    assert answers[-1].code in codes, (stage, answers[-1])
    assert [answer.token_ids for answer in answers[:-1]] == expected, stage
    assert all(answer.is_good for answer in answers[:-1]), stage


@pytest.fixture(scope="module")
def good_answers(house: Site) -> list[list[int]]:
    return [house.ask(f"{QUESTIONS[i % 8]} {i}", stream=bool(i % 2)).token_ids for i in range(NUM_GOOD)]


@pytest.mark.parametrize("stage", rarely(POISON, ["decode", "crash", "tower", "logits", "sampler"]))
def test_one_poisoned_request_of_sixteen_fails_alone(house: Site, good_answers: list[list[int]], stage: str) -> None:
    poison_batch(house, stage, 0, good_answers)
    house.check_whole()


@pytest.mark.faults
def test_poison_in_any_order_fails_alone(house: Site, good_answers: list[list[int]]) -> None:
    for order, stage in itertools.product((1, 2), POISON):
        poison_batch(house, stage, order, good_answers)
    house.check_whole()
    assert house.count("fovea:engine_restarts_total") == 0


def test_no_fault_can_be_asked_for_by_http(house: Site) -> None:
    """The hook is the environment's alone: what looks like it in a request is an unknown field or plain text."""
    wanted = {**body("Hello"), "faults": {"kill": 1}, "FOVEA_FAULTS": "{}"}
    before = house.server.engine_pid()
    connection = http.client.HTTPConnection("127.0.0.1", house.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(wanted), {**JSON, "FOVEA-FAULTS": '{"kill":1}'})
        assert connection.getresponse().status in (200, 400)
    assert house.ask("Hello").is_good
    assert house.server.engine_pid() == before
