"""Embeddings from text: plain arrays come through exactly, and nothing else costs or runs anything."""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_torch

from fovea.core.errors import EmbeddingsError
from fovea.media.embeds import parse_embeds

MANY = 1024**2
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4) / 7


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def npy_text(header: str, data: bytes, version: bytes = b"\x01\x00") -> bytes:
    raw = header.encode()
    size = struct.pack("<H", len(raw)) if version == b"\x01\x00" else struct.pack("<I", len(raw))
    return b"\x93NUMPY" + version + size + raw + data


def tensors(data: bytes, header: Any = None, **entry: Any) -> bytes:
    one = {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, len(data)], **entry}
    text = json.dumps({"a": one} if header is None else header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_files_come_through(dtype: str, version: tuple[int, int]) -> None:
    array = ROWS.astype(dtype)
    got = parse_embeds(b64(npy(array, version=version)), MANY)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, array.astype(np.float32))
    assert got.flags.owndata or got.base is None or got.flags.writeable, "it is our own"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_safetensors_files_come_through(dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(ROWS).to(dtype)
    for named in ({"a": tensor}, {"image": tensor[None]}):
        got = parse_embeds(b64(save_torch(named, {"note": "x"})), MANY)
        np.testing.assert_array_equal(got, tensor.float().numpy())


def test_the_result_is_not_the_data_that_was_sent() -> None:
    got = parse_embeds(b64(npy(ROWS)), MANY)
    got[0, 0] = 5.0
    assert got.flags.writeable


class Trap:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("something was unpickled",))


FLOATS = ROWS.tobytes()
HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }"
NOT_EMBEDDINGS: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"1234567",
    "pickle": pickle.dumps(Trap()),
    "npy of objects": npy(np.array([[Trap()]], dtype=object), allow_pickle=True),
    "npy cut in its header": npy(ROWS)[:40],
    "npy cut in its data": npy(ROWS)[:-1],
    "npy with more data": npy(ROWS) + b"\0",
    "npy of version 4": b"\x93NUMPY\x04\x00" + npy(ROWS)[8:],
    "npy magic alone": b"\x93NUMPY",
    "npy with a long header": npy_text(HEADER + " " * 5000, FLOATS, b"\x02\x00"),
    "npy that claims a header of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 64,
    "npy of big-endian": npy(ROWS.astype(">f4")),
    "npy in Fortran order": npy(np.asfortranarray(ROWS)),
    "npy of int64": npy(ROWS.astype(np.int64)),
    "npy of bool": npy(ROWS > 0),
    "npy of complex64": npy(ROWS.astype(np.complex64)),
    "npy of structs": npy(np.zeros((3, 4), dtype=[("a", "<f4")])),
    "npy of one axis": npy(ROWS.reshape(-1)),
    "npy of four axes": npy(ROWS.reshape(1, 1, 3, 4)),
    "npy of several pictures": npy(np.stack([ROWS, ROWS])),
    "npy of nothing": npy(ROWS[:0]),
    "npy of a vast shape": npy_text(HEADER.replace("3, 4", f"{2**32}, {2**32}"), FLOATS),
    "npy of a shape that wraps to 48 bytes": npy_text(HEADER.replace("3, 4", f"{2**62 + 3}, 4"), FLOATS),
    "npy with a call in its header": npy_text(HEADER.replace("3, 4", "__import__('os').getpid(), 4"), FLOATS),
    "npy with a deep header": npy_text("{'descr': " + "(" * 3000, FLOATS),
    "npz": b"PK\x03\x04" + b"\0" * 64,
    "not finite": npy(np.full((3, 4), np.nan, np.float32)),
    "infinite": npy(np.full((3, 4), np.inf, np.float16)),
    "infinite as float32": npy(np.full((3, 4), 1e300)),
    "a header of 2**63": struct.pack("<Q", 2**63) + b"{}",
    "a header over 64 KiB": tensors(FLOATS, b'{"a": ' + b" " * 65536 + b"}"),
    "a header beyond the end": struct.pack("<Q", 500) + b"{}",
    "no JSON": tensors(FLOATS, b"not json"),
    "a list": tensors(FLOATS, [1]),
    "a deep header": tensors(FLOATS, b"[" * 60_000),
    "invalid UTF-8": tensors(FLOATS, b'{"\xff": 1}'),
    "no tensor": tensors(b"", {}),
    "only a note": tensors(b"", {"__metadata__": {"a": "b"}}),
    "two tensors": save_torch({"a": torch.ones(3, 4), "b": torch.ones(3, 4)}),
    "one name twice": tensors(FLOATS, b'{"a": {}, "a": {}}'),
    "an entry that is no object": tensors(FLOATS, {"a": 5}),
    "an entry with more keys": tensors(FLOATS, shm="name"),
    "offsets that leave a gap": tensors(FLOATS, data_offsets=[4, 48]),
    "offsets past the end": tensors(FLOATS, data_offsets=[0, 52]),
    "offsets before the start": tensors(FLOATS, data_offsets=[-4, 44]),
    "offsets as floats": tensors(FLOATS, data_offsets=[0.0, 48.0]),
    "a shape of booleans": tensors(FLOATS, shape=[True, 12]),
    "a shape too large": tensors(FLOATS, shape=[2**40, 2**40]),
    "a negative shape": tensors(FLOATS, shape=[-3, -4]),
    "a shape of thousands of digits": tensors(FLOATS, b'{"a": {"shape": [' + b"9" * 5000 + b"]}}"),
    "int64": tensors(FLOATS, dtype="I64", shape=[3, 2]),
    "fp8": tensors(FLOATS, dtype="F8_E4M3", shape=[3, 16]),
    "bool": tensors(FLOATS, dtype="BOOL", shape=[3, 16]),
    "a dtype that is a list": tensors(FLOATS, dtype=["F32"]),
    "a scalar": tensors(FLOATS[:4], shape=[], data_offsets=[0, 4]),
    "torch.save": b"",
}


