"""One thread at a time in a turn, any number outside."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from fovea.core.turns import Turns, outside_turn

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


def test_without_a_turn_there_is_nothing_to_leave() -> None:
    with outside_turn():
        pass
