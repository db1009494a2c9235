"""How many threads an engine on a CPU computes with, and how many decode pictures beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from fovea.core.config import EngineConfig
from fovea.engine import build


@pytest.mark.parametrize(
    ("torchs", "usable", "options", "threads"),
    [
        (8, 8, {}, None),  # nothing to do
        (8, 2, {}, 2),  # a container's limit, which torch does not know
        (1, 8, {}, None),  # OMP_NUM_THREADS=1, or a program that said so: never raised by itself
        (8, 8, {"cpu_threads": 3}, 3),
        (1, 2, {"cpu_threads": 4}, 4),  # asked for is asked for
        (4, 2, {"cpu_threads": 4}, None),
        (8, 8, {"max_num_seqs": 1}, 1),  # a small model, one request at a time
        (8, 8, {"max_num_seqs": 1, "cpu_threads": 2}, 2),
    ],
)
def test_threads_are_torchs_within_what_may_be_used_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, torchs: int, usable: int, options: Mapping[str, Any], threads: int | None
) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: torchs)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(build, "usable_cores", lambda: usable)
    build.set_cpu_threads(EngineConfig(**options), 10_000_000)
    assert set_to == ([] if threads is None else [threads])


def test_a_large_model_gets_all_threads_for_one_request_too(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(build, "usable_cores", lambda: 4)
    build.set_cpu_threads(EngineConfig(max_num_seqs=1), 2_000_000_000)
    assert set_to == [4]


@pytest.mark.parametrize(("usable", "asked", "threads"), [(2, 0, 2), (64, 0, 8), (2, 5, 5)])
def test_pictures_are_decoded_by_as_many_threads_as_cores_may_be_used(
    monkeypatch: pytest.MonkeyPatch, usable: int, asked: int, threads: int
) -> None:
    monkeypatch.setattr(build, "usable_cores", lambda: usable)
    assert build.media_threads(EngineConfig(media_threads=asked)) == threads
