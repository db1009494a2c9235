"""From a tower's patches to rows of the decoder's width, by ProjectorSpec."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fovea import kernels as ops
from fovea.families.spec import ProjectorSpec
from fovea.models.decoder import OffsetRMSNorm
from fovea.models.vision import make_norm


class Projector(nn.Module):
    """See ProjectorSpec."""

    def __init__(self, spec: ProjectorSpec, width: int) -> None:
        super().__init__()
        joined = width * spec.merge**2
        self.norm_joined = spec.norm_joined
        if spec.norm:
            self.norm = make_norm(spec.norm, joined if spec.norm_joined else width, spec.norm_eps)
        if spec.merge_linear:
            self.merging = nn.Linear(joined, width, bias=False)
            joined = width
        if spec.separators:
            self.line_separator = nn.Parameter(torch.empty(joined))
            self.view_separator = nn.Parameter(torch.empty(joined))
        if spec.newline:
            self.newline = nn.Parameter(torch.empty(spec.out_width))
        self.first = nn.Linear(joined, spec.mid_width or spec.out_width, bias=spec.bias)
        self.second = (
            nn.Linear(spec.mid_width // (1 + spec.swiglu), spec.out_width, bias=spec.bias) if spec.mid_width else None
        )
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        if self.spec.merge_linear:
            x = self.merging(x.unflatten(-1, (self.spec.merge**2, -1)).transpose(-1, -2).flatten(-2))
        x = self.first(x)
        if self.second is None:
            return x
        if self.spec.swiglu:
            up, gate = x.chunk(2, dim=-1)
            return self.second(F.silu(gate) * up)
        return self.second(F.gelu(x))

    def merged(self, x: Tensor, patches: int) -> Tensor:
        """Patches [P, width], so many behind one another joined, to rows [P / patches, hidden]."""
        if self.norm_joined or not self.spec.norm:
            x = x.unflatten(0, (-1, patches)).flatten(1)
            x = self.norm(x) if self.spec.norm else x
        else:
            x = self.norm(x).unflatten(0, (-1, patches)).flatten(1)
        rows: Tensor = self(x)
        return rows


class VisualVocabulary(nn.Module):
    """Each row is a mixture of a table's rows, weighted by a softmax over visual tokens (Ovis, arXiv:2405.20797)."""

    def __init__(self, spec: ProjectorSpec, width: int) -> None:
        super().__init__()
        self.vocabulary = spec.vocabulary
        self.head = nn.Linear(width * spec.merge**2, spec.vocabulary, bias=False)
        self.norm = nn.LayerNorm(spec.vocabulary, spec.norm_eps)
        self.table = nn.Parameter(torch.empty(spec.vocabulary + spec.marks, spec.out_width))

    def forward(self, x: Tensor) -> Tensor:
        """Joined patches [..., merged width] to [..., hidden]."""
        return self.norm(self.head(x)).softmax(-1) @ self.table[: self.vocabulary]

    @property
    def marks(self) -> Tensor:
        return self.table[self.vocabulary :]


class GatedMerger(nn.Module):
    """GLM's: patches joined by a linear layer, whose columns stand value by value and not patch by patch; another one,
    a norm, GELU; a gated MLP."""

    def __init__(self, spec: ProjectorSpec, width: int) -> None:
        super().__init__()
        self.joining = nn.Linear(width * spec.merge**2, spec.out_width)
        self.first = nn.Linear(spec.out_width, spec.out_width, bias=False)
        self.norm = nn.LayerNorm(spec.out_width, spec.norm_eps)
        self.gate_up = nn.Linear(spec.out_width, 2 * spec.mid_width, bias=False)
        self.down = nn.Linear(spec.mid_width, spec.out_width, bias=False)

    def merged(self, x: Tensor, patches: int) -> Tensor:
        """Patches [P, width], so many behind one another joined, to rows [P / patches, hidden]."""
        x = self.joining(x.unflatten(0, (-1, patches)).transpose(1, 2).flatten(1))
        rows: Tensor = self.down(ops.silu_mul(self.gate_up(F.gelu(self.norm(self.first(x))))))
        return rows


class PooledProjector(nn.Module):
    """One linear layer; with a norm, a Gemma norm before it and no bias, its matrix lying as Gemma 3 publishes it."""

    def __init__(self, spec: ProjectorSpec, width: int) -> None:
        super().__init__()
        self.norm: OffsetRMSNorm | None = None
        if spec.norm:
            self.norm = OffsetRMSNorm(width, spec.norm_eps)
            self.matrix = nn.Parameter(torch.empty(width, spec.out_width))
        else:
            self.first = nn.Linear(width, spec.out_width)

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.first(x) if self.norm is None else self.norm(x) @ self.matrix
        return rows
