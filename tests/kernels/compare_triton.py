"""The elementwise kernels against their plain twins over random shapes, odd ones too. Run as a program: prints "equal".

On a machine without a card Triton's interpreter runs the same kernels (TRITON_INTERPRET=1, set before Triton is
imported, hence a process of its own).
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from fovea.kernels import draw_reference, elementwise, reference
from fovea.kernels.argmax import likeliest
from fovea.kernels.batch import AttentionBatch
from fovea.kernels.draw_reference import Ways
from fovea.kernels.drawing import draw

ON_CARD = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_CARD else "cpu")
HEADS = (
    (4, 4, 96),
    (12, 2, 128),
    (20, 2, 64),
    (15, 2, 80),
    (2, 1, 16),
    (3, 3, 256),
)  # query heads, KV heads, head size
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def main() -> None:
    rng = random.Random(0)
    # The interpreter cannot round to bfloat16.
    for dtype in TOLERANCE if ON_CARD else (torch.float32, torch.float16):
        for heads in HEADS:
            compare_rotate_and_store(rng.choice((1, 2, 5)), *heads, dtype)
        for rows in (1, 17):
            compare_activations(rows, rng.choice((7, 64, 2100)), dtype)
            compare_rotate_qk(rows, rng.choice((1, 5, 17)), rng.choice((16, 64, 80)), dtype)
        compare_rotary(rng.randint(1, 40))
        for rows, width in ((1, 16384), (5, rng.randint(9, 20_000))):
            compare_likeliest(rows, width, dtype)
        if ON_CARD:
            compare_activations(8192, 8960, dtype)
            compare_rotate_qk(8192, 16, 80, dtype)
            compare_rotate_and_store(8192, 12, 2, 128, dtype)
    for width in (1, 7, 304, rng.randint(5000, 9000)):
        compare_draw(width)
    print("equal")  # noqa: T201


def close(ours: Tensor, twin: Tensor) -> None:
    torch.testing.assert_close(ours, twin, atol=TOLERANCE[ours.dtype], rtol=TOLERANCE[ours.dtype])


def noise(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def compare_likeliest(rows: int, width: int, dtype: torch.dtype) -> None:
    """With two equal ones, and rows of infinity and NaN."""
    logits = noise(rows, width, dtype=dtype)
    logits[0, [7, 8]] = logits[0].max()
    if rows > 3:
        logits[1], logits[2, 3], logits[3, [4, 2]] = -torch.inf, torch.inf, torch.nan
    ours, twin = likeliest(logits), reference.likeliest(logits)
    assert torch.equal(ours[0], twin[0])
    torch.testing.assert_close(ours[1], twin[1], atol=0, rtol=0, equal_nan=True)


def compare_draw(width: int) -> None:
    """All kinds of rows beside each other: equal logits, banned ones, extreme temperatures; read from other rows."""
    logits = 4 * noise(9, width, dtype=torch.float32)
    logits[1] = logits[1].round()
    logits[2, width // 2 :] = -torch.inf
    logits[2, 0], logits[3] = 3.0, 1e4 + logits[3]
    picks = [
        (t, m, k, p) for t in (1.0, 1e5, 0.02) for m in (0.0, 0.2) for k in (0, 2, 20, width) for p in (1, 0.9, 0.01)
    ]
    rows = torch.randint(0, len(logits), (len(picks),)).to(DEVICE)
    uniform = torch.rand(len(picks), 1).double()
    uniform[::5], uniform[1::5] = 0, 1 - 2**-50
    numbers = torch.cat([torch.tensor(picks).double(), uniform], dim=1).T.contiguous()
    ways = Ways(numbers.to(DEVICE), is_truncated=True)
    ours, twin = draw(logits, rows, ways), draw_reference.draw(logits[rows], ways)
    differ = (ours != twin).sum().item()  # the last bit of an exponential may decide
    assert differ <= len(picks) // 50, f"{differ} of {len(picks)}"


def compare_rotary(tokens: int) -> None:
    """Far places too, where a quick cosine is wrong."""
    positions = torch.randint(0, 100_000, (5, tokens)).to(DEVICE)
    regimes = torch.randint(0, 2, (tokens,)).to(DEVICE)
    inv_freq = (1e4 ** -torch.linspace(0, 1, 24)).repeat(2, 1).to(DEVICE) * torch.tensor([[1.0], [0.4]], device=DEVICE)
    scales = torch.tensor([1.0, 1.19], device=DEVICE)
    for rows, sections in ((slice(1, 2), None), (slice(2, 5), (4, 8, 12))):
        ours = elementwise.rotary(positions[rows], regimes, inv_freq, scales, sections)
        for table, twin in zip(ours, reference.rotary(positions[rows], regimes, inv_freq, scales, sections)):
            torch.testing.assert_close(table, twin, atol=2e-6, rtol=0)


def compare_rotate_and_store(tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> None:
    """Slots that are nobody's keep what they hold; values keep their bits."""
    block = 16
    shape = (tokens // block + 2, block, kv_heads, dim)
    k, v = noise(*shape, dtype=dtype), noise(*shape, dtype=dtype)
    k_twin, v_twin = k.clone(), v.clone()
    slots = torch.randperm(shape[0] * block)[:tokens].to(DEVICE)
    cos, sin = (noise(tokens, dim // 2, dtype=torch.float32) for _ in range(2))
    batch = AttentionBatch(tokens, [1] * tokens, [], slots, slots, slots, None, cos, sin)
    qkv = noise(tokens, heads + 2 * kv_heads, dim, dtype=dtype)
    turned = elementwise.rotate_and_store(qkv, heads, k, v, batch)
    close(turned, reference.rotate_and_store(qkv, heads, k_twin, v_twin, batch))
    close(k, k_twin)
    assert torch.equal(v, v_twin)


def compare_activations(rows: int, width: int, dtype: torch.dtype) -> None:
    x = 4 * noise(rows, 2 * width, dtype=dtype)
    close(elementwise.silu_mul(x), reference.silu_mul(x))
    close(elementwise.quick_gelu(x), reference.quick_gelu(x))


def compare_rotate_qk(patches: int, heads: int, dim: int, dtype: torch.dtype) -> None:
    qkv = noise(patches, 3 * heads, dim, dtype=dtype)
    cos, sin = (noise(patches, dim // 2, dtype=torch.float32) for _ in range(2))
    twin = reference.rotate_qk(qkv, cos, sin)
    turned = elementwise.rotate_qk(qkv.clone(), cos, sin)
    close(turned, twin)
    assert torch.equal(turned[:, 2 * heads :], qkv[:, 2 * heads :])


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
