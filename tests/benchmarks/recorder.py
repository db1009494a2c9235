"""An engine that answers nothing and notes what it was asked, with the names that benchmarks want of an engine."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from fovea.families.registry import load_family


@dataclass
class SamplingParams:
    temperature: float
    max_tokens: int
    ignore_eos: bool


class LLM:
    """Every question becomes a line of the file that RECORDER_FILE names; so do the options."""

    def __init__(self, model: str, **options: Any) -> None:
        self.family = load_family(Path(model))
        self.engine = SimpleNamespace(plan=SimpleNamespace(kv_tokens=10**9))
        self.config = SimpleNamespace(max_num_seqs=256)
        _note(options)

    def generate(self, prompts: list[Any], params: SamplingParams, use_tqdm: bool) -> list[Any]:
        _note([vars(params), [_digest(prompt) for prompt in prompts]])
        completion = SimpleNamespace(token_ids=(0,) * params.max_tokens)
        return [SimpleNamespace(outputs=[completion], prompt_token_ids=(i, 0), media=()) for i in range(len(prompts))]


def _note(what: Any) -> None:
    with Path(os.environ["RECORDER_FILE"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(what, sort_keys=True) + "\n")


def _digest(prompt: Any) -> Any:
    if isinstance(prompt, str):
        return prompt
    images = prompt["multi_modal_data"]["image"]
    listed = images if isinstance(images, list) else [images]
    return [prompt["prompt"], [hashlib.sha256(np.asarray(image).tobytes()).hexdigest() for image in listed]]
