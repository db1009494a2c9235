"""Faults for tests: what goes wrong on purpose inside a worker. Nothing here runs unless a server is started with them.

{"forward_error": TEXT_ID}    the forward of any batch with this token id raises
{"forward_hang": TEXT_ID}     it never returns
{"kill": TEXT_ID}             the engine process is killed by it
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from fovea.engine.loop import Engine
from fovea.engine.runner import StepResult
from fovea.engine.scheduler import Chunk


def install(engine: Engine, wanted: Mapping[str, Any]) -> None:
    if wanted:
        engine.wrap_forward(lambda forward: _Faulty(forward, wanted))


class _Faulty:
    def __init__(self, forward: Any, wanted: Mapping[str, Any]) -> None:
        self._forward = forward
        self._wanted = wanted

    def __call__(self, chunks: list[Chunk]) -> StepResult:
        ids = {token_id for chunk in chunks for token_id in chunk.sequence.request.token_ids}
        if self._wanted.get("kill") in ids:
            os.kill(os.getpid(), signal.SIGKILL)
        while self._wanted.get("forward_hang") in ids:
            time.sleep(1)
        if self._wanted.get("forward_error") in ids:
            raise RuntimeError("a fault was asked for")
        result: StepResult = self._forward(chunks)
        return result
