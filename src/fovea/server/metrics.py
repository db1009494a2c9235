"""Numbers for Prometheus, under vLLM's names where the meaning is the same and under fovea: where vLLM has none.

Everything is kept here as plain numbers and turned into text when somebody scrapes. No label holds anything a client
wrote, and each has a bounded set of values: hostile requests can't make series. Engine counters come as absolute values
and may start again at zero with a new engine; what is shown never goes down.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from fovea.core.server_config import ServerConfig
from fovea.core.types import RequestOutput
from fovea.server.access_log import num_dropped_lines
from fovea.server.admission import Admission
from fovea.server.metric_names import (
    ADMISSION_GAUGES,
    ENGINE_COUNTERS,
    ENGINE_GAUGES,
    HISTOGRAMS,
    LABELLED_COUNTERS,
    PLAIN_COUNTERS,
)

MAX_LABEL_VALUES = 128
OTHER = "other"
LAG_EVERY_S = 0.1
FRESH_RENDERS_PER_S = 20  # more scrapes than that share a text
OVERLOAD_CODES = frozenset({"queue_full", "draining", "loading", "engine_dead"})
CANCELLED = "cancelled"


class Histogram:
    """Counts in buckets, each up to and including its bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        total, found = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found

    @property
    def sum(self) -> float:
        return self._sum


