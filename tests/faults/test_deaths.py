"""F06 to F09, F11, R6: an engine that dies, hangs or loses its device is noticed, told, and replaced."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.faults.support import (
    SLOW_MACHINE,
    Neighbours,
    Site,
    about,
    faults,
    get,
    is_alive,
    rarely,
    report,
    site,
    until,
)
from tests.server_process import descendants

WATCHDOG_S = 3.0
COLD_START_S = 30.0  # on a machine that does other things too; measured times are reported
NO_LIMIT = ("--max-engine-deaths", "999")


@pytest.fixture(scope="module")
def fragile() -> Iterator[Site]:
    fatal = faults("forward_hang", "kill", "device_error", "nan_all", "nan_row", forward_sleep=[595, 2.0], step_s=0.004)
    with site("--watchdog-s", str(WATCHDOG_S), *NO_LIMIT, env=fatal) as made:
        yield made


def expect_recovery(where: Site, died_at: float, neighbours: Neighbours, what: str) -> None:
    """Clients were told within two seconds; the server says that it is dead, and comes back as it was."""
    answers = neighbours.join()
    assert {answer.code for answer in answers} <= {"engine_dead", None}
    told_s = max(answer.ended_at for answer in answers if answer.code) - died_at
    assert told_s < 2.0 * SLOW_MACHINE
    assert all(not answer.is_done for answer in answers if answer.code)
    until(lambda: get(where.port, "/health/ready")[0] == 200, COLD_START_S)
    ready_s = time.monotonic() - died_at
    with where.beside():
        pass
    where.check_whole()
    report(what, told=told_s, ready=ready_s)


@pytest.mark.parametrize(
    "number", rarely([signal.SIGKILL, signal.SIGSEGV], [signal.SIGKILL]), ids=["killed", "crashed"]
)
def test_a_dead_engine_is_told_within_seconds_and_replaced(fragile: Site, number: signal.Signals) -> None:
    neighbours = Neighbours(fragile.port, num_tokens=1000)
    neighbours.start()
    pid, died_at = fragile.server.engine_pid(), time.monotonic()
    os.kill(pid, number)
    until(lambda: get(fragile.port, "/health/live")[0] == 503, 1.0 * SLOW_MACHINE, "/health/live")
    report(f"live 503 after {number.name}", seconds=time.monotonic() - died_at)
    assert get(fragile.port, "/health/ready")[0] == 503
    refused = fragile.ask("Hello")
    assert (refused.status, refused.code) == (503, "engine_dead")
    assert refused.retry_after is not None
    expect_recovery(fragile, died_at, neighbours, number.name)
    assert fragile.server.engine_pid() != pid
    assert not is_alive(pid)


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["device_error", "kill", "nan_all"])
def test_a_request_that_takes_the_device_along_ends_that_engine(fragile: Site, fault: str) -> None:
    """F06, and F03's last clause: numbers that stay wrong are the device's."""
    before = fragile.count("fovea:engine_restarts_total")
    neighbours = Neighbours(fragile.port, num_tokens=1000)
    neighbours.start()
    died_at = time.monotonic()
    answer = fragile.ask(about(fault))
    assert answer.code in ("engine_dead", "numerical_error")
    if fault == "nan_all":
        answers = neighbours.join()
        assert {answer.code for answer in answers} <= {"numerical_error", "engine_dead"}
        while fragile.count("fovea:engine_restarts_total") == before:
            assert fragile.ask("Hello?").code in ("numerical_error", "engine_dead", None)
        until(lambda: get(fragile.port, "/health/ready")[0] == 200, COLD_START_S)
        with fragile.beside():
            pass
    else:
        expect_recovery(fragile, died_at, neighbours, fault)
    assert fragile.count("fovea:engine_restarts_total") > before


@pytest.mark.faults
def test_numbers_that_go_wrong_for_one_client_only_end_no_engine(fragile: Site) -> None:
    """R1: whoever finds a prompt that gives NaN can't restart the server with it."""
    before = fragile.count("fovea:engine_restarts_total")
    for _ in range(8):
        assert fragile.ask(about("nan_row")).code == "numerical_error"
    assert fragile.ask("Hello").is_good
    assert fragile.count("fovea:engine_restarts_total") == before


