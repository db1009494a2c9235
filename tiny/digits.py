"""Pictures of hand-written digits in a row, from single digits of 28x28 pixels."""

from random import Random

import numpy as np
from PIL import Image, ImageFilter

from tiny.asks import Size


def draw_digits(rng: Random, glyphs: list[np.ndarray], size: Size, distort: bool) -> Image.Image:
    light = rng.random() < 0.6
    shade = rng.randint(190, 255) if light else rng.randint(0, 60)
    ground = tuple(min(255, max(0, shade + rng.randint(-12, 12))) for _ in range(3))
    ink = tuple(rng.randint(0, 80) if light else rng.randint(190, 255) for _ in range(3))
    picture = Image.new("RGB", size, ground)
    cell = size[0] / len(glyphs)
    side = max(24.0, min(size[1], cell * 1.12, 110) * rng.uniform(0.72, 1.0))
    shift = rng.uniform(0, size[1] - side) if size[1] > side else 0.0
    for i, glyph in enumerate(glyphs):
        mask = Image.fromarray(glyph)
        if distort:
            mask = _distorted(rng, mask)
        edge = round(side * rng.uniform(0.9, 1.05))
        mask = mask.resize((edge, edge), Image.Resampling.BICUBIC)
        x = round(cell * (i + 0.5) - edge / 2 + rng.uniform(-0.06, 0.06) * cell)
        y = round(min(max(shift + rng.uniform(-0.12, 0.12) * side, 0), max(0, size[1] - edge)))
        picture.paste(ink, (x, y), mask)
    return picture


def _distorted(rng: Random, mask: Image.Image) -> Image.Image:
    """A little turning, bending, and a thicker or thinner pen: 4,000 digits are few."""
    mask = mask.resize((42, 42), Image.Resampling.BICUBIC)
    knots = [0, 14, 28, 42]
    moved = {(x, y): (x + rng.uniform(-2.6, 2.6), y + rng.uniform(-2.6, 2.6)) for x in knots for y in knots}
    mesh = []
    for x0, x1 in zip(knots, knots[1:]):
        for y0, y1 in zip(knots, knots[1:]):
            corners = (*moved[x0, y0], *moved[x0, y1], *moved[x1, y1], *moved[x1, y0])
            mesh.append(((x0, y0, x1, y1), corners))
    mask = mask.transform(mask.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
    a, shear, scale = rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2), rng.uniform(0.9, 1.15)
    row0 = (scale, a + shear, 21 - 21 * (scale + a + shear))
    row1 = (-a, scale, 21 - 21 * (scale - a))
    mask = mask.transform(mask.size, Image.Transform.AFFINE, (*row0, *row1), Image.Resampling.BILINEAR)
    pen = rng.random()
    if pen < 0.2:
        return mask.filter(ImageFilter.MaxFilter(3))
    return mask.filter(ImageFilter.MinFilter(3)) if pen < 0.3 else mask