@pytest.mark.parametrize("name", NOT_EMBEDDINGS)
def test_everything_else_is_refused_and_nothing_of_its_size_is_made(name: str) -> None:
    data = NOT_EMBEDDINGS[name]
    if name == "torch.save":
        file = io.BytesIO()
        torch.save(torch.ones(3, 4).to_sparse(), file)
        data = file.getvalue()
    text = b64(data)
    tracemalloc.start()
    try:
        with pytest.raises(EmbeddingsError, match="^The image embeddings were refused: ") as caught:
            parse_embeds(text, MANY)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == "invalid_embeddings"
    assert len(str(caught.value)) < 400
    assert peak < 2 * MANY


@pytest.mark.parametrize("text", ["@@@@", "AAAA AAAA", "AAA", "AA-_", "\u00e9" * 4, "AA==AA=="])
def test_text_that_is_not_base64_is_refused(text: str) -> None:
    with pytest.raises(EmbeddingsError, match="base64"):
        parse_embeds(text, MANY)


def test_the_length_is_judged_before_the_text_is_decoded() -> None:
    data = npy(ROWS)
    assert len(parse_embeds(b64(data), len(data))) == 3
    with pytest.raises(EmbeddingsError, match="permitted are 100"):
        parse_embeds("@" * 200, 100)


@settings(deadline=None, max_examples=200)
@given(place=st.integers(0, 200), value=st.integers(0, 255), kind=st.sampled_from(["npy", "tensors"]))
def test_one_changed_byte_is_refused_or_read_and_never_anything_else(place: int, value: int, kind: str) -> None:
    data = bytearray(npy(ROWS) if kind == "npy" else tensors(FLOATS))
    data[place % len(data)] = value
    try:
        got = parse_embeds(b64(bytes(data)), MANY)
    except EmbeddingsError:
        return
    assert got.ndim == 2
    assert np.isfinite(got).all()
