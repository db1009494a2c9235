"""`run`: a whole server, from options to exit code. The port is open within a second; the model loads behind it."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fovea.core.config import EMBEDDED_MODEL
from fovea.core.errors import FoveaError
from fovea.core.log import logger
from fovea.core.server_config import ServerConfig
from fovea.ipc.prepare_pool import PreparePool
from fovea.ipc.supervisor import Supervisor
from fovea.models.folder import find_model
from fovea.prompt.tokenizer import Tokenizer
from fovea.server.admission import Admission
from fovea.server.app import build_app
from fovea.server.edge import wrap
from fovea.server.http import Serve
from fovea.server.metrics import Metrics
from fovea.server.service import Service

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
DRAIN_CHECK_S = 0.05
LISTEN_CHECK_S = 0.01
DESCRIPTORS_WANTED = 65_536


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What is known when the first request can be answered."""

    url: str
    model_name: str
    max_model_len: int
    device: str
    dtype: str


OnReady = Callable[[ServerFacts], None]


def run(
    config: ServerConfig,
    *,
    on_ready: OnReady = lambda facts: None,
    faults: Mapping[str, Any] | None = None,
    show_progress: bool = False,
) -> int:
    """Serve until a signal. Returns 0 after a drain; raises FoveaError if the server can't start or go on."""
    allow_descriptors()
    folder = find_model(config.tokenizer or config.model, config)
    tokenizer = Tokenizer.load(folder)
    return asyncio.run(_Server(config, tokenizer, on_ready, faults or {}, show_progress).serve())


def allow_descriptors() -> None:
    """As many as this user may have: each connection and each request with pictures needs one. Workers inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Server:
    def __init__(
        self,
        config: ServerConfig,
        tokenizer: Tokenizer,
        on_ready: OnReady,
        faults: Mapping[str, Any],
        show_progress: bool,
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._on_ready = on_ready
        self._faults = faults
        self._show_progress = show_progress
        self._stopping: asyncio.Future[None]
        self._hurry: asyncio.Future[None]

    async def serve(self) -> int:
        loop = asyncio.get_running_loop()
        self._stopping, self._hurry = loop.create_future(), loop.create_future()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._signalled)
        names = self._config.served_model_name or (self._config.model or EMBEDDED_MODEL,)
        metrics = Metrics(self._config, names[0])
        admission = Admission(self._config)
        pool = PreparePool(self._config, faults=self._faults)
        engine = Supervisor(
            self._config, faults=self._faults, show_progress=self._show_progress, on_stats=metrics.set_engine
        )
        metrics.watch(admission)
        pool.on_replaced = metrics.worker_replaced
        engine.on_restart = metrics.engine_restarted
        service = Service(self._config, names, self._tokenizer, pool, engine, admission)
        metrics.model_path = lambda: service.model_path
        http = Serve(wrap(build_app(service, self._config, metrics), self._config, metrics), self._config)
        serving = loop.create_task(http.serve())
        starting = loop.create_task(self._start(pool, engine, http, names[0]))
        try:
            await self._first_of(serving, starting)
            if not self._stopping.done():
                await self._first_of(serving, engine.gone)
            await self._drain(admission, engine)
        finally:
            starting.cancel()
            engine.close()
            pool.close()
            http.stop()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
        return 0

    async def _start(self, pool: PreparePool, engine: Supervisor, http: Serve, name: str) -> None:
        """Both kinds of process at once; a mistake in either ends the start."""
        while not http.is_listening:
            await asyncio.sleep(LISTEN_CHECK_S)
        logger.info("listening on %s; the model is being loaded", self._url(http))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(pool.start())
                started = group.create_task(engine.start())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        facts = started.result()
        self._on_ready(ServerFacts(self._url(http), name, facts.max_model_len, facts.device, facts.dtype))

    def _url(self, http: Serve) -> str:
        return f"http://{_shown_host(self._config.host)}:{http.port}"

    async def _first_of(self, serving: asyncio.Task[None], other: asyncio.Future[Any]) -> None:
        """Wait for `other` or a signal; an end of either that is an error is raised."""
        await asyncio.wait((serving, other, self._stopping), return_when=asyncio.FIRST_COMPLETED)
        for future in (other, serving):
            if future.done() and not future.cancelled():
                result = future.result()
                if isinstance(result, FoveaError):
                    raise result

    async def _drain(self, admission: Admission, engine: Supervisor) -> None:
        """No new requests; running ones may finish until the time is up or a second signal comes."""
        admission.draining = True
        if admission.num_seats:
            logger.info("draining: %d requests may take %g s more", admission.num_seats, self._config.drain_timeout)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_timeout):
                while admission.num_seats and not self._hurry.done():
                    await asyncio.sleep(DRAIN_CHECK_S)

    def _signalled(self) -> None:
        if not self._stopping.done():
            self._stopping.set_result(None)
        elif not self._hurry.done():
            self._hurry.set_result(None)


def _shown_host(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):
        return "localhost"
    return f"[{host}]" if ":" in host else host
