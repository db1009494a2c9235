"""transformers' own processor of a model folder. This is the one place that calls it.

It gets text, pixels and a number of switches; never an address, a path or a name of a request's choosing. No code of a
model folder runs.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fovea.core.errors import ModelError, PromptError
from fovea.core.log import logger

if TYPE_CHECKING:
    from numpy.typing import NDArray

IDS = ("input_ids", "decoder_input_ids")
NESTED = frozenset({"LlavaOnevisionProcessor", "IdeficsProcessor"})  # a flat list is of several prompts to them
NEEDS_TORCHVISION = frozenset({"FuyuProcessor"})  # fails with what its other backend makes (5.23)
MOST_WRAPPERS = 4  # tokens around a picture that some processors count with it
LISTED = "[]"  # ends the name of what is a list to the model, not a tensor


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a processor made of one prompt: its ids, and every array that the model's forward takes, ids included."""

    token_ids: tuple[int, ...]
    arrays: Mapping[str, NDArray[Any]]


class Processor:
    """One call at a time: tokenizers change their own settings while they work.

    Raises ModelError if the folder's processor can't be loaded.
    """

    def __init__(self, folder: Path, name: str, *, wants_token_types: bool = False) -> None:
        from transformers import AutoProcessor

        self._lock = threading.Lock()
        self._name = name
        self._usual: Mapping[str, Any] = {"return_mm_token_type_ids": True} if wants_token_types else {}
        try:
            self._processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # whatever a processor class raises, a package it misses among them
            raise ModelError(f"{folder}: transformers can't load the processor of {name}: {error}") from None
        if type(self._processor).__name__ not in NEEDS_TORCHVISION:
            self._use_pillow(folder)
        self.sees = hasattr(self._processor, "image_processor")
        self.image_token = self._text_of("image_token") or self._text_of("boi_token")

    def __call__(self, text: str, pictures: Sequence[NDArray[np.uint8]], *, add_special_tokens: bool) -> Inputs:
        """Raises PromptError if the processor refuses the text or the number of its pictures."""
        options = dict(self._usual) if add_special_tokens else {**self._usual, "add_special_tokens": False}
        if text or not pictures:
            options["text"] = [text]
        if pictures:
            images = [Image.fromarray(pixels) for pixels in pictures]
            is_nested = len(images) > 1 and type(self._processor).__name__ in NESTED
            options["images"] = [images] if is_nested else images
        try:
            with self._lock:
                made = self._processor(return_tensors="pt", **options)
            arrays = {
                f"{name}{LISTED}" if isinstance(value, list) else name: _array(value)
                for name, value in made.items()
                if value is not None
            }
        except Exception as error:  # the boundary between one prompt and the rest: the processor's code is not ours
            logger.info("the processor of %s refused a prompt", self._name, exc_info=True)
            raise PromptError(
                f"The processor of {self._name} refuses this prompt with {len(pictures)} pictures "
                f"({type(error).__name__}). Does the text have one place for each picture"
                + (f" ({self.image_token!r})?" if self.image_token else "?"),
                code="invalid_value",
            ) from error
        ids = next((arrays[name][0] for name in IDS if name in arrays), ())  # a picture may be the whole prompt
        return Inputs(tuple(int(token) for token in ids), arrays)

    def fewest_tokens(self, sizes_px: Sequence[tuple[int, int]]) -> int:
        """How many tokens pictures of these (width, height) take, by their sizes alone; 0 where it can't tell."""
        tell = getattr(self._processor, "_get_num_multimodal_tokens", None)
        if tell is None or not sizes_px:
            return 0
        try:
            told = tell(image_sizes=[[height, width] for width, height in sizes_px])
            return sum(int(count) for count in told["num_image_tokens"]) - MOST_WRAPPERS * len(sizes_px)
        except Exception as error:  # most processors have it, not all of them in working order
            logger.debug("the processor of %s tells no tokens of sizes: %s", self._name, error)
            return 0

    def _use_pillow(self, folder: Path) -> None:
        """Where there is a choice: results do not depend on whether torchvision is installed, and equal our own."""
        from transformers import AutoImageProcessor

        try:
            image_processor = AutoImageProcessor.from_pretrained(
                folder, backend="pil", trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # there is no such backend, or nothing that prepares pictures
            logger.debug("%s prepares pictures as transformers likes: %s", self._name, error)
        else:
            self._processor.image_processor = image_processor

    def _text_of(self, name: str) -> str:
        value = getattr(self._processor, name, None)
        return value if isinstance(value, str) else str(getattr(value, "content", ""))


def _array(value: Any) -> NDArray[Any]:
    """A tensor or nested lists as an array of numbers."""
    if "bfloat16" in str(getattr(value, "dtype", "")):
        value = value.float()  # numpy has no such type
    array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    if array.dtype.kind not in "biuf":
        raise ModelError("The processor gives something that is no array of numbers.")
    return np.ascontiguousarray(array)
