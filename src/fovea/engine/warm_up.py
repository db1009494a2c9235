"""What a GPU does for the first time takes long: kernels are compiled, libraries make plans. So it is done at start.

Everything is run once without kernels, to learn which there are; they are compiled side by side, and the decode graphs
captured. Then one request with a picture goes through the engine as a user's would, and nothing of it stays.
"""

from __future__ import annotations

import time

import numpy as np

from fovea.core.config import EngineConfig
from fovea.core.log import logger
from fovea.core.params import SamplingParams
from fovea.core.types import EngineRequest, MediaItem, MediaSpan
from fovea.engine.loop import Engine
from fovea.engine.runner import Runner
from fovea.families.base import Family
from fovea.kernels.rehearsal import compile_kernels, on_compile

SIDE_PX = 101  # no model takes it as it is: the picture has to be resized
NUM_TEXT_TOKENS, NUM_ANSWER_TOKENS = 20, 4


def warm_up(engine: Engine, runner: Runner, family: Family, config: EngineConfig) -> None:
    started = time.perf_counter()
    request = _request(engine, family, config)

    def rehearse() -> None:
        runner.rehearse_graphs()
        runner.rehearse_draw()
        runner.rehearse_rows()
        _run(engine, request)

    num_kernels = compile_kernels(rehearse)
    logger.info("compiled %d kernels in %.1f s", num_kernels, time.perf_counter() - started)
    runner.capture_graphs()
    _run(engine, request)
    runner.forget_counts()
    on_compile(runner.count_late_kernel)
    logger.info("warmed up in %.1f s", time.perf_counter() - started)


def _run(engine: Engine, request: EngineRequest) -> None:
    engine.add(request)
    while engine.has_work():
        engine.step()
    engine.forget_past()


def _request(engine: Engine, family: Family, config: EngineConfig) -> EngineRequest:
    """A small picture and some text; text alone where there is no tower, or no room for the smallest picture."""
    params = SamplingParams(temperature=0.0, max_tokens=NUM_ANSWER_TOKENS)
    if not family.spec.takes_pictures:
        return _text(min(NUM_TEXT_TOKENS, engine.plan.max_model_len // 2), params)
    plan = family.plan_image(SIDE_PX, SIDE_PX, family.check_options(config.mm_processor_kwargs))
    num_tokens = plan.num_tokens + NUM_TEXT_TOKENS
    if num_tokens + NUM_ANSWER_TOKENS > engine.plan.max_model_len:
        return _text(engine.plan.max_model_len // 2, params)
    span = MediaSpan(1, plan.num_tokens)
    positions, delta = family.positions(num_tokens, [span], [plan.grid])
    pixels = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    item = MediaItem(b"warm-up", plan.num_tokens, plan.num_patches, plan.grid, pixels=pixels, plan=plan)
    return EngineRequest(
        request_id="warm-up",
        token_ids=(0,) * num_tokens,
        params=params,
        stop_token_ids=frozenset(),
        spans=(span,),
        media=(item,),
        positions=positions,
        position_delta=delta,
        open_spans=family.open_spans(num_tokens, [span]),
    )


def _text(num_tokens: int, params: SamplingParams) -> EngineRequest:
    return EngineRequest("warm-up", (0,) * num_tokens, params, frozenset())
