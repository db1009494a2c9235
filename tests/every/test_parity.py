"""Every class of transformers' image-text-to-text map answers as transformers does, by whichever path it takes."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fovea.core.params import SamplingParams
from fovea.core.types import RequestOutput
from fovea.families.bridged import GENERIC
from fovea.llm import LLM
from tests.every.catalogue import ENTRIES, QUICK
from tests.every.entry import Entry
from tests.every.oracle import Answer, oracle
from tests.oracle.checkpoints import picture
from tests.parity.support import MIB, ask, ask_all, check_idle, load, num_decided, tokens

RESULTS = os.environ.get("FOVEA_PARITY_RESULTS", "")
NUM_TOKENS = 16
ATOL = 1e-4  # of log-probabilities, in float32
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=5)
PARAMETERS = [
    pytest.param(name, id=name, marks=() if name in QUICK else pytest.mark.parity)
    for name, entry in ENTRIES.items()
    if entry.build is not None
]


class Asked:
    """A class's checkpoint, what is asked of it, and what transformers answers."""

    def __init__(self, entry: Entry, folder: Path) -> None:
        assert entry.build is not None
        entry.build(folder, entry.seed)
        self.folder, self.model_type = folder, entry.model_type
        counts = [*range(1, entry.most_pictures + 1), *([0] if entry.takes_text_only else []), entry.most_pictures]
        asked = enumerate(counts, 1)
        self.questions = [(entry.prompt(n), pictures(entry, n, seed=10 * number)) for number, n in asked]

    @cached_property
    def answers(self) -> list[Answer]:
        return [oracle(self.folder, prompt, images, NUM_TOKENS) for prompt, images in self.questions]

    def record(self, llm: LLM) -> None:
        """One line for the page that is made of them, if one is wanted (tests/models_page.py)."""
        if RESULTS:
            counts = sorted({len(images) for _, images in self.questions})
            line = {"model_type": self.model_type, "path": llm.family.path, "pictures": counts}
            with Path(RESULTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def prompts(self) -> list[object]:
        return [
            {"prompt": prompt, "multi_modal_data": {"image": images}} if images else prompt
            for prompt, images in self.questions
        ]


@pytest.fixture(scope="module", params=PARAMETERS)
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    return Asked(ENTRIES[request.param], tmp_path_factory.mktemp(request.param) / "model")


def test_it_answers_as_transformers_does(asked: Asked) -> None:
    """Together and alone, cold and with whatever was kept of the first time."""
    with load(asked.folder, kv_cache_memory_bytes=64 * MIB) as llm:
        check(asked, llm)
        asked.record(llm)


def test_so_it_does_by_the_generic_path(asked: Asked) -> None:
    """Where Fovea's own modules run a class, too, if the generic path is known to be right for it."""
    if asked.model_type not in GENERIC:
        pytest.skip("not known to be right on this path")
    with load(asked.folder, kv_cache_memory_bytes=64 * MIB, model_impl="generic") as llm:
        check(asked, llm)
        asked.record(llm)


def check(asked: Asked, llm: LLM) -> None:
    for _ in range(2):
        for output, want in zip(ask_all(llm, asked.prompts(), GREEDY), asked.answers, strict=True):
            assert_same(output, want)
    for prompt, want in zip(asked.prompts(), asked.answers, strict=True):
        llm.reset_prefix_cache()
        assert_same(ask(llm, prompt, GREEDY), want)
    check_idle(llm)


def assert_same(output: RequestOutput, want: Answer) -> None:
    assert list(output.prompt_token_ids) == want.prompt_ids or not want.prompt_ids  # a picture alone has none
    decided = num_decided(want.margins)
    assert tokens(output)[:decided] == want.greedy[:decided]
    scores = output.outputs[0].logprobs
    assert scores is not None
    for found, logits in zip(scores[: decided + 1], want.step_logits, strict=False):
        shifted = logits.astype(np.float64) - logits.max()
        expected = shifted - np.log(np.exp(shifted).sum())
        for token_id, score in found.items():
            assert score.logprob == pytest.approx(expected[token_id], abs=ATOL)


def pictures(entry: Entry, count: int, seed: int) -> list[Image.Image]:
    return [picture(*size, seed + i) for i, size in enumerate(entry.sizes[:count])]
