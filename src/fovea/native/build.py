"""The C sources beside this file, compiled once by the system's compiler and kept in a folder only this user can write.

Nothing of a request or a model folder decides what is compiled or loaded, and of the environment HOME alone, where.
Source and flags are the package's, the compiler is searched for in the system's folders, and the file's name covers all
of them and the CPU.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from fovea.core.log import logger

SOURCES = ("linear.c", "attention.c", "step.c", "segments.c", "resample.c", "patches.c")
HEADERS = ("vectors.h", "kernels.h", "products.h")
FOLDER = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")
# Sums may be reordered; NaN and infinity keep their meaning, which -ffast-math would take from them.
FLAGS = (
    *("-O3", "-march=native", "-fPIC", "-fno-math-errno", "-fno-trapping-math"),
    *("-fassociative-math", "-fno-signed-zeros", "-freciprocal-math"),
)
TIMEOUT_S = 60.0
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def built_library(folder: Path | None = None) -> tuple[Path | None, str]:
    """The compiled file and where it is, or None and why there is none. Never raises.

    folder: where it is kept; default .cache/fovea/kernels at home.
    """
    if sys.platform != "linux":
        return None, "they are compiled on Linux only"
    try:
        compiler = _compiler()
        if compiler is None:
            return None, f"no C compiler in {os.defpath}"
        library = _place(compiler, folder)
        library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if doubt := distrust(library.parent):
            return None, doubt
        if not library.exists() and (failure := _compile(compiler, library)):
            return None, failure
        if doubt := _distrust_file(library):
            return None, doubt
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return None, f"{type(error).__name__}: {error}"
    return library, str(library)


def existing_path() -> Path | None:
    """The compiled file if it is there and nobody else can change it. Never raises, compiles nothing."""
    try:
        library = _usual_place()
        if library is None or not library.exists():
            return None
        return None if distrust(library.parent) or _distrust_file(library) else library
    except (OSError, RuntimeError):
        return None


def kernels_state() -> str:
    """For people: where the compiled file is, or why there is none yet. Compiles nothing."""
    path = existing_path()
    if path is not None:
        return str(path)
    if sys.platform != "linux":
        return "on Linux only"
    compiler = _compiler()
    return f"no C compiler in {os.defpath}" if compiler is None else f"made at the first start, by {compiler}"


@cache
def _usual_place() -> Path | None:
    compiler = _compiler() if sys.platform == "linux" else None
    return None if compiler is None else _place(compiler, None)


def _compiler() -> str | None:
    return next((found for name in COMPILERS if (found := shutil.which(name, path=os.defpath))), None)


def _place(compiler: str, folder: Path | None) -> Path:
    folder = Path.home() / ".cache" / "fovea" / "kernels" if folder is None else folder
    return folder / f"{_name(compiler)}.so"


def distrust(folder: Path) -> str | None:
    """Why others could change what is loaded from this folder; None: they cannot."""
    own = folder.lstat()
    if not stat.S_ISDIR(own.st_mode) or own.st_uid != os.geteuid() or own.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return f"{folder} is not a folder of this user alone"
    for parent in folder.resolve().parents:
        found = parent.stat()
        if found.st_uid not in (0, os.geteuid()) or (found.st_mode & OTHERS_WRITE and not found.st_mode & stat.S_ISVTX):
            return f"others can write to {parent}"
    return None


def _distrust_file(library: Path) -> str | None:
    found = library.lstat()
    if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & OTHERS_WRITE:
        return None
    return f"{library} is not a file of this user alone"


def _name(compiler: str) -> str:
    """Of everything that the compiled file depends on."""
    real = Path(compiler).resolve()
    about = real.stat()
    cpu = Path("/proc/cpuinfo").read_bytes().split(b"\n\n")[0].splitlines()
    steady = [line for line in cpu if line.startswith((b"model name", b"flags", b"Features", b"CPU", b"stepping"))]
    texts = [(FOLDER / name).read_bytes() for name in (*SOURCES, *HEADERS)]
    digest = hashlib.sha256(platform.machine().encode())
    for part in (*texts, repr((str(real), about.st_size, about.st_mtime_ns, FLAGS)).encode(), *steady):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:40]


def _compile(compiler: str, library: Path) -> str | None:
    """Make the file, whole or not at all; why it failed, or None. Takes seconds, once on a machine."""
    logger.info("compiling kernels in C for this CPU, which is done once")
    with tempfile.TemporaryDirectory(dir=library.parent) as work, ThreadPoolExecutor(len(SOURCES)) as pool:
        objects = [str(Path(work) / f"{name}.o") for name in SOURCES]
        sources = [str(FOLDER / name) for name in SOURCES]
        compiled = [
            pool.submit(_run, [compiler, *FLAGS, "-c", source, "-o", made], work)
            for source, made in zip(sources, objects, strict=True)
        ]
        made = Path(work) / "made.so"
        failures = [job.result() for job in compiled]
        failures.append(_run([compiler, *FLAGS, "-shared", *objects, "-o", str(made), "-lm"], work))
        if failure := next(filter(None, failures), None):
            return failure
        made.chmod(0o600)
        made.replace(library)
    return None


def _run(command: list[str], work: str) -> str | None:
    """Why it failed, or None."""
    environment = {"PATH": os.defpath, "LC_ALL": "C", "TMPDIR": work}
    done = subprocess.run(
        command,
        env=environment,
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return f"{command[0]} failed: {done.stderr.decode(errors='replace')[:200]}" if done.returncode else None
