"""The pictures of a request: each decoded once, in parallel, and as small as its budget says."""

from __future__ import annotations

import importlib
import math
import os
import signal
import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fovea.core.errors import MediaDecodeError, MediaError
from fovea.core.turns import Turns
from fovea.core.types import ImagePlan, Picture
from fovea.media.decode import decode
from fovea.media.source import ArraySource, BytesSource, MemorySource, PilSource
from fovea.media.transform import apply_plan
from fovea.pipeline import pictures
from fovea.pipeline.pictures import SharedDecodes
from fovea.pipeline.preparer import Preparer
from fovea.prompt.forms import PromptForm, parse_prompt
from tests.oracle.checkpoints import CASES
from tests.parity.support import FAMILIES, Checkpoints, question
from tests.pipeline.support import chat, data_url, part, png, preparer, run

URL = data_url(png(300, 200))


@pytest.mark.parametrize("family", FAMILIES)
def test_threads_change_nothing_but_the_time(checkpoints: Checkpoints, family: str) -> None:
    one, four = (preparer(checkpoints, family, num_threads=n) for n in (1, 4))
    form = parse_prompt(question(CASES[family][1]))
    alone, together = run(one, form).request, run(four, form).request
    assert [item.key for item in alone.media] == [item.key for item in together.media]
    for left, right in zip(alone.media, together.media, strict=True):
        np.testing.assert_array_equal(left.canvas, right.canvas)


