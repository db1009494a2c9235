"""`fovea models`: what is supported, read from the families themselves."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Sequence

from fovea.cli.options import Parser, UsageError
from fovea.core.config import EMBEDDED_MODEL

DESCRIPTION = "List the supported model families."
EXAMPLES = ("fovea models",)
FOOTER = f"""\
All of them take text alone; those that name how pictures stand in a prompt take one or several, and the frames of a
video as several pictures. A family is recognised by "architectures" in config.json, so fine-tuned models of the same
shape run too.
{EMBEDDED_MODEL}, the model that comes with Fovea, has the layout of Qwen2-VL."""


def main(argv: Sequence[str]) -> int:
    parser = Parser("models", description=DESCRIPTION, examples=EXAMPLES)
    _, words = parser.parse(argv)
    if words:
        raise UsageError(f"fovea models takes no words, {words[0]!r} was given.")
    print(families_table())
    print(FOOTER)
    return 0


def families_table() -> str:
    """For each family: architecture, what it is, how a picture stands in a prompt, image processor options."""
    from fovea.families.registry import FAMILIES

    blocks = []
    for family in FAMILIES:
        about = (inspect.getmodule(family).__doc__ or "").strip().splitlines()[0]
        tag = (family.placeholder or "none") if family.image_tag is None else "<|image_1|>, <|image_2|>, ..."
        options = ", ".join(sorted(family.processor_options)) or "none"
        lines = [f"pictures in a prompt: {tag}", f"mm_processor_kwargs: {options}"]
        blocks.append("\n".join([", ".join(family.architectures), *textwrap.wrap(about, 100), *lines]))
    return "\n\n".join(block.replace("\n", "\n    ") for block in blocks) + "\n"
