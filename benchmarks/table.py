"""The table of the targets in one command: each model in a fresh process, one table, one results file.

    python -m benchmarks.table --models FOLDER FOLDER FOLDER        folders without weights; they are made up
    python -m benchmarks.table --models FOLDER --ablate graphs      what a technique is worth

Columns: the value, its target, the share of the physical limit, what vLLM does (from another day, see
`benchmarks/targets.py`) and how many times better Fovea is. Exit code 1 when a target is missed or a model failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablations import ABLATIONS, ablate
from benchmarks.figure import TIMES, Figure, number, read_figure, times_better
from benchmarks.fresh_process import RunFailed, add_work_arguments, run_offline
from benchmarks.results_file import RESULTS, save
from benchmarks.targets import MODELS, TARGETS, VLLM, WORK

WORKLOADS = "lat,enc,thr,two,txt,rep"
ABOUT = ("date", "commit", "card", "driver", "host", "cores", "fovea", "torch", "transformers")
_VALUES = f"{'model':24}{'figure':28}{'value':>10} {'unit':10}{'target':>11} {'':5}"
HEADER = f"{_VALUES}{'limit':>10}{'share':>6}{'vLLM':>9}{'better':>7}"


def judge(figure: Figure, target: float | None) -> str:
    if target is None:
        return ""
    return "PASS" if times_better(figure.value, target, figure.unit) >= 1 else "MISS"


def row(model: str, figure: Figure, targets: Mapping[str, float], others: Mapping[str, float]) -> str:
    target, other = targets.get(figure.name), others.get(figure.name)
    bound = "" if target is None else f"{'<=' if figure.unit in TIMES else '>='} {number(target)}"
    limit = f"{number(figure.limit):>10}{figure.share:6.0%}" if figure.limit and figure.share else f"{'':16}"
    ratio = f"{number(other):>9}{times_better(figure.value, other, figure.unit):6.2f}x" if other else ""
    start = f"{model:24}{figure.name:28}{number(figure.value):>10} {figure.unit:10}"
    return f"{start}{bound:>11} {judge(figure, target):5}{limit}{ratio}".rstrip()


def is_the_targets_work(args: argparse.Namespace) -> bool:
    return all(getattr(args, name) == wanted for name, wanted in WORK.items())


def table(models: Sequence[Path], args: argparse.Namespace) -> tuple[list[dict[str, Any]], bool]:
    """The models' results, and whether all ran and met their targets. Told after each model: a run may be cut."""
    results: list[dict[str, Any]] = []
    judged, all_good = is_the_targets_work(args), True
    print(HEADER, flush=True)
    for model in models:
        targets, others = (side.get(model.name, {}) if judged else {} for side in (TARGETS, VLLM))
        try:
            result = run_offline(model, args.workloads, args)
        except RunFailed as error:
            print(f"{model.name:24}FAILED: {error}", flush=True)
            all_good = False
            continue
        results.append(result)
        write("table", results, args)
        for figure in map(read_figure, result["figures"]):
            print(row(model.name, figure, targets, others), flush=True)
            all_good &= judge(figure, targets.get(figure.name)) != "MISS"
    if not judged:
        print(f"Nothing is judged: the targets are for {' '.join(f'--{k} {v}' for k, v in WORK.items())}.")
    return results, all_good


def write(what: str, results: Sequence[Mapping[str, Any]], args: argparse.Namespace) -> Path:
    """One file: what is the same for all runs once, then each run's figures."""
    about = {name: results[0][name] for name in ABOUT}
    runs = [{name: value for name, value in result.items() if name not in ABOUT} for result in results]
    return save(what, {**about, "models": runs}, Path(args.results))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).parents[2] / "shared" / "models"
    parser.add_argument("--models", nargs="+", type=Path, default=[shared / name for name in MODELS])
    parser.add_argument("--workloads", default=WORKLOADS, help="as in benchmarks.offline")
    parser.add_argument("--ablate", nargs="+", choices=sorted(ABLATIONS), help="measure with and without these")
    parser.add_argument("--results", default=str(RESULTS), help="folder for the results file")
    add_work_arguments(parser)
    args = parser.parse_args(argv)
    absent = [str(folder) for folder in args.models if not (folder / "config.json").is_file()]
    if absent:
        parser.error(f"no model in {', '.join(absent)}; name folders with --models")
    args.models = [folder.resolve() for folder in args.models]
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    results, all_good = ablate(args.models, args.ablate, args) if args.ablate else table(args.models, args)
    if results:
        print(f"written to {write('ablations' if args.ablate else 'table', results, args)}", file=sys.stderr)
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
