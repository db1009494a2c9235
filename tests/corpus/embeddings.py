"""E: embeddings of pictures from clients: off by default, and read without trusting a word when they are on.

Every row runs twice: on a server that takes none, and on one that does.
"""

from __future__ import annotations

import base64
import io
import json
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.lib.format as npy_format

from tests.corpus.case import DECODED, Case, Expect, Fields, Parts, Route, answered, case, refused
from tests.corpus.routes import text
from tests.corpus.scene import Scene

CHATS: tuple[Route, ...] = ("chat", "chat_stream", "tokenize_chat")
PLACE = "messages.0.content.0"
DISABLED = refused("embeddings_disabled", param=PLACE, within_s=0.25)
INVALID = refused("invalid_embeddings", param=PLACE)
HIDDEN = 256  # of fovea-tiny
GRID = (1, 4, 6)  # patches; two by two of them are one row
NUM_ROWS = 6


def rows(count: int = NUM_ROWS, width: int = HIDDEN, dtype: Any = "<f4") -> Any:
    return np.full((count, width), 0.25, dtype)


def npy(array: Any, version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    npy_format.write_array(file, array, version=version)
    return file.getvalue()


def npy_header(header: str, data: bytes = b"") -> bytes:
    encoded = header.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(encoded)) + encoded + data


def safetensors(tensors: dict[str, Any], data: bytes, length: int | None = None) -> bytes:
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def tensor(shape: list[Any], dtype: str = "F32", offsets: list[Any] | None = None) -> dict[str, Any]:
    size = math.prod(n for n in shape if isinstance(n, int)) * 4
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets or [0, size]}


