"""Mutated pictures through the server's own door, in processes that may die: each mutant is a picture or a MediaError.

A child that dies or hangs is counted, its mutant reported, and the work goes on behind it.
"""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from fovea.core.errors import MediaError
from fovea.core.server_config import ServerConfig
from fovea.media import BytesSource, MediaLimits, decode, probe
from tests.fuzz.mutations import mutated
from tests.fuzz.seeds import all_pictures

HANG_S = 30.0
SLOW_S = 5.0
BLOCK = 500
FOREIGN = ("0x", "object at", "Traceback", "site-packages", "PIL", "Errno")


@dataclass(slots=True)
class Report:
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)
    crashes: dict[int, str] = field(default_factory=dict)

    def add(self, other: Report) -> None:
        self.outcomes += other.outcomes
        self.failures |= other.failures
        self.crashes |= other.crashes


def outcome(data: bytes, limits: MediaLimits) -> tuple[str, str]:
    """What became of a mutant, and what is wrong with that ("" if nothing)."""
    start = time.monotonic()
    source = BytesSource(data)
    try:
        size = probe(source, limits)
        pixels = decode(source).pixels
    except MediaError as error:
        message = str(error)
        wrong = next((f"the message holds {word!r}: {message!r}" for word in FOREIGN if word in message), "")
        return error.code, wrong or _slow(start)
    except BaseException as error:
        return type(error).__name__, f"{type(error).__name__}: {error}"[:200]
    if pixels.shape != (size.height_px, size.width_px, 3) or str(pixels.dtype) != "uint8":
        return "picture", f"{pixels.dtype} {pixels.shape}, promised were {size.width_px} x {size.height_px}"
    return "picture", _slow(start)


def _slow(start: float) -> str:
    seconds = time.monotonic() - start
    return f"took {seconds:.1f} s" if seconds > SLOW_S else ""


def fuzz(first: int, count: int, num_processes: int = 2) -> Report:
    """Mutants `first` to `first + count`, in blocks, each in a child of its own."""
    report = Report()
    blocks = iter(range(first, first + count, BLOCK))
    with _Children(num_processes) as children:
        while children.fill(blocks, first + count):
            report.add(children.next())
    return report


def _work(start: int, end: int, current: Any, results: Connection) -> None:
    warnings.simplefilter("ignore")
    limits, seeds, report = MediaLimits.from_config(ServerConfig()), all_pictures(), Report()
    for number in range(start, end):
        current.value = number
        name, wrong = outcome(mutated(seeds, number), limits)
        report.outcomes[name] += 1
        if wrong:
            report.failures[number] = wrong
    results.send((report.outcomes, report.failures))


@dataclass(slots=True)
class _Child:
    process: Any
    current: Any
    results: Connection
    start: int
    end: int
    seen: int = -1
    since: float = 0.0

    def is_hung(self) -> bool:
        now = time.monotonic()
        if self.current.value != self.seen:
            self.seen, self.since = self.current.value, now
        return now - self.since > HANG_S


class _Children:
    def __init__(self, limit: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._limit = limit
        self._running: list[_Child] = []
        self._again: list[tuple[int, int]] = []

    def __enter__(self) -> _Children:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._running:
            child.process.kill()
            child.process.join()

    def fill(self, blocks: Iterator[int], end: int) -> bool:
        """Start as many as may run; False when nothing is left."""
        while len(self._running) < self._limit:
            if self._again:
                self._start(*self._again.pop())
                continue
            start = next(blocks, None)
            if start is None:
                break
            self._start(start, min(start + BLOCK, end))
        return bool(self._running)

    def _start(self, start: int, end: int) -> None:
        receiver, sender = self._context.Pipe(duplex=False)
        current = self._context.Value("q", start, lock=False)
        process = self._context.Process(target=_work, args=(start, end, current, sender), daemon=True)
        process.start()
        sender.close()
        self._running.append(_Child(process, current, receiver, start, end, since=time.monotonic()))

    def next(self) -> Report:
        """Of the first child that is done, dead or hung."""
        while True:
            for child in self._running:
                if child.results.poll(0.05):
                    return self._collect(child)
                if child.is_hung():
                    child.process.kill()
                    return self._collect(child, "hung")

    def _collect(self, child: _Child, how: str = "") -> Report:
        self._running.remove(child)
        report = Report()
        try:
            outcomes, failures = child.results.recv()
            report = Report(outcomes, failures)
            child.process.join()
        except EOFError:
            child.process.join()
            number = int(child.current.value)
            report.crashes[number] = how or f"exit code {child.process.exitcode}"
            report.outcomes["child died"] += 1
            # What went well before is done again without that mutant, to have its outcomes.
            self._again += [(a, b) for a, b in ((child.start, number), (number + 1, child.end)) if a < b]
        finally:
            child.results.close()
        return report
