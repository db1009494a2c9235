"""What one technique is worth: the same work in fresh processes with it and, by one option, without it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figure import number, read_figure, times_better
from benchmarks.fresh_process import RunFailed, run_offline

# What takes the technique away. One patch as the budget means one picture at a time: a larger one is encoded alone.
ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "graphs": {"enforce_eager": True},
    "overlap": {"overlap_scheduling": False},
    "encoder_batching": {"max_num_batched_patches": 1},
    "gpu_preprocessing": {"resize_on_device": False},
}
WORKLOADS = "lat,enc,thr"
SHOWN = ("TTFT, one picture", "decode alone", "pictures, one token out", "requests,")


def ablate(models: Sequence[Path], names: Sequence[str], args: argparse.Namespace) -> tuple[list[dict[str, Any]], bool]:
    """The runs, all of which are to be kept, and whether every one of them worked. Prints the table as it grows."""
    runs, all_ran = [], True
    print(f"{'model':24}{'without':20}{'figure':26}{'with':>10}{'without':>10} {'unit':10}{'worth':>6}")
    for model in models:
        whole: dict[str, Any] | None = None
        for name in ("", *names):
            try:
                run = run_offline(model, WORKLOADS, args, ABLATIONS[name] if name else None)
            except RunFailed as error:
                print(f"{model.name:24}{name or 'nothing':20}FAILED: {error}", flush=True)
                all_ran = False
                continue
            runs.append({**run, "without": name})
            if whole is None and not name:
                whole = run
            elif whole is not None:
                print("\n".join(_rows(model.name, name, whole, run)), flush=True)
    return runs, all_ran


def _rows(model: str, name: str, whole: Mapping[str, Any], less: Mapping[str, Any]) -> list[str]:
    rows = []
    for one, other in zip(map(read_figure, whole["figures"]), map(read_figure, less["figures"]), strict=True):
        if one.name.startswith(SHOWN):
            worth = times_better(one.value, other.value, one.unit)
            values = f"{number(one.value):>10}{number(other.value):>10} {one.unit:10}{worth:5.2f}x"
            rows.append(f"{model:24}{name:20}{one.name:26}{values}")
    return rows
