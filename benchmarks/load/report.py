"""Figures against their bounds: a table for people, rows for the results file, an exit code for CI.

A bound that is missed stays in the table as MISS, with the CPU that each process took meanwhile. Only bounds that are
ratios of two measurements of the same run decide the exit code: a slow machine moves the others.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["", "PASS", "MISS"]


@dataclass(frozen=True, slots=True)
class Figure:
    """`most`, `least`: its bounds, if it has any. `is_ratio`: of two figures of this run."""

    part: str
    name: str
    value: float
    unit: str = ""
    most: float | None = None
    least: float | None = None
    is_ratio: bool = False

    @property
    def verdict(self) -> Verdict:
        if self.most is None and self.least is None:
            return ""
        over = self.most is not None and not self.value <= self.most
        under = self.least is not None and not self.value >= self.least
        return "MISS" if over or under else "PASS"

    @property
    def bound(self) -> str:
        if self.most is not None:
            return f"<= {number(self.most)}"
        return f">= {number(self.least)}" if self.least is not None else ""

    def row(self) -> str:
        return f"{self.part:10}{self.name:52}{number(self.value):>12} {self.unit:10}{self.bound:>12}  {self.verdict}"


@dataclass(slots=True)
class Report:
    figures: list[Figure] = field(default_factory=list)
    cores: dict[str, Mapping[str, float]] = field(default_factory=dict)  # of each part: cores taken, by process
    details: dict[str, Any] = field(default_factory=dict)

    def add(self, figures: list[Figure]) -> None:
        """And print them."""
        for figure in figures:
            self.figures.append(figure)
            print(figure.row().rstrip(), flush=True)

    def add_cores(self, part: str, cores: Mapping[str, float]) -> None:
        self.cores[part] = dict(cores)

    @property
    def missed(self) -> list[Figure]:
        return [figure for figure in self.figures if figure.verdict == "MISS"]

    def summary(self) -> str:
        judged = [figure for figure in self.figures if figure.verdict]
        lines = [f"{len(judged) - len(self.missed)} of {len(judged)} bounds hold"]
        for part in dict.fromkeys(figure.part for figure in self.missed):
            lines.append(f"MISS in {part}: {', '.join(f.name for f in self.missed if f.part == part)}")
            if part in self.cores:
                taken = ", ".join(f"{name} {share:.2f}" for name, share in self.cores[part].items())
                lines.append(f"  cores taken: {taken}")
        return "\n".join(lines)

    @property
    def exit_code(self) -> int:
        return int(any(figure.is_ratio for figure in self.missed))

    def content(self) -> dict[str, Any]:
        rows = [
            # JSON has no infinity: a lag beyond the last bucket is null.
            {**asdict(f), "value": f.value if math.isfinite(f.value) else None, "verdict": f.verdict}
            for f in self.figures
        ]
        return {"figures": rows, "cores_taken": self.cores, "details": self.details}


def header() -> str:
    return f"{'part':10}{'figure':52}{'value':>12} {'unit':10}{'bound':>12}"


def number(value: float) -> str:
    return f"{value:,.0f}" if value % 1 == 0 or abs(value) >= 1000 else f"{value:.4g}"


def say(text: str) -> None:
    """Progress, beside the table."""
    print(text, file=sys.stderr, flush=True)
