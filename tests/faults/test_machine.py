"""F17, F18, F27, F30, R6: a machine without descriptors, disk, a reader for the log, or time."""

from __future__ import annotations

import ast
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import pytest

from tests.faults.support import (
    KV_BYTES,
    SLOW_MACHINE,
    Site,
    about,
    ask,
    body,
    faults,
    get,
    metrics,
    picture,
    post,
    report,
    site,
    until,
)
from tests.server_process import ServerProcess, descendants, stop

SOURCE = Path(__file__).parents[2] / "src" / "fovea"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def site_with_log(log: IO[bytes] | int, *, env: Mapping[str, str]) -> Iterator[Site]:
    """A server whose stderr is ours to choose, so that its port must be too."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "fovea", "serve", "--port", str(port), "--kv-cache-memory-bytes", str(KV_BYTES)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=log,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **env},
    )
    try:
        until(lambda: get(port, "/ready")[0] == 200 or process.poll() is not None, 90, "ready")
        made = Site(ServerProcess(process, f"http://127.0.0.1:{port}", port))
        made.learn()
        yield made
        process.terminate()
        assert process.wait(10) == 0
    finally:
        stop(process)


@pytest.mark.faults
def test_a_log_nobody_reads_holds_nobody_up() -> None:
    """F30: the pipe is full before the faults begin; every process below writes to it."""
    reader, writer = os.pipe()
    env = faults("forward_error", "prepare_error", "prepare_panic", step_s=0.002)
    with site_with_log(writer, env=env) as made:
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
        os.set_blocking(writer, True)
        for _ in range(20):
            with made.beside():
                for fault in ("forward_error", "prepare_error", "prepare_panic"):
                    assert made.ask(about(fault)).code == "request_failed"
        times = sorted(timed_get(made.port, "/metrics") for _ in range(200))
        report("metrics with a full log", p99=times[197])
        assert times[100] < 0.05 * SLOW_MACHINE
        made.check_whole()
        assert made.count("fovea:engine_restarts_total") == 0
    os.close(reader)
    os.close(writer)


def timed_get(port: int, path: str) -> float:
    started = time.monotonic()
    assert get(port, path)[0] == 200
    return time.monotonic() - started


@pytest.mark.faults
def test_a_full_disk_and_no_folder_to_write_to_change_nothing() -> None:
    """F18: the log gives ENOSPC, temporary files and caches have no place."""
    nowhere = dict.fromkeys(("TMPDIR", "HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"), "/nonexistent")
    with open("/dev/full", "wb") as full, site_with_log(full, env={**nowhere, **faults("forward_error")}) as made:
        with made.beside():
            assert made.ask(about("forward_error")).code == "request_failed"
        made.check_whole()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def num_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.faults
def test_without_descriptors_running_streams_go_on_and_nobody_spins() -> None:
    """F17: the limit comes down to just above what is open, then a crowd connects."""
    with site(env=faults(step_s=0.02)) as made, contextlib.ExitStack() as crowd:
        pid = made.server.process.pid
        with made.beside():
            kept = socket.create_connection(("127.0.0.1", made.port), timeout=10)
            crowd.callback(kept.close)
            before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (num_files(pid) + 8, before[1]))
            for _ in range(40):
                crowd.callback(socket.create_connection(("127.0.0.1", made.port), timeout=10).close)
            kept.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert kept.recv(4096).startswith(b"HTTP/1.1 200")
        used_s, started = cpu_seconds(pid), time.monotonic()
        time.sleep(2.0)
        share = (cpu_seconds(pid) - used_s) / (time.monotonic() - started)
        assert share < 0.2
        crowd.close()
        recovered_s = until(lambda: get(made.port, "/health/live", 1.0)[0] == 200, 3.0 * SLOW_MACHINE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        assert made.ask("Hello").is_good
        report("descriptors", cpu_share=share, recovered=recovered_s)
        made.check_whole(within_s=10)


@pytest.mark.faults
def test_requests_without_a_descriptor_for_their_pictures_are_told() -> None:
    """A request over a connection that is open, when nothing more can be opened for it."""
    with site(learn=False) as made:
        pid = made.server.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        for spare in range(6):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (num_files(pid) + spare, before[1]))
            answer = post(made.port, body("Hello", url=picture()), timeout_s=5)
            assert answer.is_good or answer.status in (0, 503, 500), answer
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        assert made.ask("Hello", url=picture()).is_good
        made.check_whole(within_s=10)
        assert made.count("fovea:engine_restarts_total") == 0


@pytest.mark.faults
def test_a_server_that_was_frozen_goes_on_where_it_was() -> None:
    """F27: all processes stand still for longer than the watchdog, as in a paused container."""
    with site("--watchdog-s", "2", env=faults(step_s=0.01)) as made:
        with made.beside():
            pids = [*descendants(made.server.process.pid), made.server.process.pid]
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(5.0)
            for pid in reversed(pids):
                os.kill(pid, signal.SIGCONT)
        made.check_whole()
        assert made.count("fovea:engine_restarts_total") == 0


@pytest.mark.faults
def test_a_front_that_was_frozen_finds_its_engine_alive() -> None:
    with site("--watchdog-s", "2", env=faults(step_s=0.01)) as made:
        with made.beside():
            os.kill(made.server.process.pid, signal.SIGSTOP)
            time.sleep(4.0)
            os.kill(made.server.process.pid, signal.SIGCONT)
        made.check_whole()
        assert made.count("fovea:engine_restarts_total") == 0


def test_no_deadline_follows_the_wall_clock() -> None:
    """F27: `time.time` and friends are for what people read, in the places listed here."""
    readable = {"server/service.py", "server/calls.py", "server/metrics.py", "prompt/sandbox.py"}
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "time.time_ns", "datetime.now"):
                found.add(path.relative_to(SOURCE).as_posix())
    assert found == readable


@pytest.mark.faults
def test_scrapes_by_the_hundred_hold_up_nobody() -> None:
    with site(env=faults(step_s=0.004)) as made:
        with made.beside():
            times = sorted(timed_get(made.port, "/metrics") for _ in range(300))
        report("scrapes", p50=times[150], p99=times[297])
        assert times[150] < 0.05 * SLOW_MACHINE
        assert metrics(made.port)["fovea:requests_in_house"] == 0


@pytest.mark.faults
def test_files_and_processes_are_the_same_after_a_hundred_troubles() -> None:
    """What a fault leaves behind would add up: descriptors, children, memory maps."""
    with site(env=faults("forward_error", "nan_row", "prepare_error", "prepare_exit", "lose_abort")) as made:
        pids = [made.server.process.pid, made.server.engine_pid(), *made.server.zygote_pids()]

        def trouble() -> None:
            for fault in ("forward_error", "nan_row", "prepare_error", "prepare_exit"):
                assert made.ask(about(fault)).code
            with contextlib.suppress(OSError):
                ask(made.port, about("lose_abort"), stream=True, max_tokens=300, timeout_s=0.05)

        for _ in range(3):
            trouble()
        made.check_whole(within_s=10)
        before = [num_files(pid) for pid in pids]
        children = len(descendants(made.server.process.pid))
        for _ in range(25):
            trouble()
        made.check_whole(within_s=10)
        until(lambda: len(descendants(made.server.process.pid)) == children, 5)
        after = [num_files(pid) for pid in pids]
        assert all(now <= then + 3 for now, then in zip(after, before, strict=True)), (before, after)
