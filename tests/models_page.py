"""docs/models.md from what the parity suite recorded: `make parity` runs it.

FOVEA_PARITY_RESULTS=parity.jsonl python -m pytest -m "parity or not parity" tests/every
python -m tests.models_page parity.jsonl > docs/models.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from fovea.families.bridged import BRIDGED, CANNOT_RUN
from fovea.families.registry import FAMILIES
from tests.every.catalogue import ENTRIES

HEAD = """\
# Models

This page is made by `make parity`. Each line is a class of transformers' image-text-to-text map ({version}), tried
with a tiny random checkpoint of its published layout: prompts with one picture, several, other pictures and text
alone, together and one by one, cold and with warm caches. Prompt ids and 16 greedy tokens equal transformers',
log-probabilities within 1e-4, in float32 on a CPU. transformers itself needs `num2words` for SmolVLM's processor and
`timm` for PerceptionLM; without these packages the two are listed as not run.

| path | who runs the model |
|---|---|
| fused | Fovea's own modules and kernels |
| generic | transformers' modules, with attention, KV cache, batches and prefix cache of Fovea |
| compatible | transformers with its own caches, request by request; no prefix cache, no prompt log-probabilities |

A log line at the start, `fovea models`, `/v1/models` and the metric `fovea:server_info` tell which one a model takes;
the option `model_impl` chooses. If Fovea's own modules don't know a setting of a config, transformers runs the model,
and a warning says why.

| model type | class | path | pictures | text alone | videos |
|---|---|---|---|---|---|
"""
TEXT_HEAD = """
## Models of text alone

Fused, each equal to transformers in `tests/parity`: {names}.

## Not run

| model type | why |
|---|---|
"""


def main(argv: Sequence[str]) -> int:
    lines = Path(argv[0]).read_text(encoding="utf-8").splitlines()
    sys.stdout.write(page([json.loads(line) for line in lines]))
    return 0


def page(results: Sequence[Mapping[str, Any]]) -> str:
    by_type: dict[str, dict[str, Any]] = {}
    for result in results:
        known = by_type.setdefault(result["model_type"], {"paths": set(), "pictures": set()})
        known["paths"].add(result["path"])
        known["pictures"].update(result["pictures"])
    version = ".".join(transformers.__version__.split(".")[:2])
    rows = [_row(model_type, by_type[model_type]) for model_type in sorted(by_type)]
    missing = {name: why_not(name) for name in sorted(ENTRIES) if name not in by_type}
    text_only = ", ".join(f"`{name}`" for family in FAMILIES if not family.placeholder for name in family.architectures)
    return (
        HEAD.format(version=version)
        + "\n".join(rows)
        + "\n"
        + TEXT_HEAD.format(names=text_only)
        + "\n".join(f"| {name} | {why} |" for name, why in missing.items())
        + f"\n\n{len(rows)} of {len(ENTRIES)} classes run.\n"
    )


def why_not(model_type: str) -> str:
    return CANNOT_RUN.get(model_type) or ENTRIES[model_type].why_not or "not tried here"


def _row(model_type: str, known: Mapping[str, Any]) -> str:
    name = BRIDGED[model_type]
    videos = any(name in family.architectures and family.video_placeholder for family in FAMILIES)
    paths = ", ".join(path for path in ("fused", "generic", "compatible") if path in known["paths"])
    pictures = {0: "none", 1: "one", 2: "several"}[max(known["pictures"])]
    text = "yes" if 0 in known["pictures"] else "no"
    return f"| {model_type} | `{name}` | {paths} | {pictures} | {text} | {'yes' if videos else ''} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
