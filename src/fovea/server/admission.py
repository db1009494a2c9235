"""Who may come in: bounded numbers of requests, prompt tokens and bytes, judged before anything is paid for.

A seat is taken without an await in between, so two requests never share the last one, and given back on every way out.
Places are those of the engine's running sequences plus the queue: at most max_num_seqs + max_num_queued_reqs requests
are in the house at any time. Refusals say when to come back, from how fast requests have been leaving.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from fovea.core.errors import UnavailableError
from fovea.core.server_config import ServerConfig

MIN_RETRY_S, MAX_RETRY_S = 1, 30
RECENT_EXITS = 64


class Seat:
    """One request in the house. `release` may be called any number of times, also by leaving a with block."""

    def __init__(self, admission: Admission, num_body_bytes: int) -> None:
        self._admission = admission
        self.num_bytes = num_body_bytes
        self.num_tokens = 0
        self.num_pixel_bytes = 0
        self.is_waiting = True
        self.is_released = False

    def add_media_bytes(self, num_bytes: int) -> None:
        """Count fetched bytes; raises UnavailableError if all requests together now hold too many."""
        if not self.is_released:
            self._admission._add_bytes(self, num_bytes)

    def add_pixel_bytes(self, num_bytes: int) -> None:
        """Count the prepared pictures, which wait with the request; raises UnavailableError as for fetched bytes."""
        if not self.is_released and self.is_waiting:
            self._admission._add_bytes(self, num_bytes)
            self.num_pixel_bytes += num_bytes

    def add_tokens(self, num_tokens: int) -> None:
        """Count prompt tokens; raises UnavailableError if too many are waiting."""
        if not self.is_released:
            self._admission._add_tokens(self, num_tokens)

    def started(self) -> None:
        """It runs now: its tokens and its pixels wait no longer."""
        if not self.is_released:
            self._admission._start(self)

    def release(self) -> None:
        if not self.is_released:
            self._admission._release(self)

    def __enter__(self) -> Seat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Reading:
    """A body that is being read: its bytes count as those of a request do, from the first to the last."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Raises UnavailableError if bodies and pictures together now take too much."""
        self._admission._check_bytes(num_bytes, num_others=self._admission.num_bytes - self._num_bytes)
        self._num_bytes += num_bytes
        self._admission.num_bytes += num_bytes

    def __enter__(self) -> Reading:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.num_bytes -= self._num_bytes


class Admission:
    """Not for threads: the event loop's own."""

    def __init__(self, config: ServerConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_seats = config.max_num_seqs + config.max_num_queued_reqs
        self._max_tokens = config.max_num_queued_tokens
        self._max_bytes = config.max_queued_media_bytes
        self._clock = clock
        self._exits: deque[float] = deque(maxlen=RECENT_EXITS)
        self.draining = False
        self.num_seats = 0
        self.num_waiting = 0
        self.num_waiting_tokens = 0
        self.num_bytes = 0

    def reading(self) -> Reading:
        """For a body that is about to be read. Raises UnavailableError if it would be read in vain."""
        self._check_room()
        return Reading(self)

    def admit(self, num_body_bytes: int) -> Seat:
        self._check_room()
        self._check_bytes(num_body_bytes, num_others=self.num_seats)
        self.num_seats += 1
        self.num_waiting += 1
        self.num_bytes += num_body_bytes
        return Seat(self, num_body_bytes)

    def _check_room(self) -> None:
        if self.draining:
            raise UnavailableError(
                "The server is shutting down and takes no new requests.",
                code="draining",
                retry_after_s=self.retry_after_s(),
            )
        if self.num_seats >= self._max_seats:
            raise self._full(f"{self._max_seats} requests are running or waiting (max_num_seqs + max_num_queued_reqs)")
        if self.num_waiting_tokens >= self._max_tokens:
            raise self._full(f"{self._max_tokens:,} prompt tokens are waiting (max_num_queued_tokens)")

    def retry_after_s(self) -> int:
        """Whole seconds until a place should be free: the requests ahead, at the pace of recent exits."""
        if len(self._exits) < 2:
            return MIN_RETRY_S
        rate = len(self._exits) / max(self._clock() - self._exits[0], 1e-3)
        return max(MIN_RETRY_S, min(MAX_RETRY_S, math.ceil(self.num_waiting / rate)))

    def _full(self, why: str) -> UnavailableError:
        wait_s = self.retry_after_s()
        return UnavailableError(f"The server is full: {why}. Try again in {wait_s} s.", retry_after_s=wait_s)

    def _check_bytes(self, num_bytes: int, *, num_others: int) -> None:
        """A request that is alone may be as large as the limits of one request allow: waiting would not help it."""
        if num_others and self.num_bytes + num_bytes > self._max_bytes:
            raise self._full(f"its requests hold {self._max_bytes:,} bytes of pictures (max_queued_media_bytes)")

    def _add_bytes(self, seat: Seat, num_bytes: int) -> None:
        self._check_bytes(num_bytes, num_others=self.num_seats - 1)
        seat.num_bytes += num_bytes
        self.num_bytes += num_bytes

    def _add_tokens(self, seat: Seat, num_tokens: int) -> None:
        if not seat.is_waiting:
            return
        if self.num_waiting > 1 and self.num_waiting_tokens + num_tokens > self._max_tokens:
            raise self._full(f"{self._max_tokens:,} prompt tokens are waiting (max_num_queued_tokens)")
        seat.num_tokens += num_tokens
        self.num_waiting_tokens += num_tokens

    def _start(self, seat: Seat) -> None:
        if seat.is_waiting:
            seat.is_waiting = False
            self.num_waiting -= 1
            self.num_waiting_tokens -= seat.num_tokens
            self.num_bytes -= seat.num_pixel_bytes
            seat.num_bytes -= seat.num_pixel_bytes

    def _release(self, seat: Seat) -> None:
        self._start(seat)
        seat.is_released = True
        self.num_seats -= 1
        self.num_bytes -= seat.num_bytes
        self._exits.append(self._clock())
