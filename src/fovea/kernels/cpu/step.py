"""A whole decoder in one call, for steps in which every sequence has one new token."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fovea.kernels.batch import AttentionBatch, Norm
from fovea.kernels.cpu.library import CLayer, CNorm, Crew, CStep, CTurn, described_decode
from fovea.kernels.cpu.weight import NativeWeight
from fovea.kernels.kv_pages import KVPages, split


@dataclass(frozen=True, slots=True)
class NativeLayer:
    attention_norm: Norm
    qkv: NativeWeight
    out: NativeWeight
    mlp_norm: Norm
    gate_up: NativeWeight
    down: NativeWeight
    head_norms: tuple[Norm, Norm] | None = None

    @property
    def weights(self) -> tuple[NativeWeight, ...]:
        return self.qkv, self.out, self.gate_up, self.down


class NativeStep:
    """Layers that follow one another, each attention, then MLP, as DecoderLayer.forward has it; and the last norm."""

    def __init__(self, crew: Crew, layers: Sequence[NativeLayer], norm: Norm, num_heads: int) -> None:
        self._crew, self._layers, self._norm, self._num_heads = crew, layers, norm, num_heads
        self._described = (CLayer * len(layers))()
        for layer, its in zip(layers, self._described, strict=True):
            its.qkv, its.out, its.gate_up, its.down = (weight.address for weight in layer.weights)
            its.attention_norm, its.mlp_norm = CNorm.of(layer.attention_norm), CNorm.of(layer.mlp_norm)
            if layer.head_norms is not None:
                its.q_norm, its.k_norm = (CNorm.of(norm) for norm in layer.head_norms)
        self._most_rows = min(weight.most_rows for layer in layers for weight in layer.weights)
        self._pages: Sequence[KVPages] = ()

    def takes(self, x: Tensor, pages: Sequence[KVPages], batch: AttentionBatch) -> bool:
        """Whether a step of tokens x [T, hidden] is done here."""
        rows = x.shape[0]
        return (
            batch.crew is not None
            and 0 < rows == batch.num_decode <= self._most_rows
            and batch.open_spans is None
            and self._layers[0].qkv.takes(x)
            and self._layers[0].qkv.turns(x)
            and batch.crew.decodes(self._num_heads, x.dtype, *pages[0])
        )

    def run(self, x: Tensor, pages: Sequence[KVPages], batch: AttentionBatch) -> Tensor:
        """Embeddings [T, hidden], which are overwritten, to final hidden states [T, hidden]; writes the pages."""
        if pages is not self._pages:
            for (keys, values), its in zip(pages, self._described, strict=True):
                its.keys, its.values = split(keys)[0].data_ptr(), split(values)[0].data_ptr()
            self._pages = pages
        x, place, (rows, width) = x.contiguous(), pages[0][0].shape, x.shape
        shape = rows, self._num_heads, place[3]
        decode, _parts = described_decode(shape, x.dtype, place, batch)
        q, attended = (torch.empty(shape, dtype=x.dtype) for _ in range(2))
        hidden, normed = torch.empty(rows, self._layers[0].down.width, dtype=x.dtype), torch.empty_like(x)
        decode.q, decode.out = q.data_ptr(), attended.data_ptr()
        turn = CTurn.of(self._num_heads, place, batch, None)
        turn.q = q.data_ptr()
        step = CStep(
            layers=ctypes.addressof(self._described),
            num_layers=len(self._layers),
            count=rows,
            width=width,
            x=x.data_ptr(),
            attended=attended.data_ptr(),
            hidden=hidden.data_ptr(),
            normed=normed.data_ptr(),
            norm=CNorm.of(self._norm),
            turn=turn,
            decode=decode,
        )
        self._crew.library.fovea_step(self._crew.address, ctypes.addressof(step))
        return normed
