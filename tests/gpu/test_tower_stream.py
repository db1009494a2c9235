"""What one stream makes and another reads: in order, and not overwritten meanwhile."""

from __future__ import annotations

import torch

from fovea.engine.tower_stream import TowerStream

BUSY_CYCLES = 100_000_000  # some 60 ms
CUDA = torch.device("cuda")


def test_what_is_read_after_join_is_complete() -> None:
    stream = TowerStream(CUDA)
    with stream.encoding():
        made = torch.zeros(2**20, device=CUDA)
        torch.cuda._sleep(BUSY_CYCLES)
        made.fill_(1)
        stream.give(made)
    stream.join()
    assert (made + 0 == 1).all()


def test_memory_that_was_given_is_not_used_again_before_it_is_read() -> None:
    stream = TowerStream(CUDA)
    with stream.encoding():
        made = torch.ones(2**20, device=CUDA)
        stream.give(made)
    stream.join()
    torch.cuda._sleep(BUSY_CYCLES)
    read = made + 0
    del made
    with stream.encoding():
        torch.zeros(2**20, device=CUDA)  # of the same size: the allocator would give the same place
    assert (read == 1).all()


def test_the_tower_does_not_wait_for_what_was_launched_before() -> None:
    stream, begun, ended = TowerStream(CUDA), torch.cuda.Event(), torch.cuda.Event()
    torch.cuda._sleep(BUSY_CYCLES)
    ended.record()
    with stream.encoding():
        begun.record()
    begun.synchronize()
    assert not ended.query()
    torch.cuda.synchronize()