class _Marker:
    """Unpickling this would run a command."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, ("open('/tmp/fovea-corpus-was-unpickled', 'w')",)


def _zip(name: str, num_bytes: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(num_bytes))
    return file.getvalue()


def hostile() -> dict[str, bytes]:
    """Data that is no array of ours, by id."""
    data = rows().tobytes()
    good = tensor([NUM_ROWS, HIDDEN])
    size = len(data)
    deep: Any = 1
    for _ in range(65):
        deep = {"a": deep}
    return {
        "E01-pickle": pickle.dumps(_Marker()),
        "E01-npy-of-objects": npy_header(
            "{'descr': '|O', 'fortran_order': False, 'shape': (1, 1), }", pickle.dumps(_Marker())
        ),
        "E02-npy-literal": npy_header(
            "{'descr': __import__('os').system('x'), 'fortran_order': False, 'shape': (1, 1), }"
        ),
        "E03-torch": b"PK\x03\x04" + bytes(200),
        "E04-zip-bomb": _zip("data/0", 10**8),
        "E05-npz-bomb": _zip("arr_0.npy", 10**8),
        "E06-header-2e63": safetensors({"a": good}, data, 2**63),
        "E06-header-long": safetensors({"a": good, "__metadata__": {"x": "y" * 70_000}}, data),
        "E06-header-past-the-end": safetensors({"a": good}, b"", 10**6),
        "E06-overlap": safetensors({"a": good, "b": good}, data),
        "E06-gap": safetensors({"a": tensor([NUM_ROWS, HIDDEN], offsets=[8, size + 8])}, bytes(8) + data),
        "E06-past-the-end": safetensors({"a": tensor([NUM_ROWS, HIDDEN], offsets=[0, size * 2])}, data),
        "E06-two-tensors": safetensors(
            {"a": tensor([3, HIDDEN]), "b": tensor([3, HIDDEN], offsets=[size // 2, size])}, data
        ),
        "E06-deep": safetensors({"a": good, "x": deep}, data),
        "E06-no-json": struct.pack("<Q", 4) + b"nope" + data,
        "E06-array-header": struct.pack("<Q", 2) + b"[]" + data,
        "E06-no-tensor": safetensors({}, data),
        "E06-negative": safetensors({"a": tensor([-NUM_ROWS, -HIDDEN], offsets=[0, size])}, data),
        "E06-deep-lists": struct.pack("<Q", 60_000) + b"[" * 60_000,
        "E09-wider": npy(rows(width=HIDDEN + 1)),
        "E09-narrower": npy(rows(width=HIDDEN - 1)),
        "E09-one-axis": npy(rows().reshape(-1)),
        "E09-four-axes": npy(rows().reshape(1, 1, NUM_ROWS, HIDDEN)),
        "E09-no-rows": npy(rows(0)),
        "E09-other-count": npy(rows(NUM_ROWS + 1)),
        "E11-nan": npy(rows() * np.float32("nan")),
        "E11-inf": npy(rows() * np.float32("inf")),
        "E11-too-large": npy(rows(dtype="<f8") * 1e300),
        "E13-2e32-squared": npy_header(
            f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**32}, {2**32}), }}", data
        ),
        "E13-over-2e64": npy_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**62}, 8), }}", data),
        "E13-safetensors": safetensors({"a": tensor([2**32, 2**32], offsets=[0, size])}, data),
        "E13-short": npy(rows())[:-4],
        "E13-longer": npy(rows()) + b"1234",
        "E19-big-endian": npy(rows(dtype=">f4")),
        "E19-fortran": npy(np.asfortranarray(rows())),
        "E19-text": b"0.25 " * 100,
        "E19-empty": b"",
    }


def dtypes() -> dict[str, bytes]:
    kinds = {"complex64": "<c8", "int64": "<i8", "int8": "|i1", "bool": "|b1", "text": "<U4"}
    made = {f"E07-{name}": npy(np.zeros((NUM_ROWS, HIDDEN), kind)) for name, kind in kinds.items()}
    size = NUM_ROWS * HIDDEN
    for name, width in (("F8_E4M3", 1), ("I64", 8), ("BOOL", 1), ("Q9", 4), ("f32", 4)):
        entry = tensor([NUM_ROWS, HIDDEN], name, [0, size * width])
        made[f"E07-{name}"] = safetensors({"a": entry}, bytes(size * width))
    return made


def part(data: bytes | str, grid: Any = GRID) -> dict[str, Any]:
    encoded = data if isinstance(data, str) else base64.b64encode(data).decode("ascii")
    return {"type": "image_embeds", "image_embeds": encoded, "image_grid_thw": list(grid) if grid else None}


def _make(value: dict[str, Any]) -> Callable[[Scene], Parts]:
    return lambda _: Parts([value, text()])


def other_forms() -> dict[str, tuple[dict[str, Any], Expect]]:
    """Good data in a part of another shape."""
    shape = refused(
        "invalid_embeddings",
        "invalid_type",
        "invalid_value",
        "missing_required_parameter",
        "unsupported_value",
        "unknown_parameter",
        "below_min_value",
        "above_max_value",
        param=PLACE,
    )
    good = base64.b64encode(npy(rows())).decode("ascii")
    return {
        "E08-not-base64": (part("@@@@"), INVALID),
        "E08-blanks": (part(good[:40] + " " + good[40:]), INVALID),
        "E10-no-grid": (part(npy(rows()), None), INVALID),
        "E10-grid-0": (part(npy(rows()), (0, 0, 0)), shape),
        "E10-grid-odd": (part(npy(rows()), (1, 3, 8)), shape),
        "E10-grid-negative": (part(npy(rows()), (-1, -4, 6)), shape),
        "E10-grid-2e31": (part(npy(rows()), (1, 2**31, 2**31)), shape),
        "E10-grid-text": (part(npy(rows()), ("1", "4", "6")), shape),
        "E10-grid-short": (part(npy(rows()), (4, 6)), shape),
        "E14-ranges": ({**part(npy(rows())), "placeholder_range": [0, 6], "mm_hash": "0" * 64}, shape),
        "E16-handle": ({"type": "image_embeds", "image_embeds": {"__type__": "shm", "name": "/x", "size": 1}}, shape),
        "E16-list": ({"type": "image_embeds", "image_embeds": [[0.25] * HIDDEN] * NUM_ROWS}, shape),
        "E16-null": ({"type": "image_embeds", "image_embeds": None}, shape),
        "E16-number": ({"type": "image_embeds", "image_embeds": 5}, shape),
        "E18-and-a-url": ({**part(npy(rows())), "image_url": {"url": "data:image/png;base64,AAAA"}}, shape),
    }


def good_forms() -> dict[str, dict[str, Any]]:
    data, entry = rows().tobytes(), tensor([NUM_ROWS, HIDDEN])
    return {
        "E00-npy": part(npy(rows())),
        "E00-npy-float16": part(npy(rows(dtype="<f2"))),
        "E00-npy-float64": part(npy(rows(dtype="<f8"))),
        "E00-npy-version-2": part(npy(rows(), (2, 0))),
        "E00-safetensors": part(safetensors({"a": entry}, data)),
        "E00-leading-axis": part(npy(rows().reshape(1, NUM_ROWS, HIDDEN))),
    }


def prompt_embeds() -> list[Case]:
    """Embeddings of a prompt are not offered."""
    unsupported = refused("unsupported_value", "embeddings_disabled", param="prompt_embeds")
    sampled: tuple[Route, ...] = ("chat", "chat_stream", "completions", "completions_stream")
    value = base64.b64encode(npy(rows())).decode("ascii")
    return [case("E10-prompt-embeds", lambda _: Fields({"prompt_embeds": value}), unsupported, routes=sampled)]


def _all() -> tuple[Case, ...]:
    bad = {id: (part(data), INVALID) for id, data in {**hostile(), **dtypes()}.items()} | other_forms()
    cases = []
    for id, (value, expect) in bad.items():
        flags = "quick" if id in ("E01-pickle", "E09-wider") else "memory" if "bomb" in id else ""
        cases.append(case(f"{id}-on", _make(value), expect, routes=CHATS, flags=flags, profile="open"))
    for id, value in ({id: v for id, (v, _) in bad.items()} | good_forms()).items():
        off = DISABLED
        if id.startswith(("E10-grid", "E14", "E16", "E18")):
            off = Expect((400,), within_s=0.25)
        cases.append(case(f"{id}-off", _make(value), off, routes=CHATS, flags="quick" if id == "E01-pickle" else ""))
    same = good_forms()["E00-npy"]
    for id, value in good_forms().items():
        like = answered(same_as=_make(same))
        cases.append(case(f"{id}-on", _make(value), like, routes=CHATS, profile="open"))
    too_long = part(npy(rows(4200)), (1, 84, 200))
    expect = refused("context_length_exceeded", within_s=1.0)
    cases.append(case("E12-too-long-on", _make(too_long), expect, routes=DECODED, profile="open"))
    return (*cases, *prompt_embeds())


CASES: tuple[Case, ...] = _all()
