"""What `fovea doctor` reports about the machine: read, never changed, and never a reason to fail."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fovea import __version__
from fovea.core.config import GIB
from fovea.core.machine import affinity_cores, core_limit, memory_limit, usable_cores
from fovea.native.build import kernels_state

PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "numpy",
    "pillow",
    "jinja2",
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16")

Facts = dict[str, dict[str, Any]]


NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})


def collect_facts(environment: Mapping[str, str] = NO_ENVIRONMENT) -> Facts:
    """Sections of name and value, in the order they are shown."""
    return {
        "software": _software(),
        "packages": {name: package_version(name) or "not installed" for name in PACKAGES},
        "cpu": _cpu(environment),
        "memory": _memory(),
        "cuda": _cuda(),
        "hub": _hub(),
    }


def package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _software() -> dict[str, Any]:
    return {
        "fovea": f"{__version__} in {Path(__file__).parents[1]}",
        "python": f"{platform.python_version()} ({platform.python_implementation()}) at {sys.executable}",
        "platform": platform.platform(),
    }


def _cpu(environment: Mapping[str, str]) -> dict[str, Any]:
    info = _read("/proc/cpuinfo")
    flags = set((_field(info, "flags") or _field(info, "Features")).split())
    known = [flag for flag in CPU_FLAGS if flag in flags]
    fast_bf16 = bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
    return {
        "model": _field(info, "model name") or platform.processor() or platform.machine(),
        "cores": f"{affinity_cores()} usable of {os.cpu_count()}",
        "container limit": "none" if (limit := core_limit()) is None else f"{limit:g} cores",
        "threads": _threads(environment),
        "instructions": " ".join(known) or "unknown",
        "kernels in C": kernels_state(),
        "bfloat16": "in hardware" if fast_bf16 else "emulated: float32 is usually faster here",
    }


def _threads(environment: Mapping[str, str]) -> str:
    """How many an engine on this CPU computes with, and the variables that have a say in it."""
    import torch

    variables = [f"{name}={environment[name]}" for name in THREAD_VARIABLES if name in environment]
    return ", ".join([f"{min(torch.get_num_threads(), usable_cores())} for an engine on this CPU", *variables])


def _memory() -> dict[str, Any]:
    info = _read("/proc/meminfo")
    limit = memory_limit()
    return {
        "total": _kib(_field(info, "MemTotal")),
        "available": _kib(_field(info, "MemAvailable")),
        "container limit": "none" if limit is None else f"{limit / GIB:.1f} GiB",
    }


def _cuda() -> dict[str, Any]:
    import torch

    driver = re.search(r"Kernel Module.*?(\d+\.\d+(?:\.\d+)?)", _read("/proc/driver/nvidia/version"))
    facts: dict[str, Any] = {
        "torch built for": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only",
        "driver": driver[1] if driver else "none found",
    }
    if not torch.cuda.is_available():
        return facts | {"devices": "none"}
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        capability = f"{properties.major}.{properties.minor}"
        facts[f"device {i}"] = f"{properties.name}, {properties.total_memory / GIB:.1f} GiB, capability {capability}"
    return facts


def _hub() -> dict[str, Any]:
    from huggingface_hub import constants

    return {"cache": str(constants.HF_HUB_CACHE), "offline": "yes" if constants.HF_HUB_OFFLINE else "no"}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(text: str, name: str) -> str:
    """The value behind "name :" in a /proc file."""
    match = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


def _kib(text: str) -> str:
    number = text.partition(" ")[0]
    return f"{int(number) * 1024 / GIB:.1f} GiB" if number.isdigit() else "unknown"
