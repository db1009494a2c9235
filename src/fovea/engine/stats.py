"""Counts of what an engine has done, and how full it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fovea.engine.encoder_cache import EncoderCache
from fovea.engine.runner import StepRunner
from fovea.engine.scheduler import Scheduler


@dataclass(slots=True)
class EngineStats:
    """What the engine has done so far."""

    num_steps: int = 0
    num_overlapped_steps: int = 0
    num_tokens: int = 0
    num_generated_tokens: int = 0
    num_pictures_encoded: int = 0
    num_failed_requests: int = 0
    num_retried_steps: int = 0
    num_numerical_errors: int = 0
    num_idle_repairs: int = 0


def counters(
    stats: EngineStats, scheduler: Scheduler, cache: EncoderCache[Any], runner: StepRunner
) -> dict[str, float]:
    """What was done since the start, and how full things are now, by name."""
    return {
        **asdict(stats),
        **asdict(scheduler.stats),
        "num_running": len(scheduler.running),
        "num_waiting": len(scheduler.waiting),
        "kv_blocks_total": scheduler.pool.num_blocks,
        "kv_blocks_free": scheduler.pool.num_free,
        "encoder_cache_bytes": cache.used_bytes,
        "encoder_cache_capacity_bytes": cache.capacity_bytes,
        "encoder_cache_hits": cache.num_hits,
        "encoder_cache_misses": cache.num_misses,
        "num_graph_steps": runner.num_graph_steps,
        "num_prompt_graph_steps": runner.num_prompt_graph_steps,
        "num_eager_steps": runner.num_eager_steps,
        "num_eager_decodes": runner.num_eager_decodes,
        "num_late_kernels": runner.num_late_kernels,
    }
