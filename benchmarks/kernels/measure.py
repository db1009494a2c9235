"""How long one call takes on the card, and how short it could be.

Short calls are timed in a CUDA graph of many of them, as decode steps run them, so that launches cost what they cost
there. Calls go round over enough copies of their inputs that the cache of the card (50 MB) holds none from the round
before; where the real step finds its input in that cache too, as with a few rows of activations, there is one copy.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.limits import Ceilings

COLD_BYTES = 160_000_000
MOST_SETS = 48
RUN_US = 3000.0  # of one measurement
LONG_US = 400.0  # from here on launches cost nothing beside the work
MOST_CALLS = 400
REPEATS = 7

Run = Callable[..., Any]  # run(i, **tunables): one call on set i of the inputs


@dataclass(frozen=True)
class Arms:
    """Ours, and others. `is_pure`: the first of them does the same and calls leave their inputs as they are."""

    ours: Run
    others: Mapping[str, Run] = field(default_factory=dict)
    sets: int = 1
    is_pure: bool = True


@dataclass(frozen=True)
class Case:
    """One call. `num_bytes` have to cross the memory bus at least; inputs live as long as what `build` gives."""

    model: str
    kernel: str
    size: str
    num_bytes: float
    build: Callable[[], Arms]
    flops: float = 0.0

    def floor_us(self, ceilings: Ceilings) -> float:
        return 1e6 * max(self.num_bytes / ceilings.bytes_per_s, self.flops / ceilings.flops_per_s)


def sets_for(num_bytes: float) -> int:
    """How many copies of inputs of this size are more than the card's cache holds."""
    return max(1, min(MOST_SETS, round(COLD_BYTES / num_bytes + 0.5)))


def time_us(run: Callable[[int], object], sets: int) -> float:
    """Median of several measurements."""
    for i in range(3):
        run(i % sets)
    once = min(_with_events(lambda: run(0), 1) for _ in range(3))
    calls = min(MOST_CALLS, max(sets, 3, int(RUN_US / once)))

    def work() -> None:
        for i in range(calls):
            run(i % sets)

    graph = None if once > LONG_US else _captured(work)
    repeat = work if graph is None else graph.replay
    repeat()
    return statistics.median(_with_events(repeat, calls) for _ in range(REPEATS))


def _with_events(work: Callable[[], object], calls: int) -> float:
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    work()
    after.record()
    after.synchronize()
    return 1e3 * float(before.elapsed_time(after)) / calls


def _captured(work: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
    """None where something in it can't be captured, such as a plain twin that asks the device for a number."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            work()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph


def difference(ours: Any, other: Any) -> float:
    """The largest difference of two results, over the largest value."""
    a, b = (x.float() for x in (_tensor(ours), _tensor(other)))
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def _tensor(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[-1]
