"""Servers of the corpus: one for each profile, started when it is first needed, and again when a case has killed it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpus import profiles, scene
from tests.corpus.case import Profile
from tests.corpus.watch import MARKER, Watch
from tests.server_process import serve


class Servers:
    def __init__(self, world: scene.World, home: Path) -> None:
        self.world = world
        self._home = home
        self._stacks: dict[Profile, contextlib.ExitStack] = {}
        self._watches: dict[Profile, Watch] = {}

    def get(self, profile: Profile) -> Watch:
        watch = self._watches.get(profile)
        if watch is not None and watch.is_alive:
            return watch
        stack = self._stacks.setdefault(profile, contextlib.ExitStack())
        stack.close()
        env = profiles.environment(self.world.forbidden.port, self._home)
        server = stack.enter_context(serve(*profiles.flags(profile, self.world.folder), env=env))
        self._watches[profile] = Watch(server, profile, self.world)
        return self._watches[profile]

    def close(self) -> None:
        for stack in self._stacks.values():
            stack.close()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[scene.World]:
    MARKER.unlink(missing_ok=True)
    with scene.world(tmp_path_factory.mktemp("corpus")) as made:
        yield made


@pytest.fixture(scope="session")
def servers(world: scene.World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    made = Servers(world, tmp_path_factory.mktemp("home"))
    yield made
    made.close()
