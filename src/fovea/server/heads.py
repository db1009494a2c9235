"""Is this the beginning of an HTTP/1.1 request that only one reading fits?

Judged from the raw bytes, before the parser sees them: sizes first, then everything that lets two parsers disagree
(bare line feeds, folded lines, a length beside chunks, lengths that differ). What is left for h11 is the grammar.
"""

from __future__ import annotations

import re

from fovea.core.errors import RouteError
from fovea.server.errors import HeadersTooLargeError, UriTooLongError

MAX_HEAD_BYTES = 16 * 1024
MAX_HEADERS = 100
MAX_TARGET_BYTES = 8 * 1024

# A line end that isn't CR LF, a line that goes on in the next, a NUL. A CR at the very end may get its LF yet.
AMBIGUOUS = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\n[ \t]|\0")
VERSIONS = (b"HTTP/1.1", b"HTTP/1.0")
LENGTH = re.compile(rb"[0-9]{1,100}")


def judge_head(data: bytes) -> RouteError | None:
    """What is wrong with the head at the start of `data`, which may be incomplete; None if nothing is, so far."""
    end = data.find(b"\r\n\r\n")
    is_complete = 0 <= end <= MAX_HEAD_BYTES
    head = data[: end + 2] if is_complete else data[: MAX_HEAD_BYTES + 1]
    line, _, rest = head.partition(b"\r\n")
    words = line.split(b" ")
    if len(words) > 1 and len(words[1]) > MAX_TARGET_BYTES:
        return UriTooLongError(f"The address is longer than {MAX_TARGET_BYTES:,} bytes.")
    if len(head) > MAX_HEAD_BYTES:
        return HeadersTooLargeError(f"The headers are larger than {MAX_HEAD_BYTES:,} bytes.")
    if rest.count(b"\r\n") > MAX_HEADERS:
        return HeadersTooLargeError(f"There are more than {MAX_HEADERS} headers.")
    if AMBIGUOUS.search(head):
        return malformed("A line of the headers does not end in CR LF, is folded or holds a NUL.")
    if not is_complete:
        return None
    if len(words) != 3 or words[2] not in VERSIONS:
        return malformed("The request line is not that of HTTP/1.1.")
    return judge_framing(rest, is_old=words[2] == VERSIONS[1])


def judge_framing(lines: bytes, *, is_old: bool) -> RouteError | None:
    """Where the body ends must be said once and plainly."""
    lengths: list[bytes] = []
    codings: list[bytes] = []
    for line in lines.split(b"\r\n"):
        name, _, value = line.partition(b":")
        name = name.strip().lower()
        if name == b"content-length":
            lengths.append(value.strip())
        elif name == b"transfer-encoding":
            codings.append(value.strip().lower())
    if codings and (lengths or is_old or codings != [b"chunked"]):
        return malformed("Transfer-Encoding must be chunked, once, in HTTP/1.1 and without a Content-Length.")
    if len(lengths) > 1 or any(not LENGTH.fullmatch(length) for length in lengths):
        return malformed("Content-Length must be one number.")
    return None


def malformed(message: str) -> RouteError:
    return RouteError(message, code="invalid_http")
