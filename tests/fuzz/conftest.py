"""The corpus's servers, and one that gives short answers and has short deadlines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpus import scene
from tests.corpus.conftest import Servers


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[scene.World]:
    with scene.world(tmp_path_factory.mktemp("fuzz")) as made:
        yield made


@pytest.fixture(scope="session")
def servers(world: scene.World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    home: Path = tmp_path_factory.mktemp("home")
    made = Servers(world, home)
    yield made
    made.close()
