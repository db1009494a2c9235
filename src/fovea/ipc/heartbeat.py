"""A counter in shared memory that grows with every turn of the engine's loop, read by the supervisor."""

from __future__ import annotations

import mmap
import os
import struct

from fovea.ipc.blob import create_memory

HEARTBEAT = struct.Struct("<Q")


class Heartbeat:
    def __init__(self) -> None:
        self.fd = create_memory()
        os.ftruncate(self.fd, HEARTBEAT.size)
        self._memory = mmap.mmap(self.fd, HEARTBEAT.size)
        self._count = 0

    def beat(self) -> None:
        self._count += 1
        HEARTBEAT.pack_into(self._memory, 0, self._count)