@pytest.fixture
def two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture is decoded when another one is."""
    both = threading.Barrier(2, timeout=20)

    def wait_for_the_other(source: Any, helpers: Executor | None) -> Any:
        both.wait()
        return decode(source, helpers)

    monkeypatch.setattr(pictures, "decode", wait_for_the_other)


def two_pictures(made: Preparer) -> PromptForm:
    return chat(made, part(URL), part(data_url(png(20, 20))))


@pytest.mark.usefixtures("two_at_a_time")
def test_pictures_are_decoded_at_the_same_time(checkpoints: Checkpoints) -> None:
    made = preparer(checkpoints, "llava", num_threads=2)
    assert len(run(made, two_pictures(made)).reports) == 2


def test_no_thread_is_started_before_it_is_needed(checkpoints: Checkpoints) -> None:
    """A process that forks must have none."""
    made, before = preparer(checkpoints, "llava", num_threads=4), threading.active_count()
    run(made, chat(made, part(URL)))
    assert threading.active_count() == before


def test_a_large_picture_that_is_alone_gets_help_and_the_same_key(checkpoints: Checkpoints) -> None:
    large = part(data_url(png(500, 400)))
    alone, helped = (preparer(checkpoints, "llava", num_helpers=count) for count in (1, 3))
    num_threads, found = [], []
    for made in (alone, helped):
        before = threading.active_count()
        found.append(run(made, chat(made, large)).request.media[0].key)
        num_threads.append(threading.active_count() - before)
    assert found[0] == found[1]
    assert num_threads[0] == 0 < num_threads[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.usefixtures("two_at_a_time")
def test_a_forked_process_makes_threads_of_its_own(checkpoints: Checkpoints) -> None:
    made = preparer(checkpoints, "llava", num_threads=2)
    form = two_pictures(made)
    run(made, form)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that waits for threads it does not have
        try:
            run(made, form)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_first_broken_picture_is_the_one_named(checkpoints: Checkpoints, num_threads: int) -> None:
    made = preparer(checkpoints, "llava", num_threads=num_threads)
    broken = [data_url(png(30 + i, 30)[:-30]) for i in range(3)]
    with pytest.raises(MediaDecodeError, match="^Picture 2: ") as caught:
        run(made, chat(made, part(URL), *map(part, broken)))
    assert (caught.value.code, caught.value.param) == ("invalid_image", "messages.0.content.1.image_url")


def test_the_same_address_sixteen_times_is_decoded_once(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def count(source: Any, helpers: Executor | None) -> Any:
        calls.append(source)
        return decode(source, helpers)

    monkeypatch.setattr(pictures, "decode", count)
    made = preparer(checkpoints, "llava")
    prepared = run(made, chat(made, *[part(URL)] * 16))
    assert len(calls) == 1
    assert len({item.key for item in prepared.request.media}) == 1
    assert prepared.reports[0].decode_s > 0
    assert all(report.decode_s == report.resize_s == 0 for report in prepared.reports[1:]), "the first has paid"


@pytest.mark.parametrize("family", FAMILIES)
def test_reports_say_what_was_done(checkpoints: Checkpoints, family: str) -> None:
    made = preparer(checkpoints, family)
    (report,) = run(made, chat(made, part(URL))).reports
    plan = made.family.plan_image(300, 200, {})
    assert (report.original_width_px, report.original_height_px) == (300, 200)
    assert (report.width_px, report.height_px) == (plan.canvas_width_px, plan.canvas_height_px)
    assert (report.token_rows, report.token_columns) == made.family.token_grid(plan)
    assert report.num_bytes == len(png(300, 200))


def test_low_detail_is_another_picture_for_every_cache(checkpoints: Checkpoints) -> None:
    made = preparer(checkpoints, "qwen2_vl", mm_processor_kwargs={"max_pixels": 1000 * 784})
    url = data_url(png(900, 700))
    form = chat(made, part(url), part(url, detail="low"), part(url, detail="high"), part(url, max_pixels=784))
    prepared = run(made, form)
    auto, low, high, tiny = prepared.request.media
    assert auto.key == high.key
    assert len({auto.key, low.key, tiny.key}) == 3
    sizes = [report.width_px * report.height_px for report in prepared.reports]
    assert sizes[1] <= 512 * 512 < sizes[0]
    assert sizes[3] == 784


def test_detail_that_changes_no_plan_shares_its_cache_entry(checkpoints: Checkpoints) -> None:
    made = preparer(checkpoints, "llava")
    first, second = run(made, chat(made, part(URL), part(URL, detail="low"))).request.media
    assert first.key == second.key


@pytest.mark.parametrize(
    ("family", "more", "code"),
    [
        ("qwen2_vl", {"max_pixels": 10**12}, "above_max_value"),
        ("qwen2_vl", {"max_pixels": 783}, "below_min_value"),
        ("qwen2_vl", {"min_pixels": 10**12}, "above_max_value"),
        ("phi3_v", {"max_pixels": 336 * 336 - 1}, "below_min_value"),
        ("phi3_v", {"max_pixels": 10**12}, "above_max_value"),
        ("phi3_v", {"min_pixels": 1}, "unsupported_value"),
        ("llava", {"max_pixels": 56 * 56 - 1}, "below_min_value"),
        ("llava", {"max_pixels": 56 * 56 + 1}, "above_max_value"),
        ("llava", {"min_pixels": 1}, "unsupported_value"),
    ],
)
def test_budgets_that_cannot_be_kept_are_refused(
    checkpoints: Checkpoints, family: str, more: dict[str, int], code: str
) -> None:
    made = preparer(checkpoints, family)
    with pytest.raises(Exception, match="^Picture 1: ") as caught:
        run(made, chat(made, part(URL, **more)))
    error: Any = caught.value
    assert (error.code, error.param, error.status) == (code, "messages.0.content.0.image_url", 400)


# ------------------------------------------------------------------------------------------------ left to the device


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_go_to_the_device_as_they_are_if_it_resizes(checkpoints: Checkpoints, family: str) -> None:
    """Same keys, so that no cache can tell; the plan goes along."""
    here = preparer(checkpoints, family)
    there = here.for_engine(4096, resize_on_device=True)
    form = chat(here, part(URL), part(data_url(png(20, 20))))
    for resized, left in zip(run(here, form).request.media, run(there, form).request.media, strict=True):
        assert resized.canvas is not None
        assert resized.plan is None
        assert left.canvas is None
        assert left.pixels is not None
        assert left.plan is not None
        assert left.key == resized.key
        np.testing.assert_array_equal(apply_plan(Picture(left.pixels, b""), left.plan), resized.canvas)


def test_a_picture_much_larger_than_its_canvas_is_resized_here(checkpoints: Checkpoints) -> None:
    made = preparer(checkpoints, "llava").for_engine(4096, resize_on_device=True)
    side = 1 + math.isqrt(pictures.LEFT_ALWAYS_BYTES // 3)
    small, large = run(made, chat(made, part(URL), part(data_url(png(side, side))))).request.media
    assert (small.canvas, large.pixels) == (None, None)
    assert large.canvas is not None
    assert large.canvas.nbytes < pictures.LEFT_ALWAYS_BYTES


@pytest.mark.parametrize(
    ("size", "resized", "canvas", "fits"),
    [
        ((1024, 768), (448, 336), (336, 336), True),
        ((4000, 3000), (448, 336), (336, 336), False),
        ((4000, 3000), (2016, 1512), (2016, 1512), True),
        ((6000, 4000), (2016, 1512), (2016, 1512), False),  # more than four times the canvas
        ((900, 12), (25_200, 336), (336, 336), False),  # cropped from a long strip
        ((5000, 4300), (5012, 4312), (5012, 4312), False),  # too much for one upload
    ],
)
def test_what_may_travel_as_it_is(
    size: tuple[int, int], resized: tuple[int, int], canvas: tuple[int, int], fits: bool
) -> None:
    for turned in (False, True):
        sides = [pair[::-1] if turned else pair for pair in (size, canvas)]
        plan = ImagePlan(*resized, "bicubic", *sides[1], (1, 1, 1), 1, 1, transpose=turned)
        assert pictures.fits_device(plan, *sides[0]) == fits


def test_nothing_is_resized_twice_for_one_address(checkpoints: Checkpoints) -> None:
    made = preparer(checkpoints, "llava").for_engine(4096, resize_on_device=True)
    media = run(made, chat(made, part(URL), part(URL))).request.media
    assert media[0].pixels is media[1].pixels


def test_a_picture_that_several_requests_show_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the objects that were named; what fails for one fails for all."""
    calls: list[object] = []

    def counted(source: MemorySource, helpers: Executor | None) -> Picture:
        calls.append(source)
        return decode(source, helpers)

    monkeypatch.setattr("fovea.pipeline.pictures.decode", counted)
    shown, other = Image.new("RGB", (8, 6), "red"), Image.new("RGB", (8, 6), "red")
    broken = np.zeros((0, 4, 3), np.uint8)
    shared = SharedDecodes({id(shown), id(broken)})
    first, second = (shared.decode(PilSource(shown)) for _ in range(2))
    assert first is second
    assert len(calls) == 1
    assert shared.decode(PilSource(other)) is not shared.decode(PilSource(other))
    assert len(calls) == 3
    for _ in range(2):
        with pytest.raises(MediaError):
            shared.decode(ArraySource(broken))
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("module", "waits_for"),
    [("pipeline.pictures", "open_source"), ("media.decode", "_upright"), ("media.decode", "picture_digest")],
)
def test_a_request_that_decodes_or_fetches_leaves_its_turn_to_others(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, module: str, waits_for: str
) -> None:
    """Two at once, or the barrier breaks."""
    made, turns, both = preparer(checkpoints, "llava"), Turns(), threading.Barrier(2, timeout=20)
    place = importlib.import_module(f"fovea.{module}")
    original = getattr(place, waits_for)

    def waiting(source: Any, *rest: Any) -> Any:
        both.wait()
        return BytesSource(png(30, 20)) if waits_for == "open_source" else original(source, *rest)

    monkeypatch.setattr(place, waits_for, waiting)
    address = "https://example.org/a.png" if waits_for == "open_source" else URL

    def prepared() -> int:
        with turns.take():
            return len(run(made, chat(made, part(address))).request.media)

    with ThreadPoolExecutor(2) as pool:
        assert [one.result(30) for one in [pool.submit(prepared) for _ in range(2)]] == [1, 1]


@pytest.mark.parametrize("kind", ["bytes", "pil", "two"])
def test_requests_that_share_turns_with_a_loop_are_all_prepared(checkpoints: Checkpoints, kind: str) -> None:
    """A loop that always comes first, pictures in threads of their own: no two wait for each other."""
    made, turns, ended = preparer(checkpoints, "llava", num_threads=2), Turns(), threading.Event()
    pil = {"type": "image_pil", "image_pil": Image.new("RGBA", (30, 20), "red")}
    shown = {"bytes": [part(URL)], "pil": [pil], "two": [part(URL), part(data_url(png(20, 20)))]}[kind]

    def loop() -> None:
        while not ended.is_set():
            with turns.take(first=True):
                pass

    def prepared() -> int:
        with turns.take():
            return len(run(made, chat(made, *shown)).request.media)

    with ThreadPoolExecutor(5) as pool:
        looping = pool.submit(loop)
        try:
            found = [one.result(60) for one in [pool.submit(prepared) for _ in range(8)]]
        finally:
            ended.set()
        looping.result(60)
    assert found == [len(shown)] * 8
