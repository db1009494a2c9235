"""Anonymous shared memory for pixels: made by one process, sealed, read by another.

A blob is a file descriptor without a name, so nothing is left behind whoever dies. On Linux it is a memfd, sealed when
it is written: who receives it knows that it can neither shrink nor change any more. Elsewhere it is a deleted file.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
from collections.abc import Sequence

from fovea.core.errors import RequestFailedError, UnavailableError

ALIGNMENT_BYTES = 64
_HAS_SEALS = hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE if _HAS_SEALS else 0


def write_blob(parts: Sequence[memoryview | bytes]) -> int:
    """A descriptor of the parts behind one another, the caller's. Raises UnavailableError if there is none left."""
    try:
        fd = create_memory()
    except OSError:
        raise none_left() from None
    try:
        for part in parts:
            view = memoryview(part).cast("B")
            while view.nbytes:
                view = view[os.write(fd, view) :]
        if _HAS_SEALS:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, OSError):
            raise none_left() from None
        raise
    return fd


def map_blob(fd: int) -> memoryview:
    """The bytes of a blob, as long as the result lives. Closes the descriptor.

    Raises RequestFailedError for a descriptor that is no sealed blob: it could change under the reader.
    """
    try:
        if _HAS_SEALS and fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise RequestFailedError("A picture arrived in memory that is not sealed.")
        num_bytes = os.fstat(fd).st_size
        if not num_bytes:
            return memoryview(b"")
        return memoryview(mmap.mmap(fd, num_bytes, access=mmap.ACCESS_COPY))
    except OSError:
        raise RequestFailedError("A picture's shared memory can't be read.") from None
    finally:
        os.close(fd)


def blob_bytes(fd: int | None) -> int:
    """The size of a blob, which stays the caller's; 0 without one."""
    return 0 if fd is None else os.fstat(fd).st_size


def none_left() -> UnavailableError:
    return UnavailableError(
        "The server has no memory or no file descriptor left for this request. Try again.", code="out_of_resources"
    )


def create_memory() -> int:
    """A descriptor of nothing yet."""
    if _HAS_SEALS:
        return os.memfd_create("fovea", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
