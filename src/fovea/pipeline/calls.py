"""What a call of `generate` is given, in the one form that the rest works with, and its progress bar."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from fovea.core.errors import InvalidOptionError
from fovea.core.params import SamplingParams
from fovea.core.types import RequestOutput
from fovea.prompt.forms import PromptForm, parse_prompt

Params = SamplingParams | Sequence[SamplingParams] | None
FormMaker = Callable[[], PromptForm]


class Progress:
    """Requests done and tokens per second, on stderr."""

    def __init__(self, total: int, enabled: bool) -> None:
        self._bar = tqdm(total=total, desc="Requests", unit="req", disable=not enabled, dynamic_ncols=True)
        self._started = time.perf_counter()
        self._num_tokens = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def done(self, output: RequestOutput) -> None:
        self._num_tokens += sum(len(completion.token_ids) for completion in output.outputs)
        rate = self._num_tokens / max(1e-9, time.perf_counter() - self._started)
        self._bar.set_postfix_str(f"{rate:.0f} tok/s", refresh=False)
        self._bar.update()


def form_maker(prompt: object) -> FormMaker:
    return lambda: parse_prompt(prompt)


def repeated_media(prompts: list[object]) -> set[int]:
    """Identities of the objects that stand as pictures in several places of these prompts."""
    counts: Counter[int] = Counter()
    for prompt in prompts:
        media = prompt.get("multi_modal_data") if isinstance(prompt, dict) else None
        for value in media.values() if isinstance(media, dict) else ():
            counts.update(id(one) for one in (value if isinstance(value, (list, tuple)) else [value]))
    return {identity for identity, count in counts.items() if count > 1}


def as_list(prompts: object) -> list[object]:
    """A flat list of ints is one prompt; any other list is a batch."""
    if not isinstance(prompts, (list, tuple)):
        return [prompts]
    is_ids = bool(prompts) and all(isinstance(item, int) for item in prompts)
    return [prompts] if is_ids else list(prompts)


def each(params: Params, count: int) -> list[SamplingParams]:
    if params is None:
        return [SamplingParams()] * count
    if isinstance(params, SamplingParams):
        return [params] * count
    listed: list[Any] = list(params) if isinstance(params, (list, tuple)) else [params]
    if any(not isinstance(item, SamplingParams) for item in listed):
        raise InvalidOptionError("sampling_params must be a SamplingParams, or a list with one for each prompt.")
    if len(listed) != count:
        raise InvalidOptionError(f"{len(listed)} sampling_params were given for {count} prompts.")
    return listed
