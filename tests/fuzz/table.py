"""A short table of what happened how often."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable

import pytest


def print_table(capsys: pytest.CaptureFixture[str], title: str, outcomes: Iterable[str]) -> None:
    """Seen when the tests pass, too."""
    counts = outcomes if isinstance(outcomes, Counter) else Counter(outcomes)
    lines = [f"\n{title}", *(f"  {count:7,}  {name}" for name, count in counts.most_common())]
    with capsys.disabled():
        sys.stdout.write("\n".join(lines) + "\n")
