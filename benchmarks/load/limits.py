"""Where the server says no or lets go: refusals alone, an exact queue, readers that stall, clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import random
import select
import socket
import statistics
import threading
import time
from collections.abc import Iterator, Sequence

from benchmarks.load.client import Answer, Ask, Client, chat_tail, closed_loop
from benchmarks.load.pictures import ALL_PICTURES, image_part, make_questions, messages_head
from benchmarks.load.report import Figure, Report, say
from benchmarks.load.server import SOAK_FLAGS, started
from benchmarks.load.watch import MIB, Probe, Watch, percentile, pss_bytes, scrape, wait_until_idle
from tests.server_process import ServerProcess

LARGE_BODY_BYTES = 1_400_000
ONE_SEAT = (
    "--max-num-seqs=1",
    "--max-num-queued-reqs=0",
    "--allowed-media-networks=127.0.0.0/8",
    "--media-fetch-timeout-s=600",
)
QUEUE, AT_ONCE = 16, 26
STALL_S = 8.0
NUM_STALLED = NUM_READING = 8
STALLED_RECEIVE_BYTES = 4096
LONG_ANSWER = 3000


# --- refusals alone --------------------------------------------------------------------------------------------------


def refusals(quick: bool, seed: int, report: Report) -> None:
    """A full house, and nothing but requests that must be refused."""
    part, seconds = "refusals", 4.0 if quick else 10.0
    with started(*ONE_SEAT) as server:
        with Probe(server.port, "/health/live", 0.05) as quiet:
            time.sleep(3.0)
        with _occupied(server):
            for name, body, least in (
                ("small body", _text("hello"), 1000.0),
                ("body of 1.4 MB", _text("x" * LARGE_BODY_BYTES), 80.0),
            ):
                say(f"{part}: {name}, {seconds:g} s")
                ask = Ask((body, chat_tail(8, stream=False)))
                with Watch(server) as watch, Probe(server.port, "/health/live", 0.05) as health:
                    answers = asyncio.run(_hammer(server.port, ask, seconds))
                refused = [a for a in answers if a.status == 503 and not a.error]
                times_s = [a.head_at - a.sent for a in refused]
                worse = health.quantile_ms(0.99) / max(quiet.quantile_ms(0.99), 1e-3)
                report.add_cores(f"{part}, {name}", watch.shares)
                report.add(
                    [
                        Figure(part, f"{name}: refused", len(refused) / watch.wall_s, "1/s", least=least),
                        Figure(part, f"{name}: neither refused nor answered", len(answers) - len(refused), "", most=0),
                        Figure(part, f"{name}: p99", 1e3 * percentile(times_s, 0.99), "ms", most=200),
                        Figure(part, f"{name}: /health/live, p99", health.quantile_ms(0.99), "ms", most=50),
                        Figure(part, f"{name}: /health/live, p99 over quiet", worse),
                    ]
                )


@contextlib.contextmanager
def _occupied(server: ServerProcess) -> Iterator[None]:
    """The only seat is taken by a request that costs nothing: its picture's host does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_connection(("127.0.0.1", server.port)) as one:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/picture.png"
        body = messages_head([{"role": "user", "content": [image_part(url)]}]) + chat_tail(8, stream=False)
        one.sendall(_post(body))
        while scrape(server.port)["fovea:requests_in_house"] < 1:
            time.sleep(0.05)
        yield


async def _hammer(port: int, ask: Ask, seconds: float) -> list[Answer]:
    client, until = Client(port), time.monotonic() + seconds

    def same() -> Iterator[Ask]:
        while True:
            yield ask

    answers = []
    async for answer in closed_loop(client, same(), 32, stop=lambda: time.monotonic() >= until):
        answer.pieces.clear()
        answers.append(answer)
    client.close()
    return answers


# --- the exact queue -------------------------------------------------------------------------------------------------


def queue(quick: bool, seed: int, report: Report) -> None:
    """One seat and sixteen places to wait: of 26 at once, 17 are served, each time."""
    part, rounds = "queue", 10 if quick else 50
    with started("--max-num-seqs=1", f"--max-num-queued-reqs={QUEUE}") as server:
        counts = [asyncio.run(_at_once(server.port)) for _ in range(rounds)]
    wrong = sum(count != (QUEUE + 1, AT_ONCE - QUEUE - 1) for count in counts)
    report.details[part] = sorted(set(counts))
    report.add([Figure(part, f"of {rounds} rounds, not {QUEUE + 1} served and 9 refused", wrong, "", most=0)])


async def _at_once(port: int) -> tuple[int, int]:
    client = Client(port)
    # Long enough that none ends before the last has come.
    asks = [Ask((_text(f"number {i}"), chat_tail(96, stream=i % 2 == 0)), 96) for i in range(AT_ONCE)]
    answers = await asyncio.gather(*(client.send(ask) for ask in asks))
    client.close()
    return sum(a.is_right for a in answers), sum(a.status == 503 and a.retry_after_s is not None for a in answers)


# --- stalled readers -------------------------------------------------------------------------------------------------


