"""Faults for tests: what goes wrong on purpose inside the engine's process. Nothing here runs unless a server is
started with them (variable FOVEA_FAULTS, a JSON object); no request can turn them on. See also prepare_faults.

Each of these takes a token id; a request with it in its prompt is the victim:

    forward_error     the forward of any batch with it raises        forward_hang      it never returns
    sampler_error     it raises after the model has run              kill              the process is killed
    memory_error      it is out of memory, however small             device_error      it loses the device
    nan_row           the logits of its rows are NaN                 nan_all           from now on all are NaN
    inf_row           the same with infinity                         lose_abort        its first abort is lost
    leak              one of its KV blocks is not given back

Others:

    {"forward_sleep": [ID, S]}                  the first forward with this id takes S seconds longer
    {"memory_rows": N}, {"memory_tokens": N}    a forward of more sequences, more tokens, is out of memory
    {"tower_nan": [H, W]}                       the tower makes NaN of a picture of this size, as the model sees it
    {"tower_error": [H, W]}, {"tower_memory": [H, W]}    it raises, is out of memory
    {"step_s": S}, {"load_s": S}                every step, loading takes so much longer
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from fovea.core.types import MediaItem
from fovea.engine.loop import Engine
from fovea.engine.runner import Launched
from fovea.engine.scheduler import Chunk

if TYPE_CHECKING:
    from torch import Tensor

    from fovea.engine.loop import Forward


class Fault(Exception):
    """What was asked for."""


def install(engine: Engine, wanted: Mapping[str, Any]) -> None:
    if not wanted:
        return
    time.sleep(wanted.get("load_s", 0.0))
    faulty = _Faulty(engine, wanted)
    engine.wrap_forward(faulty.around_forward)
    model = engine.model
    runner: Any = engine._runner
    vars(runner)["_eager"] = faulty.around_logits(runner._eager)
    vars(runner)["_replay"] = faulty.around_logits(runner._replay)
    vars(runner)["_replay_prompts"] = faulty.around_logits(runner._replay_prompts)
    vars(model)["encode"] = faulty.around_tower(model.encode)
    vars(engine)["abort"] = faulty.around_abort(engine.abort)
    vars(engine.scheduler)["finish"] = faulty.around_finish(engine.scheduler.finish)


class _Faulty:
    def __init__(self, engine: Engine, wanted: Mapping[str, Any]) -> None:
        self._engine = engine
        self._wanted = wanted
        self._all_nan = False
        self._lost: set[str] = set()

    def around_forward(self, forward: Forward) -> Forward:
        def faulty(chunks: list[Chunk]) -> Launched:
            ids = {token_id for chunk in chunks for token_id in _prompt(chunk)}
            self._before_forward(ids, chunks)
            return forward(chunks)

        return faulty

    def around_logits(self, make: Any) -> Any:
        def faulty(chunks: list[Chunk]) -> tuple[Tensor, None]:
            logits: Tensor = make(chunks)[0].clone()
            for row, chunk in enumerate(chunk for chunk in chunks if chunk.samples):
                ids = _prompt(chunk)
                if self._all_nan or self._is_in("nan_row", ids):
                    logits[row] = torch.nan
                if self._is_in("inf_row", ids):
                    logits[row, 7] = torch.inf
                if self._is_in("sampler_error", ids):
                    raise Fault
            return logits, None

        return faulty

    def around_tower(self, encode: Any) -> Any:
        def faulty(items: list[MediaItem]) -> list[Tensor]:
            if self._shows("tower_error", items):
                raise Fault
            if self._shows("tower_memory", items):
                raise torch.OutOfMemoryError("a fault was asked for")
            rows = [row.clone() for row in encode(items)]
            for item, row in zip(items, rows, strict=True):
                if self._shows("tower_nan", [item]):
                    row[len(row) // 2] = torch.nan
            return rows

        return faulty

    def around_abort(self, abort: Any) -> Any:
        def faulty(request_id: str) -> None:
            entry = self._engine._requests.get(request_id)
            live = entry.live if entry else ()
            is_victim = any(self._is_in("lose_abort", sequence.request.token_ids) for sequence in live)
            if is_victim and request_id not in self._lost:
                self._lost.add(request_id)
            else:
                abort(request_id)

        return faulty

    def around_finish(self, finish: Any) -> Any:
        def faulty(sequence: Any) -> None:
            if self._is_in("leak", sequence.request.token_ids):
                sequence.blocks = sequence.blocks[1:]
            finish(sequence)

        return faulty

    def _before_forward(self, ids: set[int], chunks: list[Chunk]) -> None:
        if self._is_in("kill", ids):
            os.kill(os.getpid(), signal.SIGKILL)
        while self._is_in("forward_hang", ids):
            time.sleep(1)
        slow = self._wanted.get("forward_sleep")
        if slow is not None and slow[0] in ids and any(chunk.start == 0 for chunk in chunks):
            time.sleep(slow[1])
        time.sleep(self._wanted.get("step_s", 0.0))
        if self._is_in("forward_error", ids):
            raise Fault
        if self._is_in("device_error", ids):
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        self._all_nan = self._all_nan or self._is_in("nan_all", ids)
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        too_many = len(chunks) > self._wanted.get("memory_rows", len(chunks))
        if too_many or num_tokens > self._wanted.get("memory_tokens", num_tokens) or self._is_in("memory_error", ids):
            raise torch.OutOfMemoryError("a fault was asked for")

    def _is_in(self, name: str, ids: Any) -> bool:
        return name in self._wanted and self._wanted[name] in ids

    def _shows(self, name: str, items: list[MediaItem]) -> bool:
        size = self._wanted.get(name)
        shapes = [item.canvas.shape[:2] for item in items if item.canvas is not None]
        return size is not None and tuple(size) in shapes


def _prompt(chunk: Chunk) -> tuple[int, ...]:
    return chunk.sequence.request.token_ids
