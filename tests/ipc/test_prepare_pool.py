"""Requests are prepared in processes that may hang, die or grow without harming anything but their own request."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image

from fovea.core.errors import FoveaError, MediaDecodeError, ModelError, PromptTooLongError
from fovea.core.server_config import ServerConfig
from fovea.core.types import Picture
from fovea.ipc.blob import map_blob, write_blob
from fovea.ipc.messages import Counts, Done, FetchedWire, Task, ids_from_wire, request_from_wire
from fovea.ipc.prepare_pool import PreparePool, PrepareReply
from fovea.media.transform import apply_plan

ASSETS = Path(__file__).parents[2] / "src" / "fovea" / "assets" / "pictures"
T = TypeVar("T")


def with_pool(work: Callable[[PreparePool], Awaitable[T]], **options: Any) -> T:
    async def run() -> T:
        pool = PreparePool(ServerConfig(**{"prepare_workers": 2, **options}))
        try:
            await pool.start()
            return await work(pool)
        finally:
            pool.close()

    return asyncio.run(run())


def chat(text: str = "What is this?", *pictures: str, **options: Any) -> Task:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
    return Task("r-1", time.perf_counter(), 2048, {"max_tokens": 4}, messages=messages, **options)


def data_url(name: str) -> str:
    return "data:image/png;base64," + base64.b64encode((ASSETS / name).read_bytes()).decode()


def made(reply: PrepareReply) -> Done:
    assert isinstance(reply.message, Done)
    return reply.message


def test_a_prepared_request_has_its_pixels_in_shared_memory() -> None:
    async def work(pool: PreparePool) -> None:
        reply = await pool.prepare(chat("Look.", data_url("shapes.png"), data_url("label.png")), None)
        assert reply.blob is not None
        request = request_from_wire(made(reply).request, map_blob(reply.blob))
        assert [item.num_tokens for item in request.media] == [r["num_tokens"] for r in made(reply).reports]
        for item, report in zip(request.media, made(reply).reports, strict=True):
            assert item.canvas is not None
            assert item.canvas.shape == (report["height_px"], report["width_px"], 3)
            assert item.canvas.std() > 0

    with_pool(work)


def test_pictures_travel_as_they_are_to_an_engine_that_resizes() -> None:
    """Same keys, and the same canvases once the plan is carried out."""

    async def work(pool: PreparePool) -> None:
        media = []
        for resize_on_device in (False, True):
            task = chat("Look.", data_url("shapes.png"), data_url("label.png"), resize_on_device=resize_on_device)
            reply = await pool.prepare(task, None)
            assert reply.blob is not None
            media.append(request_from_wire(made(reply).request, map_blob(reply.blob)).media)
        for resized, left in zip(*media, strict=True):
            assert left.pixels is not None
            assert left.plan is not None
            assert (left.key, left.canvas) == (resized.key, None)
            np.testing.assert_array_equal(apply_plan(Picture(left.pixels, b""), left.plan), resized.canvas)

    with_pool(work)


def test_counting_decodes_nothing() -> None:
    async def work(pool: PreparePool) -> None:
        counted = await pool.prepare(chat("Look.", data_url("shapes.png"), count=True), None)
        prepared = await pool.prepare(chat("Look.", data_url("shapes.png")), None)
        assert isinstance(counted.message, Counts)
        assert counted.blob is None
        wire = request_from_wire(made(prepared).request, None)
        assert ids_from_wire(counted.message.token_ids) == wire.token_ids
        assert prepared.blob is not None
        os.close(prepared.blob)

    with_pool(work)


def test_fetched_pictures_arrive_in_the_blob_and_nothing_else_is_dialled() -> None:
    async def work(pool: PreparePool) -> None:
        data, url = (ASSETS / "shapes.png").read_bytes(), "http://pictures.test/shapes.png"
        blob = write_blob([data])
        task = chat("Look.", url, fetched=[FetchedWire(url, 0, len(data), 0.25)])
        reply = await pool.prepare(task, blob)
        os.close(blob)
        assert made(reply).reports[0]["fetch_s"] == 0.25
        with pytest.raises(FoveaError):
            await pool.prepare(chat("Look.", "http://127.0.0.1:9/other.png"), None)

    with_pool(work)


def test_a_refusal_comes_back_as_the_error_it_is() -> None:
    async def work(pool: PreparePool) -> None:
        with pytest.raises(PromptTooLongError) as caught:
            await pool.prepare(chat("word " * 5000), None)
        assert caught.value.status == 400
        with pytest.raises(MediaDecodeError) as broken:
            await pool.prepare(chat("Look.", "data:image/png;base64," + base64.b64encode(b"no picture").decode()), None)
        assert broken.value.param == "messages.0.content.0.image_url"
        assert len(pool.pids()) == 2

    with_pool(work)


def test_a_worker_that_hangs_is_killed_and_replaced_and_its_request_told() -> None:
    async def work(pool: PreparePool) -> None:
        await pool.prepare(chat(), None)
        before = set(pool.pids())
        for pid in before:
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(MediaDecodeError, match="prepare_timeout_s") as caught:
            await pool.prepare(chat(), None)
        assert caught.value.code == "preparation_timeout"
        with pytest.raises(MediaDecodeError):
            await pool.prepare(chat(), None)
        assert isinstance((await pool.prepare(chat(), None)).message, Done)
        assert before.isdisjoint(pool.pids())
        assert pool.num_replaced == 2

    with_pool(work, prepare_timeout_s=0.5)


def test_a_worker_that_dies_is_replaced_and_its_request_given_to_another() -> None:
    async def work(pool: PreparePool) -> None:
        await pool.prepare(chat(), None)
        for pid in pool.pids():
            os.kill(pid, signal.SIGSTOP)
        first, second = (asyncio.create_task(pool.prepare(chat(), None)) for _ in range(2))
        await asyncio.sleep(0.1)
        victim, other = pool.pids()
        os.kill(victim, signal.SIGKILL)
        os.kill(other, signal.SIGCONT)
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(outcome).__name__ for outcome in outcomes] == ["PrepareReply", "PrepareReply"]
        assert isinstance((await pool.prepare(chat(), None)).message, Done)

    with_pool(work)


def test_a_death_between_requests_is_noticed_by_nobody() -> None:
    async def work(pool: PreparePool) -> None:
        for _ in range(3):
            await pool.prepare(chat(), None)
            for pid in pool.pids():
                os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.2)
            assert isinstance((await pool.prepare(chat(), None)).message, Done)

    with_pool(work)


def test_deaths_before_a_worker_takes_its_task_are_not_the_tasks_doing() -> None:
    """The system killed both workers; each was handed the request before it was known to be gone."""

    async def work(pool: PreparePool) -> None:
        await pool.prepare(chat(), None)
        for pid in pool.pids():
            os.kill(pid, signal.SIGSTOP)
        asked = asyncio.create_task(pool.prepare(chat(), None))
        await asyncio.sleep(0)
        idle = pool._idle.get_nowait()
        pool._idle.put_nowait(idle)
        for pid in sorted(pool.pids(), key=lambda pid: pid == idle.pid):  # the one that was asked first
            await asyncio.sleep(0.05)
            os.kill(pid, signal.SIGKILL)
        assert isinstance((await asyncio.wait_for(asked, 30)).message, Done)

    with_pool(work)


def test_the_zygote_may_die_too() -> None:
    async def work(pool: PreparePool) -> None:
        await pool.prepare(chat(), None)
        assert pool.zygote_pid
        os.kill(pool.zygote_pid, signal.SIGKILL)
        await asyncio.sleep(0.2)
        reply = await asyncio.wait_for(pool.prepare(chat(), None), 60)
        assert isinstance(reply.message, Done)

    with_pool(work)


def test_a_cancelled_request_frees_its_place() -> None:
    async def work(pool: PreparePool) -> None:
        await pool.prepare(chat(), None)
        for pid in pool.pids():
            os.kill(pid, signal.SIGSTOP)
        waiting = [asyncio.create_task(pool.prepare(chat(), None)) for _ in range(4)]
        await asyncio.sleep(0.1)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance((await asyncio.wait_for(pool.prepare(chat(), None), 10)).message, Done)

    with_pool(work)


def test_a_task_that_needs_too_much_memory_is_refused() -> None:
    async def work(pool: PreparePool) -> None:
        with pytest.raises(FoveaError) as caught:
            await pool.prepare(chat("Look.", white_png(7000, 7000)), None)
        assert caught.value.status == 400
        assert isinstance((await pool.prepare(chat(), None)).message, Done)

    with_pool(work, prepare_memory_bytes=64 * 1024**2)


def test_no_process_outlives_its_pool() -> None:
    async def work(pool: PreparePool) -> list[int]:
        await pool.prepare(chat(), None)
        return [*pool.pids(), pool.zygote_pid]

    for pid in with_pool(work):
        gone_by = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]:
            assert time.monotonic() < gone_by, f"{pid} still runs"
            time.sleep(0.01)


def test_a_model_that_cannot_be_prepared_for_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError):
        with_pool(lambda pool: asyncio.sleep(0), model=str(tmp_path))


def white_png(width_px: int, height_px: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width_px, height_px), "white").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_requests_cancelled_at_any_moment_leave_no_descriptor_open() -> None:
    async def work(pool: PreparePool) -> None:
        await asyncio.sleep(0.5)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for i in range(30):
            task = asyncio.create_task(pool.prepare(chat("Look.", data_url("shapes.png")), None))
            await asyncio.sleep(i / 1000)
            task.cancel()
            outcome = await asyncio.gather(task, return_exceptions=True)
            if isinstance(outcome[0], PrepareReply) and outcome[0].blob is not None:
                os.close(outcome[0].blob)
        await asyncio.sleep(1.0)
        assert len(list(Path("/proc/self/fd").iterdir())) <= before

    with_pool(work)
