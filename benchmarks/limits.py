"""The physical limit of a figure: bytes over measured bandwidth, arithmetic over measured matrix rate, the larger time.

Formulas: a decode step reads all decoder weights and the keys and values of its sequences once; a prefill does two
operations for each weight and token plus attention; a tower the same over patches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from fovea.families.spec import ModelSpec
from fovea.models.packed import PackedLinear, can_pack


@dataclass(frozen=True)
class Ceilings:
    """What this device reached on a large copy (bytes read plus written) and a large matrix product."""

    bytes_per_s: float
    flops_per_s: float


def measure(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """A few tenths of a second of copying and multiplying; the best of several, on a CPU the best of two products."""
    on_gpu = device.type == "cuda"
    side = 8192 if on_gpu else 1536
    source = torch.empty((1 << 30) if on_gpu else (1 << 27), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a = torch.randn(side, side, device=device, dtype=dtype)
    copy_s = _best(lambda: target.copy_(source), device)
    product_s = _best(lambda: a @ a, device)
    if not on_gpu and can_pack(dtype):
        layer = PackedLinear(nn.Linear(side, side, bias=False, dtype=dtype))
        with torch.inference_mode():
            product_s = min(product_s, _best(lambda: layer(a), device))
    return Ceilings(2 * source.numel() / copy_s, 2 * side**3 / product_s)


def _best(work: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(8):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - started)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Limits:
    """Limits of one model on one device; seconds unless said otherwise."""

    spec: ModelSpec
    ceilings: Ceilings
    element_bytes: int
    kv_token_bytes: int | None = None  # None: keys and values are in the weights' type

    def layer_weights(self) -> int:
        return self.spec.decoder.num_layer_weights()

    def head_weights(self) -> int:
        return self.spec.decoder.hidden_size * self.spec.decoder.vocab_size

    def decode_step_s(self, batch: int, context_tokens: float, shared_tokens: float = 0.0) -> float:
        """`shared_tokens` of each context are the same keys and values for all, to be read once."""
        d = self.spec.decoder
        weights = self.layer_weights() + self.head_weights()
        distinct_tokens = batch * (context_tokens - shared_tokens) + shared_tokens
        kv_bytes = distinct_tokens * (self.kv_token_bytes or d.kv_bytes_per_token(self.element_bytes))
        memory_s = (weights * self.element_bytes + kv_bytes) / self.ceilings.bytes_per_s
        attention = 4 * batch * context_tokens * d.num_heads * d.head_dim * d.num_layers
        return max(memory_s, (2 * weights * batch + attention) / self.ceilings.flops_per_s)

    def prefill_s(
        self, prompt_tokens: int, patch_groups: list[int], *, alone: bool = False, cached_tokens: int = 0
    ) -> float:
        """One request: its prompt behind `cached_tokens` known ones, and a tower segment for each of `patch_groups`.

        `alone`: its weights are read for nobody else.
        """
        d = self.spec.decoder
        new_tokens = prompt_tokens - cached_tokens
        attention = 2 * (prompt_tokens**2 - cached_tokens**2) * d.num_heads * d.head_dim * d.num_layers
        tower = sum(self.tower_flops(patches) for patches in patch_groups)
        flops = 2 * self.layer_weights() * new_tokens + attention + 2 * self.head_weights() + tower
        weights_s = self.layer_weights() * self.element_bytes / self.ceilings.bytes_per_s if alone else 0.0
        return max(flops / self.ceilings.flops_per_s, weights_s)

    def tower_flops(self, patches: int) -> float:
        """One segment: blocks, attention inside it or its windows, projector."""
        t, p = self.spec.tower, self.spec.projector
        block = 4 * t.width**2 + (3 if t.gated else 2) * t.width * t.mlp_width
        weights = t.num_layers * block + t.patch_values * t.width
        near_layers = t.num_layers - len(t.full_layers) if t.window else 0
        near = min(patches, (t.window * p.merge) ** 2)
        attention = 4 * patches * t.width * ((t.num_layers - near_layers) * patches + near_layers * near)
        merged = t.width * p.merge**2 * p.mid_width + p.mid_width * p.out_width
        return 2 * weights * patches + attention + 2 * merged * patches / p.merge**2

    def request_s(self, prefill_s: float, prompt_tokens: int, out_tokens: int, batch: int) -> float:
        """Seconds of device time for one of `batch` requests that decode together, phases not overlapped."""
        step_s = self.decode_step_s(batch, prompt_tokens + out_tokens / 2)
        return prefill_s + out_tokens * step_s / batch

    def repeat_s(self, patch_groups: list[int], prompt_tokens: int, shared_tokens: int, out: int, batch: int) -> float:
        """`batch` requests whose prompts begin alike, pictures included: that part is computed and read once."""
        first_s = self.prefill_s(shared_tokens, patch_groups)
        rest_s = batch * self.prefill_s(prompt_tokens, [], cached_tokens=shared_tokens)
        return first_s + rest_s + out * self.decode_step_s(batch, prompt_tokens + out / 2, shared_tokens)