def stalled(quick: bool, seed: int, report: Report) -> None:
    """Some read nothing of long answers; others fare as beside ones who read, and the stalled ones are cut off."""
    part = "stalled"
    with started(*SOAK_FLAGS, f"--stall-timeout-s={STALL_S:g}") as server:
        say(f"{part}: {NUM_STALLED} readers that stall, beside {NUM_READING} that read")
        rates: dict[bool, list[float]] = {True: [], False: []}
        for number in range(1 if quick else 3):
            for reads in (True, False):
                with _streams(server.port, NUM_STALLED, reads=reads):
                    time.sleep(0.3 * STALL_S)  # by now nothing more goes out to those who stall
                    rates[reads].append(asyncio.run(_tokens_per_s(server.port, seed + number)))
                wait_until_idle(server.port)
        before = pss_bytes(server.process.pid)
        with _streams(server.port, NUM_STALLED, reads=False):
            cut_s, most = _until_cut(server)
            free_s = wait_until_idle(server.port, 10.0)
    beside, alike = statistics.median(rates[False]), statistics.median(rates[True])
    report.add(
        [
            Figure(part, "cut off", len(cut_s), "", least=NUM_STALLED),
            Figure(part, "first cut off after", min(cut_s, default=0.0), "s", least=STALL_S),
            Figure(part, "last cut off after", max(cut_s, default=0.0), "s"),
            Figure(part, "memory of the API process for each", (most - before) / NUM_STALLED / MIB, "MiB", most=0.25),
            Figure(part, "idle and all KV blocks free after the last cut", free_s, "s", most=1),
            Figure(part, "readers beside them, tokens", beside, "1/s"),
            Figure(part, "the same over beside ones who read", beside / alike, "", least=0.9, is_ratio=True),
        ]
    )


def _until_cut(server: ServerProcess) -> tuple[list[float], int]:
    """When each was let go, and the most memory of the API process meanwhile.

    Seen from the server: the end of a connection can't reach a client behind what it has not read.
    """
    while (count := int(scrape(server.port)["fovea:requests_in_house"])) < NUM_STALLED:
        time.sleep(0.05)
    began, most = time.monotonic(), 0
    cut_s: list[float] = []
    while len(cut_s) < count and time.monotonic() - began < 60:
        time.sleep(0.1)
        most = max(most, pss_bytes(server.process.pid))
        left = int(scrape(server.port)["fovea:requests_in_house"])
        cut_s += [time.monotonic() - began] * (count - len(cut_s) - left)
    return cut_s, most


async def _tokens_per_s(port: int, seed: int) -> float:
    client = Client(port)
    asks = [Ask((_text(f"{seed} {i}"), chat_tail(128, stream=True)), 128) for i in range(24)]
    began = time.monotonic()
    answers = [answer async for answer in closed_loop(client, asks, NUM_READING)]
    client.close()
    return sum(answer.num_tokens for answer in answers) / (time.monotonic() - began)


@contextlib.contextmanager
def _streams(port: int, count: int, *, reads: bool) -> Iterator[None]:
    """So many long streams that nobody reads from, or that are read. Log-probabilities make their events large."""
    body = _text("go on") + chat_tail(LONG_ANSWER, stream=True, logprobs=True, top_logprobs=20)
    ended = threading.Event()
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            if not reads:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, STALLED_RECEIVE_BYTES)
            one.connect(("127.0.0.1", port))
            one.sendall(_post(body))
        reader = threading.Thread(target=_drain, args=(sockets, ended))
        if reads:
            reader.start()
        try:
            yield
        finally:
            ended.set()
            if reads:
                reader.join()


def _post(body: bytes) -> bytes:
    fields = ("Host: 127.0.0.1", "Content-Type: application/json", f"Content-Length: {len(body)}", "", "")
    return "\r\n".join(("POST /v1/chat/completions HTTP/1.1", *fields)).encode() + body


def _drain(sockets: Sequence[socket.socket], ended: threading.Event) -> None:
    while not ended.wait(0.05):
        for one in select.select(sockets, [], [], 0)[0]:
            one.recv(1 << 20)


# --- clients that leave ----------------------------------------------------------------------------------------------


def cancels(quick: bool, seed: int, report: Report) -> None:
    """Clients hang up in every phase: while a body is judged, a picture prepared, a prompt computed, tokens made."""
    part, tries = "cancels", 24 if quick else 200
    rng = random.Random(seed)
    with started(*SOAK_FLAGS) as server:
        say(f"{part}: {tries} clients leave at random times")
        questions = make_questions(2 * tries, ALL_PICTURES, seed)
        freed_s = [asyncio.run(_leave(server.port, asked.head, rng)) for asked in questions.take(tries)]
        together_s = asyncio.run(_leave_together(server.port, [asked.head for asked in questions], rng))
        right = asyncio.run(_tokens_per_s(server.port, seed))
    report.add(
        [
            Figure(part, f"all KV blocks free after, p99 of {tries}", percentile(freed_s, 0.99), "s", most=1),
            Figure(part, f"all KV blocks free after {tries} at once left", together_s, "s", most=1),
            Figure(part, "tokens afterwards", right, "1/s"),
        ]
    )


async def _leave(port: int, head: memoryview, rng: random.Random) -> float:
    """Seconds from hanging up until nothing is left of the request."""
    client = Client(port)
    await client.send(Ask((head, chat_tail(2000, stream=True)), leave_after_s=0.005 * 100 ** rng.random()))
    client.close()
    return await asyncio.to_thread(wait_until_idle, port, 20.0, 0.05)


async def _leave_together(port: int, heads: Sequence[memoryview], rng: random.Random) -> float:
    client = Client(port)
    asks = [Ask((h, chat_tail(2000, stream=True)), leave_after_s=0.005 * 400 ** rng.random()) for h in heads]
    _ = [answer async for answer in closed_loop(client, asks, 32)]
    client.close()
    return await asyncio.to_thread(wait_until_idle, port, 20.0, 0.05)


def _text(text: str) -> bytes:
    return messages_head([{"role": "user", "content": text}])
