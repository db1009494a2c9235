"""Metrics: every name that is promised, bounded labels, counters that never go down, and a board that fits them."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fovea.core.server_config import ServerConfig
from fovea.core.types import CompletionOutput, MediaReport, RequestMetrics, RequestOutput
from fovea.server.admission import Admission
from fovea.server.metric_names import ENGINE_COUNTERS, ENGINE_GAUGES
from fovea.server.metrics import FRESH_RENDERS_PER_S, MAX_LABEL_VALUES, Metrics
from tests.contract.source import ROOT

NAME = re.compile(r"\b(?:vllm|fovea):\w+")
PROMISED = [
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:mm_cache_queries_total",
    "vllm:mm_cache_hits_total",
    "vllm:num_preemptions_total",
    "vllm:prompt_tokens_total",
    "vllm:prompt_tokens_cached_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:admission_rejections_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:request_time_per_output_token_seconds_bucket",
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:request_queue_time_seconds_bucket",
    "vllm:request_prefill_time_seconds_bucket",
    "vllm:request_decode_time_seconds_bucket",
    "vllm:request_inference_time_seconds_bucket",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_generation_tokens_bucket",
    "fovea:media_fetch_seconds_bucket",
    "fovea:image_decode_seconds_bucket",
    "fovea:preprocess_seconds_bucket",
    "fovea:encoder_seconds_bucket",
    "fovea:image_tokens_bucket",
    "fovea:images_total",
    "fovea:media_bytes_total",
    "fovea:refusals_total",
    "fovea:fallbacks_total",
    "fovea:queue_media_bytes",
    "fovea:encoder_cache_bytes",
    "fovea:engine_restarts_total",
    "fovea:worker_replacements_total",
    "fovea:log_lines_dropped_total",
    "fovea:event_loop_lag_seconds_bucket",
]

REPORT = MediaReport(
    original_width_px=640, original_height_px=480, width_px=644, height_px=476, num_tokens=391, num_bytes=12_345,
    fetch_s=0.25, decode_s=0.01, resize_s=0.002, cache_hit=True,
)  # fmt: skip
TIMES = RequestMetrics(
    prompt_s=0.001, media_s=0.02, queue_s=0.1, encode_s=0.2, prefill_s=0.3, decode_s=0.9, ttft_s=0.7, total_s=1.6,
    num_preemptions=0,
)  # fmt: skip


def output(num_tokens: int = 10, n: int = 1) -> RequestOutput:
    one = [CompletionOutput(i, "", tuple(range(num_tokens)), finish_reason="stop") for i in range(n)]
    return RequestOutput("req-1", None, tuple(range(400)), one, True, media=(REPORT,), metrics=TIMES)


def made(model_name: str = "tiny") -> Metrics:
    return Metrics(ServerConfig(), model_name)


def samples(metrics: Metrics) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def value(metrics: Metrics, name: str, **labels: str) -> float:
    (found,) = [v for given, v in samples(metrics)[name] if labels.items() <= given.items()]
    return found


def everything() -> Metrics:
    metrics = made()
    metrics.observe(output())
    metrics.request_ended(503, "queue_full")
    metrics.request_ended(499, "cancelled")
    metrics.fell_back("eager_decode")
    metrics.engine_restarted()
    metrics.worker_replaced()
    metrics.set_engine(dict.fromkeys([*ENGINE_COUNTERS, *ENGINE_GAUGES], 1.0))
    return metrics


@pytest.mark.parametrize("name", PROMISED)
def test_every_promised_name_is_there(name: str) -> None:
    assert name in samples(everything())


@pytest.mark.parametrize("file", ["grafana.json", "alerts.yml"])
def test_every_name_on_the_board_and_in_the_alerts_exists(file: str) -> None:
    used = set(NAME.findall((ROOT / "deploy" / file).read_text()))
    assert used
    assert not used - samples(everything()).keys()


def board() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    return loaded


def test_the_board_is_whole() -> None:
    """Unique ids, no panel over another, a data source to choose, an expression with balanced brackets everywhere."""
    assert [variable["type"] for variable in board()["templating"]["list"]] == ["datasource", "query"]
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
            for opening, closing in ("()", "{}", "[]"):
                assert target["expr"].count(opening) == target["expr"].count(closing), panel["title"]


@pytest.mark.parametrize(
    "part", ["time_to_first", "inter_token", "queue", "kv_cache", "image_decode", "refusals", "restarts"]
)
def test_the_board_shows_what_an_operator_asks_for(part: str) -> None:
    assert part in json.dumps(board())


def test_a_request_is_counted_with_its_pictures_and_stages() -> None:
    metrics = made()
    metrics.observe(output(num_tokens=10, n=2))
    assert value(metrics, "vllm:request_success_total", finished_reason="stop") == 2
    assert value(metrics, "vllm:request_prompt_tokens_sum") == 400
    assert value(metrics, "vllm:request_generation_tokens_sum") == 20
    assert value(metrics, "fovea:images_total", cache="hit") == 1
    assert value(metrics, "fovea:media_bytes_total") == 12_345
    assert value(metrics, "fovea:media_fetch_seconds_sum") == 0.25
    assert value(metrics, "vllm:time_to_first_token_seconds_sum") == 0.7
    assert value(metrics, "vllm:inter_token_latency_seconds_count") == 9
    assert value(metrics, "vllm:inter_token_latency_seconds_sum") == pytest.approx(0.9)
    assert value(metrics, "fovea:image_tokens_bucket", le="384") == 0
    assert value(metrics, "fovea:image_tokens_bucket", le="512") == 1
    assert value(metrics, "fovea:image_tokens_bucket", le="+Inf") == 1


def test_a_bucket_holds_its_bound_and_counts_add_up() -> None:
    metrics = made()
    for times in (0.3, 0.30001, 5000.0):
        metrics._observe("vllm:e2e_request_latency_seconds", times)
    assert value(metrics, "vllm:e2e_request_latency_seconds_bucket", le="0.3") == 1
    assert value(metrics, "vllm:e2e_request_latency_seconds_bucket", le="0.5") == 2
    assert value(metrics, "vllm:e2e_request_latency_seconds_bucket", le="1920") == 2
    assert value(metrics, "vllm:e2e_request_latency_seconds_count") == 3


def test_an_answer_cut_short_is_counted_without_times() -> None:
    metrics = made()
    cut = CompletionOutput(0, "", (), finish_reason=None)
    metrics.observe(RequestOutput("req-1", None, (), [cut], False))
    assert value(metrics, "vllm:request_success_total", finished_reason="abort") == 1
    assert value(metrics, "vllm:e2e_request_latency_seconds_count") == 0


def test_engine_counters_survive_a_new_engine() -> None:
    metrics = made()
    seen = []
    for steps in (5, 10, 3, 3, 8, 0, 0, 2):
        metrics.set_engine({"num_steps": steps, "unknown": 7, "num_running": steps})
        seen.append(value(metrics, "fovea:engine_steps_total"))
    assert seen == [5, 10, 13, 13, 18, 18, 18, 20]
    assert value(metrics, "vllm:num_requests_running") == 2


def test_a_share_of_blocks_is_between_zero_and_one() -> None:
    metrics = made()
    assert value(metrics, "vllm:kv_cache_usage_perc") == 0
    metrics.set_engine({"kv_blocks_total": 10, "kv_blocks_free": 4})
    assert value(metrics, "vllm:kv_cache_usage_perc") == pytest.approx(0.6)


def test_hostile_requests_make_no_new_series() -> None:
    metrics = made()
    for number in range(10 * MAX_LABEL_VALUES):
        metrics.request_ended(400, f"code_{number}")
    assert len(samples(metrics)["fovea:refusals_total"]) == MAX_LABEL_VALUES + 1
    assert value(metrics, "fovea:refusals_total", code="other") == 9 * MAX_LABEL_VALUES


def test_a_model_name_cannot_forge_a_line() -> None:
    metrics = made('x"} 1\nforged 1\n\\')
    assert "forged" not in samples(metrics)
    assert samples(metrics)["vllm:num_requests_running"][0][0]["model_name"] == 'x"} 1\nforged 1\n\\'


def test_what_waits_is_shown_as_it_is_now() -> None:
    metrics, admission = made(), Admission(ServerConfig())
    assert value(metrics, "fovea:queue_media_bytes") == 0
    metrics.watch(admission)
    with admission.admit(100) as seat:
        seat.add_tokens(7)
        assert value(metrics, "fovea:queue_media_bytes") == 100
        assert value(metrics, "fovea:queue_tokens") == 7
        assert value(metrics, "fovea:requests_in_house") == 1
    assert value(metrics, "fovea:queue_media_bytes") == 0


def test_a_flood_of_scrapes_shares_one_text() -> None:
    metrics = made()
    for _ in range(FRESH_RENDERS_PER_S):
        metrics.render()
    metrics.fell_back("marker")
    assert b"marker" not in metrics.render(), "no fresh text within the same second"
    metrics._renders.clear()
    assert b"marker" in metrics.render()


def test_lag_is_measured() -> None:
    metrics = made()

    async def whole() -> None:
        measuring = asyncio.create_task(metrics.measure_lag())
        await asyncio.sleep(0.35)
        measuring.cancel()

    asyncio.run(whole())
    assert value(metrics, "fovea:event_loop_lag_seconds_count") >= 1
