"""F03, F04, F06, F20 in the engine's own loop, with a runner that obeys: what is retried, forgotten, repaired."""

from __future__ import annotations

import pytest
import torch

from fovea.core.errors import PromptError, RequestFailedError, UnavailableError
from fovea.engine.failures import EngineBrokenError, classify
from fovea.engine.loop import Engine, Forward
from fovea.engine.runner import Launched
from fovea.engine.scheduler import Chunk
from fovea.engine.sequence import Sequence
from tests.engine.fakes import VOCABULARY, expected_tokens, make_engine, make_request, media_item, run_all, token_ids

REQUESTS = [make_request(name, range(start, start + 20)) for start, name in enumerate("abcdef")]


def out_of_memory_above(engine: Engine, num_tokens: int) -> list[int]:
    """Forwards of more tokens fail; the sizes that ran."""
    ran: list[int] = []

    def wrap(forward: Forward) -> Forward:
        def limited(chunks: list[Chunk]) -> Launched:
            size = sum(chunk.num_tokens for chunk in chunks)
            if size > num_tokens:
                raise torch.OutOfMemoryError("CUDA out of memory")
            ran.append(size)
            return forward(chunks)

        return limited

    engine.wrap_forward(wrap)
    return ran


@pytest.mark.parametrize("limit", [31, 40, 63])
def test_a_step_that_does_not_fit_is_done_in_parts(limit: int) -> None:
    engine, _ = make_engine(max_num_batched_tokens=64)
    long = make_request("long", range(100))
    ran = out_of_memory_above(engine, limit)
    outputs = run_all(engine, [*REQUESTS, long])
    for request in [*REQUESTS, long]:
        assert token_ids(outputs[request.request_id]) == expected_tokens(request, 8)
    assert max(ran) <= limit
    assert not engine.stats.num_failed_requests


def test_a_request_too_large_for_memory_alone_is_turned_away_and_others_go_on() -> None:
    engine, _ = make_engine()
    out_of_memory_above(engine, 22)
    outputs = run_all(engine, [make_request("large", range(25)), *REQUESTS])
    assert isinstance(outputs["large"][-1].error, UnavailableError)
    for request in REQUESTS:
        assert token_ids(outputs[request.request_id]) == expected_tokens(request, 8)


def test_numbers_that_are_none_leave_nothing_behind() -> None:
    engine, runner = make_engine(num_blocks=64)
    shared = tuple(range(200, 240))
    assert len(run_all(engine, [make_request("good", shared)])["good"]) == 8
    runner.not_finite = {"bad"}
    outputs = run_all(engine, [make_request("bad", (*shared, *range(500, 540))), *REQUESTS])
    error = outputs["bad"][-1].error
    assert isinstance(error, RequestFailedError)
    assert error.code == "numerical_error"
    assert engine.stats.num_numerical_errors == 1
    assert runner.cleared
    assert all(not engine.scheduler.pool.find([digest]) for digest in hashes_of(shared))
    for request in REQUESTS:
        assert token_ids(outputs[request.request_id]) == expected_tokens(request, 8)


def hashes_of(token_ids_: tuple[int, ...]) -> list[bytes]:
    return Sequence(make_request("any", token_ids_), 0, None).full_block_hashes(4)


def test_blocks_that_others_use_are_not_cleared_under_them() -> None:
    engine, runner = make_engine(num_blocks=64)
    shared = tuple(range(16))
    engine.add(make_request("healthy", (*shared, 1, 2, 3)))
    engine.step()
    runner.not_finite = {"bad"}
    engine.add(make_request("bad", (*shared, 7, 8, 9)))
    outputs = [output for _ in range(12) if engine.has_work() for output in engine.step()]
    assert [o.request_id for o in outputs if o.error is not None] == ["bad"]
    healthy = expected_tokens(make_request("healthy", (*shared, 1, 2, 3)), 8)
    assert token_ids([o for o in outputs if o.request_id == "healthy"]) == healthy[1:]


def test_a_picture_with_embeddings_that_are_not_finite_ends_those_who_show_it() -> None:
    engine, runner = make_engine()
    bad = media_item("bad", 4)
    runner.broken_pictures = [bad.key]
    outputs = run_all(engine, [make_request("bad", (1, bad, 2)), *REQUESTS])
    assert outputs["bad"][-1].error is not None
    assert outputs["bad"][-1].error.code == "numerical_error"
    assert bad.key not in engine.scheduler.encoder_cache
    for request in REQUESTS:
        assert token_ids(outputs[request.request_id]) == expected_tokens(request, 8)


@pytest.mark.parametrize("is_sound", [True, False])
def test_a_model_that_gives_nothing_finite_any_more_is_told_from_bad_requests(is_sound: bool) -> None:
    engine, runner = make_engine()
    runner.sound = is_sound
    runner.not_finite = {f"bad {i}" for i in range(3)}
    for i in range(3):
        assert run_all(engine, [make_request(f"bad {i}", (i, 2, 3))])[f"bad {i}"][-1].error is not None
    engine.add(make_request("next", (1, 2, 3)))
    if is_sound:
        assert len([engine.step() for _ in range(8)]) == 8
    else:
        with pytest.raises(EngineBrokenError):
            engine.step()


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (RuntimeError("shape mismatch"), "request"),
        (torch.OutOfMemoryError("CUDA out of memory"), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "memory"),
        (torch.AcceleratorError("CUDA error: out of memory"), "memory"),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), "device"),
        (RuntimeError("Triton Error [CUDA]: device-side assert triggered"), "device"),
    ],
)
def test_what_an_exception_means(error: Exception, trouble: str) -> None:
    assert classify(error) == trouble


def test_a_lost_device_is_not_tried_again() -> None:
    engine, _ = make_engine()
    calls = 0

    def lose(_forward: Forward) -> Forward:
        def lost(_chunks: list[Chunk]) -> Launched:
            nonlocal calls
            calls += 1
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

        return lost

    engine.wrap_forward(lose)
    for request in REQUESTS:
        engine.add(request)
    with pytest.raises(EngineBrokenError):
        engine.step()
    assert calls == 1


def test_an_idle_engine_that_is_not_whole_is_repaired_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    engine, _ = make_engine()
    assert engine.scheduler.pool.take(3) is not None
    engine.add(REQUESTS[0])
    while engine.has_work():
        engine.step()
    engine.scheduler.check_idle()
    assert engine.stats.num_idle_repairs == 1
    assert "still owned 3 KV blocks" in caplog.text
    again = run_again(engine)
    assert again == expected_tokens(REQUESTS[0], 8)


def run_again(engine: Engine) -> list[int]:
    engine.add(REQUESTS[0])
    outputs = []
    while engine.has_work():
        outputs += engine.step()
    return token_ids(outputs)


@pytest.mark.parametrize("wrong", [-1, VOCABULARY])
def test_ids_outside_the_vocabulary_never_reach_the_model(wrong: int) -> None:
    engine, _ = make_engine()
    with pytest.raises(PromptError):
        engine.add(make_request("wrong", (1, wrong)))
    assert not engine.has_work()
