"""Closing politely has bounds: in bytes, in time, and for a client that takes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fovea.server import linger
from fovea.server.linger import LingeringTransport


class Socket(asyncio.Transport):
    """What a transport was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []
        self.num_unsent = 0

    def is_closing(self) -> bool:
        return "abort" in self.told

    def write(self, data: Any) -> None:
        self.told.append("write")

    def write_eof(self) -> None:
        self.told.append("eof")

    def resume_reading(self) -> None:
        self.told.append("resume")

    def get_write_buffer_size(self) -> int:
        return self.num_unsent

    def abort(self) -> None:
        self.told.append("abort")


def whole(num_unsent: int, *, stall_s: float, linger_s: float, wait_s: float, shrink: bool = False) -> list[str]:
    async def run() -> list[str]:
        inner = Socket()
        inner.num_unsent = num_unsent
        transport = LingeringTransport(inner, asyncio.get_running_loop(), stall_s=stall_s)
        transport.close_within(linger_s)
        transport.close()
        transport.write(b"late")
        assert transport.is_closing()
        left = wait_s
        while left > 0:
            await asyncio.sleep(0.02)
            left -= 0.02
            if shrink and inner.num_unsent > 1:
                inner.num_unsent -= 1
        return inner.told

    return asyncio.run(run())


def test_a_client_that_stays_is_let_go_after_a_while() -> None:
    assert whole(0, stall_s=60.0, linger_s=0.05, wait_s=0.3) == ["resume", "eof", "abort"]
    assert whole(0, stall_s=60.0, linger_s=60.0, wait_s=0.1) == ["resume", "eof"]


def test_what_is_still_to_be_sent_has_the_time_of_a_slow_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "CHECK_S", 0.02)
    assert whole(1000, stall_s=0.1, linger_s=0.01, wait_s=0.5, shrink=True) == ["resume", "eof"]
    assert whole(1000, stall_s=0.1, linger_s=0.01, wait_s=0.5) == ["resume", "eof", "abort"]


def test_what_is_read_into_nothing_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "LINGER_BYTES", 100)

    async def run() -> None:
        inner = Socket()
        transport = LingeringTransport(inner, asyncio.get_running_loop(), stall_s=1.0)
        transport.close()
        transport.discard(100)
        assert "abort" not in inner.told
        transport.discard(1)
        assert inner.told[-1] == "abort"
        transport.lost()

    asyncio.run(run())
