"""Request bodies: read with a limit and a deadline, judged, decoded.

Reading judges what the headers say before a byte is asked for, so a client that waits for "100 Continue" is refused
without it. Decoding is strict JSON (RFC 8259): no NaN, no trailing text, no byte order mark, valid UTF-8 throughout, no
lone surrogates, numbers that a field can hold without loss. Before it, one linear pass bounds what decoding may cost:
how deep values nest and how many there are.

A key that occurs twice: the last one wins. The body is decoded once and every value is checked on the way, so nothing
is ever judged by one of the two and served by the other.
"""

from __future__ import annotations

import asyncio
import codecs
import re
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from fovea.core.errors import (
    BodyError,
    ContentTooLargeError,
    SlowClientError,
    UnsupportedTypeError,
)
from fovea.core.server_config import ServerConfig
from fovea.server.admission import Reading
from fovea.server.errors import ClientGone
from fovea.server.violations import violation

T = TypeVar("T")

BODY_IDLE_S = 20.0  # a client that sends nothing for so long is too slow, whatever time it has left
MAX_DEPTH = 64
MAX_VALUES = 1_000_000  # a longer prompt than any queue takes; each costs up to 60 bytes once decoded
MAX_LENGTH_DIGITS = 18
WINDOW_BYTES = 64 * 1024
BACKSLASH = ord("\\")

SURROGATE = r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
PAIR = r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
# Escapes are consumed left to right, so that "\\ud800" (an escaped backslash, then text) is none.
LONE_SURROGATE = re.compile(rf"[^\\]*+(?:(?:{PAIR}|\\(?!u[dD][89a-fA-F]).)[^\\]*+)*+{SURROGATE}".encode(), re.DOTALL)


async def read_body(request: Request, config: ServerConfig, reading: Reading) -> bytes:
    """The whole body, at most `max_body_bytes`, within `body_timeout_s`; ClientGone if the client hangs up."""
    check_headers(request, config.max_body_bytes)
    pieces: list[bytes] = []
    num_bytes = 0
    try:
        async with asyncio.timeout(config.body_timeout_s):
            more = True
            while more:
                async with asyncio.timeout(BODY_IDLE_S):
                    message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone("The client left before its request was complete.")
                piece, more = message.get("body", b""), message.get("more_body", False)
                num_bytes += len(piece)
                if num_bytes > config.max_body_bytes:
                    raise too_large(config.max_body_bytes)
                reading.add(len(piece))
                pieces.append(piece)
    except TimeoutError:
        raise SlowClientError(
            f"The body was not complete after {config.body_timeout_s:g} s (body_timeout_s), "
            f"or nothing of it came for {BODY_IDLE_S:g} s."
        ) from None
    return b"".join(pieces)


def check_headers(request: Request, max_body_bytes: int) -> None:
    """Everything the headers alone give away; nothing of the body has been asked for yet."""
    headers = request.headers
    if headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise UnsupportedTypeError("Compressed bodies are not accepted. Send the JSON as it is.")
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedTypeError("The body must be JSON. Send it with the header Content-Type: application/json.")
    length = headers.get("content-length", "0").strip()
    if len(length) > MAX_LENGTH_DIGITS or (length.isdecimal() and int(length) > max_body_bytes):
        raise too_large(max_body_bytes)


def too_large(max_body_bytes: int) -> ContentTooLargeError:
    return ContentTooLargeError(
        f"The body is larger than {max_body_bytes:,} bytes (max_body_bytes). "
        "Send smaller pictures, or pictures as addresses."
    )


def decode(data: bytes, type: type[T]) -> T:
    """A body as `type`, a msgspec struct; BodyError with a code, and a place where there is one, otherwise."""
    check_size(data)
    check_utf8(data)
    try:
        return msgspec.json.decode(data, type=type, strict=True)
    except msgspec.ValidationError as error:
        raise violation(str(error), data, type) from None
    except msgspec.DecodeError as error:
        raise malformed(str(error), data) from None
    except (UnicodeDecodeError, RecursionError):
        raise BodyError("The body is not valid JSON.") from None


