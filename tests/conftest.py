"""Checkpoints and engines that many tests share; every engine must be idle and whole after every test.

Imports stand inside the fixtures: tests that need no engine start without torch and transformers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.parity.support import Checkpoints, Engines

# One thread for each test process: the models are tiny, and other work may share the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    from tests.parity.support import Checkpoints

    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def _all_engines(checkpoints: Checkpoints) -> Iterator[Engines]:
    from tests.parity.support import Engines

    engines = Engines(checkpoints)
    yield engines
    engines.close()


@pytest.fixture
def engines(_all_engines: Engines) -> Iterator[Engines]:
    """Engines by variant and options, with cold caches. They live for the whole session."""
    yield _all_engines
    _all_engines.check_and_rest()
