"""The engine's process: loads the model, then repeats take messages, step, send tokens.

One thread. A request's own trouble goes back as its error; any other exception ends the process with last words, and
the supervisor starts another. The heartbeat grows with every turn: a loop that hangs can be told from one that is idle.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import sys
import time

import msgspec

from fovea.core.config import EngineConfig
from fovea.core.errors import FoveaError, RequestFailedError
from fovea.core.log import logger
from fovea.core.types import TokenOutput
from fovea.engine.build import build_engine, plan_engine, suited
from fovea.engine.failures import EngineBrokenError
from fovea.engine.loop import Engine
from fovea.families.base import Family
from fovea.families.registry import load_family
from fovea.ipc import faults
from fovea.ipc.blob import map_blob
from fovea.ipc.channel import Channel, ChannelClosedError, Frame
from fovea.ipc.heap import HeapTrimmer
from fovea.ipc.heartbeat import Heartbeat
from fovea.ipc.messages import (
    Abort,
    Add,
    EngineReady,
    Failed,
    ResetCaches,
    Setup,
    Stats,
    Stop,
    ToEngine,
    Tokens,
    encode,
    error_to_wire,
    request_from_wire,
    token_to_wire,
)
from fovea.ipc.process import open_parent, show_worker_logs
from fovea.models.folder import find_model

IDLE_TURN_S = 1.0
STATS_EVERY_S = 0.25

_decoder = msgspec.msgpack.Decoder(ToEngine)


class EngineLoop:
    def __init__(self, engine: Engine, channel: Channel, heartbeat: Heartbeat) -> None:
        self._engine = engine
        self._channel = channel
        self._heartbeat = heartbeat
        self._stats_sent = 0.0
        self._heap = HeapTrimmer(time.monotonic)

    def run(self) -> None:
        """Until the parent closes the channel."""
        while True:
            self._heartbeat.beat()
            busy = self._engine.has_work()
            frames = self._channel.receive(0.0 if busy else IDLE_TURN_S)
            for frame in frames:
                self._handle(frame)
            if self._engine.has_work():
                self._send(self._engine.step())
                self._heap.worked()
            elif not frames and not busy:
                self._heap.rest()
            self._send_stats(idle=not self._engine.has_work())

    def _handle(self, frame: Frame) -> None:
        message = _decoder.decode(frame.payload)
        match message:
            case Add():
                self._add(message, frame.blob)
            case Abort():
                self._engine.abort(message.request_id)
            case Stop():
                self._engine.stop(message.request_id, message.index)
            case ResetCaches():
                self._engine.reset_caches()
            case Setup():
                raise ChannelClosedError

    def _add(self, message: Add, blob: int | None) -> None:
        request = request_from_wire(message.request, None)
        if self._engine.knows(request.request_id):
            logger.error("a request arrived twice; the second is dropped")
            return
        try:
            if blob is not None:
                request = request_from_wire(message.request, map_blob(blob))
            self._engine.add(request)
        except FoveaError as error:
            self._send([TokenOutput(request.request_id, 0, None, finish_reason="error", error=error)])

    def _send(self, outputs: list[TokenOutput]) -> None:
        if outputs:
            self._channel.send(encode(Tokens([token_to_wire(output) for output in outputs])))

    def _send_stats(self, *, idle: bool) -> None:
        now = time.monotonic()
        if idle or now - self._stats_sent >= STATS_EVERY_S:
            self._stats_sent = now
            self._channel.send(encode(Stats(self._engine.counters())))


def load(setup: Setup) -> tuple[Engine, Family]:
    config = EngineConfig.from_options(setup.options)
    folder = find_model(config.model, config)
    family = suited(config, load_family(folder, config.model_impl))
    engine = build_engine(plan_engine(config, family), config, family, folder, use_tqdm=setup.show_progress)
    faults.install(engine, setup.faults)
    return engine, family


def keep_for_good() -> None:
    """What is loaded lives as long as the process. Looking for garbage among it takes 100 ms, between two steps."""
    gc.collect()
    gc.freeze()


def main(argv: list[str]) -> int:
    channel = open_parent(argv)
    faulthandler.register(signal.SIGUSR1)  # the supervisor asks where a hung engine hangs
    try:
        setup = _decoder.decode(channel.receive_one().payload)
        if not isinstance(setup, Setup):
            return 1
        show_worker_logs(as_json=setup.log_as_json, level=setup.log_level)
        try:
            engine, family = load(setup)
        except FoveaError as error:
            channel.send(encode(Failed(error_to_wire(error))))
            return 1
        except Exception:  # the last boundary: the parent gets a sentence, the log the cause
            logger.exception("the engine could not be started")
            channel.send(encode(Failed(error_to_wire(RequestFailedError("The engine could not be started.")))))
            return 1
        keep_for_good()
        heartbeat = Heartbeat()
        ready = EngineReady(
            engine.plan.max_model_len,
            str(engine.model.device),
            str(engine.model.dtype)[6:],
            str(engine.plan),
            engine.model.spec.takes_pictures,
            engine.model.path,
            family.video_placeholder is not None,
        )
        channel.send(encode(ready), heartbeat.fd)
        EngineLoop(engine, channel, heartbeat).run()
    except ChannelClosedError:
        return 0  # the parent is gone or wants us gone
    except EngineBrokenError as error:
        return _end(channel, error)
    except Exception:
        logger.critical("the engine ends by a fault of its own", exc_info=True)
        return _end(channel, RequestFailedError("The engine ended by a fault of its own; the log has the cause."))
    return 0


def _end(channel: Channel, error: FoveaError) -> int:
    """Say why and be gone at once: tidying up could hang on a broken device."""
    with contextlib.suppress(ChannelClosedError):
        channel.send(encode(Failed(error_to_wire(error))))
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
