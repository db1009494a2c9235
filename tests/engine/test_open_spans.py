"""Prompts with ranges inside which all tokens see each other: no chunk ends inside one, no cache forgets what it is."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea.core.errors import MediaLimitError, PromptError, PromptTooLongError
from fovea.core.params import SamplingParams
from fovea.core.types import EngineRequest, MediaItem, MediaSpan
from fovea.engine.failures import divide
from fovea.engine.scheduler import Chunk, StepPlan, whole_spans
from fovea.engine.sequence import Sequence
from tests.engine.fakes import (
    EMBEDDING_BYTES,
    GREEDY,
    World,
    expected_tokens,
    grow,
    make_engine,
    make_request,
    make_scheduler,
    media_item,
    run_all,
    token_ids,
)

ENDLESS = SamplingParams(temperature=0.0, max_tokens=None)


def opened(name: str, *layout: int | MediaItem, spans: tuple[tuple[int, int], ...], salt: bytes = b"") -> EngineRequest:
    made = make_request(name, layout, params=ENDLESS, salt=salt)
    return dataclasses.replace(made, open_spans=tuple(MediaSpan(start, end - start) for start, end in spans))


def pictures_open(name: str, *layout: int | MediaItem) -> EngineRequest:
    """As Gemma 3: each picture is an open span."""
    made = make_request(name, layout, params=ENDLESS)
    return dataclasses.replace(made, open_spans=made.spans)


def whole_open(name: str, *layout: int | MediaItem) -> EngineRequest:
    """As PaliGemma: the whole prompt is."""
    made = make_request(name, layout, params=ENDLESS)
    return dataclasses.replace(made, open_spans=(MediaSpan(0, len(made.token_ids)),))


def step(world: World) -> list[tuple[str, int, int]]:
    plan = world.scheduler.plan()
    check(world, plan)
    world.run(plan)
    for chunk in plan.chunks:
        world.scheduler.launch(chunk)
        world.scheduler.settle(chunk)
        if chunk.samples:
            grow(chunk.sequence, 1)
    return [(chunk.sequence.request.request_id, chunk.start, chunk.end) for chunk in plan.chunks]


def check(world: World, plan: StepPlan) -> None:
    world.check(plan)
    for chunk in plan.chunks:
        for span in chunk.sequence.request.open_spans:
            assert not span.start < chunk.end < span.end, "a chunk ends inside an open span"


def test_a_chunk_stops_before_an_open_span_that_does_not_fit_any_more() -> None:
    world = World(make_scheduler(max_num_batched_tokens=16))
    world.scheduler.add(Sequence(opened("a", *range(40), spans=((10, 22), (22, 30))), 0, None))
    assert [step(world) for _ in range(4)] == [[("a", 0, 10)], [("a", 10, 22)], [("a", 22, 38)], [("a", 38, 40)]]


def test_it_waits_for_a_step_with_room() -> None:
    world = World(make_scheduler(max_num_batched_tokens=16))
    world.scheduler.add(Sequence(make_request("first", [*range(20, 28)], params=ENDLESS), 0, None))
    world.scheduler.add(Sequence(whole_open("open", *range(12)), 0, None))
    assert step(world) == [("first", 0, 8)]
    assert sorted(step(world)) == [("first", 8, 9), ("open", 0, 12)]


def test_a_hit_that_ends_inside_a_picture_runs_the_rest_of_it_at_once() -> None:
    world = World(make_scheduler(max_num_batched_tokens=16))
    shown = media_item("p", 10)
    world.scheduler.add(Sequence(pictures_open("a", 1, 2, shown), 0, None))
    assert step(world) == [("a", 0, 12)]
    world.scheduler.finish(world.scheduler.running[0])
    again = Sequence(pictures_open("b", 1, 2, shown), 0, None)
    world.scheduler.add(again)
    assert step(world) == [("b", 8, 12)]
    assert again.num_cached_tokens == 8


def test_prompts_that_see_themselves_share_nothing_unless_they_are_equal() -> None:
    world = World(make_scheduler())
    for name, last, start in (("a", 50, 0), ("b", 51, 0), ("c", 50, 8)):
        world.scheduler.add(Sequence(whole_open(name, *range(11), last), 0, None))
        assert step(world)[-1] == (name, start, 12)
        world.scheduler.finish(world.scheduler.running[-1])


def test_an_open_span_is_not_the_same_as_a_closed_one() -> None:
    closed = Sequence(make_request("a", [*range(12)]), 0, None).full_block_hashes(4)
    partly = Sequence(opened("b", *range(12), spans=((4, 8),)), 0, None).full_block_hashes(4)
    assert closed[0] == partly[0]
    assert not set(closed[1:]) & set(partly[1:])


def test_what_could_never_run_is_refused_at_the_door() -> None:
    engine, _ = make_engine(max_num_batched_tokens=16, encoder_bytes=8 * EMBEDDING_BYTES)
    with pytest.raises(
        PromptTooLongError, match="17 tokens of the prompt see each other.*max_num_batched_tokens is 16"
    ):
        engine.add(whole_open("long", *range(17)))
    with pytest.raises(MediaLimitError, match="needed at once"):
        engine.add(whole_open("pictures", media_item("p", 5), media_item("q", 5)))
    with pytest.raises(PromptError, match="overlap"):
        engine.add(opened("overlap", *range(10), spans=((0, 5), (4, 8))))
    engine.add(whole_open("same twice", media_item("p", 5), media_item("p", 5)))


@pytest.mark.parametrize(
    ("start", "end", "most", "want"),
    [(0, 5, 8, 5), (0, 12, 12, 10), (10, 12, 30, 20), (10, 12, 19, 10), (12, 15, 22, 20), (0, 20, 20, 20)],
)
def test_ends_of_chunks(start: int, end: int, most: int, want: int) -> None:
    assert whole_spans((MediaSpan(10, 10),), start, end, most) == want


def test_a_step_without_memory_is_halved_outside_of_open_spans() -> None:
    sequence = Sequence(opened("a", *range(600), spans=((200, 500),)), 0, None)
    [[first], [second]] = divide([Chunk(sequence, 0, 600, True)], "memory")
    assert (first.end, second.start) == (200, 200)
    assert divide([Chunk(sequence, 200, 500, False)], "memory") == []


def test_pictures_that_are_needed_at_once_are_encoded_in_as_many_steps_as_it_takes() -> None:
    engine, runner = make_engine(max_num_batched_patches=10)
    pictures = [media_item(name, 4, 9) for name in "pqr"]
    asked = whole_open("a", 1, *pictures, 2)
    asked = dataclasses.replace(asked, params=GREEDY)
    outputs = run_all(engine, [asked])
    assert token_ids(outputs["a"]) == expected_tokens(asked, 8)
    assert runner.forwards[0] == [("a", 14)]


def test_a_broken_picture_fails_what_waits_for_it_together_with_others() -> None:
    engine, runner = make_engine(max_num_batched_patches=10)
    runner.bad_pictures = {media_item("q", 4, 9).key}
    asked = dataclasses.replace(whole_open("a", 1, media_item("p", 4, 9), media_item("q", 4, 9), 2), params=GREEDY)
    outputs = run_all(engine, [asked])
    assert [output.finish_reason for output in outputs["a"]] == ["error"]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_every_plan_keeps_open_spans_whole_and_every_request_ends(seed: int) -> None:
    rng = random.Random(seed)
    block_size = rng.choice([1, 2, 4, 8])
    pictures = [media_item(f"p{i}", rng.randint(1, 9), rng.randint(1, 30)) for i in range(3)]
    todo: list[tuple[int, Sequence, int]] = []
    for number in range(rng.randint(1, 8)):
        layout: list[int | MediaItem] = list(range(rng.choice([1, 3, 9])))
        for _ in range(rng.choice([0, 1, 2])):
            layout += [rng.choice(pictures), *range(rng.choice([0, 1, 5]))]
        make = rng.choice([pictures_open, whole_open])
        request = make(f"r{number}", *layout, rng.choice([0, 1]))
        todo.append((rng.randint(0, 20), Sequence(request, 0, None), rng.randint(1, 12)))
    longest = max(sequence.num_tokens + count for _, sequence, count in todo)
    scheduler = make_scheduler(
        num_blocks=-(-longest // block_size) + rng.choice([0, 2, 40]),
        block_size=block_size,
        max_num_seqs=rng.choice([1, 3, 100]),
        max_num_batched_tokens=max(sequence.num_tokens for _, sequence, _ in todo) + rng.choice([0, 3, 30]),
        max_num_batched_patches=rng.choice([1, 20, 200]),
        encoder_bytes=(3 * 9 + rng.choice([0, 100])) * EMBEDDING_BYTES,
        caching=rng.random() < 0.7,
    )
    world, wanted = World(scheduler), {id(sequence): count for _, sequence, count in todo}
    todo.sort(key=lambda one: one[0])
    for number in range(2000):
        while todo and todo[0][0] <= number:
            scheduler.add(todo.pop(0)[1])
        if not todo and not scheduler.has_work():
            break
        plan = scheduler.plan()
        check(world, plan)
        assert plan.chunks or plan.encode or not scheduler.has_work(), "there is work and nothing was planned"
        world.run(plan)
        for chunk in plan.chunks:
            scheduler.launch(chunk)
            scheduler.settle(chunk)
            if chunk.samples:
                grow(chunk.sequence, rng.choice([0, 1]))
                if chunk.sequence.num_generated == wanted[id(chunk.sequence)]:
                    scheduler.finish(chunk.sequence)
        scheduler.pool.check()
    else:
        raise AssertionError("a request starves")
    scheduler.check_idle()
