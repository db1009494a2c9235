"""The compatible path: transformers runs the model with its own caches, one request beside the other.

Every sequence has a `generate` of transformers in a thread of its own, which computes the logits of the next token,
hands them over and waits until it is told which token was chosen. So any model that transformers can generate with runs
here, under Fovea's scheduler, sampler, limits and stop rules, and computes exactly what transformers computes. One
thread works at a time. Nothing is batched or shared between sequences: prompts are computed anew for each.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial
from inspect import signature
from queue import SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fovea.core.types import EngineRequest, MediaItem
from fovea.engine.memory import MemoryPlan
from fovea.engine.runner import Launched, sampling_row
from fovea.engine.sampler import sample
from fovea.engine.scheduler import Chunk
from fovea.engine.sequence import Sequence
from fovea.models.bridged import BridgedModel, to_model

Said = Tensor | BaseException
KEPT = ("bos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")  # of a generation config
DEAF = frozenset({"JanusForConditionalGeneration"})  # whose own generate drops logits processors (5.23)
STATE = "rope_deltas"  # what modules of transformers remember of the last prompt they saw


class CompatibleRunner:
    """Runner for a BridgedModel; see there for the contract of its methods."""

    num_graph_steps = num_prompt_graph_steps = num_eager_steps = num_eager_decodes = num_late_kernels = 0

    def __init__(self, model: BridgedModel, plan: MemoryPlan) -> None:
        self.model = model
        self.vocab_size = model.spec.decoder.vocab_size
        self._max_model_len = plan.max_model_len
        self._stateful = [module for module in model.module.modules() if STATE in vars(module)]
        self._runs: WeakKeyDictionary[Sequence, _Run] = WeakKeyDictionary()
        _answer_plainly(model.module)

    def encode(self, items: list[MediaItem]) -> float:
        assert not items, "transformers encodes the pictures of a model on the compatible path"
        return 0.0

    def clear(self, blocks: list[int]) -> None:
        """Blocks are only counted here."""

    def is_sound(self) -> bool:
        return True

    @torch.inference_mode()
    def forward(self, chunks: list[Chunk]) -> Launched:
        for sequence in [s for s in self._runs if not s.is_running]:
            self._runs.pop(sequence).close()
        sequences = [chunk.sequence for chunk in chunks if chunk.samples]
        if not sequences:
            return Launched()
        logits = torch.stack([self._scores(sequence) for sequence in sequences])
        return Launched(sample(logits, [sampling_row(sequence) for sequence in sequences]))

    def _scores(self, sequence: Sequence) -> Tensor:
        """Logits [vocabulary] of the token after all that are known."""
        run = self._runs.pop(sequence, None)
        if run is None:
            run = _Run(self.model, sequence.request, sequence.most_tokens)
        else:
            for module, state in zip(self._stateful, run.state, strict=True):
                setattr(module, STATE, state)
        for token_id in sequence.generated[run.num_told :]:  # all of them again after a preemption
            run.tell(token_id)
        run.state = [getattr(module, STATE) for module in self._stateful]
        self._runs[sequence] = run  # one that failed is not kept
        return run.scores


class _Run:
    """`generate` for one sequence. `scores` are those of the token after `num_told` generated ones."""

    def __init__(self, model: BridgedModel, request: EngineRequest, most_tokens: int) -> None:
        self.num_told = 0
        self.state: list[Any] = []  # of the modules that remember one
        self._said: SimpleQueue[Said] = SimpleQueue()
        self._told: SimpleQueue[int | None] = SimpleQueue()
        inputs = _as_asked(model.module, to_model(request.media[0].arrays or {}, model))
        most = most_tokens - len(request.token_ids)
        work = (model.module, inputs, most, self._said, self._told)
        self._thread = threading.Thread(target=_generate, args=work, name="fovea-generate", daemon=True)
        self._thread.start()
        self.scores = self._listen()

    def tell(self, token_id: int) -> None:
        self._told.put(token_id)
        self.num_told += 1
        self.scores = self._listen()

    def close(self) -> None:
        self._told.put(None)

    def __del__(self) -> None:
        self.close()

    def _listen(self) -> Tensor:
        said = self._said.get()
        if isinstance(said, BaseException):
            raise said
        return said


class _Closed(BaseException):
    """Nobody wants further tokens."""


class _Asking:
    """A logits processor that leaves one token to choose: the one it is told."""

    def __init__(self, said: SimpleQueue[Said], told: SimpleQueue[int | None]) -> None:
        self._said, self._told = said, told

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._said.put(scores[0].float().clone())
        token_id = self._told.get()
        if token_id is None:
            raise _Closed
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([token_id], device=scores.device), 0.0)


def _generate(
    module: Any, inputs: Mapping[str, Any], most: int, said: SimpleQueue[Said], told: SimpleQueue[int | None]
) -> None:
    """A thread's whole work. One token more than wanted is asked for, so that the last is told like the others."""
    from transformers import GenerationMixin

    try:
        with torch.inference_mode():
            generate = partial(GenerationMixin.generate, module) if type(module).__name__ in DEAF else module.generate
            generate(**inputs, logits_processor=[_Asking(said, told)], max_new_tokens=most + 1, do_sample=False)
        said.put(RuntimeError("generate ended without asking which token to take"))
    except _Closed:
        return
    except BaseException as error:  # whatever the model raises belongs to the step that asked
        said.put(error)


def _as_asked(module: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Where a model's ids are its decoder's (Donut), they go by that name; labels are for training."""
    if "input_ids" not in inputs or "input_ids" in signature(module.forward).parameters:
        return inputs
    rest = {name: value for name, value in inputs.items() if name not in ("input_ids", "labels", "attention_mask")}
    return {"decoder_input_ids": inputs["input_ids"], **rest}


def _answer_plainly(module: Any) -> None:
    """What generation configs say of choosing and stopping is Fovea's business, not generate's."""
    for part in module.modules():
        old = getattr(part, "generation_config", None)
        if old is not None:
            kept = {name: getattr(old, name) for name in KEPT if getattr(old, name, None) is not None}
            part.generation_config = type(old)(do_sample=False, num_beams=1, **kept)
