"""Every Triton kernel against its plain twin over random shapes, odd ones too. Run as a program: prints "equal".

On a machine without a card Triton's interpreter runs the same kernels (TRITON_INTERPRET=1, set before Triton is
imported, hence a process of its own).
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from fovea.kernels import elementwise, reference
from fovea.kernels.batch import AttentionBatch
from fovea.kernels.paged_decode import paged_decode

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HEADS = ((4, 4, 96), (12, 2, 128), (8, 8, 64), (6, 2, 80), (2, 1, 16), (3, 3, 256))  # query heads, KV heads, head size
MOST_KEYS = 300 if torch.cuda.is_available() else 100  # the interpreter is slow
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


def main() -> None:
    rng = random.Random(0)
    dtypes = list(TOLERANCE) if DEVICE.type == "cuda" else [torch.float32]
    for dtype in dtypes:
        for heads in HEADS:
            lengths = [
                rng.choice((1, 15, 16, 17, 63, 64, 65, rng.randint(1, MOST_KEYS))) for _ in range(rng.randint(1, 3))
            ]
            compare_decode(*heads, rng.choice((1, 4, 16)), lengths, dtype)
        for rows in (1, 17):
            compare_elementwise(rows, rng.choice((7, 64, 1500)), dtype)
            compare_rotate_qk(rows, rng.randint(1, 17), rng.choice((16, 64, 80)), dtype)
    print("equal")  # noqa: T201


def close(ours: Tensor, twin: Tensor) -> None:
    torch.testing.assert_close(ours, twin, atol=TOLERANCE[ours.dtype], rtol=TOLERANCE[ours.dtype])


def noise(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def compare_decode(heads: int, kv_heads: int, dim: int, block: int, lengths: list[int], dtype: torch.dtype) -> None:
    """Padding rows of a graph have no keys: they must give zeros and harm nobody."""
    count, most = len(lengths), max(lengths)
    tables = torch.zeros(count, -(-most // block), dtype=torch.int64)
    blocks = iter(torch.randperm(sum(-(-n // block) for n in lengths)).tolist())
    for i, length in enumerate(lengths):
        for j in range(-(-length // block)):
            tables[i, j] = next(blocks)
    k, v = (noise(int(tables.max()) + 1, block, kv_heads, dim, dtype=dtype) for _ in range(2))
    slots = torch.tensor([int(tables[i, (n - 1) // block]) * block + (n - 1) % block for i, n in enumerate(lengths)])
    places = torch.arange(tables.shape[1] * block)
    mask = None if min(lengths) == most else (places < torch.tensor(lengths)[:, None])[:, None, None].to(DEVICE)
    cos, sin = (noise(count, dim // 2, dtype=torch.float32) for _ in range(2))
    lens, tables, slots = torch.tensor(lengths).to(DEVICE), tables.to(DEVICE), slots.to(DEVICE)
    batch = AttentionBatch(count, [1] * count, lengths, slots, tables, lens, mask, cos, sin)
    q = noise(count, heads, dim, dtype=dtype)
    close(paged_decode(q, k, v, batch), reference.paged_attention(q, k, v, batch))
    empty = AttentionBatch(count, [1] * count, lengths, slots, tables, torch.zeros_like(lens), None, cos, sin)
    assert not paged_decode(q, k, v, empty).any()
    qkv = noise(count, heads + 2 * kv_heads, dim, dtype=dtype)
    k_twin, v_twin = k.clone(), v.clone()
    turned = elementwise.rotate_and_store(qkv, heads, k, v, batch)
    close(turned, reference.rotate_and_store(qkv, heads, k_twin, v_twin, batch))
    close(k, k_twin)
    close(v, v_twin)


def compare_elementwise(rows: int, width: int, dtype: torch.dtype) -> None:
    x = 4 * noise(rows, 2 * width, dtype=dtype)
    close(elementwise.silu_mul(x), reference.silu_mul(x))
    close(elementwise.quick_gelu(x), reference.quick_gelu(x))


def compare_rotate_qk(patches: int, heads: int, dim: int, dtype: torch.dtype) -> None:
    qkv = noise(patches, 3 * heads, dim, dtype=dtype)
    cos, sin = (noise(patches, dim // 2, dtype=torch.float32) for _ in range(2))
    twin = reference.rotate_qk(qkv, cos, sin)
    close(elementwise.rotate_qk(qkv.clone(), cos, sin), twin)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
