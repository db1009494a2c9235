"""The decoder's kernels at decode batches of 1 to 256 and at 8,192 tokens of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels import shapes
from benchmarks.kernels.measure import Arms, Case, Run, sets_for
from benchmarks.kernels.shapes import ELEMENT_BYTES, Pages, Shapes, linear, noise, norm
from fovea import kernels as ops
from fovea.engine.sampler import choose_likeliest
from fovea.kernels import draw_reference, elementwise, few_rows, kv_pages, many_rows, norms, reference
from fovea.kernels.attention_tiles import Tile
from fovea.kernels.fp8_weights import FP8
from fovea.kernels.kv_pages import KVPages
from fovea.kernels.paged_decode import DecodeTile, paged_decode
from fovea.kernels.paged_prefill import paged_prefill

ROWS = (1, 4, 64, 256, 8192)
MANY_ROWS = (256, 384, 512, 640, 768, 1024, 1536, 2048, 3072, 4096, 8192)
DECODE_ROWS = (1, 64, 256)
KEYS = 1024
SCALE_BYTES = 4  # of a key of one head in float8
STORED_AT_ONCE = 65536
QUESTIONS, OWN_KEYS = 64, 32  # about one picture
# New tokens and keys of each sequence of a step that computes prompts.
PREFILLS = {
    "1 x 1028": ([1028], [1028]),
    "8 x 1024": ([1024] * 8, [1024] * 8),
    "64 x 16 over 1024": ([16] * 64, [1040] * 64),
    "4 x 2048 over 2048": ([2048] * 4, [4096] * 4),
}


def cases(s: Shapes) -> Iterator[Case]:
    yield from _linears(s)
    for rows in ROWS:
        size = f"{rows} rows"
        yield Case(s.name, "rms_norm", size, 2 * rows * s.hidden * ELEMENT_BYTES, _rms_norm(s, rows))
        yield Case(s.name, "silu_mul", size, 3 * rows * s.mlp * ELEMENT_BYTES, _silu_mul(s, rows))
        moved = rows * s.head_dim * (2 * (s.heads + 2 * s.kv_heads) * ELEMENT_BYTES + 4)
        yield Case(s.name, "rotate_and_store", size, moved, _rotate_and_store(s, rows))
        yield Case(s.name, "rotary", size, rows * (s.head_dim * 4 + 32), _rotary(s, rows))
    for rows in DECODE_ROWS:
        yield Case(s.name, "choose_likeliest", f"{rows} rows", rows * s.vocab * 4, _likeliest(s, rows))
        yield Case(s.name, "draw", f"{rows} rows", rows * s.vocab * 4, _draw(s, rows))
        kv_bytes = 2 * rows * KEYS * s.kv_heads * s.head_dim * ELEMENT_BYTES
        flops = 4 * rows * KEYS * s.heads * s.head_dim
        size, fp8_bytes = f"{rows} x {KEYS} keys", 2 * rows * KEYS * s.kv_heads * (s.head_dim + SCALE_BYTES)
        yield Case(s.name, "paged_decode", size, kv_bytes, _decode(s, rows, kv_bytes, is_fp8=False), flops)
        yield Case(s.name, "paged_decode fp8", size, fp8_bytes, _decode(s, rows, fp8_bytes, is_fp8=True), flops)
    read, pairs = KEYS + QUESTIONS * OWN_KEYS, QUESTIONS * (KEYS + OWN_KEYS)
    moved, flops = 2 * read * s.kv_heads * s.head_dim * ELEMENT_BYTES, 4 * pairs * s.heads * s.head_dim
    yield Case(s.name, "common_beginning", f"{QUESTIONS} x ({KEYS} + {OWN_KEYS})", moved, _shared(s), flops)
    for size, (new, keys) in PREFILLS.items():
        pairs = sum(n * (k - n) + n * (n + 1) // 2 for n, k in zip(new, keys))
        moved = 2 * (sum(keys) * s.kv_heads + sum(new) * s.heads) * s.head_dim * ELEMENT_BYTES
        flops = 4 * pairs * s.heads * s.head_dim
        yield Case(s.name, "paged_prefill", size, moved, _prefill(s, new, keys, moved), flops)


def _linears(s: Shapes) -> Iterator[Case]:
    """The fused projections; from FEW_ROWS on they are cuBLAS with our kernels before and behind."""
    qkv, attended = (s.heads + 2 * s.kv_heads) * s.head_dim, s.heads * s.head_dim
    for rows in ROWS:
        sizes: list[tuple[str, int, int, int, Callable[[int], Arms]]] = [
            ("norm_qkv", s.hidden, qkv, qkv, _norm_qkv(s, rows)),
            ("linear_add out", attended, s.hidden, 2 * s.hidden, _linear_add(rows, attended, s.hidden)),
            ("norm_gate_up", s.hidden, 2 * s.mlp, s.mlp, _norm_gate_up(s, rows)),
            ("linear_add down", s.mlp, s.hidden, 2 * s.hidden, _linear_add(rows, s.mlp, s.hidden)),
        ]
        if rows <= 256:
            sizes.append(("logits", s.hidden, s.vocab, 2 * s.vocab, _logits(s, rows)))
        for name, width, outputs, written, build in sizes:
            moved = (width * outputs + rows * (width + written)) * ELEMENT_BYTES
            sets = sets_for(moved)
            yield Case(s.name, name, f"{rows} rows", moved, _later(build, sets), 2 * rows * width * outputs)
    for rows in MANY_ROWS:
        moved, flops = (2 * s.hidden * s.mlp + rows * (s.hidden + s.mlp)) * ELEMENT_BYTES, 4 * rows * s.hidden * s.mlp
        yield Case(s.name, "gate_up", f"{rows} rows", moved, _later(_gate_up(s, rows), sets_for(moved)), flops)


def _gate_up(s: Shapes, rows: int) -> Callable[[int], Arms]:
    """For many rows, beside cuBLAS and a pass."""

    def build(sets: int) -> Arms:
        x, layers = noise(rows, s.hidden), [linear(s.hidden, 2 * s.mlp) for _ in range(sets)]

        def ours(i: int, **options: Any) -> Tensor:
            return many_rows.gate_up(x, layers[i].weight, **tiled(options, many_rows.Tile))

        return Arms(
            ours, {"cublas": lambda i: ops.silu_mul(layers[i](x)), "product alone": lambda i: layers[i](x)}, sets
        )

    return build


def _later(build: Callable[[int], Arms], sets: int) -> Callable[[], Arms]:
    return lambda: build(sets)


def _beside(ours: Run, composed: Run, product: Run, rows: int, sets: int) -> Arms:
    """Few rows: beside the composition of kernels that it replaces. Many: ours is that; beside its matrix product."""
    if rows <= ops.FEW_ROWS:
        return Arms(ours, {"cublas": composed}, sets)
    return Arms(ours, {"product alone": product}, sets, is_pure=False)


def _pages(s: Shapes, rows: int) -> Pages:
    """Where so many new tokens go: each a sequence of its own, or prompts of 1,024."""
    new = [1] * rows if rows < KEYS else [KEYS] * (rows // KEYS)
    return Pages(s, new, new, 1)


def _norm_qkv(s: Shapes, rows: int) -> Callable[[int], Arms]:
    def build(sets: int) -> Arms:
        pages = _pages(s, rows)
        batch, place = pages.batches[0], (pages.k_cache, pages.v_cache)
        x, before = noise(rows, s.hidden), norm(s.hidden)
        layers = [linear(s.hidden, (s.heads + 2 * s.kv_heads) * s.head_dim, s.qkv_bias) for _ in range(sets)]

        def ours(i: int, **options: Any) -> Tensor:
            if not options:
                return ops.norm_qkv(x, before, layers[i], s.heads, *place, batch)
            weight, bias = layers[i].weight, layers[i].bias
            tile = tiled(options, few_rows.Tile)
            return few_rows.norm_qkv(x, before.weight, before.eps, weight, bias, s.heads, *place, batch, **tile)

        def plain(i: int) -> Tensor:
            return ops.rotate_and_store(layers[i](before(x)).view(rows, -1, s.head_dim), s.heads, *place, batch)

        return _beside(ours, plain, lambda i: layers[i](x), rows, sets)

    return build


def _norm_gate_up(s: Shapes, rows: int) -> Callable[[int], Arms]:
    def build(sets: int) -> Arms:
        x, before = noise(rows, s.hidden), norm(s.hidden)
        layers = [linear(s.hidden, 2 * s.mlp) for _ in range(sets)]

        def ours(i: int, **options: Any) -> Tensor:
            if not options:
                return ops.norm_gate_up(x, before, layers[i])
            return few_rows.norm_gate_up(
                x, before.weight, before.eps, layers[i].weight, **tiled(options, few_rows.Tile)
            )

        return _beside(ours, lambda i: ops.silu_mul(layers[i](before(x))), lambda i: layers[i](x), rows, sets)

    return build


def _linear_add(rows: int, width: int, outputs: int) -> Callable[[int], Arms]:
    def build(sets: int) -> Arms:
        x, residual, kept = noise(rows, width), noise(rows, outputs), noise(rows, outputs)
        layers = [linear(width, outputs) for _ in range(sets)]

        def ours(i: int, **options: Any) -> Tensor:
            if not options:
                return ops.linear_add(x, layers[i], residual)
            return few_rows.linear(x, layers[i].weight, residual=residual, **tiled(options, few_rows.Tile))

        return Arms(ours, {"cublas": lambda i: kept + layers[i](x)}, sets, is_pure=False)

    return build


def _logits(s: Shapes, rows: int) -> Callable[[int], Arms]:
    def build(sets: int) -> Arms:
        x, heads = noise(rows, s.hidden), [linear(s.hidden, s.vocab) for _ in range(sets)]

        def ours(i: int, **options: Any) -> Tensor:
            if not options:
                return ops.logits(x, heads[i])
            return few_rows.linear(x, heads[i].weight, dtype=torch.float32, **tiled(options, few_rows.Tile))

        return Arms(ours, {"cublas": lambda i: heads[i](x).float()}, sets)

    return build


def _rms_norm(s: Shapes, rows: int) -> Callable[[], Arms]:
    def build() -> Arms:
        sets = sets_for(2 * rows * s.hidden * ELEMENT_BYTES) if rows > 256 else 1
        xs, weight = [noise(rows, s.hidden) for _ in range(sets)], noise(s.hidden)
        plain = {"torch": lambda i: F.rms_norm(xs[i], weight.shape, weight, 1e-6)}
        return Arms(lambda i, **options: norms.rms_norm(xs[i], weight, 1e-6, **options), plain, sets)

    return build


def _silu_mul(s: Shapes, rows: int) -> Callable[[], Arms]:
    def build() -> Arms:
        sets = sets_for(3 * rows * s.mlp * ELEMENT_BYTES) if rows > 256 else 1
        xs = [noise(rows, 2 * s.mlp) for _ in range(sets)]
        plain = {"torch": lambda i: reference.silu_mul(xs[i])}
        return Arms(lambda i, **options: elementwise.silu_mul(xs[i], **options), plain, sets)

    return build


def _rotate_and_store(s: Shapes, rows: int) -> Callable[[], Arms]:
    def build() -> Arms:
        pages = _pages(s, rows)
        caches, batch = (pages.k_cache, pages.v_cache), pages.batches[0]
        sets = sets_for(2 * rows * (s.heads + 2 * s.kv_heads) * s.head_dim * ELEMENT_BYTES) if rows > 256 else 1
        xs = [noise(rows, s.heads + 2 * s.kv_heads, s.head_dim) for _ in range(sets)]
        plain = {"torch": lambda i: reference.rotate_and_store(xs[i], s.heads, *caches, batch)}

        def ours(i: int, **options: Any) -> Tensor:
            return elementwise.rotate_and_store(xs[i], s.heads, *caches, batch, **options)

        return Arms(ours, plain, sets)

    return build


def _rotary(s: Shapes, rows: int) -> Callable[[], Arms]:
    def build() -> Arms:
        half = s.head_dim // 2
        sections = (half // 4, half // 2 - half // 8, half // 2 - half // 8) if s.tower_rotates else None
        positions = torch.randint(0, 4096, (3 if sections else 1, rows), device=shapes.CARD)
        regimes, inv_freq = (
            torch.zeros(rows, dtype=torch.int64, device=shapes.CARD),
            torch.rand(1, half, device=shapes.CARD),
        )
        asked = (positions, regimes, inv_freq, torch.ones(1, device=shapes.CARD), sections)
        return Arms(lambda i: elementwise.rotary(*asked), {"torch": lambda i: reference.rotary(*asked)})

    return build


def _likeliest(s: Shapes, rows: int) -> Callable[[], Arms]:
    def build() -> Arms:
        sets = sets_for(rows * s.vocab * 4)
        logits = [noise(rows, s.vocab).float() for _ in range(sets)]
        return Arms(lambda i: choose_likeliest(logits[i]), {"argmax": lambda i: logits[i].argmax(-1)}, sets)

    return build


def _draw(s: Shapes, rows: int) -> Callable[[], Arms]:
    """With a temperature, top_k and top_p."""

    def build() -> Arms:
        logits, order = 3 * noise(rows, s.vocab).float(), torch.arange(rows, device=shapes.CARD)
        numbers = torch.tensor([[1.0, 0.0, 50, 0.9, 0.5]] * rows, dtype=torch.float64).T.contiguous()
        ways = ops.Ways(numbers.to(shapes.CARD), is_truncated=True)
        plain = {"sorted": lambda i: draw_reference.draw(logits, ways)}
        return Arms(lambda i: ops.draw(logits, order, ways), plain)

    return build


def _decode(s: Shapes, rows: int, kv_bytes: int, *, is_fp8: bool) -> Callable[[], Arms]:
    def build() -> Arms:
        sets = sets_for(kv_bytes)
        pages, q = Pages(s, [1] * rows, [KEYS] * rows, sets), noise(rows, s.heads, s.head_dim)
        caches: KVPages = (pages.k_cache, pages.v_cache)
        if is_fp8:
            caches = (_in_float8(pages.k_cache), _in_float8(pages.v_cache))

        def ours(i: int, **options: Any) -> Tensor:
            return paged_decode(q, *caches, pages.batches[i], **tiled(options, DecodeTile))

        return Arms(ours, {"torch": lambda i: reference.paged_attention(q, *caches, pages.batches[i])}, sets)

    return build


def _in_float8(cache: Tensor) -> kv_pages.Pages:
    """The same rows; float32 ones of a part of them at a time are beside them."""
    pages = kv_pages.make_pages(torch.zeros, tuple(cache.shape), FP8, shapes.CARD)
    slots = torch.arange(cache.shape[0] * cache.shape[1], device=shapes.CARD)
    for some, rows in zip(slots.split(STORED_AT_ONCE), cache.flatten(0, 1).split(STORED_AT_ONCE)):
        kv_pages.store(pages, some, rows)
    return pages


def _shared(s: Shapes) -> Callable[[], Arms]:
    def build() -> Arms:
        pages = Pages(s, [1] * QUESTIONS, [KEYS + OWN_KEYS] * QUESTIONS, 1)
        q, caches, alone = noise(QUESTIONS, s.heads, s.head_dim), (pages.k_cache, pages.v_cache), pages.batches[0]
        block_size = pages.k_cache.shape[1]
        begin = KEYS // block_size
        alone.block_tables[:, :begin] = alone.block_tables[0, :begin]
        batch = replace(alone, shared_len=torch.tensor([begin * block_size], device=shapes.CARD))

        def ours(i: int, **options: Any) -> Tensor:
            return paged_decode(q, *caches, batch, **tiled(options, DecodeTile))

        return Arms(ours, {"each for itself": lambda i: paged_decode(q, *caches, alone)})

    return build


def _prefill(s: Shapes, new: list[int], keys: list[int], moved: int) -> Callable[[], Arms]:
    def build() -> Arms:
        sets = sets_for(moved)
        pages, q = Pages(s, new, keys, sets), noise(sum(new), s.heads, s.head_dim)
        caches, out = (pages.k_cache, pages.v_cache), noise(sum(new), s.heads, s.head_dim)

        def ours(i: int, **options: Any) -> Tensor:
            paged_prefill(q, *caches, pages.batches[i], out, **tiled(options, Tile))
            return out

        return Arms(ours, {"torch": lambda i: reference.paged_attention(q, *caches, pages.batches[i])}, sets)

    return build


def tiled(options: dict[str, Any], kind: type) -> dict[str, Any]:
    """A tile written as numbers becomes the kernel's own kind."""
    return {name: kind(*value) if name in ("tile", "together") else value for name, value in options.items()}
