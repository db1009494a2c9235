"""The tower's kernels at about 8,192 patches, and those that bring pictures there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.kernels import shapes
from benchmarks.kernels.decoder import tiled
from benchmarks.kernels.measure import Arms, Case, Run, sets_for
from benchmarks.kernels.shapes import ELEMENT_BYTES, Shapes, linear, noise
from fovea.kernels import elementwise, many_rows, norms, packed_attention, pixels, pixels_reference, reference
from fovea.kernels.attention_tiles import Tile
from fovea.kernels.batch import Segments, segment_tiles
from fovea.native.resample_table import resample_table

PATCHES = 8192
FEWER_PATCHES = (256, 577, 1024, 2048, 4096, PATCHES, 16384)
PICTURE = (1024, 768)
PATCH_PX, TILE_PX = 14, 336
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def cases(s: Shapes) -> Iterator[Case]:
    width, size = s.tower_width, f"{PATCHES} patches"
    yield Case(s.name, "layer_norm", size, 2 * PATCHES * width * ELEMENT_BYTES, _layer_norm(s))
    for patches in FEWER_PATCHES:
        moved = (width * s.tower_mlp + patches * (width + s.tower_mlp)) * ELEMENT_BYTES
        flops = 2 * patches * width * s.tower_mlp
        yield Case(s.name, "activated", f"{patches} patches", moved, _activated(s, patches), flops)
    yield Case(s.name, "quick_gelu", size, 2 * PATCHES * s.tower_mlp * ELEMENT_BYTES, _quick_gelu(s))
    if s.tower_rotates:
        moved = PATCHES * (4 * width * ELEMENT_BYTES + width // s.tower_heads * 4)
        yield Case(s.name, "rotate_qk", size, moved, _rotate_qk(s))
    for lengths in s.segments:
        moved, flops = 4 * sum(lengths) * width * ELEMENT_BYTES, 4 * sum(n * n for n in lengths) * width
        yield Case(s.name, "segment_attention", _segments(lengths), moved, _attention(s, list(lengths)), flops)
    for name, inputs, outputs in (
        ("tower qkv", width, 3 * width),
        ("tower out", width, width),
        ("tower up", width, s.tower_mlp),
        ("tower down", s.tower_mlp, width),
    ):
        moved = (inputs * outputs + PATCHES * (inputs + outputs)) * ELEMENT_BYTES
        yield Case(s.name, name, size, moved, _linear(inputs, outputs), 2 * PATCHES * inputs * outputs)
    yield from _pixel_cases(s)


def _segments(lengths: tuple[int, ...]) -> str:
    same = len(set(lengths)) == 1
    return f"{len(lengths)} x {lengths[0]}" if same else " + ".join(map(str, lengths))


def _layer_norm(s: Shapes) -> Callable[[], Arms]:
    def build() -> Arms:
        sets, width = sets_for(2 * PATCHES * s.tower_width * ELEMENT_BYTES), s.tower_width
        xs, shift = [noise(PATCHES, width) for _ in range(sets)], noise(width).float()
        norm = nn.LayerNorm(width, device=shapes.CARD, dtype=shapes.DTYPE).requires_grad_(False)

        def ours(i: int, **options: Any) -> Tensor:
            return norms.layer_norm(xs[i], norm.weight, norm.bias, norm.eps, shift, **options)

        return Arms(ours, {"torch": lambda i: reference.layer_norm(xs[i], norm, shift)}, sets)

    return build


def _activated(s: Shapes, patches: int) -> Callable[[], Arms]:
    """The widening layer and what follows it, beside cuBLAS and a pass."""

    def build() -> Arms:
        width, sets = s.tower_width, sets_for(patches * (s.tower_width + s.tower_mlp) * ELEMENT_BYTES)
        xs, layer = [noise(patches, width) for _ in range(sets)], linear(width, s.tower_mlp, bias=True)

        def ours(i: int, **options: Any) -> Tensor:
            return many_rows.activated(xs[i], layer.weight, layer.bias, "quick_gelu", **tiled(options, many_rows.Tile))

        plain = {"cublas": lambda i: elementwise.quick_gelu(layer(xs[i])), "product alone": lambda i: layer(xs[i])}
        return Arms(ours, plain, sets)

    return build


def _quick_gelu(s: Shapes) -> Callable[[], Arms]:
    def build() -> Arms:
        sets = sets_for(2 * PATCHES * s.tower_mlp * ELEMENT_BYTES)
        xs = [noise(PATCHES, s.tower_mlp) for _ in range(sets)]
        plain = {"torch": lambda i: reference.quick_gelu(xs[i]), "torch's gelu": lambda i: F.gelu(xs[i])}
        return Arms(lambda i, **options: elementwise.quick_gelu(xs[i], **options), plain, sets)

    return build


def _rotate_qk(s: Shapes) -> Callable[[], Arms]:
    def build() -> Arms:
        dim = s.tower_width // s.tower_heads
        sets = sets_for(4 * PATCHES * s.tower_width * ELEMENT_BYTES)
        xs = [noise(PATCHES, 3 * s.tower_heads, dim) for _ in range(sets)]
        angles = torch.rand(PATCHES, dim // 2, device=shapes.CARD)
        cos, sin = angles.cos(), angles.sin()
        plain = {"torch": lambda i: reference.rotate_qk(xs[i], cos, sin)}
        return Arms(lambda i, **options: elementwise.rotate_qk(xs[i], cos, sin, **options), plain, sets, is_pure=False)

    return build


def _attention(s: Shapes, lengths: list[int]) -> Callable[[], Arms]:
    def build() -> Arms:
        dim, sets = s.tower_width // s.tower_heads, sets_for(4 * sum(lengths) * s.tower_width * ELEMENT_BYTES)
        packed = [noise(sum(lengths), 3 * s.tower_heads, dim) for _ in range(sets)]
        segments = Segments(lengths, torch.from_numpy(segment_tiles(lengths)).to(shapes.CARD))

        def ours(i: int, **options: Any) -> Tensor:
            q, k, v = packed[i].chunk(3, dim=1)
            return packed_attention.segment_attention(q, k, v, segments, **tiled(options, Tile))

        def through(backend: SDPBackend) -> Run:
            def run(i: int) -> Tensor:
                q, k, v = packed[i].chunk(3, dim=1)
                with sdpa_kernel(backend):
                    return reference.segment_attention(q, k, v, lengths)

            return run

        return Arms(ours, {name: through(backend) for name, backend in BACKENDS.items()}, sets)

    return build


def _linear(inputs: int, outputs: int) -> Callable[[], Arms]:
    def build() -> Arms:
        sets = sets_for(PATCHES * (inputs + outputs) * ELEMENT_BYTES)
        xs, layer = [noise(PATCHES, inputs) for _ in range(sets)], linear(inputs, outputs, bias=True)
        return Arms(lambda i: layer(xs[i]), {}, sets)

    return build


# --- pixels ----------------------------------------------------------------------------------------------------------


def _pixel_cases(s: Shapes) -> Iterator[Case]:
    """A picture of 1024 x 768 along its rows, then its columns; then cut into patches."""
    (old_width, old_height), (width, height) = PICTURE, s.picture
    kind: Any = s.resample
    for name, outer, inner, old, new in (
        ("resample rows", old_height, 3, old_width, width),
        ("resample columns", 1, 3 * width, old_height, height),
    ):
        moved = outer * inner * (old + new)
        yield Case(s.name, name, f"{old} to {new}", moved, _resample(outer, inner, old, new, kind))
    if s.tower_rotates:
        moved = width * height * 3 * (1 + 2 * ELEMENT_BYTES)
        yield Case(s.name, "cut_patches", f"{width} x {height}", moved, _cut_patches(width, height, 2, 2))
    else:
        moved = TILE_PX * TILE_PX * 3 * (1 + ELEMENT_BYTES)
        yield Case(s.name, "cut_patches", f"{TILE_PX} x {TILE_PX}", moved, _cut_patches(TILE_PX, TILE_PX, 1, 1))


def _resample(outer: int, inner: int, old: int, new: int, kind: Any) -> Callable[[], Arms]:
    def build() -> Arms:
        sets = sets_for(outer * inner * (old + new))
        pictures = [
            torch.randint(0, 256, (outer, old, inner), dtype=torch.uint8, device=shapes.CARD) for _ in range(sets)
        ]
        table = torch.from_numpy(resample_table(old, new, kind).copy()).to(shapes.CARD)
        plain = {"torch": lambda i: pixels_reference.resample(pictures[i], table)}
        return Arms(lambda i, **options: pixels.resample(pictures[i], table, **options), plain, sets)

    return build


def _cut_patches(width: int, height: int, side: int, repeats: int) -> Callable[[], Arms]:
    def build() -> Arms:
        sets = sets_for(width * height * 3 * (1 + repeats * ELEMENT_BYTES))
        canvases = [
            torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, device=shapes.CARD) for _ in range(sets)
        ]
        levels = noise(3, 256)

        def ours(i: int, **options: Any) -> Tensor:
            return pixels.cut_patches([canvases[i]], levels, PATCH_PX, side, repeats, **options)

        def plain(i: int) -> Tensor:
            return pixels_reference.cut_patches([canvases[i]], levels, PATCH_PX, side, repeats)

        return Arms(ours, {"torch": plain}, sets)

    return build
