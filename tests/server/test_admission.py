"""Places are counted exactly, given back on every way out, and refusals say when to come back."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest

from fovea.core.errors import UnavailableError
from fovea.core.server_config import ServerConfig
from fovea.server.admission import MAX_RETRY_S, Admission, Seat


def admission(**options: Any) -> Admission:
    return Admission(ServerConfig(**options))


def nothing_is_held(one: Admission) -> bool:
    return (one.num_seats, one.num_waiting, one.num_waiting_tokens, one.num_bytes) == (0, 0, 0, 0)


def admitted(one: Admission, tries: int) -> list[Seat]:
    seats = []
    for _ in range(tries):
        try:
            seats.append(one.admit(0))
        except UnavailableError:
            break
    return seats


@pytest.mark.parametrize("round", range(50))
def test_exactly_the_running_and_the_queued_get_in(round: int) -> None:
    """L06: one running and a queue of 16, then 26 at once."""

    async def ask(one: Admission, delays: random.Random) -> bool:
        await asyncio.sleep(0)
        try:
            with one.admit(100) as seat:
                await asyncio.sleep(delays.random() / 1000)
                seat.add_tokens(10)
                seat.started()
                await asyncio.sleep(0.002)
        except UnavailableError:
            return False
        return True

    async def whole() -> None:
        one = admission(max_num_seqs=1, max_num_queued_reqs=16)
        delays = random.Random(round)
        served = await asyncio.gather(*(ask(one, delays) for _ in range(26)))
        assert sum(served) == 17
        assert nothing_is_held(one)

    asyncio.run(whole())


def test_a_seat_that_is_given_back_is_free_again() -> None:
    one = admission(max_num_seqs=1, max_num_queued_reqs=1)
    seats = admitted(one, 5)
    assert len(seats) == 2
    with pytest.raises(UnavailableError, match="max_num_queued_reqs") as caught:
        one.admit(0)
    assert (caught.value.code, caught.value.status) == ("queue_full", 503)
    seats[0].release()
    seats[0].release()
    assert len(admitted(one, 5)) == 1


def test_everything_is_given_back_on_every_way_out() -> None:
    one = admission()
    with contextlib.suppress(KeyError), one.admit(10) as seat:
        seat.add_media_bytes(20)
        seat.add_tokens(30)
        assert (one.num_seats, one.num_waiting, one.num_waiting_tokens, one.num_bytes) == (1, 1, 30, 30)
        seat.started()
        assert (one.num_seats, one.num_waiting, one.num_waiting_tokens, one.num_bytes) == (1, 0, 0, 30)
        raise KeyError
    assert nothing_is_held(one)
    seat.add_media_bytes(20)
    seat.add_tokens(30)
    seat.started()
    assert nothing_is_held(one), "a seat that was given back holds nothing any more"


def test_bytes_in_work_are_bounded_but_one_alone_may_be_large() -> None:
    one = admission(max_queued_media_bytes=100)
    first = one.admit(60)
    first.add_media_bytes(60)
    with pytest.raises(UnavailableError, match="max_queued_media_bytes"):
        one.admit(1)
    first.release()
    second, third = one.admit(50), one.admit(40)
    with pytest.raises(UnavailableError, match="max_queued_media_bytes"):
        third.add_media_bytes(11)
    third.add_media_bytes(10)
    assert one.num_bytes == 100, "what was refused is not counted"
    second.release()
    third.release()
    assert nothing_is_held(one)


def test_pixels_count_while_their_request_waits() -> None:
    one = admission(max_queued_media_bytes=100)
    first, second = one.admit(10), one.admit(10)
    first.add_pixel_bytes(70)
    with pytest.raises(UnavailableError, match="max_queued_media_bytes"):
        second.add_pixel_bytes(11)
    first.started()
    assert one.num_bytes == 20, "its blob is closed now"
    second.add_pixel_bytes(80)
    first.add_pixel_bytes(1000)
    assert one.num_bytes == 100
    first.release()
    second.release()
    assert nothing_is_held(one)


def test_waiting_tokens_are_bounded_and_running_ones_are_not_counted() -> None:
    one = admission(max_num_queued_tokens=100)
    first = one.admit(0)
    first.add_tokens(150)
    with pytest.raises(UnavailableError, match="max_num_queued_tokens"):
        one.admit(0)
    first.started()
    second, third = one.admit(0), one.admit(0)
    second.add_tokens(60)
    with pytest.raises(UnavailableError, match="max_num_queued_tokens"):
        third.add_tokens(41)
    third.add_tokens(40)
    first.add_tokens(1000)
    assert one.num_waiting_tokens == 100


def test_a_draining_server_takes_nobody_and_keeps_those_it_has() -> None:
    one = admission()
    seat = one.admit(0)
    one.draining = True
    with pytest.raises(UnavailableError) as caught:
        one.admit(0)
    assert caught.value.code == "draining"
    assert one.num_seats == 1
    seat.release()
    assert one.num_seats == 0


def test_when_to_come_back_follows_the_pace_of_exits() -> None:
    now = [0.0]
    one = Admission(ServerConfig(max_num_seqs=1, max_num_queued_reqs=19), clock=lambda: now[0])
    assert one.retry_after_s() == 1
    for _ in range(10):
        one.admit(0).release()
        now[0] += 1.0
    seats = admitted(one, 30)
    assert len(seats) == 20
    assert 15 <= one.retry_after_s() <= 25, "20 wait and one leaves each second"
    now[0] += 1000.0
    assert one.retry_after_s() == MAX_RETRY_S
    with pytest.raises(UnavailableError) as caught:
        one.admit(0)
    assert caught.value.retry_after_s == MAX_RETRY_S


def test_a_body_that_is_read_counts_until_it_is_read() -> None:
    admission = Admission(ServerConfig(max_queued_media_bytes=1000))
    with admission.reading() as first, admission.reading() as second:
        first.add(600)
        second.add(400)
        with pytest.raises(UnavailableError):
            second.add(1)
        assert admission.num_bytes == 1000
    assert admission.num_bytes == 0


def test_a_body_alone_may_be_as_large_as_a_body_may_be() -> None:
    admission = Admission(ServerConfig(max_queued_media_bytes=1000))
    with admission.reading() as reading:
        reading.add(5000)


def test_no_body_is_read_for_a_house_that_is_full() -> None:
    admission = Admission(ServerConfig(max_num_seqs=1, max_num_queued_reqs=0))
    with admission.admit(0), pytest.raises(UnavailableError):
        admission.reading()
