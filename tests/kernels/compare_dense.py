"""Norms and linear layers with what surrounds them against plain twins in float64. Run as a program: prints "equal".

On a machine without a card Triton's interpreter runs the same kernels (TRITON_INTERPRET=1, set before Triton is
imported, hence a process of its own).
"""

from __future__ import annotations

import copy
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fovea.kernels import few_rows, many_rows, norms, reference, some_rows
from fovea.kernels.batch import AttentionBatch
from fovea.kernels.few_rows import Tile
from tests.kernels.support import wanted_dtypes

ON_CARD = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_CARD else "cpu")
# One rounding at the end: a kernel may be closer to the truth than the twin in its own type, never further than this.
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.float16: (1e-3, 1e-3), torch.bfloat16: (8e-3, 8e-3)}
HEADS = ((2, 1, 16), (1, 1, 12), (2, 2, 4))  # query heads, KV heads, head size
REAL = ((12, 2, 128, 1536, 8960), (32, 32, 96, 3072, 8192), (32, 32, 128, 4096, 11008))  # and hidden, MLP width
EPS = 1e-5


def main() -> None:
    rng = random.Random(0)
    # The interpreter cannot round to bfloat16.
    for dtype in wanted_dtypes(TOLERANCE) if ON_CARD else (torch.float32, torch.float16):
        for rows in (1, 5):
            compare_norms(rows, rng.choice((7, 64, 320)), dtype)
        for rows, heads, hidden in zip((1, 2, 3, 4), (*HEADS, HEADS[0]), (40, 600, 520, 1500)):
            compare_few_rows(rows, heads, hidden, rng.choice((6, 9)), dtype)
        for rows, hidden, mlp in ((3, 40, 40), (5, 96, 70), (17, 200, 64), (100, 64, 33)):
            compare_some_rows(rows, hidden, mlp, dtype)
        for rows, width, outputs in ((5, 40, 24), (130, 72, 136), (300, 200, 264)):
            compare_many_rows(rows, width, outputs, dtype)
        if ON_CARD:
            compare_real_sizes(dtype)
    for tile in (Tile(8, 2), Tile(1, 1), Tile(2, 8)):
        compare_linear(2, 300, 11, torch.float32, tile)
    print("equal")  # noqa: T201


def compare_real_sizes(dtype: torch.dtype) -> None:
    for *heads, hidden, mlp in REAL:
        compare_norms(1000, hidden, dtype)
        for rows in (1, 2, 3, 4):
            compare_few_rows(rows, tuple(heads), hidden, mlp, dtype)
        for rows in (5, 24, 64, 128):
            compare_some_rows(rows, hidden, mlp, dtype)
        for rows in (129, 1000):
            compare_many_rows(rows, hidden, mlp, dtype)


