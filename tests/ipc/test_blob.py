"""Shared memory that cannot change under its reader and leaves nothing behind."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

from fovea.core.errors import RequestFailedError
from fovea.ipc.blob import map_blob, write_blob

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="seals and /proc are Linux")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_parts_are_read_back_behind_one_another() -> None:
    view = map_blob(write_blob([b"one", memoryview(b"two"), b"", bytes(70_000)]))
    assert bytes(view) == b"onetwo" + bytes(70_000)


def test_an_empty_blob_is_empty() -> None:
    assert bytes(map_blob(write_blob([]))) == b""


@linux_only
def test_nobody_can_change_or_shrink_a_blob_once_it_is_written() -> None:
    fd = write_blob([b"pixels"])
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"other!", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


@linux_only
def test_memory_without_seals_is_refused() -> None:
    fd = os.memfd_create("fovea-test")
    os.write(fd, b"pixels")
    with pytest.raises(RequestFailedError, match="not sealed"):
        map_blob(fd)


@linux_only
def test_an_ordinary_file_is_refused() -> None:
    with tempfile.TemporaryFile() as file, pytest.raises(RequestFailedError):
        map_blob(os.dup(file.fileno()))


@linux_only
def test_no_descriptor_is_left_open() -> None:
    before = open_files()
    for _ in range(50):
        view = map_blob(write_blob([bytes(5000)]))
        del view
    assert open_files() == before
