"""Every kernel at the sizes of the three models: its time, the physical limit, and what else does the same.

    python -m benchmarks.kernels                                        all of them, some minutes on one card
    python -m benchmarks.kernels --only paged_ segment_ --models qwen   those whose names begin so
    python -m benchmarks.kernels --only segment_attention --sweep tile=128/64/4/3,128/128/8/2 padded=False,True

A sweep times a kernel with each combination of its keywords, best first; a tile is its numbers with slashes between.
The share is of the limit: bytes over the measured bandwidth of a copy or operations over the measured rate of a matrix
product, whichever takes longer. `differs` is the largest difference to the first of the others.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.figure import Figure, number
from benchmarks.limits import Ceilings, measure
from benchmarks.results_file import RESULTS, about_run, save

if TYPE_CHECKING:
    from benchmarks.kernels.measure import Arms, Case

MODELS = ("qwen", "llava", "phi")
NO_CARD = 2
LEAST_FLOOR_US = 0.3  # below it a share of the limit says nothing: the launch is what costs
HEADER = f"{'model':7}{'kernel':19}{'size':26}{'us':>9}{'limit':>9}{'share':>7}{'differs':>9}  others, us (times ours)"


def value(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    return tuple(map(int, text.split("/"))) if "/" in text else int(text)


def combinations(sweep: Sequence[str]) -> list[dict[str, Any]]:
    """Of `name=value,value` texts."""
    named = [text.split("=", 1) for text in sweep]
    columns = [[(name, value(choice)) for choice in choices.split(",")] for name, choices in named]
    return [dict(chosen) for chosen in itertools.product(*columns)]


def all_cases(models: Sequence[str], only: Sequence[str]) -> Iterator[Case]:
    from benchmarks.kernels import decoder, fp8, shapes, tower

    for model in shapes.MODELS:
        if model.name in models:
            for case in (*decoder.cases(model), *fp8.cases(model), *tower.cases(model)):
                if not only or case.kernel.startswith(tuple(only)):
                    yield case


def attempt(arms: Arms, run: Any, **options: Any) -> float | str:
    """Microseconds, or why it does not run: a sweep meets tiles that do not fit."""
    from benchmarks.kernels.measure import time_us

    try:
        return time_us(lambda i: run(i, **options), arms.sets)
    except Exception as error:  # whatever a compiler or a library raises
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}" if str(error) else type(error).__name__


def line(case: Case, ceilings: Ceilings) -> tuple[str, Figure | None]:
    """A row of the table, and the figure it says."""
    from benchmarks.kernels.measure import difference

    arms = case.build()
    ours = attempt(arms, arms.ours)
    start = f"{case.model:7}{case.kernel:19}{case.size:26}"
    if isinstance(ours, str):
        return f"{start}{ours}", None
    floor = case.floor_us(ceilings)
    figure = Figure(f"{case.kernel}, {case.size}", ours, "us", limit=floor)
    share = f"{figure.share:7.0%}" if floor >= LEAST_FLOOR_US and figure.share else f"{'':7}"
    others = {name: attempt(arms, run) for name, run in arms.others.items()}
    differs = ""
    if arms.is_pure and others and not isinstance(next(iter(others.values())), str):
        differs = f"{difference(arms.ours(0), next(iter(arms.others.values()))(0)):.1e}"
    figure.more = {
        "gb_s": round(case.num_bytes / ours / 1e3, 1),
        "tflop_s": round(case.flops / ours / 1e6, 1),
        **others,
    }
    said = ", ".join(
        f"{name} {other}" if isinstance(other, str) else f"{name} {number(other)} ({other / ours:.2f}x)"
        for name, other in others.items()
    )
    return f"{start}{number(ours):>9}{number(floor):>9}{share}{differs:>9}  {said}".rstrip(), figure


def sweep(case: Case, chosen: Sequence[dict[str, Any]]) -> list[str]:
    arms = case.build()
    usual = attempt(arms, arms.ours)
    lines = [f"{case.model} {case.kernel}, {case.size}: {usual if isinstance(usual, str) else number(usual)} as it is"]
    times = [(attempt(arms, arms.ours, **options), options) for options in chosen]
    worked = sorted(((us, options) for us, options in times if not isinstance(us, str)), key=lambda pair: pair[0])
    failed = [(why, options) for why, options in times if isinstance(why, str)]
    lines += [f"  {number(us):>9}  {options}" for us, options in worked]
    return [*lines, *(f"  {'fails':>9}  {options} {why}" for why, options in failed)]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="beginnings of kernels' names")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--sizes", nargs="+", default=[], help="only sizes whose text begins so, such as 1 or 8192")
    parser.add_argument("--sweep", nargs="+", default=[], metavar="NAME=VALUE,VALUE", help="keywords to vary")
    parser.add_argument("--results", default=str(RESULTS), help="folder for the results file")
    parser.add_argument("--commit", default="", help="commit to note, where git is not at hand")
    return parser.parse_args(argv)


@torch.inference_mode()
def run(args: argparse.Namespace) -> None:
    ceilings = measure(torch.device("cuda"), torch.bfloat16)
    rates = f"{ceilings.bytes_per_s / 1e12:.2f} TB/s copied, {ceilings.flops_per_s / 1e12:.0f} TFLOP/s multiplied"
    print(f"{torch.cuda.get_device_name()}: {rates}")
    models: dict[str, list[dict[str, Any]]] = {}
    if not args.sweep:
        print(HEADER)
    for case in all_cases(args.models, args.only):
        if args.sizes and not case.size.startswith(tuple(f"{size} " for size in args.sizes)):
            continue
        if args.sweep:
            print("\n".join(sweep(case, combinations(args.sweep))), flush=True)
        else:
            text, figure = line(case, ceilings)
            print(text, flush=True)
            models.setdefault(case.model, []).extend([figure.content()] if figure else [])
        torch.cuda.empty_cache()
    if models:
        content = about_run(torch.cuda.get_device_name(), args.commit) | {"ceilings": rates}
        content["models"] = [{"model": name, "figures": figures} for name, figures in models.items()]
        print(f"written to {save('kernels', content, Path(args.results))}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if not torch.cuda.is_available():
        print("There is no CUDA card here: kernels are measured where they run.", file=sys.stderr)
        return NO_CARD
    run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
