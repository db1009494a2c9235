"""What a request and a token cost: requests a core prepares in a second, CPU of each process for one of either."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.load.client import Ask, Client, chat_tail, closed_loop
from benchmarks.load.pictures import QUESTIONS, data_url, encoded_picture, image_part, messages_head
from benchmarks.load.report import Figure, Report, say
from benchmarks.load.server import SOAK_FLAGS, started
from benchmarks.load.watch import Watch, wait_until_idle
from fovea.core.params import SamplingParams
from fovea.core.server_config import ServerConfig
from fovea.ipc.messages import Task, params_to_wire
from fovea.ipc.prepare_pool import PreparePool

PART = "work"
MAX_MODEL_LEN = 4096
KINDS: Mapping[str, tuple[int, str] | None] = {
    "text of 1,000 characters": None,
    "JPEG of 512x512": (512, "jpeg"),
    "JPEG of 1024x1024": (1024, "jpeg"),
    "JPEG of 2048x2048": (2048, "jpeg"),
    "PNG of 512x512": (512, "png"),
    "PNG of 1024x1024": (1024, "png"),
}
LONG, CONCURRENCY = 129, 16


def work(quick: bool, seed: int, report: Report) -> None:
    seconds, count = (1.0, 64) if quick else (4.0, 256)
    for name, kind in KINDS.items():
        messages = [_message(kind, random.Random(seed + i)) for i in range(8)]
        rates = []
        for num_workers in (1, 2):
            say(f"{PART}: preparing {name}, {num_workers} workers")
            rates.append(asyncio.run(_prepare_rate(messages, num_workers, seconds)))
        report.add(
            [
                Figure(PART, f"prepare {name}, 1 worker", rates[0], "1/s"),
                Figure(PART, f"prepare {name}, 2 workers", rates[1], "1/s"),
                Figure(PART, f"prepare {name}, 2 workers over 1", rates[1] / rates[0]),
            ]
        )
    with started(*SOAK_FLAGS) as server:
        _costs(server, count, seed, report)


async def _prepare_rate(messages: list[list[dict[str, Any]]], num_workers: int, seconds: float) -> float:
    pool = PreparePool(ServerConfig(prepare_workers=num_workers))
    await pool.start()
    params = params_to_wire(SamplingParams(max_tokens=8))
    numbers = itertools.count()
    until = 0.0
    count = 0

    async def lane() -> None:
        nonlocal count
        while time.perf_counter() < until:
            number = next(numbers)
            task = Task(str(number), 0.0, MAX_MODEL_LEN, params, messages=messages[number % len(messages)])
            reply = await pool.prepare(task, None)
            if reply.blob is not None:
                os.close(reply.blob)
            count += 1

    for run_s in (0.3, seconds):
        count, began = 0, time.perf_counter()
        until = began + run_s
        await asyncio.gather(*(lane() for _ in range(2 * num_workers)))
        rate = count / (time.perf_counter() - began)
    pool.close()
    return rate


def _costs(server: Any, count: int, seed: int, report: Report) -> None:
    """CPU milliseconds of each process, from runs that differ in one thing."""
    small = [_body(None, random.Random(seed + 100 + i)) for i in range(4 * count)]
    pictures = [_body((512, "jpeg"), random.Random(seed + 200 + i)) for i in range(count)]
    runs: dict[str, dict[str, float]] = {}
    for name, bodies, num_tokens, stream in (
        ("warm", small[:16], 1, True),
        ("text, 1 token", small, 1, False),
        ("text, stream of 1 token", small, 1, True),
        (f"text, stream of {LONG}", small[:count], LONG, True),
        (f"text, {LONG} tokens", small[:count], LONG, False),
        ("JPEG of 512x512, 1 token", pictures, 1, False),
    ):
        say(f"{PART}: {name}")
        wait_until_idle(server.port)
        with Watch(server, period_s=60.0) as watch:
            asyncio.run(_ask_all(server.port, bodies, num_tokens, stream, name))
        runs[name] = {role: 1e3 * seconds / len(bodies) for role, seconds in watch.cpu_s.items()}
    names = [name for name in runs if name != "warm"]
    report.details[PART] = {name: {role: round(ms, 3) for role, ms in runs[name].items()} for name in names}
    for role in ("api", "prepare", "engine", "client"):
        for name in names:
            report.add([Figure(PART, f"CPU of {role} for {name}", runs[name].get(role, 0.0), "ms")])
        for base, long in (("text, stream of 1 token", names[2]), ("text, 1 token", names[3])):
            each = (runs[long].get(role, 0.0) - runs[base].get(role, 0.0)) / (LONG - 1)
            kind = "streamed" if "stream" in base else "unstreamed"
            report.add([Figure(PART, f"CPU of {role} for a {kind} token", each, "ms")])


async def _ask_all(port: int, bodies: list[bytes], num_tokens: int, stream: bool, salt: str) -> None:
    client = Client(port)
    tail = chat_tail(num_tokens, stream=stream, salt=salt)
    asks = [Ask((body, tail), num_tokens) for body in bodies]
    answers = [answer async for answer in closed_loop(client, asks, CONCURRENCY)]
    client.close()
    if not all(answer.is_right for answer in answers):
        raise SystemExit(f"{PART}: a request failed")


def _message(kind: tuple[int, str] | None, rng: random.Random) -> list[dict[str, Any]]:
    if kind is None:
        return [{"role": "user", "content": f"{rng.getrandbits(32):08x} " + "It looks like rain over there. " * 32}]
    side, encoding = kind
    picture = image_part(data_url(encoded_picture(rng, side, side, encoding)))
    return [{"role": "user", "content": [picture, {"type": "text", "text": QUESTIONS[0]}]}]


def _body(kind: tuple[int, str] | None, rng: random.Random) -> bytes:
    if kind is None:
        return messages_head([{"role": "user", "content": f"{rng.getrandbits(32):08x} What is this?"}])
    return messages_head(_message(kind, rng))
