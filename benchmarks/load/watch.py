"""What is seen of a server from outside while it works: memory and CPU of its processes, its metrics, its health.

Memory is PSS over all processes without pages of files: what several share counts once. CPU is the kernel's count for
each process; "others" is what ran beside server and client, which should be next to nothing.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.server_process import ServerProcess, command_line, descendants

MIB = 1024**2
PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
METRIC = re.compile(r"^([a-z0-9_:]+)\{([^}]*)\} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')
OWN_LABELS = ("engine", "model_name")
ROLES = {"fovea.ipc.engine_worker": "engine", "fovea.ipc.prepare_worker": "prepare"}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed; 0.0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-len(ordered) * share // 1) - 1))] if ordered else 0.0


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line with the least squares; 0.0 of fewer than two points."""
    if len(points) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


# --- processes -------------------------------------------------------------------------------------------------------


def role(pid: int, server: int) -> str:
    if pid == server:
        return "api"
    words = command_line(pid)
    return next((name for module, name in ROLES.items() if module in words), "other")


def cpu_s(pid: int) -> float:
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def pss_bytes(pid: int) -> int:
    """Without pages of files: how many of those count depends on who else uses the same libraries."""
    counted = 0
    with contextlib.suppress(OSError, ValueError):
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                counted += int(line.split()[1]) * 1024
    return counted


def busy_s() -> float:
    """CPU seconds of the whole machine so far; 0.0 where /proc does not tell."""
    try:
        return sum(int(word) for word in (PROC / "stat").read_text().split()[1:4]) / TICKS_PER_S
    except (OSError, ValueError):
        return 0.0


def num_entries(path: Path) -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir(path))
    return 0


@dataclass(frozen=True, slots=True)
class Census:
    num_processes: int
    num_threads: int
    num_descriptors: int  # of the process that listens


def census(server: int) -> Census:
    pids = [server, *descendants(server)]
    threads = sum(num_entries(PROC / str(pid) / "task") for pid in pids)
    return Census(len(pids), threads, num_entries(PROC / str(server) / "fd"))


class Watch:
    """Samples memory and CPU of a server's processes while it stands in `with`.

    cpu_s: by role, "client" is this process; of workers that came and went what was seen of them.
    """

    def __init__(self, server: ServerProcess, period_s: float = 2.0) -> None:
        self.pss_mib: list[tuple[float, float]] = []  # (seconds since the start, MiB)
        self.pss_by_role: dict[str, list[float]] = {}
        self.cpu_s: Counter[str] = Counter()
        self.wall_s = 0.0
        self._server = server.process.pid
        self._period_s = period_s
        self._seen: dict[int, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        gc.collect()
        gc.disable()
        for pid in [self._server, *descendants(self._server)]:
            self._seen[pid] = cpu_s(pid)
        self._started, self._own, self._busy = time.monotonic(), time.process_time(), busy_s()
        self._sample_memory()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self.wall_s = time.monotonic() - self._started
        self.cpu_s["client"] = time.process_time() - self._own  # type: ignore[assignment]
        self._sample_cpu()
        self.cpu_s["others"] = max(0.0, busy_s() - self._busy - sum(self.cpu_s.values()))  # type: ignore[assignment]
        self._sample_memory()
        gc.enable()

    @property
    def shares(self) -> dict[str, float]:
        """Cores that each role took."""
        return {name: round(seconds / self.wall_s, 3) for name, seconds in sorted(self.cpu_s.items())}

    def flatness(self, warm_up_s: float) -> tuple[float, float]:
        """(MiB a minute, MiB from the first to the last tenth) after the warm-up."""
        points = [(at, mib) for at, mib in self.pss_mib if at >= warm_up_s]
        if len(points) < 4:
            return 0.0, 0.0
        tenth = max(2, len(points) // 10)
        first, last = (sorted(mib for _, mib in part)[tenth // 2] for part in (points[:tenth], points[-tenth:]))
        return 60 * slope(points), last - first

    def _run(self) -> None:
        while not self._stopping.wait(self._period_s):
            self._sample_cpu()
            self._sample_memory()

    def _sample_cpu(self) -> None:
        for pid in [self._server, *descendants(self._server)]:
            now = cpu_s(pid)
            self.cpu_s[role(pid, self._server)] += now - self._seen.get(pid, 0.0)  # type: ignore[assignment]
            self._seen[pid] = now

    def _sample_memory(self) -> None:
        at = time.monotonic() - self._started
        by_role: Counter[str] = Counter()
        for pid in [self._server, *descendants(self._server)]:
            by_role[role(pid, self._server)] += pss_bytes(pid)
        self.pss_mib.append((at, by_role.total() / MIB))
        for name, num_bytes in by_role.items():
            self.pss_by_role.setdefault(name, []).append(round(num_bytes / MIB, 1))


# --- health ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Probed:
    seconds: list[float] = field(default_factory=list)
    num_bad: int = 0

    def quantile_ms(self, share: float) -> float:
        return 1e3 * percentile(self.seconds, share)


class Probe:
    """Asks `path` every `period_s` while it stands in `with`; the figures are there afterwards."""

    def __init__(self, port: int, path: str, period_s: float) -> None:
        self.result = Probed()
        self._command = [sys.executable, "-m", "benchmarks.load.probe", str(port), path, str(period_s)]

    def __enter__(self) -> Probed:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self.result

    def __exit__(self, *_: object) -> None:
        output = self._process.communicate()[0]
        for line in output.splitlines():
            status, seconds = line.split()
            self.result.seconds.append(float(seconds))
            self.result.num_bad += status != "200"


# --- metrics ---------------------------------------------------------------------------------------------------------

Scrape = Mapping[str, float]


def scrape(port: int) -> Scrape:
    """Every sample by its name, with the labels that are not the same for all: `fovea:images_total{cache=hit}`."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return parse_metrics(answer.read().decode())


def parse_metrics(text: str) -> Scrape:
    found = {}
    for name, labels, number in METRIC.findall(text):
        own = ",".join(f"{key}={value}" for key, value in LABEL.findall(labels) if key not in OWN_LABELS)
        found[f"{name}{{{own}}}" if own else name] = float(number)
    return found


def lag_quantile_ms(before: Scrape, after: Scrape, share: float) -> float:
    """The bound of the histogram's bucket that so large a share of the event loop's lags lies under."""
    name = "fovea:event_loop_lag_seconds_bucket{le="
    counts = {float(key[len(name) : -1]): after[key] - before.get(key, 0.0) for key in after if key.startswith(name)}
    total = max(counts.values(), default=0.0)
    return 1e3 * min((bound for bound, count in counts.items() if count >= share * total), default=0.0)


def gained(before: Scrape, after: Scrape, name: str) -> float:
    return after.get(name, 0.0) - before.get(name, 0.0)


def is_idle(now: Scrape) -> bool:
    """Nobody is in the house, and every KV block is free."""
    return (
        now["fovea:requests_in_house"] == 0
        and now["vllm:num_requests_running"] + now["vllm:num_requests_waiting"] == 0
        and now["fovea:kv_blocks_free"] == now["fovea:kv_blocks"]
    )


def wait_until_idle(port: int, limit_s: float = 60.0, period_s: float = 0.06) -> float:
    """Seconds until the server had nothing to do; the limit if it did not come to that."""
    started = time.monotonic()
    while (passed_s := time.monotonic() - started) < limit_s:
        if is_idle(scrape(port)):
            return passed_s
        time.sleep(period_s)
    return limit_s
