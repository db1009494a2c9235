"""One measured number, as every benchmark writes it and `benchmarks.compare` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

TIMES = ("us", "ms", "s")


@dataclass
class Figure:
    """`limit` is the physical limit in the figure's own unit, where one is known."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """How much of the physical limit is reached; 1.0 is the limit."""
        return None if not self.limit or not self.value else times_better(self.value, self.limit, self.unit)

    def content(self) -> dict[str, Any]:
        return {**asdict(self), "share": self.share}


def read_figure(content: Mapping[str, Any]) -> Figure:
    """From what `content` wrote."""
    return Figure(content["name"], content["value"], content["unit"], content.get("limit"), content.get("more", {}))


def times_better(value: float, other: float, unit: str) -> float:
    """How many times better `value` is than `other`: of times the smaller is better, of everything else the larger."""
    return other / value if unit in TIMES else value / other


def number(value: float) -> str:
    """Short, with as many digits as mean something."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
