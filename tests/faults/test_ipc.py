"""F14, F26: what is no message ends the process that sent it, never the server; nothing of ours dies in silence."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import pytest

from fovea.core.errors import FoveaError, RequestFailedError
from fovea.core.server_config import ServerConfig
from fovea.ipc import prepare_pool as prepare_pool_module
from fovea.ipc import supervisor as supervisor_module
from fovea.ipc.blob import write_blob
from fovea.ipc.channel import INLINE_BYTES, AsyncChannel, Channel, socket_pair
from fovea.ipc.heartbeat import Heartbeat
from fovea.ipc.messages import Add, EngineReady, Setup, Stats, Tokens, TokenWire, encode
from fovea.ipc.prepare_pool import PreparePool
from fovea.ipc.process import spawn
from fovea.ipc.supervisor import Flight, Supervisor
from fovea.models.folder import find_model
from fovea.prompt.tokenizer import Tokenizer
from fovea.server.run import _Server
from tests.faults.support import KV_BYTES, report

T = TypeVar("T")
HEADER = struct.Struct("<IBB")
READY = EngineReady(2048, "cpu", "float32", "none")
# What an engine might send that is no frame, or no message.
BREACHES: dict[str, bytes] = {
    "a length over the limit": HEADER.pack(INLINE_BYTES + 1, 0, 0),
    "a length of a gigabyte": HEADER.pack(2**30, 0, 0),
    "a flag that is none": HEADER.pack(1, 7, 0) + b"x",
    "a blob that is missing": HEADER.pack(1, 0, 1) + b"x",
    "no msgpack": HEADER.pack(3, 0, 0) + b"\xc1\xc1\xc1",
    "an unknown message": HEADER.pack(7, 0, 0) + b"\x91\xa5Other",
    "a message of another version": HEADER.pack(8, 0, 0) + b"\x92\xa6Tokens\x05"[:8],
    "a message of the other direction": HEADER.pack(len(encode(Add(msgspec.Raw(b"\xc0")))), 0, 0)
    + encode(Add(msgspec.Raw(b"\xc0"))),
    "ready twice": HEADER.pack(len(encode(READY)), 0, 0) + encode(READY),
    "nothing more": b"",
    "half a header": b"\0\0",
    "half a message": HEADER.pack(100, 0, 0) + b"\x92",
}


class Puppets:
    """Engines that say what the test makes them say. `ends[-1]` is the newest one's socket."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ends: list[socket.socket] = []
        self.heartbeats: list[Heartbeat] = []
        monkeypatch.setattr(supervisor_module, "spawn", self._spawn)

    def _spawn(self, _module: str, _environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        ours, theirs = socket_pair()
        heartbeat = Heartbeat()
        Channel(theirs).send(encode(READY), heartbeat.fd)
        self.processes.append(process)
        self.ends.append(theirs)
        self.heartbeats.append(heartbeat)
        return process, ours

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for end in self.ends:
            end.close()


def with_puppets(
    monkeypatch: pytest.MonkeyPatch, work: Callable[[Supervisor, Puppets], Awaitable[T]], **options: Any
) -> T:
    puppets = Puppets(monkeypatch)

    async def run() -> T:
        config = ServerConfig(**{"max_engine_deaths": 99, **options})
        engine = Supervisor(config, faults={}, show_progress=False, on_stats=lambda stats: None)
        try:
            await engine.start()
            return await work(engine, puppets)
        finally:
            engine.close()

    try:
        return asyncio.run(run())
    finally:
        puppets.close()


async def soon(done: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not done():
            await asyncio.sleep(0.005)


def flight(name: str) -> Flight:
    return Flight(name, msgspec.Raw(b"\xc0"), None)


@pytest.mark.parametrize("breach", BREACHES)
def test_an_engine_that_breaks_the_protocol_is_replaced(monkeypatch: pytest.MonkeyPatch, breach: str) -> None:
    async def work(engine: Supervisor, puppets: Puppets) -> None:
        begun, waiting = flight("begun"), flight("waiting")
        engine.submit(begun)
        engine.submit(waiting)
        Channel(puppets.ends[0]).send(encode(Tokens([TokenWire("begun", 0, 5)])))
        assert [token.token_id for token in await begun.take()] == [5]
        started = time.monotonic()
        puppets.ends[0].sendall(BREACHES[breach])
        if breach in ("nothing more", "half a header", "half a message"):
            puppets.ends[0].shutdown(socket.SHUT_RDWR)
        await soon(lambda: engine.num_restarts == 1 and engine.state == "ready")
        assert puppets.processes[0].poll() is not None
        with pytest.raises(RequestFailedError) as caught:
            await begun.take()
        assert caught.value.code == "engine_dead"
        assert waiting.num_sent == 2
        report(f"breach: {breach}", replaced=time.monotonic() - started)

    with_puppets(monkeypatch, work)


def test_a_frame_of_nonsense_in_shared_memory_is_a_breach_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(engine: Supervisor, puppets: Puppets) -> None:
        Channel(puppets.ends[0]).send(b"\xc1" * (INLINE_BYTES + 1))
        await soon(lambda: engine.num_restarts == 1)

    with_puppets(monkeypatch, work)


def test_tokens_for_nobody_are_dropped_and_answered_with_an_abort(monkeypatch: pytest.MonkeyPatch) -> None:
    """F20: an abort that was lost; and frames twice or out of order are no wrong answers."""

    async def work(engine: Supervisor, puppets: Puppets) -> None:
        mine = flight("mine")
        engine.submit(mine)
        end = Channel(puppets.ends[0])
        end.send(encode(Tokens([TokenWire("theirs", 0, 7), TokenWire("mine", 0, 5)])))
        assert [token.token_id for token in await mine.take()] == [5]
        end.send(encode(Stats({"num_running": 1.0})))
        received: list[bytes] = []
        async with asyncio.timeout(10):
            while not any(b"Abort" in payload for payload in received):
                received += [bytes(frame.payload) for frame in end.receive(0.0)]
                await asyncio.sleep(0.005)
        assert sum(b"theirs" in payload for payload in received) == 1
        assert engine.num_restarts == 0

    with_puppets(monkeypatch, work)


def test_a_system_without_processes_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """F33 for the engine: it could not be started again at once, but later."""

    async def work(engine: Supervisor, puppets: Puppets) -> None:
        calls = 0

        def refuse(module: str, environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise BlockingIOError
            return puppets._spawn(module, environment)

        monkeypatch.setattr(supervisor_module, "spawn", refuse)
        puppets.processes[0].kill()
        puppets.ends[0].shutdown(socket.SHUT_RDWR)
        await soon(lambda: calls == 1 and engine.state == "dead")
        await soon(lambda: engine.state == "ready")
        assert calls == 2

    with_puppets(monkeypatch, work)


@pytest.mark.faults
@pytest.mark.parametrize("module", ["fovea.ipc.engine_worker", "fovea.ipc.prepare_worker"])
@pytest.mark.parametrize("junk", ["no msgpack", "a length of a gigabyte", "half a message"])
def test_a_worker_that_is_sent_nonsense_ends(module: str, junk: str) -> None:
    process, sock = spawn(module, {})
    with sock:
        sock.sendall(BREACHES[junk])
        if junk == "half a message":
            sock.shutdown(socket.SHUT_WR)
        assert process.wait(60) is not None


def test_what_the_other_side_may_not_understand_closes_the_channel_and_its_blobs() -> None:
    async def run() -> None:
        ours, theirs = socket_pair()
        ended: list[bool] = []

        def refuse(_frame: object) -> None:
            raise KeyError

        channel = AsyncChannel(ours, refuse, lambda: ended.append(True))
        num_files = len(os.listdir("/proc/self/fd"))
        end = Channel(theirs)
        for _ in range(3):
            blob = write_blob([b"pixels"])
            end.send(b"x", blob)
            os.close(blob)
        await soon(lambda: bool(ended))
        assert channel.is_breached
        assert len(os.listdir("/proc/self/fd")) <= num_files
        end.close()

    asyncio.run(run())


# --- F14: the walk over all that lives long in the server's process ---------------------------------------------------

# What runs as long as the server does, and what becomes of the server when it ends.
TASKS = {
    "Serve.serve": "the server drains and ends",
    "Supervisor._watch_heartbeat": "the server ends with an error",
    "Edge.run": "one metric stands still",
}
THREADS = {"MainThread", "asyncio_0", "fovea-log"}  # of asyncio: resolving the address to listen on


def serve_here(work: Callable[[asyncio.Task[int]], Awaitable[None]]) -> None:
    """A whole server in this process."""
    config = ServerConfig(port=0, kv_cache_memory_bytes=KV_BYTES, drain_timeout=2.0)

    async def run() -> None:
        ready = asyncio.Event()
        tokenizer = Tokenizer.load(find_model(config.model, config))
        server = _Server(config, tokenizer, lambda facts: ready.set(), {}, False)
        serving = asyncio.get_running_loop().create_task(server.serve())
        async with asyncio.timeout(90):
            await ready.wait()
        await asyncio.sleep(0.2)
        try:
            await work(serving)
        finally:
            server._signalled()
            await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(run())


def long_lived() -> dict[str, asyncio.Task[Any]]:
    tasks = {task.get_coro().__qualname__: task for task in asyncio.all_tasks()}  # type: ignore[union-attr]
    return {name: task for name, task in tasks.items() if "serve_here" not in name and name != "_Server.serve"}


@pytest.mark.faults
def test_all_that_lives_long_is_listed() -> None:
    async def work(_serving: asyncio.Task[int]) -> None:
        assert set(long_lived()) == set(TASKS)
        assert {thread.name for thread in threading.enumerate()} <= THREADS

    serve_here(work)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["Serve.serve", "Supervisor._watch_heartbeat"])
def test_a_server_does_not_outlive_what_it_needs(name: str) -> None:
    async def work(serving: asyncio.Task[int]) -> None:
        long_lived()[name].cancel()
        async with asyncio.timeout(5):
            await asyncio.wait((serving,))
        if name != "Serve.serve":
            assert isinstance(serving.exception(), FoveaError)

    serve_here(work)


@pytest.mark.faults
def test_a_zygote_that_cannot_be_started_again_is_tried_until_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        pool = PreparePool(ServerConfig(prepare_workers=1))
        await pool.start()
        calls = 0

        def refuse(module: str, environment: dict[str, str]) -> Any:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise BlockingIOError
            return spawn(module, environment)

        monkeypatch.setattr(prepare_pool_module, "spawn", refuse)
        os.kill(pool.zygote_pid, 9)
        await soon(lambda: pool.is_broken)
        await soon(lambda: not pool.is_broken and bool(pool.pids()), 60)
        assert calls == 2
        pool.close()

    asyncio.run(run())


def test_a_setup_names_its_faults_and_no_other_message_does() -> None:
    """The hook is reachable by the first message of a start alone."""
    assert "faults" in Setup.__struct_fields__
    for kind in (Add, Stats, Tokens):
        assert "faults" not in kind.__struct_fields__
