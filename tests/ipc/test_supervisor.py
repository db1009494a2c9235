"""The engine's process answers like the engine in this one; when it dies, hangs or can't start, everybody is told."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from fovea import LLM, SamplingParams
from fovea.core.config import EngineConfig
from fovea.core.errors import FoveaError, ModelError, PromptTooLongError, RequestFailedError, UnavailableError
from fovea.core.server_config import ServerConfig
from fovea.core.types import TokenOutput
from fovea.families.registry import load_family
from fovea.ipc.blob import write_blob
from fovea.ipc.messages import request_to_wire
from fovea.ipc.supervisor import Flight, Supervisor
from fovea.models.folder import find_model
from fovea.pipeline.preparer import Preparer
from fovea.prompt.forms import parse_prompt

T = TypeVar("T")
ASSETS = Path(__file__).parents[2] / "src" / "fovea" / "assets" / "pictures"
SEE = "<|vision_start|><|image_pad|><|vision_end|>"
PROMPT = f"<|im_start|>user\n{SEE}What is in this picture?<|im_end|>\n<|im_start|>assistant\n"
MEMORY_BYTES = 64 * 1024**2


@cache
def preparer() -> Preparer:
    config = EngineConfig()
    folder = find_model(config.model, config)
    return Preparer(config, load_family(folder), folder, folder, 2048)


def flight(name: str, *, max_tokens: int = 8, ignore_eos: bool = True, text: str = PROMPT) -> Flight:
    data = {"image": ASSETS / "shapes.png"} if SEE in text else None
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=ignore_eos)
    form = parse_prompt({"prompt": text, "multi_modal_data": data})
    wire, parts = request_to_wire(preparer().prepare(form, params, name, time.perf_counter()).request)
    return Flight(name, msgspec.Raw(msgspec.msgpack.encode(wire)), write_blob(parts) if parts else None)


class Running:
    """A supervisor with its engine, and the last counters it sent."""

    def __init__(self, **options: Any) -> None:
        self.stats: dict[str, float] = {}
        config = ServerConfig(**{"kv_cache_memory_bytes": MEMORY_BYTES, **options})
        self.engine = Supervisor(config, faults={}, show_progress=False, on_stats=self._take)

    def _take(self, stats: dict[str, float]) -> None:
        self.stats = stats

    async def ask(self, request: Flight) -> list[int]:
        self.engine.submit(request)
        tokens: list[TokenOutput] = []
        while not tokens or tokens[-1].finish_reason is None:
            tokens += await request.take()
        request.is_finished = True
        self.engine.end(request)
        if tokens[-1].error is not None:
            raise tokens[-1].error
        return [token.token_id for token in tokens if token.token_id is not None]

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not done():
                await asyncio.sleep(0.01)


async def take_all(request: Flight) -> None:
    while True:
        await request.take()


def with_engine(work: Callable[[Running], Awaitable[T]], **options: Any) -> T:
    async def run() -> T:
        running = Running(**options)
        try:
            await running.engine.start()
            return await work(running)
        finally:
            running.engine.close()

    return asyncio.run(run())


def test_tokens_equal_those_of_the_engine_in_this_process() -> None:
    async def work(running: Running) -> list[list[int]]:
        return list(await asyncio.gather(*(running.ask(flight(f"r{i}")) for i in range(3))))

    [expected] = LLM(use_tqdm=False).generate(
        {"prompt": PROMPT, "multi_modal_data": {"image": ASSETS / "shapes.png"}},
        SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True),
        use_tqdm=False,
    )
    assert with_engine(work) == [list(expected.outputs[0].token_ids)] * 3


def test_an_ended_request_gives_its_blocks_back() -> None:
    async def work(running: Running) -> None:
        request = flight("long", max_tokens=1500)
        running.engine.submit(request)
        await request.take()
        running.engine.end(request)
        await running.until(lambda: running.stats.get("num_running") == 0 and running.stats["num_generated_tokens"] > 0)
        assert running.stats["kv_blocks_free"] == running.stats["kv_blocks_total"]
        assert running.stats["num_generated_tokens"] < 1500
        assert running.engine.num_flights == 0

    with_engine(work)


def test_a_request_the_engine_refuses_is_told_and_others_go_on() -> None:
    async def work(running: Running) -> None:
        with pytest.raises(PromptTooLongError):
            await running.ask(flight("too long", text="word " * 300))
        assert len(await running.ask(flight("good", max_tokens=4))) == 4

    with_engine(work, max_model_len=256)


def test_a_death_fails_what_had_tokens_and_sends_the_rest_again() -> None:
    async def work(running: Running) -> None:
        expected = await running.ask(flight("first"))
        started = flight("started", max_tokens=1500)
        running.engine.submit(started)
        await started.take()
        os.kill(running.engine.pid, signal.SIGSTOP)
        waiting = asyncio.create_task(running.ask(flight("waiting")))
        await asyncio.sleep(0.1)
        os.kill(running.engine.pid, signal.SIGKILL)
        with pytest.raises(RequestFailedError) as caught:
            await asyncio.wait_for(take_all(started), 10)
        assert caught.value.code == "engine_dead"
        with pytest.raises(UnavailableError) as unavailable:
            running.engine.check_ready()
        assert unavailable.value.retry_after_s > 0
        assert await asyncio.wait_for(waiting, 60) == expected
        assert running.engine.num_restarts == 1
        running.engine.check_ready()

    with_engine(work)


def test_a_request_that_kills_the_engine_is_sent_again_just_once() -> None:
    async def work(running: Running) -> None:
        poison = flight("poison")
        os.kill(running.engine.pid, signal.SIGSTOP)
        answer = asyncio.create_task(running.ask(poison))
        await running.until(lambda: poison.num_sent == 1)
        os.kill(running.engine.pid, signal.SIGKILL)
        await running.until(lambda: poison.num_sent == 2)
        os.kill(running.engine.pid, signal.SIGKILL)
        with pytest.raises(RequestFailedError):
            await asyncio.wait_for(answer, 60)
        await running.until(lambda: running.engine.state == "ready")
        assert poison.num_sent == 2

    with_engine(work, max_engine_deaths=9)


def test_an_engine_that_dies_too_often_is_given_up_loudly() -> None:
    async def work(running: Running) -> FoveaError:
        for _ in range(2):
            await running.until(lambda: running.engine.state == "ready")
            os.kill(running.engine.pid, signal.SIGKILL)
            await running.until(lambda: running.engine.state != "ready")
        return await asyncio.wait_for(running.engine.gone, 60)

    error = with_engine(work, max_engine_deaths=2)
    assert "SIGKILL" in str(error)
    assert "max_engine_deaths" in str(error)


def test_a_hung_engine_is_killed_and_replaced() -> None:
    async def work(running: Running) -> None:
        before = running.engine.pid
        os.kill(before, signal.SIGSTOP)
        await running.until(lambda: running.engine.pid != before and running.engine.state == "ready")
        assert len(await running.ask(flight("after", max_tokens=4))) == 4

    with_engine(work, watchdog_s=2.0)


def test_an_idle_engine_is_not_taken_for_a_hung_one() -> None:
    async def work(running: Running) -> None:
        before = running.engine.pid
        await asyncio.sleep(4.0)
        assert running.engine.pid == before

    with_engine(work, watchdog_s=2.5)


def test_a_model_that_cannot_be_loaded_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        with_engine(lambda running: asyncio.sleep(0), model=str(tmp_path))


def test_no_engine_outlives_its_supervisor() -> None:
    async def work(running: Running) -> int:
        return running.engine.pid

    assert not Path(f"/proc/{with_engine(work)}").exists()
