"""`fovea models`: what is supported, read from the families themselves."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Sequence

from fovea.cli.options import Parser, UsageError
from fovea.core.config import EMBEDDED_MODEL

DESCRIPTION = "List the supported model families."
EXAMPLES = ("fovea models",)
FOOTER = f"""
Those of the fused path take text alone; those that name how pictures stand in a prompt take one or several. A model is
recognised by "architectures" in config.json, so fine-tuned models of the same shape run too. docs/models.md says what
was checked of each. A GGUF file runs if its architecture is llama, qwen2 or qwen3: docs/gguf.md.
{EMBEDDED_MODEL}, the model that comes with Fovea, has the layout of Qwen2-VL."""


def main(argv: Sequence[str]) -> int:
    parser = Parser("models", description=DESCRIPTION, examples=EXAMPLES)
    _, words = parser.parse(argv)
    if words:
        raise UsageError(f"fovea models takes no words, {words[0]!r} was given.")
    print("fused path: Fovea's own modules\n")
    print(families_table())
    print(bridged_table())
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


def bridged_table() -> str:
    """The classes that transformers runs, by path."""
    from fovea.families.bridged import BRIDGED, CANNOT_RUN, GENERIC
    from fovea.families.registry import FAMILIES

    own = {name for family in FAMILIES for name in family.architectures}
    own |= {BRIDGED[model_type] for model_type in CANNOT_RUN}
    rest = {model_type: name for model_type, name in sorted(BRIDGED.items()) if name not in own}
    generic = ", ".join(name for model_type, name in rest.items() if model_type in GENERIC)
    compatible = ", ".join(name for model_type, name in rest.items() if model_type not in GENERIC)
    about = {
        "generic": ("transformers' modules over Fovea's KV cache and batches", generic),
        "compatible": ("transformers with its own caches, one request beside the other", compatible),
    }
    return "\n\n".join(
        f"{path} path: {what}\n" + textwrap.fill(names, 100, initial_indent="    ", subsequent_indent="    ")
        for path, (what, names) in about.items()
    )
