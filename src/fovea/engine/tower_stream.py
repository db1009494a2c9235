"""The tower beside the language model: while a step computes, the pictures of the next one are encoded.

On a GPU both are queues of work: kernels of one fill what those of the other leave idle. Where the device computes when
it is told to, nothing of this does anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class TowerStream:
    """To be made when the model's weights are on their way to the device: the stream begins when they are there."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._reader: torch.cuda.Stream | None = None
        self._encoded: torch.cuda.Event | None = None

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Around what encodes pictures; what it leaves is read after `join`."""
        if self._stream is None:
            yield
            return
        self._reader = torch.cuda.current_stream()
        with torch.cuda.stream(self._stream):
            try:
                yield
            finally:
                self._encoded = self._stream.record_event()

    def give(self, made: Tensor) -> None:
        """To be called while encoding with all that outlives it: its memory is not used again while a step reads it."""
        if self._reader is not None:
            made.record_stream(self._reader)

    def join(self) -> None:
        """What is launched from here on finds all pictures encoded."""
        if self._encoded is not None:
            torch.cuda.current_stream().wait_event(self._encoded)
            self._encoded = None
