"""What an exception of the model means: one request's trouble, too little memory, or a device that is lost.

A request's trouble is narrowed down to it. For want of memory a step is tried again in smaller parts. After a device
error nothing this process computes can be trusted: it has to end.
"""

from __future__ import annotations

from typing import Literal

import torch

from fovea.core.errors import FoveaError, RequestError, RequestFailedError, UnavailableError
from fovea.core.log import logger
from fovea.engine.scheduler import Chunk, whole_spans

MIN_TOKENS_TO_SPLIT = 32
Trouble = Literal["request", "memory", "device"]

MEMORY_WORDS = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
DEVICE_WORDS = ("CUDA error", "Triton Error", "CUDNN_STATUS", "CUBLAS_STATUS", "CUDA driver error")


class EngineBrokenError(FoveaError):
    """The engine's process can't go on: its device or its model gives nothing right any more."""

    code = "engine_broken"


def classify(error: Exception) -> Trouble:
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in text for words in MEMORY_WORDS):
        return "memory"
    is_device_error = isinstance(error, torch.AcceleratorError) or any(words in text for words in DEVICE_WORDS)
    return "device" if is_device_error and not _still_answers() else "request"


def _still_answers() -> bool:
    """A context that is lost repeats its error; one that refused a launch does not."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def free_memory() -> None:
    """Give back what the allocator keeps for later. Not while an exception holds the tensors of its frames."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def out_of_memory() -> RequestError:
    return UnavailableError(
        "The device has too little memory for this request now. Try again later, or send fewer or smaller pictures.",
        code="out_of_memory",
        retry_after_s=5,
    )


def judge(error: Exception, what: str) -> Trouble:
    """What an exception means; it is logged. Raises EngineBrokenError if the device is lost."""
    trouble = classify(error)
    if trouble == "device":
        logger.critical("%s failed: the device is lost", what)
        raise EngineBrokenError("The device failed; its state can't be trusted.") from error
    logger.exception("%s failed", what)
    return trouble


def divide(chunks: list[Chunk], trouble: Trouble) -> list[list[Chunk]]:
    """The parts a failed step is tried again in: one chunk each, or for want of memory halves, even of one chunk."""
    if trouble == "request":
        return [[chunk] for chunk in chunks] if len(chunks) > 1 else []
    if len(chunks) > 1:
        middle = len(chunks) // 2
        return [chunks[:middle], chunks[middle:]]
    [chunk] = chunks
    if chunk.num_tokens < MIN_TOKENS_TO_SPLIT:
        return []
    half = whole_spans(chunk.sequence.request.open_spans, chunk.start, (chunk.start + chunk.end) // 2, chunk.end)
    if not chunk.start < half < chunk.end:
        return []
    return [
        [Chunk(chunk.sequence, chunk.start, half, samples=False)],
        [Chunk(chunk.sequence, half, chunk.end, samples=chunk.samples)],
    ]


def numerical_error() -> RequestFailedError:
    return RequestFailedError(
        "The model computed numbers for this request that are not finite. Try again; nothing of it was kept.",
        code="numerical_error",
    )
