"""How a bad request is judged: it alone fails, its error is ours and helpful, and the engine is as before."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from fovea.core.errors import FoveaError, RequestFailedError
from fovea.core.params import SamplingParams
from fovea.core.types import RequestOutput
from fovea.llm import LLM
from tests.oracle.checkpoints import CASES, picture
from tests.parity.support import GREEDY, Checkpoints, answer, ask_all, question, tokens

MAX_ERROR_CHARS = 600
# What shows when the text of a foreign exception or a bare object gets into a message.
FOREIGN = re.compile(
    r"Traceback|object at 0x|0x[0-9a-f]{8}|Errno|<class|<built-in|numpy\.|PIL\.|KeyError|TypeError|ValueError"
    r"|AttributeError|IndexError|\(most recent|site-packages|broadcast"
)


@dataclass(frozen=True)
class Bad:
    """A prompt (or conversation) that is refused, the class of its error, and what the text of the error says."""

    name: str
    prompt: Any
    error: type[FoveaError]
    says: tuple[str, ...]
    family: str = "llava"
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.family}: {self.name}"


def image(seed: int = 1, width: int = 90, height: int = 60) -> Image.Image:
    return picture(width, height, seed)


def assert_helpful(error: BaseException | None, kind: type[FoveaError], says: tuple[str, ...]) -> None:
    assert type(error) is kind, repr(error)
    assert not isinstance(error, RequestFailedError), "a bug of ours, not a judgement"
    text = str(error)
    missing = [part for part in says if part not in text]
    assert not missing, f"{text!r} does not say {missing}"
    assert not FOREIGN.search(text), text
    assert len(text) <= MAX_ERROR_CHARS, text
    assert text.rstrip()[-1] in ".?!", text


def assert_fails_alone(llm: LLM, checkpoints: Checkpoints, bad: Bad, params: SamplingParams = GREEDY) -> None:
    """In a batch between two good requests: they are answered as ever, and the engine is idle afterwards."""
    canaries = [CASES[bad.family][0], CASES[bad.family][2]]
    outputs = llm.generate(
        [question(canaries[0]), bad.prompt, question(canaries[1])],
        [GREEDY, params, GREEDY],
        use_tqdm=False,
        on_error="return",
    )
    assert_helpful(outputs[1].error, bad.error, bad.says)
    assert_failed_output(outputs[1])
    for output, case in ((outputs[0], canaries[0]), (outputs[2], canaries[1])):
        assert output.error is None
        assert tokens(output) == answer(checkpoints.folder(bad.family), case).greedy


def assert_failed_output(output: RequestOutput) -> None:
    assert output.outputs == []
    assert output.finished
    assert output.request_id


def assert_still_answers(llm: LLM, checkpoints: Checkpoints, family: str) -> None:
    """After whatever happened the engine is empty and answers as before."""
    llm.engine.scheduler.check_idle()
    cases = [CASES[family][0], CASES[family][2]]
    outputs = ask_all(llm, [question(case) for case in cases])
    assert [tokens(output) for output in outputs] == [answer(checkpoints.folder(family), case).greedy for case in cases]


def rows(count: int, width: int = 64) -> np.ndarray:
    """Embeddings of a picture, all fine."""
    return np.full((count, width), 0.25, np.float32)
