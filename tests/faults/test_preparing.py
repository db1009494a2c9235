"""F05, F12, F13, F33: what a worker dies of, hangs in or panics about ends one request; the worker is replaced."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults.support import SLOW_MACHINE, Site, about, faults, rarely, report, site, until

TIMEOUT_S = 2.0
NUM_WORKERS = 2


@pytest.fixture(scope="module")
def bench() -> Iterator[Site]:
    env = faults(
        "prepare_segfault",
        "prepare_hang",
        "prepare_exit",
        "prepare_memory",
        "prepare_panic",
        "prepare_error",
        "prepare_ids",
        step_s=0.004,
    )
    with site("--prepare-workers", str(NUM_WORKERS), "--prepare-timeout-s", str(TIMEOUT_S), env=env) as made:
        yield made


# Status, codes, and whether the worker is replaced.
PREPARE_FAULTS = {
    "prepare_segfault": (400, {"invalid_image"}, True),
    "prepare_exit": (400, {"invalid_image"}, True),
    "prepare_hang": (400, {"preparation_timeout"}, True),
    "prepare_memory": (400, {"media_too_large"}, False),
    "prepare_panic": (500, {"request_failed"}, True),
    "prepare_error": (500, {"request_failed"}, False),
    "prepare_ids": (400, {"invalid_prompt", "above_max_value"}, False),
}


@pytest.mark.parametrize("fault", rarely(PREPARE_FAULTS, ["prepare_segfault", "prepare_hang", "prepare_panic"]))
def test_a_request_that_breaks_its_worker_fails_alone(bench: Site, fault: str) -> None:
    status, codes, is_replaced = PREPARE_FAULTS[fault]
    before = set(bench.server.worker_pids())
    with bench.beside():
        answer = bench.ask(about(fault))
        good = bench.ask("Hello")
    assert answer.status == status
    assert answer.code in codes
    assert good.is_good
    assert answer.elapsed_s < (TIMEOUT_S + 2.0 if fault == "prepare_hang" else 1.0 * SLOW_MACHINE)
    seconds = until(lambda: len(bench.server.worker_pids()) == NUM_WORKERS, 1.0 * SLOW_MACHINE, "the pool")
    assert (set(bench.server.worker_pids()) != before) == is_replaced
    report(fault, answer=answer.elapsed_s, replaced=seconds)
    bench.check_whole()
    assert bench.count("fovea:engine_restarts_total") == 0


@pytest.mark.faults
def test_all_workers_stuck_at_once_are_all_replaced(bench: Site) -> None:
    with bench.beside(), ThreadPoolExecutor(4) as pool:
        started = time.monotonic()
        stuck = [pool.submit(bench.ask, about("prepare_hang")) for _ in range(NUM_WORKERS)]
        time.sleep(0.3)
        assert bench.ask("Hello").is_good  # waits for a worker, no longer than they may take
        waited_s = time.monotonic() - started
        assert {future.result().code for future in stuck} == {"preparation_timeout"}
    assert waited_s < TIMEOUT_S + 1.0 * SLOW_MACHINE
    report("all stuck", next_served=waited_s)
    until(lambda: len(bench.server.worker_pids()) == NUM_WORKERS, 1.0 * SLOW_MACHINE)


def test_workers_and_their_zygote_may_be_killed_under_load(bench: Site) -> None:
    with bench.beside():
        for pid in bench.server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        assert bench.ask("Hello").is_good
        [zygote] = bench.server.zygote_pids()
        os.kill(zygote, signal.SIGKILL)
        killed_at = time.monotonic()
        assert bench.ask("Hello").is_good
        report("zygote", next_served=time.monotonic() - killed_at)
    until(lambda: len(bench.server.worker_pids()) == NUM_WORKERS, 10)
    assert bench.count("fovea:engine_restarts_total") == 0


@pytest.mark.faults
def test_a_frozen_zygote_is_replaced_when_it_is_needed(bench: Site) -> None:
    [zygote] = bench.server.zygote_pids()
    os.kill(zygote, signal.SIGSTOP)
    with bench.beside():
        os.kill(bench.server.worker_pids()[0], signal.SIGKILL)
        assert bench.ask("Hello").is_good  # by the other worker
        frozen_at = time.monotonic()
        assert bench.ask(about("prepare_exit")).code == "invalid_image"  # which ends that too, and one more
        assert bench.ask("Hello").is_good
    report("frozen zygote", next_served=time.monotonic() - frozen_at)
    until(lambda: len(bench.server.worker_pids()) == NUM_WORKERS, 10)
    assert bench.server.zygote_pids() != [zygote]


def test_a_worker_is_the_first_that_the_system_may_kill(bench: Site) -> None:
    """F31: the order in which memory is taken back."""

    def score(pid: int) -> int:
        with open(f"/proc/{pid}/oom_score_adj", encoding="ascii") as file:
            return int(file.read())

    others = [bench.server.process.pid, bench.server.engine_pid()]
    assert {score(pid) for pid in bench.server.worker_pids()} == {1000}
    assert max(score(pid) for pid in others) < 1000


@pytest.mark.faults
def test_forks_that_fail_are_made_later() -> None:
    env = faults("prepare_exit", fork_errors=NUM_WORKERS)
    with site("--prepare-workers", str(NUM_WORKERS), env=env) as made:
        with made.beside():
            for _ in range(NUM_WORKERS):
                assert made.ask(about("prepare_exit")).code == "invalid_image"
            seconds = until(lambda: len(made.server.worker_pids()) == NUM_WORKERS, 5 * SLOW_MACHINE)
            assert made.ask("Hello").is_good
        report("fork", recovered=seconds)
        assert "the system gives no process" in made.server.log
