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


def write_results(what: str, model: str, card: str, content: dict[str, Any], *, commit: str = "") -> Path:
    """Write `content` beside date, commit, card, host and versions; returns the path."""
    import torch
    import transformers

    import fovea

    now = datetime.datetime.now(datetime.UTC)
    about = {
        "date": f"{now:%Y-%m-%d %H:%M} UTC",
        "commit": commit or current_commit(),
        "card": card,
        "host": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "fovea": fovea.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": Path(model).name,
    }
    path = RESULTS / f"{what}_{Path(model).name}_{card.replace(' ', '-')}_{now:%Y-%m-%d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, **content}, indent=1) + "\n", encoding="utf-8")
    return path


def current_commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
