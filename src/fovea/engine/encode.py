"""Pictures through the tower: all together, and if that fails one by one, so that a picture fails alone."""

from __future__ import annotations

from fovea.core.errors import RequestError, RequestFailedError
from fovea.core.types import MediaItem
from fovea.engine.failures import Trouble, free_memory, judge, out_of_memory
from fovea.engine.runner import StepRunner
from fovea.engine.stats import EngineStats


def encode_pictures(
    items: list[MediaItem], runner: StepRunner, stats: EngineStats
) -> tuple[float, dict[bytes, RequestError]]:
    """Seconds, and why some can't be encoded, by their keys. Raises EngineBrokenError if the device is lost."""
    trouble: Trouble | None = None
    try:
        elapsed_s = runner.encode(items)
    except Exception as error:  # the boundary between one picture and the rest
        trouble = judge(error, f"encoding {len(items)} pictures")
    if trouble is not None:  # outside of the except block, whose exception keeps the tensors alive
        stats.num_retried_steps += 1
        return 0.0, _encode_singly(items, runner, stats)
    stats.num_pictures_encoded += len(items)
    return elapsed_s, {}


def _encode_singly(items: list[MediaItem], runner: StepRunner, stats: EngineStats) -> dict[bytes, RequestError]:
    broken: dict[bytes, RequestError] = {}
    free_memory()
    for item in items:
        try:
            runner.encode([item])
            stats.num_pictures_encoded += 1
        except Exception as error:  # the boundary of one picture
            is_memory = judge(error, "encoding a picture") == "memory"
            failed = RequestFailedError("A picture of this request could not be encoded.")
            broken[item.key] = out_of_memory() if is_memory else failed
    return broken
