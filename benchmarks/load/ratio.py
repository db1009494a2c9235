"""The server against `LLM.chat`: the same requests with pictures, the same engine options, by turns in one run.

Each turn starts a process of its own, and the other side is not running meanwhile. Every pass over the requests has a
cache salt of its own, so that no pass profits from another. Offline, the bodies are parsed before the clock starts; the
server parses them, and the client's share of the cores is the server's loss.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.load.client import Answer, Ask, Client, chat_tail, closed_loop
from benchmarks.load.pictures import ALL_PICTURES, Asked, make_questions
from benchmarks.load.report import Figure, Report, say
from benchmarks.load.server import ENGINE_OPTIONS, MAX_NUM_QUEUED, flags, started
from benchmarks.load.watch import Watch, wait_until_idle

PART = "ratio"
TOKENS = (32, 48, 64, 80, 96)  # different, or all would end and begin together
NUM_WARM = 16
DEADLINE_S = 280.0  # below the server's own


@dataclass(frozen=True, slots=True)
class Way:
    concurrency: int
    stream: bool

    @property
    def name(self) -> str:
        return f"{self.concurrency} clients, {'streaming' if self.stream else 'whole answers'}"


WAYS = (Way(32, True), Way(32, False), Way(64, True), Way(64, False))


@dataclass(slots=True)
class Results:
    rates: dict[str, list[float]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    cpu_s: dict[str, Counter[str]] = field(default_factory=dict)
    wall_s: dict[str, float] = field(default_factory=dict)
    num_wrong: int = 0

    def add(self, name: str, seconds: float, num_tokens: int) -> None:
        self.rates.setdefault(name, []).append(num_tokens / seconds)
        self.wall_s[name] = self.wall_s.get(name, 0.0) + seconds
        say(f"{PART}: {name}: {num_tokens / seconds:,.0f} tokens/s")


def ratio(quick: bool, seed: int, report: Report) -> None:
    count, rounds = (64, 1) if quick else (256, 3)
    questions = list(make_questions(count + NUM_WARM, ALL_PICTURES, seed))
    results = Results()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests"
        path.write_bytes(b"".join(_lines(questions)))
        for number in range(rounds):
            ways = WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]
            _online(questions, ways, results)
            _offline(path, results, repeats=2)
    report.add(_figures(results, count))
    for name, cpu in results.cpu_s.items():
        wall_s = results.wall_s[name]
        report.add_cores(f"{PART}, {name}", {role: round(s / wall_s, 2) for role, s in sorted(cpu.items())})
    report.details[PART] = {"tokens_per_s": results.rates, "requests": count, "tokens_out": TOKENS}


def _lines(questions: Sequence[Asked]) -> Iterator[bytes]:
    """The bodies for the offline side; those asked before the clock starts are not counted off."""
    for number, asked in enumerate(questions, -NUM_WARM):
        yield bytes(asked.head) + b',"max_tokens":%d}\n' % TOKENS[number % len(TOKENS)]


def _online(questions: Sequence[Asked], ways: Sequence[Way], results: Results) -> None:
    with started(*flags({**ENGINE_OPTIONS, "max_num_queued_reqs": MAX_NUM_QUEUED})) as server:
        warm, asked = questions[:NUM_WARM], questions[NUM_WARM:]
        asyncio.run(_pass(server.port, warm, Way(8, True), "warm"))
        for way in ways:
            wait_until_idle(server.port)
            with Watch(server, period_s=60.0) as watch:
                began = time.perf_counter()
                answers = asyncio.run(_pass(server.port, asked, way, way.name))
                seconds = time.perf_counter() - began
            results.num_wrong += sum(not answer.is_right for answer in answers)
            results.add(way.name, seconds, sum(answer.num_tokens for answer in answers))
            results.cpu_s.setdefault(way.name, Counter()).update(watch.cpu_s)
            results.texts.setdefault(way.name, [answer.text for answer in answers])


async def _pass(port: int, questions: Sequence[Asked], way: Way, salt: str) -> list[Answer]:
    """In the order of the questions."""
    client = Client(port, deadline_s=DEADLINE_S)
    tails = {count: chat_tail(count, stream=way.stream, salt=salt) for count in TOKENS}
    counts = [TOKENS[i % len(TOKENS)] for i in range(len(questions))]
    asks = [
        Ask((asked.head, tails[count]), count, label=str(i))
        for i, (asked, count) in enumerate(zip(questions, counts, strict=True))
    ]
    answers = [answer async for answer in closed_loop(client, asks, way.concurrency)]
    client.close()
    return sorted(answers, key=lambda answer: int(answer.ask.label))


def _offline(path: Path, results: Results, *, repeats: int) -> None:
    words = ["--repeats", str(repeats), "--warm", str(NUM_WARM)]
    command = [sys.executable, "-m", "benchmarks.load.offline", str(path), "--options", json.dumps(ENGINE_OPTIONS)]
    done = subprocess.run([*command, *words], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(done.stdout)
    for seconds in found["seconds"]:
        results.add("offline", seconds, found["tokens"])
    results.cpu_s.setdefault("offline", Counter()).update({"offline": found["cpu_s"]})
    results.texts.setdefault("offline", found["texts"])


def _figures(results: Results, count: int) -> list[Figure]:
    rates = {name: statistics.median(values) for name, values in results.rates.items()}
    figures = [Figure(PART, "offline", rates["offline"], "tokens/s")]
    for way in WAYS:
        share = rates[way.name] / rates["offline"]
        figures += [
            Figure(PART, way.name, rates[way.name], "tokens/s"),
            Figure(PART, f"{way.name}, over offline", share, "", least=0.9, is_ratio=True),
        ]
    differing = sum(len({results.texts[name][i] for name in results.texts}) > 1 for i in range(count))
    return [
        *figures,
        Figure(PART, "wrong or failed", results.num_wrong, "", most=0),
        Figure(PART, f"of {count} answers, not the same everywhere", differing, "", most=0),
    ]
