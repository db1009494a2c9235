"""The door of the package: whatever was handed in becomes a picture, each limit before its cost.

Contract: source, then bytes, then header, then pixels; a step runs only if the ones before it were within the limits.
Raises nothing but MediaError. Safe in threads; nothing is kept between calls.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import NoReturn

from fovea.core.errors import MediaSourceError
from fovea.core.types import Picture
from fovea.media.decode import decode
from fovea.media.fetch import FetchPolicy, fetch_bytes
from fovea.media.probe import MediaLimits, Probe, check_num_bytes, probe
from fovea.media.source import BytesSource, FileSource, MemorySource, UrlSource, parse_image

_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a web address answered with, and how long that took."""

    data: bytes
    seconds: float


def load_picture(value: object, limits: MediaLimits, policy: FetchPolicy | None = None) -> Picture:
    """The upright RGB picture of anything parse_image takes, or of a source that parse_url made."""
    source = open_source(value, limits, policy)
    probe(source, limits)
    return decode(source)


def probe_size(value: object, limits: MediaLimits, policy: FetchPolicy | None = None) -> Probe:
    """Size and format of the same, without decoding."""
    return probe(open_source(value, limits, policy), limits)


def open_source(value: object, limits: MediaLimits, policy: FetchPolicy | None = None) -> MemorySource:
    """Anything parse_image takes, or a source that parse_url made, with its bytes in memory and within the limits.

    Web addresses are fetched by `policy`, and refused without one. Not for a thread whose event loop is running.
    """
    source = parse_image(value)
    if isinstance(source, UrlSource):
        return _fetch(source, limits, policy)
    return _read_file(source, limits) if isinstance(source, FileSource) else source


def _fetch(source: UrlSource, limits: MediaLimits, policy: FetchPolicy | None) -> BytesSource:
    if policy is None:
        raise MediaSourceError("Web addresses are not fetched here. Pass the picture itself or a data URL.")
    data = fetch_bytes(source.url, policy)
    check_num_bytes(len(data), limits)
    return BytesSource(data)


def _read_file(source: FileSource, limits: MediaLimits) -> BytesSource:
    try:
        descriptor = os.open(source.path, _OPEN_FLAGS)
    except (OSError, ValueError):
        _refuse(source, "it can't be opened")
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            _refuse(source, "it is not a regular file")
        _check_still_below_root(source, status)
        check_num_bytes(status.st_size, limits)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limits.max_bytes + 1)
    except OSError:
        _refuse(source, "it can't be read")
    finally:
        os.close(descriptor)
    check_num_bytes(len(data), limits)
    return BytesSource(data)


def _check_still_below_root(source: FileSource, status: os.stat_result) -> None:
    """The path was judged earlier; the file now open must be the one that lies there still, and below the root."""
    if source.root is None:
        return
    try:
        path = source.path.resolve(strict=True)
        same = path.is_relative_to(source.root) and os.path.samestat(path.stat(), status)
    except (OSError, RuntimeError):
        same = False
    if not same:
        _refuse(source, "it changed while it was opened")


def _refuse(source: FileSource, reason: str) -> NoReturn:
    # A path that came from a request is not repeated; one that the program named helps its author.
    name = f" {str(source.path)[:200]!r}" if source.root is None else ""
    raise MediaSourceError(f"The picture file{name} was refused: {reason}.") from None
