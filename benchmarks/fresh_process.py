"""benchmarks.offline in a process of its own: every model and every arm starts from nothing, as a program does."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.targets import WORK

ROOT = Path(__file__).parents[1]


class RunFailed(Exception):
    """benchmarks.offline ended badly; it has told why."""


def add_work_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of benchmarks.offline that say how much work is done; defaults are those of the targets."""
    for name, default in WORK.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"as in benchmarks.offline ({default})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", default="", help="commit to note, where git is not at hand")
    parser.add_argument("--timeout", type=float, default=580.0, help="most seconds for one model")


def run_offline(
    model: Path, workloads: str, args: argparse.Namespace, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What benchmarks.offline wrote for this model; its own output goes to stderr. Raises RunFailed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.offline", str(model), "--dummy", "--workloads", workloads]
        for name in (*WORK, "seed"):
            command += [f"--{name}", str(getattr(args, name))]
        command += ["--options", json.dumps(dict(options or {})), "--results", folder, "--commit", args.commit]
        print(f"{model.name}: {workloads} {dict(options or {}) or ''}", file=sys.stderr, flush=True)
        try:
            subprocess.run(command, stdout=sys.stderr, check=True, timeout=args.timeout, cwd=ROOT)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise RunFailed(str(error)) from None
        (written,) = Path(folder).iterdir()
        result: dict[str, Any] = json.loads(written.read_text(encoding="utf-8"))
        return result
