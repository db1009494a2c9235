"""Muon for the matrices, AdamW for the rest. Matrices of one shape are stepped together, so a step is few kernels."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz: nearly orthogonal matrices in the directions of the given ones (count, rows, columns)."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    out: Tensor = x.mT if tall else x
    return out


class Muon:
    """Momentum, made orthogonal. `rate` is the size of a step in units of the spectral norm."""

    def __init__(self, parameters: Iterable[nn.Parameter], momentum: float = 0.95, decay: float = 0.05) -> None:
        self.groups: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            self.groups[parameter.shape[0], parameter[0].numel()].append(parameter)
        self.velocity = {s: torch.zeros(len(g), *s, device=g[0].device) for s, g in self.groups.items()}
        self.momentum, self.decay = momentum, decay

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for shape, group in self.groups.items():
            gradient = torch.stack([p.grad.view(shape) for p in group if p.grad is not None])
            velocity = self.velocity[shape].lerp_(gradient, 1 - self.momentum)
            update = orthogonal(gradient.lerp(velocity, self.momentum))
            scale = rate * max(1.0, shape[0] / shape[1]) ** 0.5
            weights: list[Tensor] = [*group]
            torch._foreach_mul_(weights, 1 - rate * self.decay)
            torch._foreach_add_(weights, [u.view(p.shape).to(p.dtype) for u, p in zip(update, group)], alpha=-scale)


class Both:
    """The two optimisers and their common schedule: warm up, hold, then straight to zero at the deadline."""

    def __init__(self, model: nn.Module, matrix_rate: float, other_rate: float, hold: float = 0.35) -> None:
        named = dict(model.named_parameters())
        matrices = [p for n, p in named.items() if p.ndim >= 2 and "embed_tokens" not in n and "lm_head" not in n]
        chosen = {id(p) for p in matrices}
        others = [p for p in named.values() if id(p) not in chosen]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(
            others, lr=other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=others[0].is_cuda
        )
        self.matrix_rate, self.other_rate, self.hold, self.steps = matrix_rate, other_rate, hold, 0

    def step(self, progress: float) -> float:
        """One step; `progress` is the share of the time that has passed."""
        self.steps += 1
        factor = min(1.0, self.steps / 150, max(0.0, 1 - progress) / (1 - self.hold))
        self.muon.step(self.matrix_rate * factor)
        self.adam.param_groups[0]["lr"] = self.other_rate * factor
        self.adam.step()
        return factor
