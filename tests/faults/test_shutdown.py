"""F23, R7: signals. Running streams finish within the drain time, new requests are refused, a second signal hurries."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.faults.support import SLOW_MACHINE, Neighbours, Site, ask, faults, get, is_alive, report, site, until
from tests.server_process import descendants, serve

DRAIN_S = 20.0


@pytest.fixture
def busy() -> Iterator[tuple[Site, Neighbours]]:
    """Eight streams of two seconds or so, just begun."""
    with site("--drain-timeout", str(DRAIN_S), env=faults(step_s=0.02)) as made:
        neighbours = Neighbours(made.port)
        neighbours.start()
        yield made, neighbours


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.faults)])
def test_a_drain_ends_no_stream(busy: tuple[Site, Neighbours], number: signal.Signals) -> None:
    made, neighbours = busy
    pids, sent_at = descendants(made.server.process.pid), time.monotonic()
    made.server.process.send_signal(number)
    ready_s = until(lambda: get(made.port, "/health/ready")[0] != 200, 0.1 * SLOW_MACHINE, "not ready")
    refused = ask(made.port, "Hello")
    assert (refused.status, refused.code) in ((503, "draining"), (0, None))
    answers = neighbours.join()
    assert [answer.token_ids for answer in answers] == made.expected
    assert all(answer.is_done for answer in answers)
    assert made.server.process.wait(DRAIN_S + 2) == 0
    report(f"drain {number.name}", not_ready=ready_s, gone=time.monotonic() - sent_at)
    assert not any(is_alive(pid) for pid in pids)


@pytest.mark.faults
def test_a_second_signal_ends_everything_at_once(busy: tuple[Site, Neighbours]) -> None:
    made, neighbours = busy
    made.server.process.send_signal(signal.SIGTERM)
    until(lambda: get(made.port, "/health/ready")[0] != 200, 2)
    sent_at = time.monotonic()
    made.server.process.send_signal(signal.SIGTERM)
    code = made.server.process.wait(2 * SLOW_MACHINE)
    report("second signal", gone=time.monotonic() - sent_at)
    assert code == 0
    answers = neighbours.join()
    assert not any(answer.is_good for answer in answers)
    assert {answer.code for answer in answers} <= {"draining", None}


@pytest.mark.faults
def test_streams_that_outlast_the_drain_are_told() -> None:
    with site("--drain-timeout", "1", env=faults(step_s=0.05), learn=False) as made:
        neighbours = Neighbours(made.port, num_tokens=1000)
        neighbours.start()
        sent_at = time.monotonic()
        made.server.process.send_signal(signal.SIGTERM)
        assert made.server.process.wait(3 * SLOW_MACHINE) == 0
        report("drain limit 1 s", gone=time.monotonic() - sent_at)
        assert {answer.code for answer in neighbours.join()} == {"draining"}


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGPIPE, signal.SIGCHLD, signal.SIGWINCH])
def test_signals_that_mean_nothing_change_nothing(number: signal.Signals) -> None:
    with site() as made:
        with made.beside():
            made.server.process.send_signal(number)
        made.check_whole()


@pytest.mark.faults
def test_a_closed_terminal_ends_the_server_and_all_below() -> None:
    with site(learn=False) as made:
        pids = descendants(made.server.process.pid)
        made.server.process.send_signal(signal.SIGHUP)
        made.server.process.wait(10)
        until(lambda: not any(is_alive(pid) for pid in pids), 5)


@pytest.mark.faults
def test_a_signal_while_loading_is_an_exit() -> None:
    with serve(env=faults(load_s=60), wait=False) as server:
        until(lambda: "is being loaded" in server.log, 60)
        port = int(server.log.split("listening on http://127.0.0.1:")[1].split(";")[0].split('"')[0])
        until(lambda: len(server.children("fovea.ipc.engine_worker")) == 1, 10)
        assert get(port, "/health/live")[0] == 200
        assert get(port, "/health/ready")[0] == 503
        assert ask(port, "Hello").code == "loading"
        pids, sent_at = descendants(server.process.pid), time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(2 * SLOW_MACHINE) == 0
        report("SIGTERM while loading", gone=time.monotonic() - sent_at)
        until(lambda: not any(is_alive(pid) for pid in pids), 5)
