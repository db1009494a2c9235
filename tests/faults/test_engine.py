"""F01, F02, F03, F04, F07, F16, F20: what goes wrong in a step ends the request that causes it and no other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.support import (
    Site,
    about,
    canvas_size,
    faults,
    kv_bytes,
    leave_after_tokens,
    new_picture,
    picture,
    rarely,
    report,
    site,
    until,
)

TOWER_SIZES = {"tower_nan": (140, 84), "tower_error": (84, 140), "tower_memory": (168, 84)}


@pytest.fixture(scope="module")
def broken() -> Iterator[Site]:
    """A server on which each of these faults waits for its word."""
    env = faults(
        "forward_error",
        "sampler_error",
        "memory_error",
        "nan_row",
        "inf_row",
        "leak",
        "lose_abort",
        **{name: canvas_size(new_picture(*size)) for name, size in TOWER_SIZES.items()},
        step_s=0.004,
    )
    with site(env=env) as made:
        yield made


STEP_FAULTS = {
    "forward_error": (500, "request_failed"),
    "sampler_error": (500, "request_failed"),
    "memory_error": (503, "out_of_memory"),
    "nan_row": (500, "numerical_error"),
    "inf_row": (500, "numerical_error"),
}


@pytest.mark.parametrize("stream", rarely([False, True], [False]), ids=["body", "stream"])
@pytest.mark.parametrize("fault", rarely(STEP_FAULTS, ["forward_error", "nan_row", "memory_error"]))
def test_a_request_that_breaks_a_step_fails_alone(broken: Site, fault: str, stream: bool) -> None:
    status, code = STEP_FAULTS[fault]
    with broken.beside():
        answer = broken.ask(about(fault), stream=stream)
    assert (answer.status, answer.code) == (status, code)
    assert (answer.retry_after is not None) == (status == 503)
    if code == "numerical_error":
        assert broken.count("fovea:numerical_errors_total") > 0
    report(f"{fault} stream={stream}", answer=answer.elapsed_s, whole=broken.check_whole())
    assert broken.count("fovea:engine_restarts_total") == 0


@pytest.mark.parametrize("fault", rarely(["nan_row", "inf_row"], ["nan_row"]))
def test_numbers_that_are_none_are_never_cached(broken: Site, fault: str) -> None:
    long = about(fault) + " and describe the picture" * 12
    for _ in range(3):
        assert broken.ask(long).code == "numerical_error"
    assert broken.ask(long, url=picture()).code == "numerical_error"  # the picture was known from neighbours
    broken.check_whole()
    before = broken.count("vllm:prompt_tokens_cached_total"), broken.count("fovea:encoder_cache_hits_total")
    assert broken.ask(long, url=picture()).code == "numerical_error"
    broken.check_whole()
    after = broken.count("vllm:prompt_tokens_cached_total"), broken.count("fovea:encoder_cache_hits_total")
    assert after == before
    good = long.replace(about(fault), about("forward_sleep"))
    first, second = broken.ask(good), broken.ask(good)
    assert first.cached_tokens < second.cached_tokens
    assert first.token_ids == second.token_ids


@pytest.mark.faults
def test_pages_that_held_nan_harm_nobody_who_gets_them(broken: Site) -> None:
    for i in range(12):
        assert broken.ask(f"{i} " + about("nan_row") + " or not" * i).code == "numerical_error"
    with broken.beside():
        assert broken.ask(about("nan_row")).code == "numerical_error"
    broken.check_whole()


TOWER_FAULTS = {
    "tower_nan": (500, "numerical_error"),
    "tower_error": (500, "request_failed"),
    "tower_memory": (503, "out_of_memory"),
}


@pytest.mark.parametrize("fault", rarely(TOWER_FAULTS, ["tower_nan"]))
def test_a_picture_the_tower_fails_on_ends_its_own_request(broken: Site, fault: str) -> None:
    status, code = TOWER_FAULTS[fault]
    bad, good = new_picture(*TOWER_SIZES[fault]), new_picture(112, 112)
    with broken.beside():
        answer = broken.ask("What is this?", url=bad)
    assert (answer.status, answer.code) == (status, code)
    hits = broken.count("fovea:encoder_cache_hits_total")
    assert broken.ask("What is this?", url=bad).code == code  # tried anew: nothing of it was kept
    assert broken.count("fovea:encoder_cache_hits_total") == hits
    assert broken.ask("What is this?", url=good).is_good
    broken.check_whole()


def test_an_abort_that_is_lost_is_sent_again(broken: Site) -> None:
    with broken.beside():
        leave_after_tokens(broken, about("lose_abort"), max_tokens=1500)
        report("lost abort", whole=until(lambda: broken.count("vllm:num_requests_running") <= 8, 10))
    broken.check_whole()


def test_blocks_that_are_lost_are_found_when_nobody_needs_any(broken: Site) -> None:
    with broken.beside():
        assert broken.ask(about("leak")).is_good
    report("leak", whole=broken.check_whole(within_s=10))
    assert "still owned 1 KV blocks" in broken.server.log
    assert broken.count("fovea:idle_repairs_total") == 1
    assert broken.count("fovea:engine_restarts_total") == 0


@pytest.mark.faults
def test_too_little_memory_for_a_step_is_a_step_in_parts(broken: Site) -> None:
    """F04: never more than three sequences or 40 tokens fit; the answers are the same."""
    with site(env=faults(memory_rows=3, memory_tokens=40)) as small:
        assert small.expected == broken.expected
        assert small.count("fovea:engine_retried_steps_total") > 10
        assert small.count("fovea:engine_failed_requests_total") == 0
        small.check_whole()


@pytest.mark.faults
def test_a_full_cache_changes_no_token_and_stops_nothing(broken: Site) -> None:
    """F16: 32 blocks for eight streams that want a hundred: they wait until there is room for their answers."""
    with site(
        "--max-model-len", "512", "--max-num-seqs", "8", "--kv-cache-memory-bytes", str(kv_bytes(num_blocks=32))
    ) as squeezed:
        assert squeezed.count("fovea:kv_blocks") == 32
        assert squeezed.expected == broken.expected
        assert squeezed.count("vllm:num_preemptions_total") == 0
        for _ in range(3):
            with squeezed.beside():
                pass
        squeezed.check_whole()
