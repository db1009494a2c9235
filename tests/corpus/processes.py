"""The processes of a server, read from /proc: memory, files, children. Only Linux has that."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CAN_SEE = sys.platform == "linux"


@dataclass(frozen=True, slots=True)
class Snapshot:
    num_processes: int
    num_files: int
    num_threads: int


def tree(pid: int) -> list[int]:
    """`pid` and all below it."""
    found, todo = [], [pid]
    while todo:
        current = todo.pop()
        found.append(current)
        with contextlib.suppress(OSError):
            for task in (PROC / str(current) / "task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
    return found


def snapshot(pid: int) -> Snapshot:
    pids = [p for p in tree(pid) if not _is_zombie(p)]
    return Snapshot(len(pids), num_files(pid), sum(_count(PROC / str(p) / "task") for p in pids))


def num_files(pid: int) -> int:
    return _count(PROC / str(pid) / "fd")


def num_sockets(pid: int) -> int:
    count = 0
    for entry in _entries(PROC / str(pid) / "fd"):
        with contextlib.suppress(OSError):
            count += str(entry.readlink()).startswith("socket:")
    return count


def memory_bytes(pid: int) -> int:
    """Of the whole tree, pages that several share counted once."""
    return sum(_pss_bytes(p) for p in tree(pid))


class Peak:
    """Samples the memory of a tree while it stands in `with`."""

    def __init__(self, pid: int, period_s: float = 0.02) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._period_s = period_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Peak:
        self.peak_bytes = memory_bytes(self._pid)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(10)

    def _sample(self) -> None:
        while not self._stopping.wait(self._period_s):
            self.peak_bytes = max(self.peak_bytes, memory_bytes(self._pid))


def wait_until(check: object, seconds: float, period_s: float = 0.05) -> bool:
    """Whether `check()` became true in time."""
    assert callable(check)
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            return False
        time.sleep(period_s)
    return True


def _pss_bytes(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def _count(folder: Path) -> int:
    return len(_entries(folder))


def _entries(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(folder.iterdir())
    return []
