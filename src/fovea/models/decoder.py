"""The one decoder: every Llama-shaped language model, described by a DecoderSpec.

It sees packed tokens and an AttentionBatch, and owns no state: keys and values live in the caller's pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fovea import kernels as ops
from fovea.families.spec import DecoderSpec, RopeSpec
from fovea.kernels.batch import PLAIN, AttentionBatch, AttentionRule, LastTokens
from fovea.kernels.cpu.step import NativeStep
from fovea.kernels.kv_pages import KVPages
from fovea.models.moe import Experts


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)


class OffsetRMSNorm(RMSNorm):
    """Multiplies by 1 + weight, in float32 until the end (Gemma). No kernel joins it to anything."""

    def forward(self, x: Tensor) -> Tensor:
        wide = F.rms_norm(x.float(), self.weight.shape, None, self.eps)
        return (wide * (1.0 + self.weight.float())).to(x.dtype)


class PlainLayerNorm(RMSNorm):
    """A LayerNorm without bias, in float32 until the end (Cohere)."""

    def forward(self, x: Tensor) -> Tensor:
        wide = F.layer_norm(x.float(), self.weight.shape, None, None, self.eps)
        return (self.weight.float() * wide).to(x.dtype)


def make_norm(spec: DecoderSpec, width: int) -> RMSNorm:
    if spec.norm == "layer":
        return PlainLayerNorm(width, spec.norm_eps)
    return (OffsetRMSNorm if spec.norm_offset else RMSNorm)(width, spec.norm_eps)


class Embedding(nn.Module):
    """nn.Embedding without its initialisation, which on the meta device costs seconds of imports."""

    def __init__(self, rows: int, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))
        self.scale = scale

    def forward(self, ids: Tensor) -> Tensor:
        x = F.embedding(ids, self.weight)
        # As transformers rounds the factor: to the model's type.
        return x if self.scale == 1.0 else x * torch.full((), self.scale, dtype=x.dtype, device=x.device)


def attention_rule(spec: DecoderSpec, number: int) -> AttentionRule:
    """PLAIN itself where the layer departs from nothing: kernels are chosen by that."""
    window = spec.sliding_window if number in spec.sliding_layers else None
    rule = AttentionRule(spec.attention_scale, window, spec.attention_softcap, spec.spans_exceed_window)
    return PLAIN if (rule.scale, rule.window, rule.softcap) == (None, None, None) else rule


class DecoderLayer(nn.Module):
    def __init__(self, spec: DecoderSpec, number: int) -> None:
        super().__init__()
        self.num_heads, self.activation, self.parallel = spec.num_heads, spec.activation, spec.parallel
        self.rule = attention_rule(spec, number)
        heads = spec.num_heads + 2 * spec.num_kv_heads
        self.attention_norm = make_norm(spec, spec.hidden_size)
        self.qkv = nn.Linear(spec.hidden_size, heads * spec.head_dim, bias=spec.qkv_bias)
        self.head_norms: tuple[RMSNorm, RMSNorm] | None = None
        if spec.qk_norm:
            self.q_norm, self.k_norm = (make_norm(spec, spec.head_dim) for _ in range(2))
            self.head_norms = self.q_norm, self.k_norm
        self.out = nn.Linear(spec.num_heads * spec.head_dim, spec.hidden_size, bias=spec.out_bias)
        if not spec.parallel:
            self.mlp_norm = make_norm(spec, spec.hidden_size)
        self.branch_norms: tuple[RMSNorm, RMSNorm] | None = None
        if spec.branch_norms:
            self.attention_branch_norm, self.mlp_branch_norm = (make_norm(spec, spec.hidden_size) for _ in range(2))
            self.branch_norms = self.attention_branch_norm, self.mlp_branch_norm
        # Kernels join steps of a layer for these alone.
        self.is_usual = (spec.activation, spec.norm, spec.norm_offset, spec.parallel) == ("silu", "rms", False, False)
        self.has_experts = spec.moe is not None and number in spec.moe.layers
        if spec.moe is not None and self.has_experts:
            self.experts = Experts(spec.hidden_size, spec.moe)
            return
        self.gate_up = nn.Linear(spec.hidden_size, 2 * spec.intermediate_size, bias=False)
        self.down = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=False)

    def forward(self, x: Tensor, pages: KVPages, batch: AttentionBatch, last: LastTokens | None = None) -> Tensor:
        """[T, hidden] to the same, may overwrite x; with `last` to the rows of those tokens [S, hidden]."""
        if not self.is_usual:
            return self._step_by_step(x, pages, batch, last)
        q = ops.norm_qkv(x, self.attention_norm, self.qkv, self.num_heads, *pages, batch, self.head_norms)
        if last is not None:
            x, q, batch = x[last.rows], q[last.rows], last.attention
        attended = ops.paged_attention(q, *pages, batch, self.rule).flatten(1)
        if self.branch_norms is not None:
            x = x + self.branch_norms[0](self.out(attended))
        else:
            x = ops.linear_add(attended, self.out, x)
        if self.has_experts:
            added = self.experts(self.mlp_norm(x))
        elif self.branch_norms is None:
            return ops.mlp_add(x, self.mlp_norm, self.gate_up, self.down)
        else:
            added = self.down(ops.norm_gate_up(x, self.mlp_norm, self.gate_up))
        return x + (added if self.branch_norms is None else self.branch_norms[1](added))

    def _step_by_step(self, x: Tensor, pages: KVPages, batch: AttentionBatch, last: LastTokens | None) -> Tensor:
        """The same where no kernel joins the steps."""
        normed = self.attention_norm(x)
        q = ops.project_qkv(normed, self.qkv, self.num_heads, *pages, batch, self.head_norms)
        if last is not None:
            x, normed, q, batch = x[last.rows], normed[last.rows], q[last.rows], last.attention
        branch: Tensor = self.out(ops.paged_attention(q, *pages, batch, self.rule).flatten(1))
        if self.parallel:
            return x + branch + self._mlp(normed)
        x = x + (branch if self.branch_norms is None else self.branch_norms[0](branch))
        branch = self._mlp(self.mlp_norm(x))
        return x + (branch if self.branch_norms is None else self.branch_norms[1](branch))

    def _mlp(self, x: Tensor) -> Tensor:
        joined = self.gate_up(x)
        hidden = ops.gelu_tanh_mul(joined) if self.activation == "gelu_tanh" else ops.silu_mul(joined)
        made: Tensor = self.down(hidden)
        return made


class Decoder(nn.Module):
    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = Embedding(spec.vocab_size, spec.hidden_size, spec.embed_scale)
        self.layers = nn.ModuleList(DecoderLayer(spec, number) for number in range(spec.num_layers))
        self.norm = make_norm(spec, spec.hidden_size)
        self._local_rope: Rope | None = None
        self.native_step: NativeStep | None = None  # on a CPU
        self.tied_head: nn.Module | None = None  # a copy of the embedding table in another form
        if not spec.tied_head:
            self.head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)

    def forward(
        self,
        x: Tensor,
        pages: list[KVPages],
        batch: AttentionBatch,
        deepstack: Tensor | None = None,
        last: LastTokens | None = None,
    ) -> Tensor:
        """Embeddings [T, hidden], which may be overwritten, to final hidden states [T, hidden]; writes the pages.

        deepstack [levels, T, hidden]: each level is added behind a layer, beginning with the first.
        last: only the final hidden states of these tokens are wanted [S, hidden].
        """
        if self.native_step is not None and deepstack is None and self.native_step.takes(x, pages, batch):
            return self.native_step.run(x, pages, batch)
        levels = () if deepstack is None else deepstack
        whole, final = len(levels) == len(self.layers), len(self.layers) - 1
        near, sliding = batch, self.spec.sliding_layers
        if self.spec.local_rope is not None or not self.spec.full_rope:
            near, batch = self._rotations(batch)
        for number, (layer, layer_pages) in enumerate(zip(self.layers, pages, strict=True)):
            only = last if number == final and not whole else None
            x = layer(x, layer_pages, near if number in sliding else batch, only)
            if number < len(levels):
                x = x + levels[number]
        return self.norm(x[last.rows] if last is not None and whole else x)

    def _rotations(self, batch: AttentionBatch) -> tuple[AttentionBatch, AttentionBatch]:
        """The batch for layers that slide, and for the others."""
        spec, near = self.spec, batch
        if spec.local_rope is not None:
            if self._local_rope is None:
                self._local_rope = Rope(spec.local_rope, spec.rotary_dim or spec.head_dim, batch.cos.device)
            assert batch.positions is not None
            cos, sin = self._local_rope(batch.positions, torch.zeros_like(batch.positions[0]))
            near = replace(batch, cos=cos, sin=sin)
        if not spec.full_rope:
            batch = replace(batch, cos=torch.ones_like(batch.cos), sin=torch.zeros_like(batch.sin))
        return near, batch

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] to [rows, vocabulary] in float32."""
        return self.finished(self.raw_logits(hidden))

    def finished(self, raw: Tensor) -> Tensor:
        """Raw logits in float32, scaled and capped."""
        logits = raw.float()
        if self.spec.logit_scale != 1.0:
            logits = logits * self.spec.logit_scale
        cap = self.spec.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def raw_logits(self, hidden: Tensor, into: Tensor | None = None) -> Tensor:
        """[rows, hidden] to [rows, vocabulary], neither scaled nor capped, which changes no order; see ops.logits."""
        table = self.embed.weight if self.tied_head is None else self.tied_head
        return ops.logits(hidden, table if self.spec.tied_head else self.head, into)


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
