"""Where results go: one JSON file for each run, with what is needed to read it later."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write_results(
    what: str, model: str, card: str, content: dict[str, Any], *, commit: str = "", folder: Path = RESULTS
) -> Path:
    """Write `content` beside date, commit, card, driver, host and versions; returns the path."""
    about = {**about_run(card, commit), "model": Path(model).name}
    return save(f"{what}_{Path(model).name}", {**about, **content}, folder)


def about_run(card: str, commit: str = "") -> dict[str, Any]:
    """What a figure depends on beside the code under test."""
    import torch
    import transformers

    import fovea

    return {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "commit": commit or current_commit(),
        "card": card,
        "driver": "" if card == "cpu" else driver_version(),
        "host": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "fovea": fovea.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def save(name: str, content: dict[str, Any], folder: Path = RESULTS) -> Path:
    """One file for each name, card and day; a later run of the day takes its place."""
    path = folder / f"{name}_{content['card'].replace(' ', '-')}_{content['date'][:10]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def current_commit() -> str:
    return _output("git", "describe", "--always", "--dirty", "--exclude=*") or "unknown"


def driver_version() -> str:
    lines = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    return lines[0] if lines else "unknown"


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
