"""What a container's limits say, from files as the kernel writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from fovea.core import machine
from fovea.core.machine import core_limit, memory_limit, usable_cores

GIB = 1024**3


def system(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="ascii")
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"sys/fs/cgroup/cpu.max": "250000 100000"}, 2.5),
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        ({"sys/fs/cgroup/cpu.max": "nonsense"}, None),
        ({"sys/fs/cgroup/cpu.max": ""}, None),
        ({"sys/fs/cgroup/cpu.max": "0 0"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 3.0),
        (
            {
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "50000",
            },
            3.0,
        ),
    ],
)
def test_the_limit_of_cores_is_read_in_both_versions(
    tmp_path: Path, files: Mapping[str, str], cores: float | None
) -> None:
    assert core_limit(system(tmp_path, files)) == cores


def test_the_smallest_limit_of_all_groups_above_counts(tmp_path: Path) -> None:
    """A service without a container of its own is several groups down, and each may be limited."""
    files = {
        "proc/self/cgroup": "0::/system.slice/fovea.service",
        "sys/fs/cgroup/cpu.max": "max 100000",
        "sys/fs/cgroup/system.slice/cpu.max": "200000 100000",
        "sys/fs/cgroup/system.slice/fovea.service/cpu.max": "400000 100000",
    }
    assert core_limit(system(tmp_path, files)) == 2.0


def test_the_group_of_the_right_controller_is_read_in_version_1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "5:memory:/pod/one\n4:cpu,cpuacct:/pod/two\n0::/",
        "sys/fs/cgroup/cpu,cpuacct/pod/two/cpu.cfs_quota_us": "100000",
        "sys/fs/cgroup/cpu,cpuacct/pod/two/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/cpu,cpuacct/pod/one/cpu.cfs_quota_us": "700000",
        "sys/fs/cgroup/cpu,cpuacct/pod/one/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/memory/pod/one/memory.limit_in_bytes": str(2 * GIB),
    }
    assert core_limit(system(tmp_path, files)) == 1.0
    assert memory_limit(tmp_path) == 2 * GIB


def test_a_path_of_the_host_that_is_not_mounted_leaves_what_is(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/../../kubepods/pod1/abc", "sys/fs/cgroup/cpu.max": "100000 100000"}
    assert core_limit(system(tmp_path, files)) == 1.0


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"sys/fs/cgroup/memory.max": "max"}, None),
        ({"sys/fs/cgroup/memory.max": str(3 * GIB)}, 3 * GIB),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": str(GIB)}, GIB),
    ],
)
def test_the_limit_of_memory_is_read_in_both_versions(
    tmp_path: Path, files: Mapping[str, str], limit: int | None
) -> None:
    assert memory_limit(system(tmp_path, files)) == limit


@pytest.mark.parametrize(("quota", "cores"), [("max", 8), ("1600000", 8), ("250000", 2), ("100000", 1), ("50000", 1)])
def test_cores_are_those_of_affinity_within_the_limit_rounded_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(machine, "affinity_cores", lambda: 8)
    assert usable_cores(system(tmp_path, {"sys/fs/cgroup/cpu.max": f"{quota} 100000"})) == cores


def test_this_machine_has_a_core() -> None:
    assert 1 <= usable_cores() <= machine.affinity_cores()
