"""Fovea: a fast, safe engine for vision-language models.

    from fovea import LLM, SamplingParams

Importing this package imports neither torch nor anything else that is slow; names are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fovea.core.config import EngineConfig
    from fovea.core.errors import BatchError, FoveaError
    from fovea.core.params import SamplingParams
    from fovea.core.types import CompletionOutput, RequestOutput
    from fovea.llm import LLM

__version__ = "0.1.0"

_HOMES = {
    "LLM": "fovea.llm",
    "SamplingParams": "fovea.core.params",
    "EngineConfig": "fovea.core.config",
    "RequestOutput": "fovea.core.types",
    "CompletionOutput": "fovea.core.types",
    "FoveaError": "fovea.core.errors",
    "BatchError": "fovea.core.errors",
}

__all__ = [
    "BatchError",
    "CompletionOutput",
    "EngineConfig",
    "FoveaError",
    "LLM",
    "RequestOutput",
    "SamplingParams",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'fovea' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
