"""Starting a process that shares a socket with this one, making sure that it never outlives us, and its log."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping

from fovea.core.errors import FoveaError
from fovea.core.log import LineFormatter, logger
from fovea.ipc.channel import Channel, socket_pair

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_STDERR = 2


def spawn(module: str, environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Run `python -m module SOCKET PARENT` with variables beside our own. The socket is our end of the pair."""
    ours, theirs = socket_pair()
    command = [sys.executable, "-m", module, str(theirs.fileno()), str(os.getpid())]
    if environment:
        command = ["/usr/bin/env", *(f"{name}={value}" for name, value in environment.items()), *command]
    with theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    return process, ours


def open_parent(argv: list[str]) -> Channel:
    """What `spawn` started calls first: the channel to its parent, and death with it."""
    descriptor, parent = int(argv[1]), int(argv[2])
    # Ctrl-C and SIGTERM reach a whole process group; the parent decides what they mean.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent(parent)
    return Channel(socket.socket(fileno=descriptor))


def die_with_parent(parent: int) -> None:
    """On Linux the kernel kills this process when `parent` ends; elsewhere the closed socket has to tell."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def exit_reason(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "it still runs"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


class WorkerStartError(FoveaError):
    """A worker process ended before it was ready."""

    code = "worker_start_failed"


class LossyHandler(logging.Handler):
    """Writes lines to stderr as long as its reader takes them, and drops them else: a worker never waits for a log."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._fd = _STDERR
        with contextlib.suppress(OSError):  # where it is a pipe, one end more of it that does not block
            if stat.S_ISFIFO(os.fstat(_STDERR).st_mode):
                self._fd = os.open(f"/proc/self/fd/{_STDERR}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def emit(self, record: logging.LogRecord) -> None:
        left = memoryview(f"{self.format(record)}\n".encode("utf-8", "replace"))
        with contextlib.suppress(OSError):
            while left and select.select([], [self._fd], [], 0)[1]:
                left = left[os.write(self._fd, left[: select.PIPE_BUF]) :]


def show_worker_logs(*, as_json: bool, level: str) -> None:
    """Every line of this process goes through our formatter, those of libraries and Python's warnings too.

    Clients can cause such warnings at will (Pillow's about a picture), so they are shown at level debug only.
    """
    handler = LossyHandler(LineFormatter(as_json=as_json))
    logging.getLogger().addHandler(handler)  # else Python writes the warnings of libraries to stderr as they are
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.DEBUG if level.upper() == "DEBUG" else logging.ERROR)
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
