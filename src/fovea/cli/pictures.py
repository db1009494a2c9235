"""The bundled pictures and a question about each.

`assets/pictures/questions.json` is a list of {"pictures": [file names], "question": ..., "answer": ...}; without it
every picture is asked about in the same words.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

QUESTIONS = "questions.json"
ANY_QUESTION = "What is in this picture?"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, slots=True)
class Ask:
    """A question about bundled pictures; `answer` is what is right, "" if nobody wrote it down."""

    pictures: tuple[Path, ...]
    question: str
    answer: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(path.name for path in self.pictures)

    def messages(self) -> list[dict[str, Any]]:
        """The conversation for LLM.chat."""
        parts: list[dict[str, Any]] = [{"type": "image", "image": path} for path in self.pictures]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": self.question}]}]


def pictures_folder() -> Path:
    return Path(str(resources.files("fovea"))) / "assets" / "pictures"


def bundled_asks(folder: Path | None = None) -> list[Ask]:
    """The questions in the order of the file, or one for each picture by name."""
    folder = folder or pictures_folder()
    if (folder / QUESTIONS).is_file():
        entries = json.loads((folder / QUESTIONS).read_text(encoding="utf-8"))
        return [Ask(tuple(folder / n for n in e["pictures"]), e["question"], e.get("answer", "")) for e in entries]
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    return [Ask((path,), ANY_QUESTION) for path in found]
