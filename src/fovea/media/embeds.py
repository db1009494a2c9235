"""Image embeddings that come as text: base64 of a safetensors or .npy file, read without trusting a word of it.

Contract: every length is checked against the bytes that are there before anything of its size is allocated; nothing is
unpickled; what comes out is a finite float32 array of our own, [tokens, hidden]. Everything else is EmbeddingsError.

    safetensors   exactly one tensor, F16, BF16, F32 or F64; a header of at most 64 KiB
    npy           versions 1 to 3; <f2, <f4 or <f8 in C order; a header of at most 4 KiB

float64 is rounded to float32. Integers, booleans, complex numbers and objects are refused.
"""

from __future__ import annotations

import binascii
import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fovea.core.errors import EmbeddingsError

MAX_SAFETENSORS_HEADER_BYTES = 64 * 1024
MAX_NPY_HEADER_BYTES = 4 * 1024
_NPY_MAGIC = b"\x93NUMPY"
# As numpy writes it and nothing else; numpy itself reads any Python literal.
_NPY_HEADER = re.compile(
    rb"\{'descr': '([^']{1,8})', 'fortran_order': (True|False), "
    rb"'shape': \(([0-9]{1,19}(?:, ?[0-9]{1,19}){0,7}),?\),? ?\} *\n?"
)
_NPY_DTYPES: Mapping[bytes, np.dtype[Any]] = {b"<f2": np.dtype("<f2"), b"<f4": np.dtype("<f4"), b"<f8": np.dtype("<f8")}
_BFLOAT16 = "BF16"
_SAFETENSORS_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    _BFLOAT16: np.dtype("<u2"),  # the upper half of a float32
}


def parse_embeds(text_base64: str, max_bytes: int) -> NDArray[np.float32]:
    """The embeddings of one picture [tokens, hidden]; a leading axis of length 1 is dropped."""
    data = _decode_base64(text_base64, max_bytes)
    values = _read_npy(data) if data.startswith(_NPY_MAGIC) else _read_safetensors(data)
    if values.ndim == 3 and len(values) == 1:
        values = values[0]
    if values.ndim != 2 or not values.size:
        _refuse(f"they have the shape {list(values.shape)}; expected is [tokens, hidden]")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite and is refused as such
        array = values.astype(np.float32)
    if not np.isfinite(array).all():
        _refuse("they hold NaN or infinite values")
    return array


def _decode_base64(text: str, max_bytes: int) -> bytes:
    if not isinstance(text, str):
        _refuse("base64 text of a safetensors or .npy file is expected")
    num_bytes = len(text) * 3 // 4
    if num_bytes > max_bytes + 2:  # padding
        _refuse(f"they have {num_bytes:,} bytes; permitted are {max_bytes:,}")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        _refuse(
            "they are not valid base64: only A-Z a-z 0-9 + / and padding with = are permitted, without blanks or line "
            "breaks"
        )


def _read_npy(data: bytes) -> NDArray[Any]:
    version = data[6:8]
    prefix = {b"\x01\x00": "<H", b"\x02\x00": "<I", b"\x03\x00": "<I"}.get(version)
    start = 8 + struct.calcsize(prefix or "<H")
    if prefix is None or len(data) < start:
        _refuse("the .npy file is cut off, or its version is not 1, 2 or 3")
    (length,) = struct.unpack_from(prefix, data, 8)
    if length > min(MAX_NPY_HEADER_BYTES, len(data) - start):
        _refuse(f"the header of the .npy file has {length:,} bytes; permitted are {MAX_NPY_HEADER_BYTES:,}")
    match = _NPY_HEADER.fullmatch(data, start, start + length)
    if match is None:
        _refuse("the header of the .npy file is not as numpy.save writes it for a plain array")
    dtype = _NPY_DTYPES.get(match[1])
    if dtype is None:
        _refuse("the dtype of the .npy file is not float16, float32 or float64, little-endian")
    if match[2] == b"True":
        _refuse("the array of the .npy file is in Fortran order; save numpy.ascontiguousarray(...) of it")
    return _array(data, start + length, dtype, [int(side) for side in match[3].split(b",")])


def _read_safetensors(data: bytes) -> NDArray[Any]:
    if len(data) < 8:
        _refuse("the data is neither a safetensors nor an .npy file")
    (length,) = struct.unpack_from("<Q", data)
    if length > min(MAX_SAFETENSORS_HEADER_BYTES, len(data) - 8):
        _refuse(
            "the data is neither a .npy file nor a safetensors file with a header of at most "
            f"{MAX_SAFETENSORS_HEADER_BYTES:,} bytes"
        )
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        _refuse("the header of the safetensors file is not a JSON object")
    tensors = [value for name, value in header.items() if name != "__metadata__"]
    if len(tensors) != 1:
        _refuse(f"the safetensors file holds {len(tensors)} tensors; expected is exactly one")
    name, shape = _checked_entry(tensors[0], len(data) - 8 - length)
    values = _array(data, 8 + length, _SAFETENSORS_DTYPES[name], shape)
    return (values.astype(np.uint32) << 16).view(np.float32) if name == _BFLOAT16 else values


def _checked_entry(entry: object, num_bytes: int) -> tuple[str, list[int]]:
    """dtype and shape of a tensor that fills the whole file."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse("the tensor of the safetensors file needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SAFETENSORS_DTYPES:
        _refuse(f"the dtype of the safetensors file is none of {', '.join(sorted(_SAFETENSORS_DTYPES))}")
    if not _are_counts(shape) or not _are_counts(offsets) or offsets != [0, num_bytes]:
        _refuse("shape and offsets of the safetensors file must be whole numbers and cover its data exactly")
    return dtype, shape


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and len(values) <= 8 and all(type(v) is int and v >= 0 for v in values)


def _array(data: bytes, start: int, dtype: np.dtype[Any], shape: Sequence[int]) -> NDArray[Any]:
    """A view of the data as it is; its length must be what the shape says."""
    if math.prod(shape) * dtype.itemsize != len(data) - start:
        _refuse(f"their shape does not go with the {len(data) - start:,} bytes that are there")
    if not 2 <= len(shape) <= 3:
        _refuse(f"they have {len(shape)} axes; expected are two, [tokens, hidden]")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different."""
    values = dict(pairs)
    if len(values) != len(pairs):
        _refuse("the header of the safetensors file has a key twice")
    return values


def _refuse(reason: str) -> NoReturn:
    raise EmbeddingsError(f"The image embeddings were refused: {reason}.") from None
