"""What a tiny checkpoint of one class is, and how it is asked."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def _no_prompt(count: int) -> str:
    raise ValueError(f"this class is not asked anything, not with {count} pictures either")


@dataclass(frozen=True)
class Entry:
    """One model type of transformers' image-text-to-text map.

    ``build(folder, seed)`` writes all that ``from_pretrained`` needs. ``prompt(n)`` is a question about n pictures, n
    from 0 to 2, with the placeholders that the class's own processor wants. ``sizes`` are the (width, height) of the
    pictures. ``seed`` is one with which greedy tokens lead clearly. Where ``build`` is None, ``why_not`` says why.
    """

    model_type: str
    build: Callable[[Path, int], None] | None
    prompt: Callable[[int], str] = _no_prompt
    sizes: tuple[tuple[int, int], ...] = ((60, 90), (90, 60))
    most_pictures: int = 2
    takes_text_only: bool = True
    seed: int = 0
    why_not: str = ""
