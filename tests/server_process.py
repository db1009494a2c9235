"""A real server in processes of its own, for tests that talk to it as strangers do."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

START_TIMEOUT_S = 180.0
ADDRESS = re.compile(r"listening on (http://[^\s/]+:(\d+))")


@dataclass(slots=True)
class ServerProcess:
    """`url` has no slash at its end; `log` is everything the server has written to stderr so far."""

    process: subprocess.Popen[bytes]
    url: str
    port: int
    log_path: Path = field(default_factory=Path)

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def children(self, module: str) -> list[int]:
        """Ids of processes below the server that run this module; Linux only."""
        return [pid for pid in descendants(self.process.pid) if module in command_line(pid)]

    def engine_pid(self) -> int:
        return self.children("fovea.ipc.engine_worker")[0]

    def worker_pids(self) -> list[int]:
        """Those who prepare, without the zygote that forks them."""
        zygote, *_ = self.zygote_pids()
        return [pid for pid in self.children("fovea.ipc.prepare_worker") if pid != zygote]

    def zygote_pids(self) -> list[int]:
        return [pid for pid in self.children("fovea.ipc.prepare_worker") if parent(pid) == self.process.pid]


@contextlib.contextmanager
def serve(*flags: str, env: Mapping[str, str] | None = None, wait: bool = True) -> Iterator[ServerProcess]:
    """`python -m fovea serve --port 0 FLAGS`, ready to answer; stopped at the end, whatever happened."""
    with tempfile.TemporaryDirectory() as folder:
        log_path = Path(folder) / "stderr"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "fovea", "serve", "--port", "0", *flags],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})},
            )
        server = ServerProcess(process, "", 0, log_path)
        try:
            if wait:
                wait_until_ready(server)
            yield server
        finally:
            stop(process)


def wait_until_ready(server: ServerProcess) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        found = ADDRESS.search(server.log)
        if found:
            server.url, server.port = found[1], int(found[2])
            if _is_ready(server.port):
                return
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended with {server.process.returncode}:\n{server.log}")
        time.sleep(0.05)
    raise RuntimeError(f"the server was not ready after {START_TIMEOUT_S:g} s:\n{server.log}")


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    timer = threading.Timer(10.0, process.kill)
    timer.start()
    process.wait()
    timer.cancel()


def descendants(pid: int) -> list[int]:
    found = []
    for child in _children(pid):
        found += [child, *descendants(child)]
    return found


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in task.read_text().split()]
    return found