def malformed(text: str, data: bytes) -> BodyError:
    """The parser's words serve to find the place; the sentence is ours."""
    if not data.strip():
        return BodyError("The body is empty; a JSON object is expected.")
    if LONE_SURROGATE.match(data):
        return BodyError("A text holds half of a surrogate pair, which is no character.", code="invalid_value")
    if "truncated" in text:
        return BodyError("The body is not valid JSON: it ends too early.")
    place = re.search(r"\(byte (\d+)\)", text)
    where = f" at byte {place[1]}" if place else ""
    return BodyError(f"The body is not valid JSON{where}.")


def check_utf8(data: bytes) -> None:
    """Also inside values that no field takes, which the parser passes over."""
    if data.isascii():
        return
    check = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(data), WINDOW_BYTES):
            check.decode(data[start : start + WINDOW_BYTES])
        check.decode(b"", final=True)
    except UnicodeDecodeError:
        raise BodyError("The body is not valid UTF-8.") from None


def check_size(data: bytes) -> None:
    """Refuse values nested deeper than MAX_DEPTH or more than MAX_VALUES, in linear time and constant memory.

    Text between quotes doesn't count. Most bodies pass by a look that runs at memory speed: they hold few brackets at
    all, however long their pictures are.
    """
    few_values = len(data) <= MAX_VALUES or data.count(b",") <= MAX_VALUES // 2
    if few_values and holds_at_most(data, b"[", MAX_DEPTH // 2) and holds_at_most(data, b"{", MAX_DEPTH // 2):
        return
    depth = num_values = start = 0
    in_text = False
    while start < len(data):
        end = min(start + WINDOW_BYTES, len(data))
        if end < len(data) and data[end - 1] == BACKSLASH:
            end -= odd_backslashes(data[start:end])  # an escape straddles the border
        if not in_text or data.find(b'"', start, end) >= 0:  # else: the middle of a picture
            depth, num_values, in_text = judge(data[start:end], depth, num_values, in_text)
        start = end


def judge(window: bytes, depth: int, num_values: int, in_text: bool) -> tuple[int, int, bool]:
    """The state after one window, which splits no escape."""
    if b"\\" in window:
        window = window.replace(b"\\\\", b"").replace(b'\\"', b"")
    codes = np.frombuffer(window, np.uint8)
    if not codes.size:
        return depth, num_values, in_text
    texts = np.logical_xor.accumulate(codes == ord('"')) ^ in_text
    steps = STEPS[codes]
    steps[texts] = 0
    depths = np.cumsum(steps, dtype=np.int64) + depth
    num_values += int(np.count_nonzero(steps > 0)) + int(np.count_nonzero((codes == ord(",")) & ~texts))
    if int(depths.max()) > MAX_DEPTH:
        raise BodyError(f"The body nests deeper than {MAX_DEPTH} levels.")
    if num_values > MAX_VALUES:
        raise BodyError(f"The body holds more than {MAX_VALUES:,} values.", code="array_too_long")
    return int(depths[-1]), num_values, bool(texts[-1])


def bracket_steps() -> NDArray[np.int8]:
    steps = np.zeros(256, np.int8)
    steps[[ord("["), ord("{")]] = 1
    steps[[ord("]"), ord("}")]] = -1
    steps.setflags(write=False)
    return steps


STEPS = bracket_steps()


def holds_at_most(data: bytes, wanted: bytes, limit: int) -> bool:
    """Like count() <= limit, but at memchr's speed where there are few."""
    found = -1
    for _ in range(limit + 1):
        found = data.find(wanted, found + 1)
        if found < 0:
            return True
    return False


def odd_backslashes(window: bytes) -> int:
    """1 if `window` ends in an odd run of backslashes, whose last one escapes what follows; else 0."""
    return (len(window) - len(window.rstrip(b"\\"))) % 2
