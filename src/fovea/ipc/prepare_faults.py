"""Faults for tests: what goes wrong on purpose where requests are prepared. Nothing here runs without them.

Each of these takes a word; a request with it in its messages or prompt is the victim:

    prepare_segfault, prepare_hang, prepare_exit    the worker crashes, never returns, ends without a word
    prepare_memory                                  it asks for 4 GiB
    prepare_panic                                   the tokenizer raises what is no Exception
    prepare_error                                   it raises an ordinary one
    prepare_ids                                     the tokenizer gives an id outside the vocabulary

    {"fork_errors": NUMBER}    so many forks fail, after the first NUMBER that make the pool
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fovea.ipc.messages import Task

if TYPE_CHECKING:
    from fovea.ipc.prepare_worker import Worker

HUGE_BYTES = 4 * 1024**3
OUTSIDE = 10**7


class Fault(Exception):
    """What was asked for."""


class Panic(BaseException):
    """As pyo3's PanicException is."""


def install(worker: Worker, wanted: Mapping[str, Any]) -> None:
    if not any(name.startswith("prepare_") for name in wanted):
        return
    prepare, encode = worker._prepare, worker.preparer.tokenizer.encode_pieces

    def faulty_prepare(preparer: Any, task: Task, blob: memoryview | None) -> Any:
        _go_wrong({name for name, word in wanted.items() if _is_in(word, task)})
        return prepare(preparer, task, blob)

    def faulty_encode(pieces: Iterable[tuple[str, bool]], *, add_special_tokens: bool = False) -> list[int]:
        kept = list(pieces)
        ids = encode(kept, add_special_tokens=add_special_tokens)
        hit = any(wanted.get("prepare_ids", "\0") in text for text, _ in kept)
        return [*ids, OUTSIDE] if hit else ids

    vars(worker)["_prepare"] = faulty_prepare
    vars(worker.preparer.tokenizer)["encode_pieces"] = faulty_encode


def forks(wanted: Mapping[str, Any]) -> Callable[[], int]:
    number = int(wanted.get("fork_errors", 0))
    if not number:
        return os.fork
    num_calls = 0
    refused = OSError(errno.EAGAIN, "a fault was asked for")

    def fork() -> int:
        nonlocal num_calls
        num_calls += 1
        if number < num_calls <= 2 * number:
            raise refused
        return os.fork()

    return fork


def _is_in(word: object, task: Task) -> bool:
    return isinstance(word, str) and word in f"{task.messages} {task.prompt}"


def _go_wrong(names: set[str]) -> None:
    if "prepare_segfault" in names:
        os.kill(os.getpid(), signal.SIGSEGV)
    while "prepare_hang" in names:
        pass
    if "prepare_exit" in names:
        os._exit(0)
    if "prepare_memory" in names:
        bytearray(HUGE_BYTES)
    if "prepare_panic" in names:
        raise Panic
    if "prepare_error" in names:
        raise Fault
