"""The front's side of the engine: starts its process, watches it, starts another when it dies, and carries tokens.

A hung engine says where it hangs, is killed, and counts as dead.

What was asked and has not been answered when an engine dies: requests without a token yet are sent to the next engine,
once; the others fail. An engine that dies too often ends the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import mmap
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from fovea.core.config import EngineConfig
from fovea.core.errors import FoveaError, RequestFailedError, UnavailableError
from fovea.core.log import logger, wants_json
from fovea.core.server_config import ServerConfig
from fovea.core.types import TokenOutput
from fovea.ipc.channel import AsyncChannel, ChannelClosedError, Frame
from fovea.ipc.heartbeat import HEARTBEAT
from fovea.ipc.messages import (
    Abort,
    Add,
    EngineReady,
    Failed,
    FromEngine,
    Message,
    ResetCaches,
    Setup,
    Stats,
    Stop,
    Tokens,
    encode,
    error_from_wire,
    token_from_wire,
)
from fovea.ipc.process import WorkerStartError, exit_reason, spawn

EngineState = Literal["loading", "ready", "dead", "gone"]
DEATH_WINDOW_S = 300.0
WATCH_EVERY_S = 0.25
MAX_WATCH_GAP_S = 1.0
GPU_WATCHDOG_S, CPU_WATCHDOG_S = 20.0, 60.0
RESTART_RETRY_AFTER_S = 5
RESPAWN_AFTER_S = 1.0
STACK_DUMP_S = 0.3

_decoder = msgspec.msgpack.Decoder(FromEngine)


class Flight:
    """A request in the engine, as the front sees it: tokens arrive here."""

    def __init__(self, request_id: str, request: msgspec.Raw, blob: int | None) -> None:
        """Takes over `blob`; it is kept until the first token, in case the request has to be sent again."""
        self.request_id = request_id
        self.request = request
        self.blob = blob
        self.num_sent = 0
        self.has_tokens = False
        self.is_finished = False  # said by whoever collects the tokens
        self._arrived: list[TokenOutput] = []
        self._waiter: asyncio.Future[None] | None = None
        self._error: FoveaError | None = None

    async def take(self) -> list[TokenOutput]:
        """What has arrived since the last call; waits for at least one. Raises what ended the request."""
        while not self._arrived:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        taken, self._arrived = self._arrived, []
        return taken

    def push(self, output: TokenOutput) -> None:
        if not self.has_tokens:
            self.has_tokens = True
            self.drop_blob()
        self._arrived.append(output)
        self._wake()

    def fail(self, error: FoveaError) -> None:
        self._error = error
        self.drop_blob()
        self._wake()

    def drop_blob(self) -> None:
        if self.blob is not None:
            os.close(self.blob)
            self.blob = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Supervisor:
    """`start` first. `gone` resolves with an error when the engine can't be kept alive."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        faults: Mapping[str, Any],
        show_progress: bool,
        on_stats: Callable[[dict[str, float]], None],
    ) -> None:
        self.state: EngineState = "loading"
        self.facts: EngineReady | None = None
        self.num_restarts = 0
        self.on_restart: Callable[[], None] = lambda: None
        self._config = config
        self._faults = dict(faults)
        self._show_progress = show_progress
        self._on_stats = on_stats
        self._flights: dict[str, Flight] = {}
        self._deaths: deque[float] = deque()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: AsyncChannel | None = None
        self._heartbeat: mmap.mmap | None = None
        self._watch: asyncio.Task[None] | None = None
        self._beaten = 0.0
        self._last_words = ""
        self._started: asyncio.Future[EngineReady] | None = None
        self._closing = False
        self.gone: asyncio.Future[FoveaError] = asyncio.get_running_loop().create_future()

    async def start(self) -> EngineReady:
        """The first engine. Raises ModelError or ConfigError if the model can't be run, else WorkerStartError."""
        try:
            self._spawn()
        except OSError:
            raise WorkerStartError("The engine's process can't be started: the system gives no more of them.") from None
        assert self._started is not None
        facts = await self._started
        self._watch = asyncio.get_running_loop().create_task(self._watch_heartbeat())
        self._watch.add_done_callback(self._watch_ended)
        return facts

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def num_flights(self) -> int:
        return len(self._flights)

    def check_ready(self) -> None:
        """Raises UnavailableError unless a request can be taken now."""
        if self.state == "loading":
            raise UnavailableError(
                "The model is still being loaded.", code="loading", retry_after_s=RESTART_RETRY_AFTER_S
            )
        if self.state != "ready":
            raise UnavailableError(
                "The engine stopped and is being started again.",
                code="engine_dead",
                retry_after_s=RESTART_RETRY_AFTER_S,
            )

    def submit(self, flight: Flight) -> None:
        self._flights[flight.request_id] = flight
        if self.state == "ready":
            self._send_flight(flight)

    def end(self, flight: Flight) -> None:
        """The front has no more interest in a request; one that has not finished leaves the engine."""
        flight.drop_blob()
        if self._flights.pop(flight.request_id, None) is not None and not flight.is_finished:
            self._send(Abort(flight.request_id))

    def stop(self, request_id: str, index: int) -> None:
        self._send(Stop(request_id, index))

    def reset_caches(self) -> None:
        self._send(ResetCaches())

    def close(self) -> None:
        self._closing = True
        if self._watch is not None:
            self._watch.cancel()
        self._stop_process()
        for flight in list(self._flights.values()):
            flight.fail(UnavailableError("The server is shutting down.", code="draining"))

    def _spawn(self) -> None:
        self._started = asyncio.get_running_loop().create_future()
        self._process, sock = spawn("fovea.ipc.engine_worker", {})
        self._channel = AsyncChannel(sock, self._engine_says, self._engine_gone)
        options = {f.name: getattr(self._config, f.name) for f in dataclasses.fields(EngineConfig)}
        as_json = wants_json(self._config.log_format)
        setup = Setup(options, self._faults, self._show_progress, as_json, self._config.log_level)
        self._channel.send(encode(setup))

    def _send(self, message: Message) -> None:
        if self._channel is not None:
            self._channel.send(encode(message))

    def _send_flight(self, flight: Flight) -> None:
        flight.num_sent += 1
        assert self._channel is not None, "ready means connected"
        try:
            self._channel.send(encode(Add(flight.request)), flight.blob)
        except UnavailableError as error:
            del self._flights[flight.request_id]
            flight.fail(error)

    def _engine_says(self, frame: Frame) -> None:
        message = _decoder.decode(frame.payload)
        match message:
            case Tokens(tokens=tokens):
                for wire in tokens:
                    flight = self._flights.get(wire.request_id)
                    if flight is not None:
                        flight.push(token_from_wire(wire))
                    elif wire.finish_reason is None:  # an abort is on its way, or was lost
                        self._send(Abort(wire.request_id))
            case Stats(values=values):
                self._on_stats(values)
            case EngineReady() if frame.blob is not None and self._heartbeat is None:
                self._ready(message, frame.blob)
            case Failed(error=error) if self._started is not None and not self._started.done():
                self._started.set_exception(error_from_wire(error))
            case Failed(error=error):
                self._last_words = error.message
            case _:
                raise ChannelClosedError

    def _ready(self, facts: EngineReady, heartbeat: int) -> None:
        self._heartbeat = mmap.mmap(heartbeat, HEARTBEAT.size, prot=mmap.PROT_READ)
        os.close(heartbeat)
        self._beaten = time.monotonic()
        self.facts, self.state = facts, "ready"
        assert self._started is not None
        if not self._started.done():
            self._started.set_result(facts)
        for flight in list(self._flights.values()):
            self._send_flight(flight)

    def _engine_gone(self) -> None:
        """The channel is closed: the process has ended, or is about to."""
        if self._closing:
            return
        was_ready = self.state == "ready"
        self.state = "dead"
        code = self._stop_process()
        reason = f"{self._last_words} ({exit_reason(code)})" if self._last_words else exit_reason(code)
        self._last_words = ""
        if not was_ready and self._started is not None and not self._started.done():
            self._started.set_exception(WorkerStartError(f"The engine's process ended while it started: {reason}."))
        self._settle_flights()
        if not was_ready and self.facts is None:
            return  # it never worked: whoever awaits `start` is told
        self._count_death(reason)

    def _count_death(self, reason: str) -> None:
        now = time.monotonic()
        self._deaths.append(now)
        while now - self._deaths[0] > DEATH_WINDOW_S:
            self._deaths.popleft()
        logger.error("the engine's process ended: %s (%d in five minutes)", reason, len(self._deaths))
        if len(self._deaths) >= self._config.max_engine_deaths:
            self.state = "gone"
            for flight in self._flights.values():
                flight.fail(_engine_died())
            if not self.gone.done():
                self.gone.set_result(
                    WorkerStartError(
                        f"The engine died {len(self._deaths)} times in five minutes (option max_engine_deaths); the "
                        f"last time: {reason}."
                    )
                )
            return
        self.num_restarts += 1
        self.on_restart()
        self._respawn()

    def _respawn(self) -> None:
        if self._closing:
            return
        try:
            self._spawn()
        except OSError:
            logger.error("no process for the engine can be started; tried again in %g s", RESPAWN_AFTER_S)
            asyncio.get_running_loop().call_later(RESPAWN_AFTER_S, self._respawn)
            return
        assert self._started is not None
        self._started.add_done_callback(self._restarted)

    def _restarted(self, started: asyncio.Future[EngineReady]) -> None:
        error = started.exception() if not started.cancelled() else None
        if error is None or self._closing:
            return
        if not isinstance(error, WorkerStartError):  # its process told why and ends; the channel's end is still to come
            logger.error("the engine could not be started again: %s", error)

    def _settle_flights(self) -> None:
        for flight in list(self._flights.values()):
            if flight.has_tokens or flight.num_sent > 1:
                del self._flights[flight.request_id]
                flight.fail(_engine_died())

    def _stop_process(self) -> int | None:
        if self._channel is not None:
            self._channel.close()
        self._channel = self._heartbeat = None
        if self._process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(0.05)  # it ended by itself: its own code is the reason
        self._process.kill()
        return self._process.wait()

    async def _watch_heartbeat(self) -> None:
        last, looked = 0, time.monotonic()
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            now = time.monotonic()
            slept_s, looked = now - looked, now
            if self._heartbeat is None:
                continue
            if slept_s > MAX_WATCH_GAP_S:  # we did not run either: a paused container, a machine without time
                self._beaten += slept_s
            (beats,) = HEARTBEAT.unpack_from(self._heartbeat, 0)
            if beats != last:
                last, self._beaten = beats, now
            elif now - self._beaten > self._watchdog_s():
                logger.error("the engine made no step for %.0f s and is killed", now - self._beaten)
                await self._kill_hung()

    async def _kill_hung(self) -> None:
        process = self._process
        if process is not None:
            process.send_signal(signal.SIGUSR1)  # it writes where it hangs to the log
            await asyncio.sleep(STACK_DUMP_S)
            process.kill()

    def _watch_ended(self, watch: asyncio.Task[None]) -> None:
        """Unwatched, a hung engine would look alive: better an end that everybody sees."""
        if not self._closing and not self.gone.done():
            logger.critical(
                "the watch over the engine ended", exc_info=None if watch.cancelled() else watch.exception()
            )
            self.gone.set_result(WorkerStartError("The watch over the engine ended by a fault of the server."))

    def _watchdog_s(self) -> float:
        on_gpu = self.facts is not None and self.facts.device.startswith("cuda")
        return self._config.watchdog_s or (GPU_WATCHDOG_S if on_gpu else CPU_WATCHDOG_S)


def _engine_died() -> RequestFailedError:
    return RequestFailedError("The engine stopped while it worked on this request. Try again.", code="engine_dead")
