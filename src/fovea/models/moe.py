"""Mixtures of experts in place of a decoder layer's MLP, described by a MoeSpec.

Two ways to the same sums. `by_expert` sorts tokens by expert and multiplies each group once; the host has to know the
groups' sizes. `all_at_once` lets every expert see every token and takes what was chosen; the host waits for nothing,
which a CUDA graph needs, and for the tokens of a decode step it hardly reads more weights.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fovea import kernels as ops
from fovea.families.spec import MoeSpec

FEW_TOKENS = 256  # of a step on CUDA; the largest decode graph


class Experts(nn.Module):
    """Weights of all experts lie below one another, so that a checkpoint's tensors fill rows of one parameter."""

    def __init__(self, hidden_size: int, spec: MoeSpec) -> None:
        super().__init__()
        self.spec = spec
        self.router = nn.Parameter(torch.empty(spec.num_experts, hidden_size))
        self.gate_up = nn.Parameter(torch.empty(spec.num_experts * 2 * spec.width, hidden_size))
        self.down = nn.Parameter(torch.empty(spec.num_experts * hidden_size, spec.width))
        if spec.scoring == "sigmoid":
            self.router_bias = nn.Parameter(torch.empty(spec.num_experts))
        if spec.shared_width:
            self.shared_gate_up = nn.Linear(hidden_size, 2 * spec.shared_width, bias=False)
            self.shared_down = nn.Linear(spec.shared_width, hidden_size, bias=False)

    def keep_exact(self) -> None:
        """What experts are chosen by is float32 in every model, as in transformers."""
        if self.spec.scoring == "sigmoid":
            self.router_bias = nn.Parameter(self.router_bias.float())

    def forward(self, x: Tensor) -> Tensor:  # [T, hidden] to [T, hidden]
        weights, chosen = self.route(x)
        matrices = [matrix.unflatten(0, (self.spec.num_experts, -1)) for matrix in (self.gate_up, self.down)]
        way = all_at_once if x.is_cuda and x.shape[0] <= FEW_TOKENS else by_expert
        mixed = way(x, weights, chosen, *matrices)
        return mixed + self.shared_down(ops.silu_mul(self.shared_gate_up(x))) if self.spec.shared_width else mixed

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights in the type of x, and experts, of each token: [T, top_k] each."""
        spec = self.spec
        if spec.scoring == "softmax":
            scores = F.linear(x, self.router).float().softmax(dim=-1)
            weights, chosen = scores.topk(spec.top_k, dim=-1)
        else:
            scores = F.linear(x.float(), self.router.float()).sigmoid()
            chosen = self._in_best_groups(scores + self.router_bias).topk(spec.top_k, dim=-1).indices
            weights = scores.gather(1, chosen)
        if spec.normed:
            weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-20)
        return (weights * spec.scale).to(x.dtype), chosen

    def _in_best_groups(self, scores: Tensor) -> Tensor:
        """Scores [T, experts] with -inf outside the groups whose two best experts are best."""
        spec = self.spec
        if spec.num_groups == 1:
            return scores
        groups = scores.unflatten(1, (spec.num_groups, -1))
        best = groups.topk(2, dim=-1).values.sum(dim=-1).topk(spec.top_groups, dim=-1).indices
        inside = torch.zeros_like(groups[:, :, 0], dtype=torch.bool).scatter_(1, best, True)
        return groups.masked_fill(~inside[:, :, None], -math.inf).flatten(1)


def by_expert(x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """x [T, hidden], weights and experts [T, k], gate_up [E, 2 F, hidden], down [E, hidden, F] to [T, hidden]."""
    top_k = chosen.shape[1]
    order = chosen.flatten().argsort(stable=True)
    counts = chosen.flatten().bincount(minlength=len(gate_up)).tolist()
    grouped = x[order // top_k]
    out = torch.empty_like(grouped)
    start = 0
    for expert, count in enumerate(counts):
        if count:
            rows = slice(start, start + count)
            out[rows] = F.linear(ops.silu_mul(F.linear(grouped[rows], gate_up[expert])), down[expert])
            start += count
    back = torch.empty_like(out)
    back[order] = out
    return (back.unflatten(0, (-1, top_k)) * weights[:, :, None]).sum(dim=1)


def all_at_once(x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The same as by_expert."""
    shares = weights.new_zeros(len(x), len(gate_up)).scatter_(1, chosen, weights)
    made = torch.matmul(x, gate_up.transpose(1, 2))  # [E, T, 2 F]
    hidden = ops.silu_mul(made.flatten(0, 1)).unflatten(0, made.shape[:2])
    return (torch.matmul(hidden, down.transpose(1, 2)) * shares.t()[:, :, None]).sum(dim=0)
