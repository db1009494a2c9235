"""Two results files of the same benchmark side by side: which figures got better, and by how much.

    python -m benchmarks.compare BEFORE.json AFTER.json

Reads what benchmarks.offline, benchmarks.table, its ablations and benchmarks.kernels write. The last column is how many
times better the second is. Files of different cards are refused, unless --force.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.figure import Figure, number, read_figure, times_better

NOTED = ("date", "commit", "card", "driver", "torch", "host")
Key = tuple[str, str, str]  # model, what it ran without, name of the figure


def figures(content: Mapping[str, Any]) -> Iterator[tuple[Key, Figure]]:
    for run in content.get("models", [content]):
        for entry in run["figures"]:
            yield (run.get("model", ""), run.get("without", ""), entry["name"]), read_figure(entry)


def works(content: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """How much was asked of each model."""
    runs = content.get("models", [content])
    return {(run.get("model", ""), run.get("without", "")): run.get("arguments", {}) for run in runs}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Work that was not the same, so that its figures say little."""
    one, other = works(before), works(after)
    lines = []
    for model, without in one.keys() & other.keys():
        a, b = one[model, without], other[model, without]
        changed = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
        lines += [f"{model}: --{key} is {a.get(key)!r} and {b.get(key)!r}" for key in changed]
    return lines


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    one, other = dict(figures(before)), dict(figures(after))
    width = max([len(" ".join(filter(None, key))) for key in one.keys() | other.keys()], default=0) + 2
    lines = [f"{'':{width}}{'before':>12}{'after':>12} {'unit':10}{'better':>7}"]
    for key in [*one, *(key for key in other if key not in one)]:
        a, b = one.get(key), other.get(key)
        values = "".join(f"{number(f.value) if f else '-':>12}" for f in (a, b))
        unit = (a or b or Figure("", 0, "")).unit
        better = f"{times_better(b.value, a.value, unit):6.2f}x" if a and b and a.value and b.value else ""
        lines.append(f"{' '.join(filter(None, key)):{width}}{values} {unit:10}{better}".rstrip())
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--force", action="store_true", help="compare although the cards differ")
    args = parser.parse_args(argv)
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (args.before, args.after))
    for name in NOTED:
        print(f"{name:10}{before.get(name, '')!s:40}{after.get(name, '')}")
    if before.get("card") != after.get("card") and not args.force:
        print("Different cards: the figures say nothing about the code. --force compares them all the same.")
        return 2
    for line in differences(before, after):
        print(f"NOT THE SAME WORK: {line}")
    print("\n" + "\n".join(compare(before, after)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
