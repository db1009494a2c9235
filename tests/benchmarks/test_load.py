"""What the load benchmark makes and how it judges: a leak, a slow answer and a missed bound are seen."""

from __future__ import annotations

import base64
import io
import json
import random
import socket
import threading

import pytest
from PIL import Image

from benchmarks.load.pictures import MAX_SIDE_PX, MIN_SIDE_PX, make_questions, question
from benchmarks.load.probe import probe
from benchmarks.load.report import Figure, Report, number
from benchmarks.load.watch import (
    Watch,
    is_idle,
    lag_quantile_ms,
    parse_metrics,
    percentile,
    slope,
)

METRICS = """# HELP fovea:event_loop_lag_seconds How late.
fovea:event_loop_lag_seconds_bucket{engine="0",le="0.001",model_name="m"} 90.0
fovea:event_loop_lag_seconds_bucket{engine="0",le="0.01",model_name="m"} 99.0
fovea:event_loop_lag_seconds_bucket{engine="0",le="+Inf",model_name="m"} 100.0
fovea:images_total{cache="hit",engine="0",model_name="m"} 3.0
vllm:e2e_request_latency_seconds_sum{engine="0",model_name="m"} 1.5e+01
"""


def watch_of(points: list[tuple[float, float]]) -> Watch:
    watch = Watch.__new__(Watch)
    watch.pss_mib = points
    return watch


def test_a_leak_of_4_kib_a_request_is_not_flat() -> None:
    """At 25 requests a second, with noise ten times as large as a sample's growth."""
    rng = random.Random(1)
    points = [(2.0 * i, 700 + 2.0 * i * 25 * 4 / 1024 + rng.uniform(-2, 2)) for i in range(90)]
    slope_mib, growth_mib = watch_of(points).flatness(60.0)
    assert 5.0 < slope_mib < 7.0
    assert growth_mib > 8


def test_noise_around_a_level_is_flat() -> None:
    rng = random.Random(2)
    points = [(2.0 * i, 700 + rng.uniform(-2, 2)) for i in range(90)]
    slope_mib, growth_mib = watch_of(points).flatness(60.0)
    assert abs(slope_mib) < 1
    assert abs(growth_mib) < 3


def test_what_caches_take_while_they_fill_does_not_count() -> None:
    points = [(2.0 * i, 500 + min(2.0 * i, 60) * 5) for i in range(90)]
    assert watch_of(points).flatness(60.0) == pytest.approx((0, 0), abs=1e-6)


def test_slope_is_that_of_a_line() -> None:
    assert slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert slope([(1, 1)]) == 0


def test_percentile_is_a_value_that_was_seen() -> None:
    assert percentile(list(range(1, 101)), 0.99) == 99
    assert percentile([5.0], 0.5) == 5.0
    assert percentile([], 0.5) == 0.0
    assert percentile([3, 1, 2], 1.0) == 3
    assert percentile([1, 2, 3, 4], 0.5) == 2


def test_metrics_are_read_with_their_own_labels() -> None:
    found = parse_metrics(METRICS)
    assert found["fovea:images_total{cache=hit}"] == 3
    assert found["vllm:e2e_request_latency_seconds_sum"] == 15


def test_lag_is_the_bound_of_a_bucket() -> None:
    after = parse_metrics(METRICS)
    assert lag_quantile_ms({}, after, 0.9) == 1
    assert lag_quantile_ms({}, after, 0.99) == 10
    assert lag_quantile_ms({}, after, 1.0) == float("inf")
    assert lag_quantile_ms(after, after, 1.0) == 1  # nothing new: the smallest bucket


def test_idle_means_that_all_blocks_are_free() -> None:
    idle = {
        "fovea:requests_in_house": 0.0,
        "vllm:num_requests_running": 0.0,
        "vllm:num_requests_waiting": 0.0,
        "fovea:kv_blocks_free": 10.0,
        "fovea:kv_blocks": 10.0,
    }
    assert is_idle(idle)
    assert not is_idle({**idle, "fovea:kv_blocks_free": 9.0})
    assert not is_idle({**idle, "fovea:requests_in_house": 1.0})


def test_bounds_are_judged_and_only_ratios_decide_the_exit_code() -> None:
    assert Figure("a", "x", 1.0, most=1.0).verdict == "PASS"
    assert Figure("a", "x", 1.1, most=1.0).verdict == "MISS"
    assert Figure("a", "x", 0.89, least=0.9).verdict == "MISS"
    assert Figure("a", "x", float("nan"), least=0.9).verdict == "MISS"
    assert Figure("a", "x", 5.0).verdict == ""
    report = Report()
    report.add([Figure("a", "slow", 60, "ms", most=50)])
    assert report.exit_code == 0
    report.add([Figure("b", "share", 0.5, least=0.9, is_ratio=True)])
    assert report.exit_code == 1


def test_a_miss_is_shown_with_what_each_process_took() -> None:
    report = Report()
    report.add([Figure("a", "good", 1, most=2), Figure("a", "slow", 60, "ms", most=50)])
    report.add_cores("a", {"api": 0.25, "engine": 1.5})
    summary = report.summary()
    assert "1 of 2 bounds hold" in summary
    assert "MISS in a: slow" in summary
    assert "api 0.25, engine 1.50" in summary
    rows = report.content()["figures"]
    assert [row["verdict"] for row in rows] == ["PASS", "MISS"]


def test_numbers_are_readable() -> None:
    assert number(12345.6) == "12,346"
    assert number(0.12345) == "0.1235"
    assert number(7.0) == "7"
    assert number(float("inf")) == "inf"


def test_every_picture_is_another_and_of_the_promised_size() -> None:
    rng = random.Random(3)
    kinds, seen = set(), set()
    for number_ in range(24):
        body = json.loads(question(rng, 1, number_) + b"}")
        head, _, data = body["messages"][0]["content"][0]["image_url"]["url"].partition(",")
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert min(picture.size) >= MIN_SIDE_PX
        assert max(picture.size) <= MAX_SIDE_PX
        kinds.add(picture.format)
        assert head == f"data:image/{str(picture.format).lower()};base64"
        seen.add(picture.convert("RGB").tobytes())
    assert kinds == {"PNG", "JPEG"}
    assert len(seen) == 24


def test_questions_come_from_a_seed_and_each_is_given_once() -> None:
    questions = make_questions(8, {0: 1.0, 2: 1.0}, seed=4)
    again = make_questions(8, {0: 1.0, 2: 1.0}, seed=4)
    heads = [bytes(asked.head) for asked in questions]
    assert heads == [bytes(asked.head) for asked in again]
    assert len(set(heads)) == 8
    assert questions.left == 0
    assert {json.loads(head + b"}")["messages"][0]["content"].__len__() for head in heads} <= {1, 3}


def test_a_probe_tells_no_answer_from_a_bad_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        status, seconds = probe(listening.getsockname()[1], "/health/live")
        thread.join()
    assert status == 503
    assert seconds > 0
    assert probe(1, "/health/live")[0] == 0
