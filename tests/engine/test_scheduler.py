"""The scheduler: promises to the runner hold in every plan, and every request comes to an end."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea.core.params import SamplingParams
from fovea.core.types import MediaItem
from fovea.engine.scheduler import Scheduler, StepPlan, most_blocks_ahead
from fovea.engine.sequence import Sequence
from tests.engine.fakes import (
    EMBEDDING_BYTES,
    GREEDY,
    VOCABULARY,
    World,
    grow,
    make_engine,
    make_request,
    make_scheduler,
    media_item,
    run_all,
    token_ids,
)

ENDLESS = SamplingParams(temperature=0.0, max_tokens=None)


def add(scheduler: Scheduler, name: str, *layout: int | MediaItem) -> Sequence:
    sequence = Sequence(make_request(name, layout, params=ENDLESS), 0, None)
    scheduler.add(sequence)
    return sequence


def step(world: World) -> StepPlan:
    """Plan, check, compute; every sequence that reached its end gets the token 1."""
    plan = world.scheduler.plan()
    world.check(plan)
    world.run(plan)
    for chunk in plan.chunks:
        world.scheduler.launch(chunk)
        world.scheduler.settle(chunk)
        if chunk.samples:
            grow(chunk.sequence, 1)
    return plan


def shape(plan: StepPlan) -> list[tuple[str, int, int]]:
    return [(chunk.sequence.request.request_id, chunk.start, chunk.end) for chunk in plan.chunks]


def test_a_long_prompt_is_split_and_samples_once_at_its_end() -> None:
    world = World(make_scheduler(max_num_batched_tokens=16))
    add(world.scheduler, "a", *range(40))
    plans = [step(world) for _ in range(4)]
    assert [shape(plan) for plan in plans] == [[("a", 0, 16)], [("a", 16, 32)], [("a", 32, 40)], [("a", 40, 41)]]


def test_a_prompt_that_another_is_being_computed_for_waits_for_its_blocks() -> None:
    """Sixty-four questions about one picture: its tokens are computed once, not for all that fit into the step."""
    world = World(make_scheduler(max_num_batched_tokens=400, num_blocks=200))
    for name, question in (("a", 90), ("b", 91), ("c", 92)):
        add(world.scheduler, name, *range(80), question)
    add(world.scheduler, "other", *range(100, 180))
    assert shape(step(world)) == [("a", 0, 81), ("other", 0, 80)]
    assert shape(step(world)) == [("a", 81, 82), ("other", 80, 81), ("b", 80, 81), ("c", 80, 81)]


def test_a_prompt_that_arrives_while_its_beginning_is_in_flight_waits_for_it_too() -> None:
    """The second question about a picture came a step after the first, found nothing settled, and computed it again."""
    scheduler = make_scheduler(max_num_batched_tokens=400, num_blocks=200)
    add(scheduler, "a", *range(80), 90)
    flight = scheduler.plan()
    for chunk in flight.chunks:
        scheduler.launch(chunk)
        chunk.sequence.expect(0)
    add(scheduler, "b", *range(80), 91)
    assert shape(scheduler.plan()) == [("a", 81, 82)]
    for chunk in flight.chunks:
        scheduler.settle(chunk)
    assert ("b", 80, 81) in shape(scheduler.plan())


def test_a_short_common_beginning_is_not_waited_for() -> None:
    world = World(make_scheduler(max_num_batched_tokens=400, num_blocks=200))
    add(world.scheduler, "a", *range(70), *range(100, 180))
    add(world.scheduler, "b", *range(70), *range(200, 280))
    assert [name for name, _, _ in shape(step(world))] == ["a", "b"]


def test_nothing_waits_for_blocks_when_nothing_else_would_run() -> None:
    """The step that was to compute them failed: its blocks never come."""
    scheduler = make_scheduler(max_num_batched_tokens=400, num_blocks=200)
    first, second = add(scheduler, "a", *range(80), 90), add(scheduler, "b", *range(80), 91)
    assert [chunk.sequence for chunk in scheduler.plan().chunks] == [first]
    scheduler.finish(first)
    assert [chunk.sequence for chunk in scheduler.plan().chunks] == [second]


def test_no_more_run_than_can_go_on_to_their_end() -> None:
    """Prompts fill the pool at once, but their answers would not fit: admitting all costs preemptions."""
    options: dict[str, Any] = {"num_blocks": 100, "max_num_seqs": 64, "max_num_batched_tokens": 200}
    engine, _ = make_engine(max_model_len=400, ahead_tokens=256, **options)
    requests = [
        make_request(f"r{i}", [i, *range(30)], params=dataclasses.replace(GREEDY, max_tokens=60)) for i in range(20)
    ]
    outputs = run_all(engine, requests)
    assert all(len(token_ids(got)) == 60 for got in outputs.values())
    assert engine.scheduler.stats.num_preemptions == 0
    assert engine.stats.num_steps < 8 * 60, "as many as fit run side by side: four of 23 blocks in 100"


def test_prompts_that_wait_for_their_pictures_are_counted_as_long_as_they_will_be() -> None:
    """A step encodes one picture; of ten more requests it took the two tokens before theirs, and all ten ran."""
    options: dict[str, Any] = {"num_blocks": 60, "max_num_seqs": 64, "max_num_batched_tokens": 200}
    engine, _ = make_engine(ahead_tokens=256, max_num_batched_patches=40, encoder_bytes=10**6, **options)
    params = dataclasses.replace(GREEDY, max_tokens=20)
    requests = [make_request(f"r{i}", [i, 1, media_item(f"p{i}", 40), 2], params=params) for i in range(12)]
    outputs = run_all(engine, requests)
    assert all(len(token_ids(got)) == 20 for got in outputs.values())
    assert engine.scheduler.stats.num_preemptions == 0
    assert engine.stats.num_steps < 5 * 26, "three of 16 blocks run side by side"


def test_the_worst_moment_is_before_an_end() -> None:
    short, long = (
        Sequence(make_request("r", range(40), params=dataclasses.replace(GREEDY, max_tokens=n)), 0, None)
        for n in (8, 80)
    )
    assert most_blocks_ahead([short], 100, 4) == 2.5
    assert most_blocks_ahead([short, long], 100, 4) == max(2 * 2.5, 20.5 - 10)
    assert most_blocks_ahead([long, long], 100, 4) == 2 * 20.5
    assert most_blocks_ahead([long, long], 20, 4) == 2 * 5.5


def test_running_requests_go_before_waiting_ones_and_decode_chunks_come_first() -> None:
    world = World(make_scheduler(max_num_batched_tokens=16))
    add(world.scheduler, "a", *range(10))
    step(world)
    add(world.scheduler, "b", *range(50, 90))
    assert shape(step(world)) == [("a", 10, 11), ("b", 0, 15)]
    add(world.scheduler, "c", 7)
    assert shape(step(world)) == [("a", 11, 12), ("b", 15, 30)]
    assert shape(step(world)) == [("a", 12, 13), ("c", 0, 1), ("b", 30, 40)]


def test_no_more_sequences_run_than_permitted_and_the_next_starts_when_one_ends() -> None:
    world = World(make_scheduler(max_num_seqs=2))
    first = add(world.scheduler, "a", 1, 2, 3)
    for name in "bc":
        add(world.scheduler, name, 4, 5)
    assert [name for name, _, _ in shape(step(world))] == ["a", "b"]
    world.scheduler.finish(first)
    assert [name for name, _, _ in shape(step(world))] == ["b", "c"]


def test_equal_beginnings_are_computed_once() -> None:
    world = World(make_scheduler(block_size=4))
    add(world.scheduler, "a", *range(11))
    step(world)
    late = add(world.scheduler, "b", *range(11))
    assert ("b", 8, 11) in shape(step(world))
    assert late.num_cached_tokens == 8
    assert world.scheduler.stats.num_cached_tokens == 8


def test_at_least_the_last_token_is_computed() -> None:
    world = World(make_scheduler(block_size=4))
    add(world.scheduler, "a", *range(8))
    step(world)
    add(world.scheduler, "b", *range(8))
    assert ("b", 4, 8) in shape(step(world))


def test_when_blocks_run_out_the_youngest_gives_way_and_comes_back_first() -> None:
    world = World(make_scheduler(num_blocks=4, block_size=4, caching=False))
    old, young = add(world.scheduler, "old", *range(7)), add(world.scheduler, "young", *range(20, 27))
    step(world)
    step(world)
    assert len(old.blocks) == len(young.blocks) == 2
    add(world.scheduler, "waiting", 1)
    assert [name for name, _, _ in shape(step(world))] == ["old"]
    assert world.scheduler.stats.num_preemptions == young.num_preemptions == 1
    assert young.token_ids == [*range(20, 27), 1, 1]
    assert world.scheduler.waiting[0] is young
    world.scheduler.finish(old)
    assert shape(step(world))[-1] == ("young", 0, 9)


def test_a_request_that_is_alone_never_preempts_itself_while_its_blocks_suffice() -> None:
    world = World(make_scheduler(num_blocks=4, block_size=4))
    add(world.scheduler, "a", *range(10))
    for _ in range(6):
        step(world)
    assert world.scheduler.stats.num_preemptions == 0


def test_a_picture_is_encoded_with_the_first_chunk_that_needs_it() -> None:
    world = World(make_scheduler(max_num_batched_tokens=16))
    picture = media_item("p", 10)
    add(world.scheduler, "a", *range(20), picture, *range(5))
    assert step(world).encode == []
    assert step(world).encode == [picture]
    assert step(world).encode == []
    assert picture.key in world.scheduler.encoder_cache


def test_embeddings_are_kept_until_the_last_of_their_positions_is_computed() -> None:
    world = World(make_scheduler(max_num_batched_tokens=16))
    sequence = add(world.scheduler, "a", 1, 2, media_item("p", 40))
    held = []
    for _ in range(3):
        step(world)
        held.append(bool(sequence.held_media))
    assert held == [True, True, False]


def test_pictures_wait_for_the_patch_budget_and_text_before_them_goes_on() -> None:
    world = World(make_scheduler(max_num_batched_patches=10))
    one, two = media_item("1", 4, 8), media_item("2", 4, 8)
    add(world.scheduler, "a", 1, one, 2, 3, two, 4)
    plan = step(world)
    assert (plan.encode, shape(plan)) == ([one], [("a", 0, 7)])
    plan = step(world)
    assert (plan.encode, shape(plan)) == ([two], [("a", 7, 12)])


def test_a_picture_larger_than_the_patch_budget_is_encoded_alone() -> None:
    world = World(make_scheduler(max_num_batched_patches=10))
    large, small = media_item("large", 4, 50), media_item("small", 4, 2)
    add(world.scheduler, "a", large, 1)
    add(world.scheduler, "b", small, 1)
    assert step(world).encode == [large]
    assert step(world).encode == [small]


def test_pictures_wait_for_room_among_the_embeddings() -> None:
    world = World(make_scheduler(encoder_bytes=10 * EMBEDDING_BYTES, max_num_batched_tokens=16))
    one, two = media_item("1", 10), media_item("2", 10)
    add(world.scheduler, "a", *range(9), one, 1)
    add(world.scheduler, "b", two, 1)
    plan = step(world)
    assert (plan.encode, shape(plan)) == ([one], [("a", 0, 16)])
    plan = step(world)
    assert (plan.encode, shape(plan)) == ([], [("a", 16, 20)]), "the first picture is still held"
    plan = step(world)
    assert (plan.encode, shape(plan)) == ([two], [("a", 20, 21), ("b", 0, 11)])


def test_one_picture_of_several_requests_is_encoded_once() -> None:
    world = World(make_scheduler())
    picture = media_item("p", 4)
    sequences = [add(world.scheduler, name, number, picture) for number, name in enumerate("abc")]
    assert step(world).encode == [picture]
    assert [sequence.media_hits for sequence in sequences] == [[False], [True], [True]]


def test_embeddings_of_the_caller_are_never_encoded() -> None:
    world = World(make_scheduler(encoder_bytes=0))
    add(world.scheduler, "a", 1, media_item("p", 4, embeds=True), 2)
    plan = step(world)
    assert plan.encode == []
    assert shape(plan) == [("a", 0, 6)]


def test_a_picture_covered_by_the_prefix_cache_is_not_encoded_again() -> None:
    world = World(make_scheduler(block_size=4))
    picture = media_item("p", 6)
    first = add(world.scheduler, "a", 1, 2, picture, *range(5))
    step(world)
    world.scheduler.finish(first)
    world.scheduler.encoder_cache.clear_idle()
    add(world.scheduler, "b", 1, 2, picture, *range(5))
    plan = step(world)
    assert plan.encode == []
    assert shape(plan) == [("b", 12, 13)]


def test_outgrowing_the_rotary_regime_starts_anew_in_the_next() -> None:
    world = World(make_scheduler(block_size=4, switch=10))
    sequence = add(world.scheduler, "a", *range(9))
    assert shape(step(world)) == [("a", 0, 9)]
    assert shape(step(world)) == [("a", 9, 10)]
    assert shape(step(world)) == [("a", 0, 11)]
    assert sequence.regime == 1
    assert shape(step(world)) == [("a", 11, 12)]
    assert world.scheduler.stats.num_regime_changes == 1
    assert world.scheduler.stats.num_preemptions == 0


def test_a_prompt_above_the_switch_begins_in_the_second_regime() -> None:
    world = World(make_scheduler(switch=10))
    sequence = add(world.scheduler, "a", *range(11))
    step(world)
    assert sequence.regime == 1
    assert world.scheduler.stats.num_regime_changes == 0


def test_finishing_a_waiting_or_running_sequence_frees_all_it_has() -> None:
    world = World(make_scheduler(max_num_seqs=1))
    running = add(world.scheduler, "a", 1, media_item("p", 4), 2)
    waiting = add(world.scheduler, "b", 1)
    step(world)
    world.scheduler.finish(waiting)
    world.scheduler.finish(running)
    world.scheduler.check_idle()


def test_an_idle_check_notices_what_is_left() -> None:
    world = World(make_scheduler())
    add(world.scheduler, "a", 1)
    with pytest.raises(AssertionError):
        world.scheduler.check_idle()


@dataclass
class Arrival:
    step: int
    sequence: Sequence
    num_answer_tokens: int
    abort_after: int | None


def random_world(rng: random.Random) -> tuple[World, list[Arrival]]:
    block_size = rng.choice([1, 2, 4, 8])
    max_tokens = rng.choice([1, 3, 16, 40])
    pictures = [media_item(f"p{i}", rng.randint(1, 12), rng.randint(1, 30)) for i in range(4)]
    pictures.append(media_item("own rows", rng.randint(1, 12), 0, embeds=True))
    arrivals = []
    for number in range(rng.randint(1, 12)):
        layout: list[int | MediaItem] = list(range(rng.choice([0, 1, 3, 9, 17])))
        for _ in range(rng.choice([0, 0, 1, 3])):
            layout += [rng.choice(pictures), *range(rng.choice([0, 1, 5]))]
        layout += [rng.choice([0, 1, 2])]
        request = make_request(f"r{number}", layout, params=ENDLESS, salt=rng.choice([b"", b"", b"s"]))
        abort_after = rng.randint(0, 12) if rng.random() < 0.2 else None
        arrivals.append(Arrival(rng.randint(0, 30), Sequence(request, 0, None), rng.randint(1, 20), abort_after))
    longest = max(arrival.sequence.num_tokens + arrival.num_answer_tokens for arrival in arrivals)
    largest = max((item.num_tokens for item in pictures), default=0)
    scheduler = make_scheduler(
        num_blocks=-(-longest // block_size) + rng.choice([0, 1, 4, 40]),
        block_size=block_size,
        max_num_seqs=rng.choice([1, 2, 5, 100]),
        max_num_batched_tokens=max_tokens,
        max_num_batched_patches=rng.choice([1, 20, 200]),
        encoder_bytes=(largest + rng.choice([0, 5, 100])) * EMBEDDING_BYTES,
        caching=rng.random() < 0.7,
        switch=rng.choice([None, None, 7, 20]),
    )
    return World(scheduler), arrivals


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_every_plan_keeps_its_promises_and_every_request_ends(seed: int) -> None:
    rng = random.Random(seed)
    world, arrivals = random_world(rng)
    scheduler = world.scheduler
    live: dict[int, Arrival] = {}
    todo = sorted(arrivals, key=lambda arrival: arrival.step)
    num_steps = 0
    while todo or live:
        num_steps += 1
        assert num_steps < 4000, "a request starves"
        while todo and todo[0].step <= num_steps:
            arrival = todo.pop(0)
            live[id(arrival.sequence)] = arrival
            scheduler.add(arrival.sequence)
        for key, arrival in list(live.items()):
            if arrival.abort_after is not None and arrival.abort_after < num_steps - arrival.step:
                scheduler.finish(arrival.sequence)
                del live[key]
        plan = scheduler.plan()
        world.check(plan)
        assert plan.chunks or not live, "there is work and nothing was planned"
        world.run(plan)
        for chunk in plan.chunks:
            sequence = chunk.sequence
            scheduler.launch(chunk)
            scheduler.settle(chunk)
            if not chunk.samples:
                continue
            grow(sequence, rng.choice([0, 1, rng.randrange(VOCABULARY)]))
            if sequence.num_generated == live[id(sequence)].num_answer_tokens:
                scheduler.finish(sequence)
                del live[id(sequence)]
        scheduler.pool.check()
    scheduler.check_idle()
