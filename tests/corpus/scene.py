"""The surroundings of a case: test servers on loopback that answer in odd ways, and a folder of files.

`World` lives for the whole run, `Scene` for one request: its addresses hold a number of its own, so that hits can be
counted while other requests run.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.corpus import files
from tests.corpus.upstream import Upstream

SECRET = "zebrafish-51c0"  # stands in every good request; no other request may ever read it


class Forbidden:
    """A listener that nobody may connect to: whoever does is counted and hung up on."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self.port: int = self._listener.getsockname()[1]
        self.num_hits = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.num_hits += 1
            connection.close()

    def close(self) -> None:
        self._listener.close()


@dataclass(frozen=True)
class World:
    upstream: Upstream
    forbidden: Forbidden
    forbidden_v6: Forbidden | None
    folder: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def scene(self) -> Scene:
        return Scene(self, next(self.numbers))

    @property
    def num_forbidden_hits(self) -> int:
        return self.forbidden.num_hits + (self.forbidden_v6.num_hits if self.forbidden_v6 else 0)


@dataclass(frozen=True)
class Scene:
    """`world` as one request sees it."""

    world: World
    number: int

    @property
    def folder(self) -> Path:
        """Below it lie `media`, the permitted folder, and files beside it that must never be read."""
        return self.world.folder

    @property
    def forbidden_port(self) -> int:
        return self.world.forbidden.port

    @property
    def forbidden_v6_port(self) -> int:
        """Some port where there is no IPv6: nobody will be hit either."""
        return self.world.forbidden_v6.port if self.world.forbidden_v6 else self.world.forbidden.port

    def url(self, action: str, host: str = "127.0.0.1") -> str:
        """An address of the upstream, which answers as `action` says (see upstream.ACTIONS)."""
        return f"http://{host}:{self.world.upstream.port}/s{self.number}/{action}"

    def num_hits(self) -> int:
        return self.world.upstream.num_hits(f"/s{self.number}/")


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    make_folder(folder)
    with Upstream() as upstream, contextlib.ExitStack() as stack:
        forbidden = Forbidden()
        stack.callback(forbidden.close)
        forbidden_v6: Forbidden | None = None
        with contextlib.suppress(OSError):
            forbidden_v6 = Forbidden("::1")
            stack.callback(forbidden_v6.close)
        yield World(upstream, forbidden, forbidden_v6, folder)


def make_folder(folder: Path) -> None:
    """`media` may be read from; `media2`, `outside.png` and everything else may not."""
    for name in ("media", "media/inner", "media2"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("media/good.png", "media/inner/good.png", "media/with space.png", "media2/good.png", "outside.png"):
        (folder / name).write_bytes(files.good_png())
    (folder / "media/secret.txt").write_text(SECRET)
    (folder / "media/link.png").symlink_to(folder / "outside.png")
    (folder / "media/inside_link.png").symlink_to(folder / "media/good.png")
    (folder / "media/zero").symlink_to("/dev/zero")
    os.mkfifo(folder / "media/pipe.png")
