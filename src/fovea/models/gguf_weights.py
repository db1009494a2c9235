"""Tensors of a GGUF file: checked against the model before anything is allocated, dequantised one by one.

The `gguf` package (an extra) knows the types. A tensor is dequantised in stretches of rows, straight into the type the
model computes in; a few are in the works at a time, so that the largest one bounds what loading needs beside the model.
"""

from __future__ import annotations

import math
import mmap
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from fovea.core.errors import UnsupportedModelError, WeightsError
from fovea.families.gguf_config import ROPE_FACTORS
from fovea.families.gguf_file import GgufFile, TensorEntry, gguf_package, read_gguf
from fovea.families.spec import WeightMap, WeightSlot

STRETCH_VALUES = 4 * 1024**2  # dequantised at a time, in float32
THREADS = 4

_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_INSIDE = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_LAYER = "model.layers."


def gguf_map(weight_map: WeightMap, path: Path, head_dim: int) -> WeightMap:
    """The same map for the names that a GGUF file has.

    Queries and keys of the architecture llama stand there with the two rows that turn together side by side.
    """
    is_llama = read_gguf(path).get(str, "general.architecture") == "llama"
    slots: dict[str, WeightSlot] = {}
    for name, slot in weight_map.slots.items():
        own = _own_name(name)
        turned = is_llama and own.split(".")[-2] in ("attn_q", "attn_k")
        slots[own] = replace(slot, pairs=(head_dim, head_dim)) if turned else slot
    return WeightMap(slots, (ROPE_FACTORS,))


def _own_name(published: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight"""
    name, kind = published.rsplit(".", 1)
    if not name.startswith(_LAYER):
        return f"{_OUTSIDE[name]}.{kind}"
    layer, inside = name.removeprefix(_LAYER).split(".", 1)
    return f"blk.{layer}.{_INSIDE[inside]}.{kind}"


def check_gguf(path: Path) -> None:
    """Every tensor lies in the file by its exact size, apart from the others, in a type that can be dequantised.

    Raises WeightsError or UnsupportedModelError naming the tensor, ModelError without the gguf package.
    """
    gguf, file = gguf_package(), read_gguf(path)
    extents = []
    for entry in file.tensors.values():
        num_bytes = _row_bytes(gguf, file, entry) * math.prod(entry.shape[:-1])
        if entry.start + num_bytes > file.size_bytes:
            raise WeightsError(
                f"{path}: the tensor {entry.name!r} needs {num_bytes:,} bytes from byte {entry.start:,} on; the file "
                f"has {file.size_bytes:,}. It may be cut short."
            )
        extents.append((entry.start, entry.start + num_bytes, entry.name))
    extents.sort()
    for (_, end, name), (start, _, other) in zip(extents, extents[1:]):
        if start < end:
            raise WeightsError(f"{path}: the tensors {name!r} and {other!r} overlap.")


def gguf_shapes(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor without its values."""
    for entry in read_gguf(path).tensors.values():
        yield entry.name, torch.empty(entry.shape, device="meta")


def gguf_tensors(path: Path, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every tensor's name and values in that type."""
    gguf, file = gguf_package(), read_gguf(path)
    pending: deque[tuple[str, Future[Tensor]]] = deque()
    with (
        path.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ThreadPoolExecutor(THREADS, thread_name_prefix="fovea-gguf") as pool,
    ):
        for entry in file.tensors.values():
            pending.append((entry.name, pool.submit(_dequantised, gguf, file, entry, data, dtype)))
            if len(pending) > THREADS:
                name, tensor = pending.popleft()
                yield name, tensor.result()
        for name, tensor in pending:
            yield name, tensor.result()


def _dequantised(gguf: ModuleType, file: GgufFile, entry: TensorEntry, data: mmap.mmap, dtype: torch.dtype) -> Tensor:
    row_bytes, width = _row_bytes(gguf, file, entry), entry.shape[-1]
    num_rows = math.prod(entry.shape[:-1])
    kind = gguf.GGMLQuantizationType(entry.kind)
    filled = torch.empty((num_rows, width), dtype=dtype)
    step = max(1, STRETCH_VALUES // width)
    for first in range(0, num_rows, step):
        rows = min(step, num_rows - first)
        start = entry.start + first * row_bytes
        raw = np.frombuffer(bytearray(data[start : start + rows * row_bytes]), np.uint8).reshape(rows, row_bytes)
        with np.errstate(all="ignore"):  # what a damaged file holds may overflow
            values = gguf.dequantize(raw, kind)
        filled[first : first + rows] = torch.from_numpy(values.reshape(rows, width))
    return filled.reshape(entry.shape)


def _row_bytes(gguf: ModuleType, file: GgufFile, entry: TensorEntry) -> int:
    """Of one innermost row. Raises UnsupportedModelError for a type that the package cannot dequantise."""
    try:
        kind = gguf.GGMLQuantizationType(entry.kind)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        raise UnsupportedModelError(
            f"{file.path}: the tensor {entry.name!r} is of ggml's type {_kind_name(gguf, entry.kind)}, which the "
            "installed gguf package cannot dequantise."
        ) from None
    if entry.shape[-1] % block:
        raise WeightsError(
            f"{file.path}: rows of {entry.name!r} have {entry.shape[-1]} values; its type has blocks of {block}."
        )
    return int(entry.shape[-1] // block * block_bytes)


def _kind_name(gguf: ModuleType, kind: int) -> str:
    known = {int(one): str(one.name) for one in gguf.GGMLQuantizationType}
    return f"{known[kind]}" if kind in known else f"number {kind}"
