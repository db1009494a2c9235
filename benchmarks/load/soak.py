"""A closed loop for minutes: nothing fails, nothing grows, the server stays answerable, answers stay the same.

`streams`: 32 streams, each about a picture of its own. `mixed`: eight clients with text, pictures, hang-ups, mistakes.
Answers are looked at as they come; some are asked for again when the server is idle and must be the same.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.load.client import Answer, Ask, Client, chat_tail, closed_loop
from benchmarks.load.pictures import ALL_PICTURES, Mix, Questions, image_part, make_questions, messages_head
from benchmarks.load.report import Figure, Report, say
from benchmarks.load.server import SOAK_FLAGS, started
from benchmarks.load.watch import (
    Census,
    Probe,
    Probed,
    Watch,
    census,
    gained,
    lag_quantile_ms,
    percentile,
    scrape,
    wait_until_idle,
)
from tests.server_process import ServerProcess

HUNG_S = 30.0
TOKENS = (16, 64, 128)
LEAVE_AFTER_S = (0.01, 0.05, 0.2, 0.5)
CALIBRATION_ASKS = 96
BROKEN = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAA=="
BAD_BODIES: Sequence[tuple[int, bytes]] = (  # with the status of their refusal
    (400, b'{"model":"fovea-tiny","messages":[{"role":"user","content":"x"'),
    (400, messages_head([{"role": "user", "content": [image_part(BROKEN)]}]) + b',"model":"fovea-tiny"}'),
    (404, b'{"model":"nobody","messages":[{"role":"user","content":"x"}]}'),
    (400, b'{"model":"fovea-tiny","messages":"x"}'),
)


@dataclass(frozen=True, slots=True)
class Plan:
    name: str
    concurrency: int
    warm_up_s: float
    seconds: float
    mix: Mix = field(default_factory=lambda: dict(ALL_PICTURES))
    share_left: float = 0.0
    share_bad: float = 0.0
    num_again: int = 48


@dataclass(slots=True)
class Tally:
    """What came of all requests."""

    plan: Plan
    keep_every: int
    num_right: int = 0
    num_left: int = 0
    num_refused_rightly: int = 0
    num_tokens: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    num_hung: int = 0
    ttft_s: list[tuple[float, float]] = field(default_factory=list)  # (when it ended, seconds)
    total_s: list[tuple[float, float, int]] = field(default_factory=list)  # the same, and its tokens
    kept: list[Answer] = field(default_factory=list)

    @property
    def num_asked(self) -> int:
        return self.num_right + self.num_left + self.num_refused_rightly + self.wrong.total()

    def take(self, answer: Answer) -> None:
        expected = int(answer.ask.label or 200)
        if answer.error == "left":
            self.num_left += 1
        elif expected != 200:
            fits = answer.status == expected and not answer.error
            self.num_refused_rightly += fits
            self.wrong[f"{answer.status} for {expected}"] += not fits
        elif answer.is_right:
            self._take_right(answer)
        else:
            self.wrong[answer.error or (f"status {answer.status}" if answer.status != 200 else "not whole")] += 1
            self.num_hung += answer.error == "deadline"
        if not self.kept or self.kept[-1] is not answer:
            answer.pieces.clear()

    def _take_right(self, answer: Answer) -> None:
        self.num_right += 1
        self.num_tokens += answer.ask.num_tokens
        self.ttft_s.append((answer.ended, answer.first_at - answer.sent))
        self.total_s.append((answer.ended, answer.ended - answer.sent, answer.ask.num_tokens))
        if self.num_right % self.keep_every == 0 and len(self.kept) < self.plan.num_again:
            self.kept.append(answer)


def streams(quick: bool, seed: int, report: Report) -> None:
    plan = Plan("streams", 32, 10 if quick else 60, 20 if quick else 120, num_again=12 if quick else 48)
    _soak(plan, seed, report)


def mixed(quick: bool, seed: int, report: Report) -> None:
    plan = Plan(
        "mixed",
        8,
        10 if quick else 45,
        20 if quick else 135,
        mix={0: 0.55, 1: 0.33, 2: 0.12},
        share_left=0.05,
        share_bad=0.05,
        num_again=12 if quick else 48,
    )
    _soak(plan, seed + 1, report)


def _soak(plan: Plan, seed: int, report: Report) -> None:
    with started(*SOAK_FLAGS) as server:
        say(f"{plan.name}: {plan.concurrency} clients, {plan.warm_up_s:g} + {plan.seconds:g} s; measuring the rate")
        first = make_questions(CALIBRATION_ASKS, plan.mix, seed)
        rate = asyncio.run(_calibrate(server.port, plan, first))
        count = round(1.5 * rate * (plan.warm_up_s + plan.seconds)) + 64
        say(f"{plan.name}: {rate:.1f} requests/s; making {count} questions")
        questions = make_questions(count, plan.mix, seed + 100)
        tally = Tally(plan, max(1, round(rate * plan.seconds / plan.num_again)))
        wait_until_idle(server.port)
        before, people = scrape(server.port), census(server.process.pid)
        with (
            Watch(server) as watch,
            Probe(server.port, "/health/live", 0.1) as health,
            Probe(server.port, "/metrics", 1.0) as metrics,
        ):
            until = time.monotonic() + plan.warm_up_s + plan.seconds
            asyncio.run(_run(server.port, plan, _asks(plan, questions), until, tally))
            idle_s = wait_until_idle(server.port)
        after = scrape(server.port)
        differing = asyncio.run(_ask_again(server.port, tally.kept))
        changed = _changes(people, _settled_census(server, people))
        log_bytes = len(server.log) / max(1, tally.num_asked)
    report.add_cores(plan.name, watch.shares)
    report.details[plan.name] = {
        "pss_mib": [(round(at, 1), round(mib, 1)) for at, mib in watch.pss_mib],
        "pss_mib_by_process": {name: (values[0], values[-1]) for name, values in watch.pss_by_role.items()},
        "wrong": dict(tally.wrong),
        "questions_left": questions.left,
    }
    report.add(_answers_figures(plan, tally, watch, questions, differing))
    report.add(_server_figures(plan, watch, (health, metrics), idle_s, changed, log_bytes))
    report.add(
        [
            Figure(plan.name, "event loop lag, p99", lag_quantile_ms(before, after, 0.99), "ms", most=10),
            Figure(plan.name, "event loop lag, largest", lag_quantile_ms(before, after, 1.0), "ms", most=50),
            Figure(plan.name, "workers replaced", gained(before, after, "fovea:worker_replacements_total"), ""),
            Figure(plan.name, "engine restarts", gained(before, after, "fovea:engine_restarts_total"), "", most=0),
        ]
    )


def _answers_figures(plan: Plan, tally: Tally, watch: Watch, questions: Questions, differing: int) -> list[Figure]:
    middle = sorted(at for at, _ in tally.ttft_s)[len(tally.ttft_s) // 2] if tally.ttft_s else 0.0
    halves = [[s for at, s in tally.ttft_s if (at > middle) == late] for late in (False, True)]
    early_s, late_s = (percentile(half, 0.99) for half in halves)
    name = plan.name
    return [
        Figure(name, "requests", tally.num_asked),
        Figure(name, "right answers", tally.num_right / watch.wall_s, "1/s"),
        Figure(name, "tokens", tally.num_tokens / watch.wall_s, "1/s"),
        Figure(name, "wrong or failed", tally.wrong.total(), "", most=0),
        Figure(name, f"hung for more than {HUNG_S:g} s", tally.num_hung, "", most=0),
        Figure(name, "clients that left", tally.num_left),
        Figure(name, "mistakes answered as such", tally.num_refused_rightly),
        Figure(name, f"other answer when asked again alone, of {len(tally.kept)}", differing, "", most=0),
        Figure(name, "ran out of questions", int(not questions.left), "", most=0),
        Figure(name, "first token, median", 1e3 * percentile([s for _, s in tally.ttft_s], 0.5), "ms"),
        Figure(name, "first token, p99", 1e3 * percentile([s for _, s in tally.ttft_s], 0.99), "ms"),
        Figure(name, "first token, p99, second half over first", late_s / early_s if early_s else 0.0),
    ]


def _server_figures(
    plan: Plan, watch: Watch, probed: tuple[Probed, Probed], idle_s: float, changed: Census, log_bytes: float
) -> list[Figure]:
    (health, metrics), name = probed, plan.name
    slope_mib, growth_mib = watch.flatness(plan.warm_up_s)
    return [
        Figure(name, f"/health/live, p99 of {len(health.seconds)}", health.quantile_ms(0.99), "ms", most=50),
        Figure(name, "/health/live, largest", health.quantile_ms(1.0), "ms"),
        Figure(name, "/health/live, not 200", health.num_bad, "", most=0),
        Figure(name, f"/metrics, p99 of {len(metrics.seconds)}", metrics.quantile_ms(0.99), "ms", most=100),
        Figure(name, "memory at the end (PSS)", watch.pss_mib[-1][1], "MiB"),
        Figure(name, "memory after warm-up, slope", slope_mib, "MiB/min", most=1),
        Figure(name, "memory after warm-up, growth", growth_mib, "MiB", most=30),
        Figure(name, "idle and all KV blocks free after", idle_s, "s", most=1),
        Figure(name, "processes more", changed.num_processes, "", most=0),
        Figure(name, "threads more", changed.num_threads, "", most=2),
        Figure(name, "descriptors more", changed.num_descriptors, "", most=5),
        Figure(name, "log for each request", log_bytes, "bytes", most=1024),
    ]


async def _calibrate(port: int, plan: Plan, questions: Questions) -> float:
    client, started_at = Client(port), time.monotonic()
    asks = [_ask(asked.head, tokens) for asked, tokens in zip(questions, itertools.cycle(TOKENS))]
    count = sum([1 async for _ in closed_loop(client, asks, plan.concurrency)])
    client.close()
    return count / (time.monotonic() - started_at)


async def _run(port: int, plan: Plan, asks: Iterable[Ask], until: float, tally: Tally) -> None:
    client = Client(port, deadline_s=HUNG_S)
    async for answer in closed_loop(client, asks, plan.concurrency, stop=lambda: time.monotonic() >= until):
        tally.take(answer)
    client.close()


def _asks(plan: Plan, questions: Questions) -> Iterator[Ask]:
    """Every so many requests one that leaves and one that is wrong."""
    for number, (asked, num_tokens) in enumerate(zip(questions, itertools.cycle(TOKENS))):
        ask = _ask(asked.head, num_tokens)
        if plan.share_left and number % round(1 / plan.share_left) == 7:
            ask.leave_after_s = LEAVE_AFTER_S[number // 20 % len(LEAVE_AFTER_S)]
        yield ask
        if plan.share_bad and number % round(1 / plan.share_bad) == 13:
            status, body = BAD_BODIES[number // 20 % len(BAD_BODIES)]
            yield Ask((body,), label=str(status))


def _ask(head: memoryview, num_tokens: int) -> Ask:
    return Ask((head, chat_tail(num_tokens, stream=True)), num_tokens)


async def _ask_again(port: int, kept: list[Answer]) -> int:
    """How many answers were not what they are when nothing else is asked."""
    client, differing = Client(port), 0
    for answer in kept:
        alone = await client.send(answer.ask)
        differing += alone.error != "" or alone.text != answer.text
    client.close()
    return differing


def _settled_census(server: ServerProcess, before: Census) -> Census:
    """When closed connections are gone; a worker may just be being replaced."""
    for _ in range(60):
        now = census(server.process.pid)
        if now.num_processes <= before.num_processes and now.num_descriptors <= before.num_descriptors:
            break
        time.sleep(0.5)
    return now


def _changes(before: Census, after: Census) -> Census:
    return Census(
        after.num_processes - before.num_processes,
        after.num_threads - before.num_threads,
        after.num_descriptors - before.num_descriptors,
    )
