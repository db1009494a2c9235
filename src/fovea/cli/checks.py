"""What `fovea doctor` tries out: packages, the embedded model's files, the kernels, and one real answer."""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from fovea.cli import selftest
from fovea.cli.facts import package_version
from fovea.cli.pictures import Ask, bundled_asks
from fovea.core.errors import FoveaError

DISTRIBUTION = "fovea-vlm"
MODEL_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
WEIGHTS = "model.safetensors"
MAX_HEADER_BYTES = 100 * 1024**2

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    status: Status
    detail: str


def run_checks() -> Iterator[Check]:
    """Each check as it is done, so that a person can watch. A check that breaks is a failed check."""
    yield _guarded("python", check_python)
    yield _guarded("packages", check_packages)
    yield _guarded("torchvision", check_torchvision)
    yield _guarded("kernels", check_kernels)
    files = _guarded("embedded model", check_model_files)
    yield files
    if files.status == "fail":
        yield Check("answer", "fail", "not tried: the embedded model is not complete")
    else:
        yield _guarded("answer", check_answer)


def check_python() -> Check:
    good = sys.version_info >= (3, 11)
    return Check("python", "ok" if good else "fail", f"{sys.version.split()[0]}; 3.11 or newer is needed")


def check_packages() -> Check:
    """Every dependency that the distribution names is there, new enough."""
    from packaging.requirements import Requirement

    wrong, count = [], 0
    for text in metadata.requires(DISTRIBUTION) or []:
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        count += 1
        found = package_version(needed.name)
        if found is None or not needed.specifier.contains(found, prereleases=True):
            wrong.append(f"{needed} (found: {found or 'none'})")
    if wrong:
        return Check("packages", "fail", f"needed: {'; '.join(wrong)}. pip install -U {DISTRIBUTION}")
    return Check("packages", "ok", f"all {count} are there and new enough")


def check_torchvision() -> Check:
    """Fovea does without torchvision, but one that does not match torch breaks transformers."""
    if package_version("torchvision") is None:
        return Check("torchvision", "ok", "not installed, not needed")
    try:
        import torchvision  # noqa: F401
    except Exception as error:  # a wrong pair fails in its own extension module, in many ways
        return Check(
            "torchvision",
            "warn",
            f"it does not load beside this torch ({type(error).__name__}); pip install -U torch torchvision together",
        )
    return Check("torchvision", "ok", f"{package_version('torchvision')} loads beside torch {package_version('torch')}")


def check_kernels() -> Check:
    """The kernels of every device there is, against naive float64 arithmetic."""
    worst = {device: selftest.worst_error(device) for device in selftest.devices()}
    shown = ", ".join(f"{device} {error:.0e} of {selftest.TOLERANCE[device]:.0e}" for device, error in worst.items())
    good = all(error <= selftest.TOLERANCE[device] for device, error in worst.items())
    return Check("kernels", "ok" if good else "fail", f"largest error against float64: {shown} permitted")


def check_model_files(folder: Path | None = None) -> Check:
    """All files are there and the weights file is as long as its own header says."""
    from fovea.models.folder import embedded_model

    folder = folder or embedded_model()
    missing = [name for name in (*MODEL_FILES, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        return Check("embedded model", "fail", f"{folder} lacks {', '.join(missing)}. Install {DISTRIBUTION} again.")
    for name in MODEL_FILES:
        json.loads((folder / name).read_text(encoding="utf-8"))
    actual, expected = (folder / WEIGHTS).stat().st_size, safetensors_bytes(folder / WEIGHTS)
    if actual != expected:
        said = f"its header says {expected:,}" if expected > 0 else "it is no safetensors file"
        return Check("embedded model", "fail", f"{WEIGHTS} has {actual:,} bytes; {said}")
    return Check("embedded model", "ok", f"{len(MODEL_FILES) + 1} files, weights {actual / 1e6:.1f} MB")


def safetensors_bytes(path: Path) -> int:
    """The length a safetensors file must have: 8 bytes, the header, the furthest end of a tensor. -1: it is none."""
    with path.open("rb") as file:
        size = file.read(8)
        length = struct.unpack("<Q", size)[0] if len(size) == 8 else MAX_HEADER_BYTES + 1
        if length > MAX_HEADER_BYTES:
            return -1
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return -1
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return 8 + int(length) + max(ends, default=0)


def check_answer() -> Check:
    """The embedded model on one bundled picture, through the whole of Fovea."""
    ask = next(iter(bundled_asks()), None)
    if ask is None:
        return Check("answer", "fail", f"no picture is bundled. Install {DISTRIBUTION} again.")
    text, seconds = _answer(ask)
    said = f"{ask.question!r} about {', '.join(ask.names)}: {text!r} after {seconds:.1f} s with loading"
    if not text:
        return Check("answer", "fail", said)
    if ask.answer and text.strip(" .").lower() != ask.answer.strip(" .").lower():
        return Check("answer", "warn", f"{said}; {ask.answer!r} was expected")
    return Check("answer", "ok", said)


def _answer(ask: Ask) -> tuple[str, float]:
    from fovea.core.params import SamplingParams
    from fovea.llm import LLM

    started = time.perf_counter()
    with LLM(use_tqdm=False, max_num_seqs=1) as llm:
        output = llm.chat(ask.messages(), SamplingParams(temperature=0.0, max_tokens=64), use_tqdm=False)[0]
    return output.outputs[0].text.strip(), time.perf_counter() - started


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except FoveaError as error:
        return Check(name, "fail", str(error))
    except Exception as error:  # a broken installation may fail anywhere, and the other checks still count
        return Check(name, "fail", f"{type(error).__name__}: {error}")
