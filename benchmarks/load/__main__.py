"""What the server holds under load, in minutes: a table of figures with PASS or MISS, and a file of results.

    python -m benchmarks.load                       everything, about a quarter of an hour on two cores
    python -m benchmarks.load --quick               short runs of everything
    python -m benchmarks.load --only overload       one part; may be given several times

The embedded model on the CPU, the server in processes of its own, the client in this one. Progress goes to stderr, the
table to stdout, everything to benchmarks/results/. The exit code is 1 if a bound is missed that is a ratio of two
figures of this run; other bounds depend on the machine, and a MISS of one is only shown.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping

from benchmarks.load.limits import cancels, queue, refusals, stalled
from benchmarks.load.overload import overload
from benchmarks.load.ratio import ratio
from benchmarks.load.report import Report, header, say
from benchmarks.load.soak import mixed, streams
from benchmarks.load.work import work
from benchmarks.results_file import write_results

PARTS: Mapping[str, Callable[[bool, int, Report], None]] = {
    "ratio": ratio,
    "overload": overload,
    "streams": streams,
    "mixed": mixed,
    "refusals": refusals,
    "queue": queue,
    "stalled": stalled,
    "cancels": cancels,
    "work": work,
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short runs: every bound, with more noise")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="a part; may be given several times")
    parser.add_argument("--seed", type=int, default=0, help="of pictures, words and arrivals")
    parser.add_argument("--no-file", action="store_true", help="write no results file")
    parser.add_argument("--commit", default="", help="commit to note, where git is not at hand")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    report, parts = Report(), args.only or list(PARTS)
    print(header())
    for name in parts:
        began = time.monotonic()
        PARTS[name](args.quick, args.seed, report)
        say(f"{name}: {time.monotonic() - began:.0f} s")
    print(report.summary())
    if not args.no_file:
        content = {"quick": args.quick, "parts": parts, "seed": args.seed, **report.content()}
        what = "load-quick" if args.quick else "load"
        say(f"results: {write_results(what, 'fovea-tiny', 'cpu', content, commit=args.commit).name}")
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
