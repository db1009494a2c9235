"""The one decoder: every Llama-shaped language model, described by a DecoderSpec.

It sees packed tokens and an AttentionBatch, and owns no state: keys and values live in the caller's pages.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fovea import kernels as ops
from fovea.families.spec import DecoderSpec, RopeSpec
from fovea.kernels.batch import AttentionBatch
from fovea.models.moe import Experts

KVPages = tuple[Tensor, Tensor]  # keys and values of one layer, each [blocks, block_size, G, D]


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)


class Embedding(nn.Module):
    """nn.Embedding without its initialisation, which on the meta device costs seconds of imports."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class DecoderLayer(nn.Module):
    def __init__(self, spec: DecoderSpec, number: int) -> None:
        super().__init__()
        self.num_heads = spec.num_heads
        heads = spec.num_heads + 2 * spec.num_kv_heads
        self.attention_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.qkv = nn.Linear(spec.hidden_size, heads * spec.head_dim, bias=spec.qkv_bias)
        self.head_norms: tuple[RMSNorm, RMSNorm] | None = None
        if spec.qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(spec.head_dim, spec.norm_eps) for _ in range(2))
            self.head_norms = self.q_norm, self.k_norm
        self.out = nn.Linear(spec.num_heads * spec.head_dim, spec.hidden_size, bias=spec.out_bias)
        self.mlp_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.has_experts = spec.moe is not None and number in spec.moe.layers
        if spec.moe is not None and self.has_experts:
            self.experts = Experts(spec.hidden_size, spec.moe)
            return
        self.gate_up = nn.Linear(spec.hidden_size, 2 * spec.intermediate_size, bias=False)
        self.down = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=False)

    def forward(self, x: Tensor, pages: KVPages, batch: AttentionBatch) -> Tensor:  # [T, hidden], may overwrite x
        q = ops.norm_qkv(x, self.attention_norm, self.qkv, self.num_heads, *pages, batch, self.head_norms)
        x = ops.linear_add(ops.paged_attention(q, *pages, batch).flatten(1), self.out, x)
        if self.has_experts:
            return x + self.experts(self.mlp_norm(x))
        hidden = ops.norm_gate_up(x, self.mlp_norm, self.gate_up)
        return ops.linear_add(hidden, self.down, x)


class Decoder(nn.Module):
    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(spec, number) for number in range(spec.num_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        if not spec.tied_head:
            self.head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)

    def forward(
        self, x: Tensor, pages: list[KVPages], batch: AttentionBatch, deepstack: Tensor | None = None
    ) -> Tensor:
        """Embeddings [T, hidden], which may be overwritten, to final hidden states [T, hidden]; writes the pages.

        deepstack [levels, T, hidden]: each level is added behind a layer, beginning with the first.
        """
        levels = () if deepstack is None else deepstack
        for number, (layer, layer_pages) in enumerate(zip(self.layers, pages, strict=True)):
            x = layer(x, layer_pages, batch)
            if number < len(levels):
                x = x + levels[number]
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] to [rows, vocabulary] in float32."""
        return ops.logits(hidden, self.embed.weight if self.spec.tied_head else self.head)


Rotary = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # as Rope is called


class Rope:
    """Cos and sin of packed tokens, from a RopeSpec."""

    def __init__(self, spec: RopeSpec, head_dim: int, device: torch.device) -> None:
        """head_dim: the dimensions of a head that are rotated."""
        self._sections, self._order = spec.sections, None
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        tables = []
        for regime in spec.regimes:
            factors = torch.tensor(regime.factors) if regime.factors else torch.ones(head_dim // 2)
            tables.append(1.0 / (factors * regime.theta**exponents))
        self._inv_freq = torch.stack(tables).to(device)  # [regimes, D / 2]
        if spec.interleaved:
            assert spec.sections is not None
            self._sections, by_row = _turns(spec.sections, head_dim // 2)
            self._inv_freq = self._inv_freq[:, by_row]
            self._order = by_row.argsort().to(device)
        self._scales = torch.tensor([r.scale for r in spec.regimes], device=device)  # [regimes]

    def __call__(self, positions: Tensor, regimes: Tensor) -> tuple[Tensor, Tensor]:
        """positions [rows, T] and regimes [T] to cos and sin [T, D / 2] in float32."""
        cos, sin = ops.rotary(positions, regimes, self._inv_freq, self._scales, self._sections)
        return (cos, sin) if self._order is None else (cos[:, self._order], sin[:, self._order])


def _turns(sections: tuple[int, ...], num_frequencies: int) -> tuple[tuple[int, ...], Tensor]:
    """How many frequencies each row of positions has if they take turns, and the frequencies row by row."""
    rows = torch.zeros(num_frequencies, dtype=torch.int64)
    for row in range(1, len(sections)):
        rows[row : sections[row] * len(sections) : len(sections)] = row
    return tuple(rows.bincount(minlength=len(sections)).tolist()), rows.argsort(stable=True)
