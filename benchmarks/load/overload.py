"""Four times what the server can do, in an open loop: it goes on doing what it can and refuses the rest at once.

The peak is found first, on the same server: the best rate of right answers of a sweep over numbers of clients. Then
requests arrive at random (Poisson) four times as often, half of them with a picture, each on its own: who is refused
does not come again.
"""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections import Counter
from collections.abc import Sequence

from benchmarks.load.client import Answer, Ask, Client, chat_tail, closed_loop, open_loop
from benchmarks.load.pictures import HALF_PICTURES, Asked, Questions, make_questions
from benchmarks.load.report import Figure, Report, say
from benchmarks.load.server import SEATS, SOAK_FLAGS, started
from benchmarks.load.watch import (
    Probe,
    Probed,
    Scrape,
    Watch,
    gained,
    lag_quantile_ms,
    percentile,
    scrape,
    wait_until_idle,
)

PART = "overload"
DEADLINE_S = 30.0
TOKENS = (16, 24, 32, 40, 48)  # different, or all would end and begin together
TIMES_PEAK = 4.0
SWEEP = (8, 16, 32, 64, SEATS)
RAMP_SHARE = 0.3  # of a sweep's step: until its rate is steady
FILL_S = 4.0  # until the queue is full
CALM_TRIES = 20
GUESS_PER_S = 60.0
_TAILS = {num_tokens: chat_tail(num_tokens, stream=True) for num_tokens in TOKENS}


def overload(quick: bool, seed: int, report: Report) -> None:
    step_s, seconds = (7.0, 20.0) if quick else (14.0, 60.0)
    with started(*SOAK_FLAGS) as server:
        peak, rates = _peak(server.port, step_s, seed, report)
        count = round(TIMES_PEAK * peak * seconds)
        say(f"{PART}: peak {peak:.1f} right answers/s; making {count} questions")
        rng = random.Random(seed)
        gaps_s = [rng.expovariate(TIMES_PEAK * peak) for _ in range(count)]
        asks = [_ask(q) for q in make_questions(count, HALF_PICTURES, seed + 1)]
        calm_s = asyncio.run(_one_by_one(server.port, _few(seed + 2)))
        say(f"{PART}: {TIMES_PEAK * peak:.0f} requests/s for {seconds:g} s")
        wait_until_idle(server.port)
        before = scrape(server.port)
        with (
            Watch(server) as watch,
            Probe(server.port, "/health/live", 0.1) as health,
            Probe(server.port, "/metrics", 1.0) as metrics,
        ):
            began = time.monotonic()
            answers = asyncio.run(_burst(server.port, asks, gaps_s))
            idle_s = wait_until_idle(server.port)
            ended = max(answer.ended for answer in answers)
        after = scrape(server.port)
        again_s = asyncio.run(_one_by_one(server.port, _few(seed + 3)))
    report.add_cores(PART, watch.shares)
    report.details[PART] = {"sweep": rates, "began": 0, "seconds_to_last_answer": round(ended - began, 2)}
    last_sent = began + sum(gaps_s)
    report.add(_served(answers, peak, began, last_sent))
    report.add(_refused(answers))
    report.add(_house(before, after, answers, (health, metrics), idle_s))
    report.add(
        [
            Figure(PART, "median answer alone, after over before", again_s / calm_s, "", most=1.5, is_ratio=True),
            Figure(PART, "client's CPU", watch.shares["client"], "cores"),
        ]
    )


def _peak(port: int, step_s: float, seed: int, report: Report) -> tuple[float, dict[int, float]]:
    rates: dict[int, float] = {}
    guess = GUESS_PER_S
    for number, concurrency in enumerate(SWEEP):
        questions = make_questions(round(guess * step_s) + 2 * concurrency, HALF_PICTURES, seed + 10 + number)
        rates[concurrency] = asyncio.run(_rate(port, questions, concurrency, step_s))
        guess = max(GUESS_PER_S, 2 * max(rates.values()))
        say(f"{PART}: {concurrency} clients: {rates[concurrency]:.1f} right answers/s")
    best = max(rates, key=lambda concurrency: rates[concurrency])
    report.add(
        [Figure(PART, f"{concurrency} clients: right answers", rate, "1/s") for concurrency, rate in rates.items()]
        + [Figure(PART, f"peak (with {best} clients)", rates[best], "1/s")]
    )
    return rates[best], rates


async def _rate(port: int, questions: Questions, concurrency: int, seconds: float) -> float:
    """Right answers a second after the ramp, until there is no new request."""
    client = Client(port, deadline_s=DEADLINE_S)
    began = time.monotonic()
    until = began + seconds
    ends = []
    asks = (_ask(q) for q in questions)
    async for answer in closed_loop(client, asks, concurrency, stop=lambda: time.monotonic() >= until):
        if answer.is_right:
            ends.append(answer.ended)
    client.close()
    if not questions.left:
        raise SystemExit(f"{PART}: the sweep ran out of questions")
    steady = began + RAMP_SHARE * seconds
    return sum(steady <= at < until for at in ends) / (until - steady)


