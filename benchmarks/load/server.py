"""The server under load: the embedded model, with caches so small that a short run fills them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.server_process import ServerProcess, serve

MIB = 1024**2
MAX_NUM_SEQS, MAX_NUM_QUEUED = 32, 64
SEATS = MAX_NUM_SEQS + MAX_NUM_QUEUED
ENGINE_OPTIONS = {
    "max_num_seqs": MAX_NUM_SEQS,
    "kv_cache_memory_bytes": 96 * MIB,
    "encoder_cache_bytes": 8 * MIB,
}


def flags(options: dict[str, int]) -> tuple[str, ...]:
    return tuple(f"--{name.replace('_', '-')}={value}" for name, value in options.items())


SOAK_FLAGS = flags({**ENGINE_OPTIONS, "max_num_queued_reqs": MAX_NUM_QUEUED})


@contextlib.contextmanager
def started(*flags: str) -> Iterator[ServerProcess]:
    """Ready; its memory plan and its log are as they are for anybody."""
    with serve("--log-format", "json", *flags) as server:
        yield server
