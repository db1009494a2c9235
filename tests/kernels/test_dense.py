"""Norms and few-row linear layers equal their plain twins: in Triton's interpreter here, compiled on a card."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fovea import kernels as ops
from fovea.kernels.batch import AttentionBatch
from fovea.models.decoder import RMSNorm


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed on this platform")
def test_every_dense_kernel_equals_its_plain_twin() -> None:
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "tests.kernels.compare_dense"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "equal"


def make_norm(width: int) -> RMSNorm:
    norm = RMSNorm(width, 1e-5).requires_grad_(False)
    nn.init.normal_(norm.weight)
    return norm


@pytest.mark.parametrize("rows", [1, 7])
def test_on_a_cpu_fused_operations_are_their_parts_to_the_bit(rows: int) -> None:
    torch.manual_seed(0)
    x, norm, gate_up = torch.randn(rows, 24), make_norm(24), nn.Linear(24, 20).requires_grad_(False)
    gate, up = gate_up(norm(x)).chunk(2, -1)
    assert torch.equal(ops.norm_gate_up(x, norm, gate_up), F.silu(gate) * up)
    down, hidden = nn.Linear(10, 24, bias=False).requires_grad_(False), torch.randn(rows, 10)
    assert torch.equal(ops.linear_add(hidden, down, x), x + down(hidden))
    assert torch.equal(ops.logits(x, gate_up.weight), F.linear(x, gate_up.weight))
    layer_norm, shift = nn.LayerNorm(24).requires_grad_(False), torch.randn(24)
    assert torch.equal(ops.layer_norm(x, layer_norm, shift), layer_norm(x + shift))
    assert torch.equal(ops.layer_norm(x, layer_norm), layer_norm(x))


def test_projected_keys_are_turned_and_stored_with_their_values() -> None:
    torch.manual_seed(0)
    heads, kv_heads, dim, tokens = 4, 2, 8, 3
    x, norm = torch.randn(tokens, 16), make_norm(16)
    qkv = nn.Linear(16, (heads + 2 * kv_heads) * dim).requires_grad_(False)
    caches = [torch.zeros(2, 4, kv_heads, dim) for _ in range(4)]
    cos, sin, slots = torch.randn(tokens, dim // 2), torch.randn(tokens, dim // 2), torch.tensor([6, 0, 3])
    batch = AttentionBatch(0, [tokens], [tokens], slots, slots[None], slots, None, cos, sin)
    q = ops.norm_qkv(x, norm, qkv, heads, caches[0], caches[1], batch)
    parts = qkv(norm(x)).view(tokens, -1, dim)
    assert torch.equal(q, ops.rotate_and_store(parts, heads, caches[2], caches[3], batch))
    assert torch.equal(caches[0], caches[2])
    assert torch.equal(caches[1].flatten(0, 1)[slots], parts[:, -kv_heads:])


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed on this platform")
@pytest.mark.parametrize(
    ("rows", "outputs", "halves", "share"),
    [(8192, 11008, 2, 0.993), (640, 11008, 2, 0.814), (256, 4096, 1, 0.242), (1000, 5120, 1, 0.592)],
)
def test_a_product_that_leaves_multiprocessors_idle_is_told(rows: int, outputs: int, halves: int, share: float) -> None:
    """Of 132: LLaVA's gate and up are 430 tiles for 640 rows, three turns of all multiprocessors and a fourth of 34."""
    many_rows = importlib.import_module("fovea.kernels.many_rows")
    assert many_rows.share_filled(rows, outputs, halves, 132) == pytest.approx(share, abs=1e-3)