async def _burst(port: int, asks: Sequence[Ask], gaps_s: Sequence[float]) -> list[Answer]:
    client = Client(port, deadline_s=DEADLINE_S)
    answers = await open_loop(client, asks, gaps_s)
    client.close()
    return answers


async def _one_by_one(port: int, asks: Sequence[Ask]) -> float:
    """The median seconds of an answer when nothing else is asked."""
    client = Client(port)
    answers = [await client.send(ask) for ask in asks]
    client.close()
    return percentile([answer.ended - answer.sent for answer in answers], 0.5)


def _few(seed: int) -> list[Ask]:
    return [_ask(q) for q in make_questions(CALM_TRIES, HALF_PICTURES, seed)]


def _ask(question: Asked) -> Ask:
    num_tokens = TOKENS[zlib.crc32(question.head) % len(TOKENS)]
    return Ask((question.head, _TAILS[num_tokens]), num_tokens, label=str(question.num_pictures))


def _served(answers: Sequence[Answer], peak: float, began: float, last_sent: float) -> list[Figure]:
    right = [a for a in answers if a.is_right]
    steady = began + FILL_S
    goodput = sum(steady <= a.ended < last_sent for a in right) / (last_sent - steady)
    ttft_s = [a.first_at - a.sent for a in right]
    late_s = [a.sent - a.due for a in answers if a.sent]
    others = Counter(a.error or f"status {a.status}" for a in answers if not a.is_right and a.status != 503)
    resets = sum(a.error in ("reset", "closed", "ConnectionResetError", "ConnectionRefusedError") for a in answers)
    return [
        Figure(PART, "arrivals", len(answers)),
        Figure(PART, "arrivals", len(answers) / (last_sent - began), "1/s"),
        Figure(PART, "sent late by the client, p99", 1e3 * percentile(late_s, 0.99), "ms"),
        Figure(PART, "right answers", len(right)),
        Figure(PART, "goodput", goodput, "1/s"),
        Figure(PART, "goodput over peak", goodput / peak, "", least=0.9, is_ratio=True),
        Figure(PART, "first token of accepted, p99", percentile(ttft_s, 0.99), "s", most=1.25 * SEATS / peak),
        Figure(PART, f"neither answered nor refused {dict(others) or ''}".strip(), others.total(), "", most=0),
        Figure(PART, "connections reset", resets, "", most=0),
    ]


def _refused(answers: Sequence[Answer]) -> list[Figure]:
    refused = [a for a in answers if a.status == 503]
    for_text = [a.head_at - a.sent for a in refused if a.ask.label == "0"]
    for_picture = [a.head_at - a.sent for a in refused if a.ask.label != "0"]
    both = for_text + for_picture
    return [
        Figure(PART, "refusals", len(refused)),
        Figure(PART, "refusal, median", 1e3 * percentile(both, 0.5), "ms", most=50),
        Figure(PART, "refusal, p99", 1e3 * percentile(both, 0.99), "ms", most=200),
        Figure(PART, "refusal of text, p99", 1e3 * percentile(for_text, 0.99), "ms"),
        Figure(PART, "refusal of a picture, p99", 1e3 * percentile(for_picture, 0.99), "ms"),
        Figure(PART, "refusals without Retry-After", sum(a.retry_after_s is None for a in refused), "", most=0),
    ]


def _house(
    before: Scrape, after: Scrape, answers: Sequence[Answer], probed: tuple[Probed, Probed], idle_s: float
) -> list[Figure]:
    health, metrics = probed
    accepted = sum(int(a.ask.label) for a in answers if a.status == 200)
    decoded = gained(before, after, "fovea:image_decode_seconds_count")
    return [
        Figure(PART, "pictures decoded beyond those of accepted requests", decoded - accepted, "", most=0),
        Figure(PART, f"/health/live, p99 of {len(health.seconds)}", health.quantile_ms(0.99), "ms", most=50),
        Figure(PART, "/health/live, largest", health.quantile_ms(1.0), "ms"),
        Figure(PART, "/health/live, not 200", health.num_bad, "", most=0),
        Figure(PART, f"/metrics, p99 of {len(metrics.seconds)}", metrics.quantile_ms(0.99), "ms", most=100),
        Figure(PART, "event loop lag, p99", lag_quantile_ms(before, after, 0.99), "ms", most=10),
        Figure(PART, "event loop lag, largest", lag_quantile_ms(before, after, 1.0), "ms", most=50),
        Figure(PART, "idle and all KV blocks free after the last answer", idle_s, "s", most=1),
    ]
