"""The front's side of preparing: hands tasks to worker processes, and kills those that take too long.

A worker has one task at a time. One that dies, hangs or leaves is replaced by a fork of the zygote; only a request that
hangs one, or ends two, fails. A zygote that dies is replaced too, and what can't be started now is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from fovea.core.errors import FoveaError, MediaDecodeError, RequestFailedError, UnavailableError
from fovea.core.log import logger, wants_json
from fovea.core.machine import usable_cores
from fovea.core.server_config import ServerConfig
from fovea.ipc.channel import AsyncChannel, ChannelClosedError, Frame, socket_pair
from fovea.ipc.messages import (
    LEAVING,
    TAKEN,
    Counts,
    Done,
    Failed,
    Fork,
    Forked,
    FromPrepare,
    FromZygote,
    PrepareReady,
    Refused,
    Setup,
    Task,
    encode,
    error_from_wire,
)
from fovea.ipc.process import WorkerStartError, exit_reason, spawn

MAX_WORKERS = 8
FORK_RETRY_S = 0.5
FORK_TIMEOUT_S = 5.0
REVIVE_AFTER_S = 1.0
MOST_ENDED = 2  # workers that end over one request: the first may have ended for another reason
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

_zygote_decoder = msgspec.msgpack.Decoder(FromZygote)
_reply_decoder = msgspec.msgpack.Decoder(FromPrepare)


@dataclass(frozen=True, slots=True)
class PrepareReply:
    """What a worker made; `blob` is a descriptor that the receiver owns."""

    message: Done | Counts
    blob: int | None


class PreparePool:
    """`start` before anything else; `prepare` from any number of tasks of the loop."""

    def __init__(self, config: ServerConfig, *, faults: Mapping[str, Any] | None = None) -> None:
        self.is_broken = False  # no zygote, and starting one failed; it is tried again
        self.num_replaced = 0
        self.on_replaced: Callable[[], None] = lambda: None
        self._config = config
        self._faults = dict(faults or {})
        self._num_workers = config.prepare_workers or min(MAX_WORKERS, usable_cores())
        self._idle: asyncio.Queue[_Worker] = asyncio.Queue()
        self._workers: set[_Worker] = set()
        self._zygote: subprocess.Popen[bytes] | None = None
        self._channel: AsyncChannel | None = None
        self._started: asyncio.Future[None] | None = None
        self._forking: deque[_Worker] = deque()
        self._restart: asyncio.Task[None] | None = None
        self._closing = False

    async def start(self) -> None:
        """Raises ModelError or ConfigError if the model's tokenizer, template or configuration can't be used."""
        self._stop_zygote()
        self._started = asyncio.get_running_loop().create_future()
        try:
            self._zygote, sock = spawn("fovea.ipc.prepare_worker", _ENVIRONMENT)
        except OSError:
            raise WorkerStartError("No process to prepare requests can be started: the system gives no more.") from None
        self._channel = AsyncChannel(sock, self._zygote_says, self._zygote_gone)
        options = {f.name: getattr(self._config, f.name) for f in dataclasses.fields(self._config)}
        options |= {"api_key": (), "api_key_file": ""}
        as_json = wants_json(self._config.log_format)
        setup = Setup(options, self._faults, log_as_json=as_json, log_level=self._config.log_level)
        self._channel.send(encode(setup))
        await self._started
        for _ in range(self._num_workers):
            self._fork()

    async def prepare(self, task: Task, blob: int | None) -> PrepareReply:
        """Raises FoveaError: the worker's refusal, or what became of the worker. `blob` stays the caller's."""
        if self.is_broken:
            raise UnavailableError("Requests can't be prepared now.", code="engine_dead", retry_after_s=5)
        num_ended = 0
        while num_ended < MOST_ENDED:
            worker = await self._living()
            reply = await self._try(worker, task, blob)
            if reply is not None:
                return reply
            num_ended += worker.has_taken
        raise MediaDecodeError(
            "The request could not be prepared: the process that decoded it ended. A picture in it may be broken.",
            code="invalid_image",
        )

    async def _living(self) -> _Worker:
        worker = await self._idle.get()
        while worker.has_ended():
            self._discard(worker, kill=False)
            worker = await self._idle.get()
        return worker

    async def _try(self, worker: _Worker, task: Task, blob: int | None) -> PrepareReply | None:
        """None if the worker ended without an answer."""
        try:
            worker.ask(encode(task), blob)
            async with asyncio.timeout(self._config.prepare_timeout_s):
                frame = await worker.answer()
        except TimeoutError:
            self._discard(worker, kill=True)
            raise MediaDecodeError(
                f"The request could not be prepared within {self._config.prepare_timeout_s:g} s (option "
                "prepare_timeout_s). Send smaller pictures or less text.",
                code="preparation_timeout",
            ) from None
        except BaseException:  # the request was cancelled: its worker is of no use in the middle of it
            worker.drop_unread()
            self._discard(worker, kill=True)
            raise
        if frame is None:
            return None
        reply = self._decode(worker, frame)
        if worker.is_leaving:
            self._discard(worker, kill=False)
        else:
            self._idle.put_nowait(worker)
        if isinstance(reply, Refused):
            raise error_from_wire(reply.error)
        return PrepareReply(reply, frame.blob)

    def _decode(self, worker: _Worker, frame: Frame) -> Done | Counts | Refused:
        try:
            reply: Done | Counts | Refused = _reply_decoder.decode(frame.payload)
            return reply
        except msgspec.MsgspecError:
            logger.error("a preparing worker sent what is no reply and is replaced")
            self._discard(worker, kill=True)
            if frame.blob is not None:
                os.close(frame.blob)
            raise RequestFailedError("The request could not be prepared.") from None

    def pids(self) -> list[int]:
        return [worker.pid for worker in self._workers if worker.pid]

    @property
    def zygote_pid(self) -> int:
        return self._zygote.pid if self._zygote is not None else 0

    def close(self) -> None:
        self._closing = True
        for worker in list(self._workers):
            self._discard(worker, kill=True)
        self._stop_zygote()

    def _stop_zygote(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._zygote is not None:
            self._zygote.kill()
            self._zygote.wait()

    def _fork(self) -> None:
        if self._closing or self._channel is None or len(self._workers) >= self._num_workers:
            return
        worker = _Worker()
        try:
            ours, theirs = socket_pair()
            with theirs:
                channel = AsyncChannel(ours, worker.on_frame, lambda: self._discard(worker, kill=channel.is_breached))
                worker.channel = channel
                self._channel.send(encode(Fork()), theirs.fileno())
        except (OSError, UnavailableError):
            if worker.channel is not None:
                worker.channel.close()
            self._fork_later("no descriptor is left for it")
            return
        self._workers.add(worker)
        self._forking.append(worker)
        asyncio.get_running_loop().call_later(FORK_TIMEOUT_S, self._check_forked, worker)

    def _zygote_says(self, frame: Frame) -> None:
        assert self._started is not None
        message = _zygote_decoder.decode(frame.payload)
        match message:
            case PrepareReady() if not self._started.done():
                self._started.set_result(None)
            case Failed(error=error) if not self._started.done():
                self._started.set_exception(error_from_wire(error))
            case Forked(pid=pid):
                worker = self._forking.popleft()
                worker.pid = pid
                if pid and not worker.is_gone:
                    self._idle.put_nowait(worker)
                else:
                    self._workers.discard(worker)
                    self._fork_later("it ended at once" if pid else "the system gives no process")
            case _:
                raise ChannelClosedError

    def _zygote_gone(self) -> None:
        assert self._started is not None
        assert self._zygote is not None
        if self._closing:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._zygote.wait(0.05)  # it ended by itself: its own code is the reason
        self._zygote.kill()  # a closed channel may also be a breach
        reason = exit_reason(self._zygote.wait())
        logger.error("the process that prepares requests ended: %s", reason)
        self._channel = None
        if not self._started.done():
            self._started.set_exception(WorkerStartError(f"The process that prepares requests ended: {reason}."))
            return
        self._forking.clear()
        for worker in list(self._workers):
            self._discard(worker, kill=True)
        if self._started.exception() is None:  # else whoever awaits `start` was told
            self._restart = asyncio.get_running_loop().create_task(self._revive())

    async def _revive(self) -> None:
        """Another zygote; if none can be started, again after a while."""
        while not self._closing:
            try:
                await self.start()
            except FoveaError as error:
                self.is_broken = True
                logger.error("no requests can be prepared: %s", error)
                await asyncio.sleep(REVIVE_AFTER_S)
            else:
                self.is_broken = False
                return

    def _check_forked(self, worker: _Worker) -> None:
        if worker in self._forking and self._zygote is not None:
            logger.error("the process that forks workers hangs and is killed")
            self._zygote.kill()

    def _fork_later(self, why: str) -> None:
        logger.warning("a preparing worker could not be made: %s; tried again in %g s", why, FORK_RETRY_S)
        asyncio.get_running_loop().call_later(FORK_RETRY_S, self._fork)

    def _discard(self, worker: _Worker, *, kill: bool) -> None:
        """The worker is gone or has to go; another takes its place."""
        if worker not in self._workers:
            return
        worker.is_gone = True
        if worker in self._forking:
            return  # whether it came to be is told soon
        self._workers.remove(worker)
        if worker.channel is not None:
            worker.channel.close()
        if kill and worker.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        worker.resolve(None)
        if not self._closing:
            self.num_replaced += 1
            self.on_replaced()
            self._fork()


class _Worker:
    """One forked process and the answer it owes."""

    def __init__(self) -> None:
        self.pid = 0
        self.channel: AsyncChannel | None = None
        self.is_gone = False
        self.is_leaving = False
        self.has_taken = False  # the task it was asked last
        self._waiter: asyncio.Future[Frame | None] | None = None

    def has_ended(self) -> bool:
        return self.is_gone or self.channel is None or self.channel.has_ended()

    def ask(self, payload: bytes, blob: int | None) -> None:
        assert self.channel is not None
        self._waiter = asyncio.get_running_loop().create_future()
        self.has_taken = False
        if self.is_gone:
            self.resolve(None)
        else:
            self.channel.send(payload, blob)

    async def answer(self) -> Frame | None:
        """None if the process ended instead."""
        assert self._waiter is not None
        return await self._waiter

    def on_frame(self, frame: Frame) -> None:
        if frame.payload == LEAVING:
            self.is_leaving = True
        elif frame.payload == TAKEN:
            self.has_taken = True
        else:
            self.resolve(frame)

    def drop_unread(self) -> None:
        """An answer that came in the very moment its request was cancelled."""
        if self._waiter is not None and self._waiter.done() and not self._waiter.cancelled():
            frame = self._waiter.result()
            if frame is not None and frame.blob is not None:
                os.close(frame.blob)

    def resolve(self, frame: Frame | None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(frame)
        elif frame is not None and frame.blob is not None:
            os.close(frame.blob)
