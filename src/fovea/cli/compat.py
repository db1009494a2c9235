"""Flags of vLLM that say nothing here: taken, so that a command line can be kept, and mentioned in one line.

Only values that describe what Fovea does anyway are taken. Anything else is refused: a flag that silently does nothing
is worse than one that is unknown.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fovea.cli.options import Parser, UsageError

ANY = "any"
SWITCH = ""

# Flag name to the values that are taken.
IGNORED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tensor-parallel-size": ("1",),
        "pipeline-parallel-size": ("1",),
        "data-parallel-size": ("1",),
        "api-server-count": ("1",),
        "distributed-executor-backend": ("mp", "uni"),
        "tokenizer-mode": ("auto", "hf"),
        "config-format": ("auto", "hf"),
        "runner": ("auto", "generate"),
        "convert": ("auto", "none"),
        "scheduling-policy": ("fcfs",),
        "chat-template-content-format": ("auto",),
        "response-role": ("assistant",),
        "mm-encoder-tp-mode": ("weights",),
        "uvicorn-log-level": (ANY,),
        "swap-space": (ANY,),
        "enable-chunked-prefill": (SWITCH,),
        "async-scheduling": (SWITCH,),
        "enable-prompt-tokens-details": (SWITCH,),
        "skip-mm-profiling": (SWITCH,),
        "disable-log-requests": (SWITCH,),
        "no-enable-log-requests": (SWITCH,),
        "disable-log-stats": (SWITCH,),
        "disable-uvicorn-access-log": (SWITCH,),
    }
)
SHORT: Mapping[str, str] = MappingProxyType(
    {"tensor-parallel-size": "-tp", "pipeline-parallel-size": "-pp", "data-parallel-size": "-dp"}
)


def add_ignored(parser: Parser) -> None:
    """The flags, not shown in the help."""
    for name, values in IGNORED.items():
        flags = [f"--{name}", *([SHORT[name]] if name in SHORT else [])]
        action: Mapping[str, Any] = {"action": "store_true"} if values == (SWITCH,) else {"metavar": "VALUE"}
        parser.add_argument(*flags, dest=_dest(name), default=argparse.SUPPRESS, help=argparse.SUPPRESS, **action)


def ignored_flags(namespace: argparse.Namespace) -> list[str]:
    """Those that were given, as they were meant. Raises UsageError for a value that asks for something."""
    given = {name: getattr(namespace, _dest(name)) for name in IGNORED if hasattr(namespace, _dest(name))}
    return [_judged(f"--{name}", name, value) for name, value in given.items()]


def ignored_key(name: str, value: Any) -> str | None:
    """The same for a key of a config file; None if it is not one of them."""
    return _judged(name, name.replace("_", "-"), value) if name.replace("_", "-") in IGNORED else None


def _judged(shown: str, name: str, value: Any) -> str:
    permitted = IGNORED[name]
    if permitted == (SWITCH,):
        if value is not True:
            raise UsageError(f"{shown} cannot be turned off.")
        return shown
    if permitted != (ANY,) and str(value) not in permitted:
        raise UsageError(f"{shown} {str(value)[:60]!r} is not supported; taken: {', '.join(permitted)}.")
    return f"{shown} {str(value)[:60]}"


def _dest(name: str) -> str:
    return "ignored_" + name.replace("-", "_")