class Metrics(Collector):
    """Not for threads: the event loop's own."""

    def __init__(self, config: ServerConfig, model_name: str) -> None:
        self._config = config
        self._labels = {"model_name": model_name, "engine": "0"}
        self.model_path: Callable[[], str] = lambda: "fused"  # see Service.model_path
        self._histograms = {name: Histogram(bounds) for name, (_, bounds) in HISTOGRAMS.items()}
        self._counts: Counter[str] = Counter()
        self._labelled: dict[str, Counter[str]] = {name: Counter() for name in LABELLED_COUNTERS}
        self._engine: dict[str, float] = {}
        self._engine_before: Counter[str] = Counter()
        self._admission: Admission | None = None
        self._started = time.time()
        self._rendered = b""
        self._renders: deque[float] = deque(maxlen=FRESH_RENDERS_PER_S)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def watch(self, admission: Admission) -> None:
        """Show what this admission counts as gauges."""
        self._admission = admission

    def observe(self, output: RequestOutput) -> None:
        """A request that ended with an output, whole or cut short."""
        observe, times = self._observe, output.metrics
        num_tokens = sum(len(completion.token_ids) for completion in output.outputs)
        for completion in output.outputs:
            self._count("vllm:request_success", completion.finish_reason or "abort")
        observe("vllm:request_prompt_tokens", len(output.prompt_token_ids))
        observe("vllm:request_generation_tokens", num_tokens)
        observe("vllm:request_params_n", len(output.outputs))
        for media in output.media:
            self._count("fovea:images", "hit" if media.cache_hit else "miss")
            self._counts["fovea:media_bytes"] += media.num_bytes
            observe("fovea:image_tokens", media.num_tokens)
            for name, seconds in (
                ("fovea:media_fetch_seconds", media.fetch_s),
                ("fovea:image_decode_seconds", media.decode_s),
                ("fovea:preprocess_seconds", media.resize_s),
            ):
                if seconds > 0:
                    observe(name, seconds)
        if times is None:
            return
        if output.media:
            observe("fovea:encoder_seconds", times.encode_s)
        observe("fovea:prompt_seconds", times.prompt_s)
        observe("vllm:e2e_request_latency_seconds", times.total_s)
        observe("vllm:request_queue_time_seconds", times.queue_s)
        observe("vllm:request_prefill_time_seconds", times.prefill_s)
        observe("vllm:request_decode_time_seconds", times.decode_s)
        observe("vllm:request_inference_time_seconds", times.prefill_s + times.decode_s)
        if num_tokens:
            observe("vllm:time_to_first_token_seconds", times.ttft_s)
        # Rows of a request decode side by side: the longest one has as many gaps as tokens but one.
        num_gaps = max((len(completion.token_ids) for completion in output.outputs), default=0) - 1
        if num_gaps > 0:
            observe("vllm:request_time_per_output_token_seconds", times.decode_s / num_gaps)
            self._histograms["vllm:inter_token_latency_seconds"].observe(times.decode_s / num_gaps, num_gaps)

    def refused(self, code: str) -> None:
        """A request that ended with this error code, before or after its answer had begun."""
        self._count("fovea:refusals", code)
        if code in OVERLOAD_CODES:
            self._count("vllm:admission_rejections", code)

    def request_ended(self, status: int, code: str | None) -> None:
        """An HTTP request ended; called once for each, by the edge."""
        self._count("fovea:http_requests", str(status))
        if code == CANCELLED:
            self._counts["fovea:requests_cancelled"] += 1
        elif code is not None:
            self.refused(code)

    def fell_back(self, kind: str) -> None:
        """Something was done the slow way; `kind` says what, in a word of ours."""
        self._count("fovea:fallbacks", kind)

    def engine_restarted(self) -> None:
        self._counts["fovea:engine_restarts"] += 1

    def worker_replaced(self) -> None:
        self._counts["fovea:worker_replacements"] += 1

    def set_engine(self, stats: Mapping[str, float]) -> None:
        """Absolute values of the engine; unknown names are left alone. A counter that went down began anew."""
        for key in ENGINE_COUNTERS:
            before = self._engine.get(key, 0)
            if key in stats and stats[key] < before:
                self._engine_before[key] += int(before)
        known = ENGINE_COUNTERS.keys() | ENGINE_GAUGES
        self._engine.update({key: float(value) for key, value in stats.items() if key in known})

    async def measure_lag(self) -> None:
        """How late the event loop wakes a sleeper; runs until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self._observe("fovea:event_loop_lag_seconds", max(0.0, loop.time() - due))

    def render(self) -> bytes:
        """The text format. Beyond FRESH_RENDERS_PER_S scrapes a second, the last text again."""
        now = time.monotonic()
        if len(self._renders) == FRESH_RENDERS_PER_S and now - self._renders[0] < 1.0:
            return self._rendered
        self._renders.append(now)
        self._rendered = generate_latest(self._registry)
        return self._rendered

    def collect(self) -> Iterator[Metric]:
        for name, (text, _) in HISTOGRAMS.items():
            histogram = self._histograms[name]
            family = HistogramMetricFamily(name, text, labels=tuple(self._labels))
            family.add_metric(tuple(self._labels.values()), histogram.buckets(), histogram.sum)
            yield family
        for name, (text, label) in LABELLED_COUNTERS.items():
            yield self._counter(name, text, self._labelled[name].items(), label)
        for name, text in PLAIN_COUNTERS.items():
            yield self._counter(name, text, [("", self._counts[name])])
        yield self._counter("fovea:log_lines_dropped", "Log lines that did not fit.", [("", num_dropped_lines())])
        yield from self._engine_metrics()
        for name, (text, attribute) in ADMISSION_GAUGES.items():
            yield self._gauge(name, text, getattr(self._admission, attribute, 0))
        yield self._gauge("fovea:start_time_seconds", "When the server began, in Unix time.", self._started)
        info = InfoMetricFamily("fovea:server", "Limits of this server.", labels=tuple(self._labels))
        limits = {
            name: str(getattr(self._config, name)) for name in ("max_num_seqs", "max_num_queued_reqs", "max_body_bytes")
        }
        info.add_metric(tuple(self._labels.values()), limits | {"model_path": self.model_path()})
        yield info

    def _engine_metrics(self) -> Iterator[Metric]:
        stats = self._engine
        counted = {key: self._engine_before[key] + stats.get(key, 0) for key in ENGINE_COUNTERS}
        for key, names in ENGINE_COUNTERS.items():
            for name, text in names:
                yield self._counter(name, text, [("", counted[key])])
        looked_up = counted["encoder_cache_hits"] + counted["encoder_cache_misses"]
        yield self._counter("vllm:mm_cache_queries", "Pictures looked up in the encoder's cache.", [("", looked_up)])
        for key, (name, text) in ENGINE_GAUGES.items():
            yield self._gauge(name, text, stats.get(key, 0))
        total, free = stats.get("kv_blocks_total", 0), stats.get("kv_blocks_free", 0)
        usage = 1 - free / total if total else 0.0
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1.", usage)

    def _counter(
        self, name: str, text: str, values: Iterable[tuple[str, float]], label: str | None = None
    ) -> CounterMetricFamily:
        names = (*self._labels, label) if label else tuple(self._labels)
        family = CounterMetricFamily(name, text, labels=names)
        for value, number in values:
            family.add_metric((*self._labels.values(), *((value,) if label else ())), number)
        return family

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=tuple(self._labels))
        family.add_metric(tuple(self._labels.values()), value)
        return family

    def _observe(self, name: str, value: float) -> None:
        self._histograms[name].observe(value)

    def _count(self, name: str, value: str) -> None:
        """One more; a label that somehow has very many values ends in one for all others."""
        counts = self._labelled[name]
        counts[value if value in counts or len(counts) < MAX_LABEL_VALUES else OTHER] += 1
