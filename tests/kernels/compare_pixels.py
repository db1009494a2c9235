"""The kernels for pixels against their plain twins and Pillow, to the bit, over random sizes. Prints "equal".

Run as compare_triton is: in Triton's interpreter (TRITON_INTERPRET=1) on a machine without a card.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image

from fovea.core.types import Resample
from fovea.kernels import pixels, pixels_reference
from fovea.native.resample_table import resample_table

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS, MOST_PX = (200, 2000) if torch.cuda.is_available() else (6, 30)  # the interpreter is slow
TILES = (14, 24, 1) if torch.cuda.is_available() else (2, 24, 1)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FILTERS: dict[Resample, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


def main() -> None:
    rng = random.Random(0)
    for number in range(ROUNDS):
        most = rng.choice((4, MOST_PX // 4, MOST_PX))
        lines, old, new = (rng.randint(1, most) for _ in range(3))
        compare_resample(lines, old, new, rng.choice(list(FILTERS)), seed=number)
        compare_cut(rng, number)
    compare_resample(1, 30 * MOST_PX, 3, "bicubic", seed=0)
    compare_resample(3, 1, 10 * MOST_PX, "bilinear", seed=0)
    print("equal")  # noqa: T201


def compare_resample(lines: int, old: int, new: int, kind: Resample, *, seed: int) -> None:
    """Along the rows and along the columns, noise and hard edges (which are clipped)."""
    picture = np.random.default_rng(seed).integers(0, 256, (lines, old, 3), dtype=np.uint8)
    if seed % 2:
        picture = np.where(picture > 127, np.uint8(255), np.uint8(0))
    want = np.array(Image.fromarray(picture).resize((new, lines), FILTERS[kind]))
    if new == old:
        return
    table = torch.from_numpy(resample_table(old, new, kind).copy())
    source = torch.from_numpy(picture)
    twin = pixels_reference.resample(source, table)
    np.testing.assert_array_equal(twin.numpy(), want)
    ours = pixels.resample(source.to(DEVICE), table.to(DEVICE))
    assert torch.equal(ours.cpu(), twin), (lines, old, new, kind)
    lying = source.transpose(0, 1).reshape(1, old, 3 * lines)
    ours = pixels.resample(lying.to(DEVICE), table.to(DEVICE))
    assert torch.equal(ours.cpu(), pixels_reference.resample(lying, table)), (lines, old, new, kind)


def compare_cut(rng: random.Random, seed: int) -> None:
    """Several canvases of several sizes, which start anywhere in memory, into one tensor of patches."""
    px, side, repeats = rng.choice(((14, 2, 2), TILES, (14, 4, 1), (5, 3, 2), (16, 1, 1)))
    most = 2 if side == 24 or DEVICE.type == "cpu" else 6
    shapes = [(rng.randint(1, most) * side * px, rng.randint(1, most) * side * px, 3) for _ in range(rng.randint(1, 3))]
    noise = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, 2_000_000, dtype=np.uint8))
    canvases, start = [], rng.randint(0, 3)
    for height, width, _ in shapes:
        size = height * width * 3
        canvases.append(noise[start : start + size].view(height, width, 3))
        start = (start + size) % 1000
    levels = torch.randn(3, 256).to(rng.choice(DTYPES))
    twin = pixels_reference.cut_patches(canvases, levels, px, side, repeats)
    ours = pixels.cut_patches([c.to(DEVICE) for c in canvases], levels.to(DEVICE), px, side, repeats)
    assert ours.dtype == twin.dtype
    assert torch.equal(ours.cpu(), twin), (shapes, px, side, repeats)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
