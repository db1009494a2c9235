"""The entries of all themes. A module of this folder that has ENTRIES is a theme."""

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tests.every.entry import Entry

MODEL_TYPES: tuple[str, ...] = tuple(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)

# One for each shape of model: these run in `make test`, the others in `make parity`.
QUICK = frozenset({"llava_next", "qwen3_vl", "gemma3", "lfm2_vl", "mllama", "florence2"})


def _entries() -> dict[str, Entry]:
    """Of this release's map, in its order: an older transformers knows fewer classes."""
    found: dict[str, Entry] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name.startswith("test_") or module.name == Path(__file__).stem:
            continue
        for entry in getattr(importlib.import_module(f"tests.every.{module.name}"), "ENTRIES", ()):
            if entry.model_type in found:
                raise ValueError(f"{entry.model_type} is there twice")
            found[entry.model_type] = entry
    return {name: found[name] for name in MODEL_TYPES if name in found}


ENTRIES: Mapping[str, Entry] = _entries()
