"""Mutations of bytes, from a seed: the same seed and number give the same bytes on every machine."""

from __future__ import annotations

import base64
import random
import struct
from collections.abc import Callable, Sequence

Mutate = Callable[[bytearray, random.Random, Sequence[bytes]], bytearray]
ODD_BYTES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
ODD_SIZES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF)
MAX_BYTES = 200_000
HEAD_BYTES = 64


def mutated(seeds: Sequence[bytes], number: int) -> bytes:
    """Mutant `number` of the corpus `seeds`."""
    rng = random.Random(number)
    data = bytearray(seeds[number % len(seeds)])
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        data = rng.choice(MUTATIONS)(data, rng, seeds)
        if len(data) > MAX_BYTES:
            del data[MAX_BYTES:]
    return bytes(data)


def shown(data: bytes) -> str:
    """For a report: what to paste to have the input again."""
    return base64.b64encode(data).decode("ascii")


def _position(data: bytearray, rng: random.Random) -> int:
    """More often in the head, where the sizes are."""
    end = len(data) if rng.random() < 0.5 else min(len(data), HEAD_BYTES)
    return rng.randrange(end) if end else 0


def flip_bits(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytearray:
    for _time in range(rng.randint(1, 8)):
        if data:
            data[_position(data, rng)] ^= 1 << rng.randrange(8)
    return data


def set_bytes(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytearray:
    for _time in range(rng.randint(1, 4)):
        if data:
            data[_position(data, rng)] = rng.choice((*ODD_BYTES, rng.randrange(256)))
    return data


def cut(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytearray:
    return data[: rng.randrange(len(data) + 1)]


def cut_out(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytearray:
    start = _position(data, rng)
    del data[start : start + rng.choice((1, 2, 4, 12, 100))]
    return data


def set_size(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytearray:
    """Two or four bytes, either order, become a size that code forgets about."""
    value = rng.choice(ODD_SIZES)
    packed = struct.pack(rng.choice("<>") + ("I" if value > 0xFFFF or rng.random() < 0.5 else "H"), value)
    at = _position(data, rng)
    data[at : at + len(packed)] = packed
    return data


def swap_parts(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytearray:
    a, b, c = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def double_part(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytearray:
    start = _position(data, rng)
    part = data[start : start + rng.choice((1, 4, 16, 200, 5000))]
    return data[:start] + part * rng.choice((1, 1, 3, 20)) + data[start:]


def splice(data: bytearray, rng: random.Random, seeds: Sequence[bytes]) -> bytearray:
    """The head of this file and the tail of another."""
    other = rng.choice(seeds)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def insert(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytearray:
    at = _position(data, rng)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 40)))
    return data


def swap_chunks(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> bytearray:
    """Chunks of a PNG or WebP, segments of a JPEG, whole: moved, doubled or left out."""
    parts = chunks(bytes(data))
    if len(parts) < 3:
        return swap_parts(data, rng, ())
    a, b = rng.randrange(1, len(parts)), rng.randrange(1, len(parts))
    match rng.randrange(3):
        case 0:
            parts[a], parts[b] = parts[b], parts[a]
        case 1:
            parts.insert(a, parts[b])
        case _:
            del parts[a]
    return bytearray(b"".join(parts))


def chunks(data: bytes) -> list[bytes]:
    """The file in its own parts, the signature first; the whole if they cannot be told apart."""
    if data.startswith(b"\x89PNG"):
        return _split(data, 8, lambda at: 12 + int.from_bytes(data[at : at + 4], "big"))
    if data.startswith(b"RIFF"):
        return _split(data, 12, lambda at: 8 + (int.from_bytes(data[at + 4 : at + 8], "little") + 1) // 2 * 2)
    if data.startswith(b"\xff\xd8"):
        return _split(data, 2, lambda at: 2 + int.from_bytes(data[at + 2 : at + 4], "big"))
    return [data]


def _split(data: bytes, start: int, length: Callable[[int], int]) -> list[bytes]:
    parts, at = [data[:start]], start
    while at < len(data) and len(parts) < 100:
        end = at + max(length(at), 1)
        parts.append(data[at:end])
        at = end
    return parts + ([data[at:]] if at < len(data) else [])


MUTATIONS: tuple[Mutate, ...] = (
    flip_bits,
    flip_bits,
    set_bytes,
    set_bytes,
    cut,
    cut_out,
    set_size,
    set_size,
    set_size,
    swap_parts,
    double_part,
    splice,
    insert,
    swap_chunks,
    swap_chunks,
)