@pytest.mark.faults
def test_an_engine_that_hangs_says_where_and_is_replaced(fragile: Site) -> None:
    neighbours = Neighbours(fragile.port, num_tokens=1000)
    neighbours.start()
    pid, hung_at = fragile.server.engine_pid(), time.monotonic()
    answer = fragile.ask(about("forward_hang"))
    assert answer.code == "engine_dead"
    detected_s = min(a.ended_at for a in neighbours.join()) - hung_at
    assert detected_s < WATCHDOG_S + 2.0 * SLOW_MACHINE
    report("hang", detected=detected_s)
    assert not is_alive(pid)
    log = fragile.server.log
    assert "the engine made no step for" in log
    assert "most recent call first" in log
    assert "faults.py" in log
    until(lambda: get(fragile.port, "/health/ready")[0] == 200, COLD_START_S)
    with fragile.beside():
        pass


@pytest.mark.faults
def test_a_frozen_engine_is_replaced(fragile: Site) -> None:
    neighbours = Neighbours(fragile.port, num_tokens=1000)
    neighbours.start()
    frozen_at = time.monotonic()
    os.kill(fragile.server.engine_pid(), signal.SIGSTOP)
    until(lambda: get(fragile.port, "/health/live")[0] == 503, WATCHDOG_S + 2.0 * SLOW_MACHINE, "/health/live")
    report("frozen", detected=time.monotonic() - frozen_at)
    expect_recovery(fragile, frozen_at + WATCHDOG_S, neighbours, "frozen")


@pytest.mark.faults
def test_a_long_step_and_a_starved_engine_are_not_taken_for_hung_ones(fragile: Site) -> None:
    """F07's other side, and F32: slow is not dead."""
    before = fragile.count("fovea:engine_restarts_total")
    with fragile.beside():
        assert fragile.ask("What shape is this?", max_tokens=4).is_good  # a step of two seconds
    pid = fragile.server.engine_pid()
    neighbours = Neighbours(fragile.port, num_tokens=40)
    neighbours.start()
    for _ in range(6):  # a tenth of the time for 6 s
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.9)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.1)
    assert [answer.token_ids for answer in neighbours.join()] == [ids[:40] for ids in fragile.expected]
    assert fragile.count("fovea:engine_restarts_total") == before


@pytest.mark.faults
def test_waiting_requests_survive_the_engine_they_waited_for() -> None:
    """F08: one runs, many wait; whoever had no token gets the whole answer from the next engine."""
    with site("--max-num-seqs", "4", *NO_LIMIT, env=faults(step_s=0.01)) as made:
        neighbours = Neighbours(made.port)
        for thread in neighbours._threads:
            thread.start()
        until(lambda: made.count("vllm:num_requests_waiting") >= 2, 20)
        died_at = time.monotonic()
        os.kill(made.server.engine_pid(), signal.SIGKILL)
        answers = neighbours.join()
        served = [i for i, answer in enumerate(answers) if answer.is_good]
        assert len(served) >= 4
        for i, answer in enumerate(answers):
            assert answer.token_ids == made.expected[i] if i in served else answer.code == "engine_dead"
        report("replayed", all_served=time.monotonic() - died_at, served=len(served))


@pytest.mark.faults
def test_three_deaths_in_five_minutes_end_the_server_with_their_cause() -> None:
    with site("--max-engine-deaths", "3", learn=False) as made:
        for _ in range(3):
            until(lambda: get(made.port, "/health/ready")[0] == 200, COLD_START_S)
            os.kill(made.server.engine_pid(), signal.SIGKILL)
            until(lambda: get(made.port, "/health/ready")[0] != 200, 5)
        assert made.server.process.wait(20) != 0
        lines = [line for line in made.server.log.splitlines() if "SIGKILL" in line]
        assert "max_engine_deaths" in lines[-1]


@pytest.mark.faults
def test_nobody_outlives_a_server_that_is_killed() -> None:
    with site(learn=False) as made:
        neighbours = Neighbours(made.port)
        neighbours.start()
        pids = descendants(made.server.process.pid)
        assert len(pids) >= 3
        killed_at = time.monotonic()
        made.server.process.kill()
        until(lambda: not any(is_alive(pid) for pid in pids), 5.0 * SLOW_MACHINE, "the end of all processes")
        report("orphans gone", seconds=time.monotonic() - killed_at)
        assert all(answer.status in (0, 200) for answer in neighbours.join())
