"""What this process may use of the machine: cores and memory, by its affinity and its container's limits.

A container sees all cores of its host. What it may use stands in its control group: `cpu.max` and `memory.max`
(version 2), `cpu.cfs_quota_us` and `memory.limit_in_bytes` (version 1), in its own folder or one above it
(docs.kernel.org/admin-guide/cgroup-v2.html). Whatever can't be read is no limit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
NO_MEMORY_LIMIT = 1 << 60  # version 1 writes a number near 2**63 for none


def usable_cores(root: Path = ROOT) -> int:
    """Cores that this process may keep busy, at least 1: a limit of 2.5 cores makes 2.

    Rounded down because threads beyond a limit are all stopped for the rest of each tenth of a second.
    """
    limit = core_limit(root)
    cores = affinity_cores()
    return cores if limit is None else max(1, min(cores, int(limit)))


def affinity_cores() -> int:
    """Cores that the system may put this process on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def core_limit(root: Path = ROOT) -> float | None:
    """Cores' worth of time that this process's control group may take; None: no limit."""
    limits = []
    for folder in _folders(root, ""):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        limits.append(_share(quota, period))
    for folder in _folders(root, "cpu"):
        limits.append(_share(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")))
    return min((limit for limit in limits if limit is not None), default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that this process's control group may hold; None: no limit."""
    texts = [_read(folder / "memory.max") for folder in _folders(root, "")]
    texts += [_read(folder / "memory.limit_in_bytes") for folder in _folders(root, "memory")]
    limits = [int(text) for text in texts if text.isdigit()]
    return min((limit for limit in limits if limit < NO_MEMORY_LIMIT), default=None)


def _share(quota: str, period: str) -> float | None:
    """ "max" and -1 are no limit."""
    if not (quota.isdigit() and period.isdigit() and int(quota) and int(period)):
        return None
    return int(quota) / int(period)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Of this process's control group and all above it; "" is version 2.

    In a container the group's own path is often that on the host, of which only the end, or nothing, is mounted.
    """
    names = {"": ("",), "cpu": ("cpu", "cpu,cpuacct")}.get(controller, (controller,))
    mounts = [root / "sys/fs/cgroup" / name for name in names]
    path = _own_path(root, controller)
    for mount in mounts:
        yield mount
        for depth in range(1, len(path) + 1):
            yield mount.joinpath(*path[:depth])


def _own_path(root: Path, controller: str) -> tuple[str, ...]:
    """The parts of this process's path in /proc/self/cgroup, whose lines are number:controllers:path."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controller in controllers.split(","):
            return tuple(part for part in path.split("/") if part not in ("", ".."))
    return ()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
