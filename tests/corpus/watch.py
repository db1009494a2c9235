"""What must hold after every case: the server is healthy, answers as ever, owns nothing, told nothing."""

from __future__ import annotations

import itertools
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fovea.cli.pictures import bundled_asks
from tests.corpus import files, processes, profiles
from tests.corpus.case import Profile
from tests.corpus.client import Reply, get, send
from tests.corpus.judge import answer_of
from tests.corpus.routes import MODEL, Request, image, text
from tests.corpus.scene import SECRET, World
from tests.server_process import ServerProcess

HEALTH_S = 1.0
SETTLE_S = 2.0
SLOW_MACHINE = 4.0
SPARE_FILES = 8
MARKER = Path(tempfile.gettempdir()) / "fovea-corpus-was-unpickled"
GAUGE = re.compile(r"^([a-z_]+:[a-z_]+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
# Asked by machines, each second: their lines are for the log level `debug`.
UNLOGGED = ("/health", "/ready", "/metrics")
# Gauges that are zero while nothing is asked.
IDLE_GAUGES = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "fovea:requests_in_house",
    "fovea:requests_queued",
    "fovea:queue_tokens",
    "fovea:queue_media_bytes",
)


class Watch:
    """Of one server. `check` compares with how it was when this was made, which is after a few good requests."""

    def __init__(self, server: ServerProcess, profile: Profile, world: World) -> None:
        self.server = server
        self.profile = profile
        self.world = world
        self._numbers = itertools.count()
        self._seen_log_chars = 0
        self._expected_lines: Counter[str] = Counter()
        self._lines: Counter[str] = Counter()
        for _ in range(3):
            self.canary = self.ask_canary()
        self._hits = world.num_forbidden_hits
        self._wait_idle()
        self._base = processes.snapshot(server.process.pid)

    @property
    def is_alive(self) -> bool:
        return self.server.process.poll() is None

    def send(self, request: Request, *, timeout_s: float = 90.0, method: str = "POST") -> tuple[Reply, str]:
        """The answer, and the id that the request had; its line in the access log will be looked for."""
        request_id = f"corpus-{next(self._numbers)}"
        with_key = Request(
            request.path, request.body, (*request.headers, *profiles.headers(self.profile)), request.streams
        )
        reply = send(self.server.port, with_key, request_id, timeout_s=timeout_s, method=method)
        if reply.status and request.path not in UNLOGGED:
            self._expected_lines[request_id] += 1
        return reply, request_id

    def ask_canary(self) -> tuple[object, ...]:
        reply, _ = self.send(canary())
        if reply.status != 200:
            return ("no answer", reply.status, reply.body[:300])
        return answer_of(reply)

    def check(self) -> list[str]:
        """Complaints; none if all is as it was."""
        if not self.is_alive:
            return [f"the server ended with {self.server.process.returncode}:\n{self.server.log[-2000:]}"]
        found = list(self._health())
        canary_now = self.ask_canary()
        if canary_now != self.canary:
            found.append(f"the canary answers {canary_now}, before {self.canary}")
        if self.world.num_forbidden_hits != self._hits:
            found.append(f"{self.world.num_forbidden_hits - self._hits} connections to an address that is forbidden")
            self._hits = self.world.num_forbidden_hits
        if MARKER.exists():
            found.append("something was unpickled")
        found += self._not_idle()
        found += self._log()
        return found

    def _health(self) -> Iterable[str]:
        for path in ("/health", "/ready"):
            reply = get(self.server.port, path)
            if reply.status != 200:
                yield f"{path} answers {reply.status}: {reply.body[:200]!r}"
            elif reply.elapsed_s > HEALTH_S * SLOW_MACHINE:
                yield f"{path} took {reply.elapsed_s:.2f} s"

    def metrics(self) -> dict[str, float]:
        """Gauges and counters without labels that matter; a name with several series is summed."""
        reply, _ = self.send(Request("/metrics", b"", ()), method="GET")
        values: dict[str, float] = {}
        for name, value in GAUGE.findall(reply.body.decode("utf-8")):
            values[name] = values.get(name, 0.0) + float(value)
        return values

    def _wait_idle(self) -> list[str]:
        found: list[str] = []

        def is_idle() -> bool:
            values = self.metrics()
            busy = {name: values[name] for name in IDLE_GAUGES if values.get(name)}
            taken = values.get("fovea:kv_blocks", 0) - values.get("fovea:kv_blocks_free", 0)
            found[:] = [f"{busy} not zero"] if busy else [f"{taken:g} KV blocks not free"] if taken else []
            return not found

        processes.wait_until(is_idle, SETTLE_S * SLOW_MACHINE)
        return found

    def _not_idle(self) -> list[str]:
        found = self._wait_idle()
        if not processes.CAN_SEE:
            return found
        now: processes.Snapshot | None = None

        def is_back() -> bool:
            nonlocal now
            now = processes.snapshot(self.server.process.pid)
            return now.num_processes <= self._base.num_processes and now.num_files <= self._base.num_files + SPARE_FILES

        if not processes.wait_until(is_back, SETTLE_S * SLOW_MACHINE):
            found.append(f"processes and files do not go back: {now}, at first {self._base}")
        return found

    def _log(self) -> Iterable[str]:
        """One line for each request, no line of a bug, no secret."""
        end = time.monotonic() + SETTLE_S * SLOW_MACHINE
        yield from self._read_log()
        while (missing := self._expected_lines - self._lines) and time.monotonic() < end:
            time.sleep(0.05)
            yield from self._read_log()
        if missing:
            yield f"no line in the access log for {list(missing)[:5]}"
        twice = [name for name, count in (self._lines - self._expected_lines).items() if name.startswith("corpus-")]
        if twice:
            yield f"more than one line in the access log for {twice[:5]}"
        self._expected_lines.clear()
        self._lines.clear()

    def _read_log(self) -> Iterable[str]:
        whole = self.server.log
        end = whole.rfind("\n") + 1
        new, self._seen_log_chars = whole[self._seen_log_chars : end], end
        for line in new.splitlines():
            if SECRET in line or profiles.KEY in line:
                yield f"a secret in the log: {line[:300]}"
            record = _parsed(line)
            if not record:
                yield f"a line in the log that is no JSON: {line[:300]!r}"
            if record.get("level") in ("error", "critical"):
                yield f"an error in the log: {line[:3000]}"
            if "status" in record and "id" in record:
                self._lines[str(record["id"])] += 1
                if len(line.encode()) > 4096:
                    yield f"a line of {len(line)} characters in the access log"


def _parsed(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def canary(number: int | None = None) -> Request:
    """A good request with a bundled picture and a secret that nobody else may see; `number` makes it one of many."""
    ask = bundled_asks()[0]
    content: Sequence[Any] = [image(files.data_url(ask.pictures[0].read_bytes())), text(ask.question)]
    secret = SECRET if number is None else f"{SECRET}-{number}"
    body = {
        "model": MODEL,
        "messages": [{"role": "system", "content": f"The word is {secret}."}, {"role": "user", "content": content}],
        "max_tokens": 8,
        "temperature": 0,
    }
    return Request("/v1/chat/completions", json.dumps(body).encode())
