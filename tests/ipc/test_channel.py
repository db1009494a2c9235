"""Frames between processes: whole, in order, with their blobs; anything else ends the channel."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
from pathlib import Path

import pytest

from fovea.ipc.blob import map_blob, write_blob
from fovea.ipc.channel import INLINE_BYTES, AsyncChannel, Channel, ChannelClosedError, Frame, socket_pair


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def content(frame: Frame) -> tuple[bytes, bytes | None]:
    return bytes(frame.payload), None if frame.blob is None else bytes(map_blob(frame.blob))


def send(channel: Channel, payload: bytes, blob: bytes | None) -> None:
    fd = None if blob is None else write_blob([blob])
    channel.send(payload, fd)
    if fd is not None:
        os.close(fd)


@pytest.mark.parametrize("size", [0, 1, 1000, INLINE_BYTES, INLINE_BYTES + 1, 3_000_000])
@pytest.mark.parametrize("blob", [None, b"", b"pixels", bytes(200_000)])
def test_a_frame_arrives_as_it_was_sent(size: int, blob: bytes | None) -> None:
    ours, theirs = map(Channel, socket_pair())
    payload = random.Random(size).randbytes(size)
    send(ours, payload, blob)
    assert content(theirs.receive_one()) == (payload, blob)


def test_many_frames_arrive_in_order_with_their_own_blobs() -> None:
    async def run() -> list[tuple[bytes, bytes | None]]:
        got: list[tuple[bytes, bytes | None]] = []
        ours, theirs = socket_pair()
        receiver = AsyncChannel(theirs, lambda frame: got.append(content(frame)), lambda: None)
        sender = AsyncChannel(ours, lambda frame: None, lambda: None)
        for number in range(300):
            blob = write_blob([b"%d" % number]) if number % 3 == 0 else None
            sender.send(bytes([number % 256]) * (number * 400), blob)
            if blob is not None:
                os.close(blob)
        while len(got) < 300:
            await asyncio.sleep(0.001)
        sender.close()
        receiver.close()
        return got

    before = open_files() if sys.platform == "linux" else 0
    expected = [(bytes([n % 256]) * (n * 400), b"%d" % n if n % 3 == 0 else None) for n in range(300)]
    assert asyncio.run(run()) == expected
    if sys.platform == "linux":
        assert open_files() == before


def test_the_end_of_the_other_side_is_told_once() -> None:
    async def run() -> int:
        ended: list[None] = []
        ours, theirs = socket_pair()
        AsyncChannel(theirs, lambda frame: None, lambda: ended.append(None))
        ours.close()
        await asyncio.sleep(0.05)
        return len(ended)

    assert asyncio.run(run()) == 1


def test_a_blocking_end_hears_of_it_too() -> None:
    ours, theirs = socket_pair()
    ours.close()
    with pytest.raises(ChannelClosedError):
        Channel(theirs).receive(1.0)


@pytest.mark.parametrize(
    "junk",
    [
        b"\xff" * 6,  # 4 GiB announced
        b"\x01\x00\x01\x00\x00\x00",  # 64 KiB + 1
        b"\x00\x00\x00\x00\x01\x00",  # a payload in a descriptor that is not there
        b"\x00\x00\x00\x00\x00\x01",  # a blob that is not there
        b"\x00\x00\x00\x00\x07\x00",  # a flag nobody knows
    ],
)
def test_what_is_no_frame_ends_the_channel_before_memory_is_taken(junk: bytes) -> None:
    ours, theirs = socket_pair()
    ours.sendall(junk)
    with pytest.raises(ChannelClosedError):
        Channel(theirs).receive(1.0)


def test_a_frame_in_single_bytes_is_put_together() -> None:
    ours, theirs = socket_pair()
    receiver = Channel(theirs)
    got: list[Frame] = []
    for byte in b"\x05\x00\x00\x00\x00\x00hello":
        ours.send(bytes([byte]))
        got += receiver.receive(1.0)
    assert [bytes(frame.payload) for frame in got] == [b"hello"]


def test_sending_to_nobody_is_a_closed_channel_and_no_signal() -> None:
    ours, theirs = socket_pair()
    theirs.close()
    with pytest.raises(ChannelClosedError):
        Channel(ours).send(b"x")


def test_nothing_was_received_when_nothing_came() -> None:
    _, theirs = socket_pair()
    assert Channel(theirs).receive(0.0) == []


def test_sockets_are_not_inherited() -> None:
    for sock in socket_pair():
        assert isinstance(sock, socket.socket)
        assert not sock.get_inheritable()