def noise(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def layer(outputs: int, inputs: int, dtype: torch.dtype, *, bias: bool = False) -> nn.Linear:
    made = nn.Linear(inputs, outputs, bias=bias, dtype=dtype, device=DEVICE)
    nn.init.normal_(made.weight, std=inputs**-0.5)
    return made


def exactly(module: nn.Linear) -> nn.Linear:
    """The same layer in float64."""
    return copy.deepcopy(module).double()


def close(ours: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    atol, rtol = TOLERANCE[dtype]
    torch.testing.assert_close(ours.double(), exact, atol=atol, rtol=rtol)


def compare_norms(rows: int, width: int, dtype: torch.dtype) -> None:
    x, weight, bias = (3 * noise(*shape, dtype=dtype) for shape in ((rows, width), (width,), (width,)))
    shift = 3 * noise(width, dtype=torch.float32)
    close(norms.rms_norm(x, weight, EPS), reference.rms_norm(x.double(), weight.double(), EPS), dtype)
    norm = nn.LayerNorm(width, EPS, dtype=torch.float64, device=DEVICE)
    norm.load_state_dict({"weight": weight, "bias": bias})
    close(norms.layer_norm(x, weight, bias, EPS), norm(x.double()), dtype)
    close(norms.layer_norm(x, weight, bias, EPS, shift), norm(x.double() + shift.double()), dtype)


def compare_few_rows(rows: int, heads: tuple[int, ...], hidden: int, mlp: int, dtype: torch.dtype) -> None:
    x, norm_weight = 3 * noise(rows, hidden, dtype=dtype), noise(hidden, dtype=dtype)
    normed = reference.rms_norm(x.double(), norm_weight.double(), EPS)
    gate_up = layer(2 * mlp, hidden, dtype)
    exact = reference.silu_mul(exactly(gate_up)(normed))
    close(few_rows.norm_gate_up(x, norm_weight, EPS, gate_up.weight), exact, dtype)
    compare_linear(rows, hidden, mlp, dtype, None)
    compare_norm_qkv(x, norm_weight, normed, heads, dtype)


def compare_some_rows(rows: int, hidden: int, mlp: int, dtype: torch.dtype) -> None:
    """On a card a row has the same bits whatever rows are beside it; the interpreter multiplies with numpy."""
    x, gate_up = noise(rows, hidden, dtype=dtype), layer(2 * mlp, hidden, dtype)
    made = some_rows.gate_up(x, gate_up.weight)
    close(made, reference.silu_mul(exactly(gate_up)(x.double())), dtype)
    fewer = some_rows.gate_up(x[: rows // 2 + 3], gate_up.weight)
    close(fewer, made[: rows // 2 + 3].double(), dtype)
    assert not ON_CARD or dtype == torch.float32 or torch.equal(fewer, made[: rows // 2 + 3])


def compare_many_rows(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    """Tiles end where the matrices do; on a card a row has the same bits whatever rows are beside it."""
    if ON_CARD and dtype == torch.float32:
        return  # nobody asks for it, and its tiles do not fit
    x, both, one = (
        noise(rows, inputs, dtype=dtype),
        layer(2 * outputs, inputs, dtype),
        layer(outputs, inputs, dtype, bias=True),
    )
    gated = many_rows.gate_up(x, both.weight)
    close(gated, reference.silu_mul(exactly(both)(x.double())), dtype)
    exact = exactly(one)(x.double())
    wanted = {
        "silu": F.silu(exact),
        "quick_gelu": reference.quick_gelu(exact),
        "gelu_tanh": F.gelu(exact, approximate="tanh"),
    }
    assert wanted.keys() == many_rows.SLOPES.keys()
    for kind, true in wanted.items():
        close(many_rows.activated(x, one.weight, one.bias, kind), true, dtype)
    assert not ON_CARD or torch.equal(many_rows.gate_up(x[: rows // 2], both.weight), gated[: rows // 2])


def compare_linear(rows: int, inputs: int, outputs: int, dtype: torch.dtype, tile: Tile | None) -> None:
    x, down, residual = (
        noise(rows, inputs, dtype=dtype),
        layer(outputs, inputs, dtype),
        noise(rows, outputs, dtype=dtype),
    )
    exact = reference.linear_add(x.double(), exactly(down), residual.double())
    summed = few_rows.linear(x, down.weight, residual=residual, tile=tile)
    assert summed.data_ptr() == residual.data_ptr()
    close(summed, exact, dtype)
    logits = few_rows.linear(x, down.weight, dtype=torch.float32, tile=tile)
    assert torch.equal(logits, logits.to(dtype).float()), "logits are rounded as the model's own would be"
    close(logits, exactly(down)(x.double()), dtype)
    biased = layer(outputs, inputs, dtype, bias=True)
    close(few_rows.linear(x, biased.weight, biased.bias, tile=tile), exactly(biased)(x.double()), dtype)


def compare_norm_qkv(
    x: Tensor, norm_weight: Tensor, normed: Tensor, heads: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Queries come back turned; keys and values are at their slots, and no other slot is touched."""
    num_heads, num_kv_heads, head_dim = heads
    rows, hidden = x.shape
    qkv = layer((num_heads + 2 * num_kv_heads) * head_dim, hidden, dtype, bias=rows % 2 == 1)
    k_cache, v_cache = (torch.full((3, 4, num_kv_heads, head_dim), -7.0, dtype=dtype, device=DEVICE) for _ in "kv")
    k_exact, v_exact = k_cache.double(), v_cache.double()
    slots = torch.randperm(12)[:rows].to(DEVICE)
    cos, sin = (noise(rows, head_dim // 2, dtype=torch.float32) for _ in range(2))
    batch = AttentionBatch(rows, [1] * rows, [], slots, slots, slots, None, cos, sin)
    q = few_rows.norm_qkv(x, norm_weight, EPS, qkv.weight, qkv.bias, num_heads, k_cache, v_cache, batch)
    projected = exactly(qkv)(normed).view(rows, -1, head_dim)
    close(q, reference.rotate_and_store(projected, num_heads, k_exact, v_exact, batch), dtype)
    close(k_cache, k_exact, dtype)
    close(v_cache, v_exact, dtype)


if __name__ == "__main__":
    torch.manual_seed(0)
    with torch.inference_mode():
        main()
