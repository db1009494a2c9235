"""Float8 kernels against their plain twins: rows, keys and values that become float8, few rows times float8 weights.

Run as compare_triton is. The interpreter loses the carry where rounding to float8 reaches the next power of two: there
one value in twenty may be off. On a card values are at most a step apart, and one in a hundred is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fovea import kernels as ops
from fovea.kernels import elementwise, few_rows, fp8, fp8_weights, kv_pages, reference
from fovea.kernels.batch import AttentionBatch
from fovea.kernels.fp8_weights import FP8, Fp8Weight, quantise_fp8
from tests.kernels.compare_dense import DEVICE, EPS, ON_CARD, TOLERANCE, close, noise

STEP = 0.13  # of a value; a step is at most 1/8
SHARE = 0.01 if ON_CARD else 0.05
SMALL = 2**-8  # two steps of the smallest values
SIZES = ((3, 96), (1, 1536), (7, 704)) + (((300, 1536), (64, 8960), (64, 8192), (2048, 11008)) if ON_CARD else ())
HEADS = ((2, 1, 16, 96, 32), (1, 1, 32, 704, 48)) + (
    ((12, 2, 128, 1536, 8960), (32, 32, 96, 3072, 8192), (32, 32, 128, 4096, 11008)) if ON_CARD else ()
)

STORED = ((1, 4, 4, 96), (5, 12, 2, 128), (2, 15, 2, 80), (3, 3, 3, 16)) + (((8192, 32, 32, 128),) if ON_CARD else ())


def main() -> None:
    for dtype in TOLERANCE if ON_CARD else (torch.float32, torch.float16):
        for rows, width in SIZES:
            compare_rows(rows, width, dtype)
        for sizes in STORED:
            compare_store(*sizes, dtype)
        for rows in (1, 2, 4):
            for heads in HEADS:
                compare_few_rows(rows, *heads, dtype)
        if ON_CARD and dtype != torch.float32:
            compare_product(dtype)
    print("equal")  # noqa: T201


def compare_rows(rows: int, width: int, dtype: torch.dtype) -> None:
    x, weight, pair = (3 * noise(*shape, dtype=dtype) for shape in ((rows, width), (width,), (rows, 2 * width)))
    x[0] = 0  # has a scale, too
    alike(fp8.quantise_rows(x), fp8_weights.quantise_rows(x))
    alike(fp8.norm_rows(x, weight, EPS), fp8_weights.norm_rows(x, weight, EPS))
    alike(fp8.silu_mul_rows(pair), fp8_weights.silu_mul_rows(pair))


def compare_store(tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> None:
    """Queries stay as they are; other slots keep what they hold; a key of zeros has a scale, too."""
    shape = (tokens // 16 + 2, 16, kv_heads, dim)
    ours, twin = ([kv_pages.make_pages(torch.zeros, shape, FP8, DEVICE) for _ in "kv"] for _ in range(2))
    slots = torch.randperm(shape[0] * 16)[:tokens].to(DEVICE)
    cos, sin = (noise(tokens, dim // 2, dtype=torch.float32) for _ in range(2))
    batch = AttentionBatch(tokens, [1] * tokens, [], slots, slots, slots, None, cos, sin)
    qkv = 3 * noise(tokens, heads + 2 * kv_heads, dim, dtype=dtype)
    qkv[0, heads] = 0
    turned = elementwise.rotate_and_store(qkv, heads, ours[0], ours[1], batch)
    close(turned, reference.rotate_and_store(qkv, heads, twin[0], twin[1], batch).double(), dtype)
    for some, wanted in zip(ours, twin, strict=True):
        assert isinstance(some, kv_pages.Fp8Pages)
        assert isinstance(wanted, kv_pages.Fp8Pages)
        alike((some.values, some.scales), (wanted.values, wanted.scales), rtol=TOLERANCE[dtype][1])


def alike(ours: tuple[Tensor, Tensor], twin: tuple[Tensor, Tensor], *, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(ours[1], twin[1], atol=0, rtol=rtol)
    made, wanted = ours[0].float(), twin[0].float()
    far = (made - wanted).abs() > SMALL + STEP * wanted.abs()
    assert float(far.float().mean()) < (0 if ON_CARD else SHARE) + 1e-9
    if ON_CARD:
        assert float((made != wanted).float().mean()) < SHARE


def weight_of(outputs: int, inputs: int) -> Fp8Weight:
    return quantise_fp8(noise(outputs, inputs, dtype=torch.float32) * inputs**-0.5)


def exact(x: Tensor, weight: Fp8Weight) -> Tensor:
    return x.double() @ (weight.values.double() * weight.scales.double()[:, None]).t()


def compare_few_rows(
    rows: int, num_heads: int, num_kv_heads: int, head_dim: int, hidden: int, mlp: int, dtype: torch.dtype
) -> None:
    x, norm_weight, residual = (noise(*s, dtype=dtype) for s in ((rows, hidden), (hidden,), (rows, mlp)))
    some = weight_of(mlp, hidden)
    summed = residual.double() + exact(x, some)
    close(few_rows.linear(x, some.values, scales=some.scales), exact(x, some), dtype)
    close(few_rows.linear(x, some.values, scales=some.scales, residual=residual), summed, dtype)
    normed = reference.rms_norm(x.double(), norm_weight.double(), EPS)
    both = weight_of(2 * mlp, hidden)
    gated = few_rows.norm_gate_up(x, norm_weight, EPS, both.values, scales=both.scales)
    close(gated, reference.silu_mul(exact(normed, both)), dtype)
    qkv, bias = weight_of((num_heads + 2 * num_kv_heads) * head_dim, hidden), noise(1, dtype=dtype)
    bias = bias.expand(len(qkv.values)).contiguous()
    k_cache, v_cache = (torch.zeros(3, 4, num_kv_heads, head_dim, dtype=dtype, device=DEVICE) for _ in "kv")
    k_exact, v_exact = k_cache.double(), v_cache.double()
    slots = torch.randperm(12)[:rows].to(DEVICE)
    cos, sin = (noise(rows, head_dim // 2, dtype=torch.float32) for _ in range(2))
    batch = AttentionBatch(rows, [1] * rows, [], slots, slots, slots, None, cos, sin)
    q = few_rows.norm_qkv(x, norm_weight, EPS, qkv.values, bias, num_heads, k_cache, v_cache, batch, scales=qkv.scales)
    projected = (exact(normed, qkv) + bias.double()).view(rows, -1, head_dim)
    close(q, reference.rotate_and_store(projected, num_heads, k_exact, v_exact, batch), dtype)
    close(k_cache, k_exact, dtype)
    close(v_cache, v_exact, dtype)


def compare_product(dtype: torch.dtype) -> None:
    """Many rows: the product of the float8 rows, but for the accumulation and the rounding to bfloat16."""
    for rows, outputs, inputs in ((5, 48, 96), (64, 1536, 8960), (2048, 8192, 3072), (33, 4096, 11008)):
        x, weight = noise(rows, inputs, dtype=dtype), weight_of(outputs, inputs)
        made = ops.fp8_product(weight, x)
        assert made.dtype == dtype
        values, steps = fp8_weights.quantise_rows(x)
        wanted = exact(values.double() * steps.double(), weight)
        assert float((made.double() - wanted).norm() / wanted.norm()) < 0.01
        assert float((made.double() - exact(x, weight)).norm() / wanted.norm()) < 0.05


if __name__ == "__main__":
    torch.manual_seed(0)
    with torch.inference_mode():
        main()
