"""One thread at a time in a turn, any number outside."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from fovea.core.turns import Turns, outside_turn, taking_turns

PATIENCE_S = 20


def test_one_thread_at_a_time_has_a_turn() -> None:
    turns, inside, most = Turns(), [0], [0]

    def job() -> None:
        for _ in range(200):
            with turns.take():
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(job) for _ in range(8)]:
            done.result(PATIENCE_S)
    assert most == [1]


def test_outside_of_their_turns_threads_work_side_by_side() -> None:
    """Both must be outside at once, or the barrier breaks."""
    turns, both = Turns(), threading.Barrier(2)

    def job() -> None:
        with turns.take(), outside_turn():
            both.wait(PATIENCE_S)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(job) for _ in range(2)]:
            done.result(PATIENCE_S)


def test_a_thread_can_wait_for_what_another_makes_outside_of_its_turn() -> None:
    turns, made, asked = Turns(), Future[int](), threading.Event()

    def maker() -> None:
        with turns.take(), outside_turn():
            asked.wait(PATIENCE_S)
            made.set_result(3)

    def waiter() -> int:
        with turns.take(), outside_turn():
            asked.set()
            return made.result(PATIENCE_S)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(maker), pool.submit(waiter)
        first.result(PATIENCE_S)
        assert second.result(PATIENCE_S) == 3


def test_an_error_outside_gives_the_turn_back_once() -> None:
    turns = Turns()
    for _ in range(2):
        with pytest.raises(KeyError), turns.take(), outside_turn():
            raise KeyError
        with turns.take(), outside_turn(), outside_turn():  # twice outside is outside
            pass


def test_who_comes_first_waits_for_one_turn_only_and_leaves_others_one() -> None:
    """Of three that wait: the loop, which asked last, then the others in their order; between two turns of it, one."""
    turns, order = Turns(), list[str]()
    taken, go = threading.Event(), threading.Event()

    def holder() -> None:
        with turns.take():
            taken.set()
            go.wait(PATIENCE_S)

    def loop() -> None:
        for _ in range(2):
            with turns.take(first=True):
                order.append("loop")
                with outside_turn():
                    pass

    def other(name: str) -> None:
        with turns.take():
            order.append(name)

    with ThreadPoolExecutor(4) as pool:
        holding = pool.submit(holder)
        assert taken.wait(PATIENCE_S)
        jobs: list[Future[None]] = []
        for number, job in enumerate((lambda: other("a"), lambda: other("b"), loop), 1):
            jobs.append(pool.submit(job))
            wait_until(lambda: len(turns._waiting) == number)  # noqa: B023
        go.set()
        for done in (holding, *jobs):
            done.result(PATIENCE_S)
    assert order == ["loop", "a", "b", "loop"]


@pytest.fixture
def heeded_interrupts() -> Iterator[None]:
    """What runs the tests may ignore SIGINT, as a shell's background job does, and then Python does so too."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals for threads here")
@pytest.mark.usefixtures("heeded_interrupts")
@pytest.mark.parametrize("outside", [False, True])
def test_a_wait_that_is_interrupted_takes_no_turn_from_others(outside: bool) -> None:
    """Ctrl-C in a notebook, and the next call: a turn handed to somebody who is gone would stop everything."""
    turns, taken, main = Turns(), threading.Event(), threading.main_thread().ident
    assert main is not None
    assert threading.get_ident() == main

    def holder() -> None:
        with turns.take():
            taken.set()
            wait_until(lambda: len(turns._waiting) == 1)
            signal.pthread_kill(main, signal.SIGINT)
            time.sleep(0.05)

    def interrupted(pool: ThreadPoolExecutor) -> None:
        if outside:
            with turns.take(), outside_turn():
                pool.submit(holder)
                assert taken.wait(PATIENCE_S)
        else:
            pool.submit(holder)
            assert taken.wait(PATIENCE_S)
            with turns.take():
                pass

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(KeyboardInterrupt):
            interrupted(pool)

        def other() -> None:
            with turns.take():
                pass

        pool.submit(other).result(PATIENCE_S)
        assert not turns._is_taken


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds() and time.monotonic() < end:
        time.sleep(0.001)
    assert holds()


def test_threads_that_work_for_one_in_a_turn_take_turns_with_the_others() -> None:
    turns, inside, most = Turns(), [0], [0]

    def work(_: int) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.001)
        inside[0] -= 1

    with ThreadPoolExecutor(4) as pool, turns.take():
        in_turn = taking_turns(work)
        with outside_turn():
            list(pool.map(in_turn, range(8)))
    assert most == [1]
    assert taking_turns(work) is work  # outside of any


def test_without_a_turn_there_is_nothing_to_leave() -> None:
    with outside_turn():
        pass
