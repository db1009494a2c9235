"""The sizes of the three models that kernels see, and inputs of those sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fovea.kernels.batch import AttentionBatch
from fovea.models.decoder import RMSNorm

CARD = torch.device("cuda")
DTYPE = torch.bfloat16
ELEMENT_BYTES = 2
BLOCK_SIZE = 16


@dataclass(frozen=True)
class Shapes:
    """`segments`: patches of the tower's usual pictures, about 8,192 of them together."""

    name: str
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    qkv_bias: bool
    tower_width: int
    tower_heads: int
    tower_mlp: int
    tower_rotates: bool
    segments: tuple[tuple[int, ...], ...]
    picture: tuple[int, int]  # what 1024 x 768 is resized to
    resample: str


CLIP = ((577,), (577,) * 14)
MODELS = (
    Shapes("qwen", 1536, 8960, 12, 2, 128, 151936, True, 1280, 16, 5120, True,
           ((3996,), (3996, 3996), (1600,) * 5, (3996, 64, 1600, 2028, 300)), (1036, 756), "bicubic"),
    Shapes("llava", 4096, 11008, 32, 32, 128, 32064, False, 1024, 16, 4096, False, CLIP, (448, 336), "bicubic"),
    Shapes("phi", 3072, 8192, 32, 32, 96, 32064, False, 1024, 16, 4096, False, CLIP, (672, 504), "bilinear"),
)  # fmt: skip


def noise(*shape: int) -> Tensor:
    """Random values: products of zeros are quicker than real ones."""
    return torch.randn(*shape, device=CARD, dtype=DTYPE)


def bytes_at_random(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=CARD)


def linear(width: int, outputs: int, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(width, outputs, bias=bias, device=CARD, dtype=DTYPE)
    nn.init.normal_(layer.weight, 0.0, 0.02)
    return layer.requires_grad_(False)


def norm(width: int) -> RMSNorm:
    made = RMSNorm(width, 1e-6).to(CARD, DTYPE).requires_grad_(False)
    nn.init.ones_(made.weight)
    return made


class Pages:
    """One pool of pages, and batches whose sequences lie in different parts of it."""

    def __init__(self, shapes: Shapes, new: Sequence[int], keys: Sequence[int], sets: int) -> None:
        """Sequence i has `new[i]` new tokens and `keys[i]` keys with them; those with one new token come first."""
        blocks = [-(-count // BLOCK_SIZE) for count in keys]
        size = (sets * sum(blocks) + 1, BLOCK_SIZE, shapes.kv_heads, shapes.head_dim)
        self.k_cache, self.v_cache = noise(*size), noise(*size)
        order = torch.randperm(sets * sum(blocks)).split(sum(blocks))
        self.batches = [self._batch(shapes, list(new), list(keys), blocks, places) for places in order]

    def _batch(
        self, shapes: Shapes, new: list[int], keys: list[int], blocks: list[int], places: Tensor
    ) -> AttentionBatch:
        tables = torch.zeros(len(keys), max(blocks), dtype=torch.int32)
        slots = []
        for row, count, length, own in zip(tables, new, keys, places.split(blocks)):
            row[: len(own)] = own
            at = torch.arange(length - count, length)
            slots.append(own[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE)
        angles = torch.rand(sum(new), shapes.head_dim // 2, device=CARD)
        num_decode = sum(count == 1 for count in new)
        return AttentionBatch(
            num_decode=num_decode,
            query_lens=new,
            kv_lens=keys,
            slots=torch.cat(slots).to(CARD),
            block_tables=tables.to(CARD),
            kv_lens_tensor=torch.tensor(keys, dtype=torch.int32, device=CARD),
            decode_mask=None,
            cos=angles.cos(),
            sin=angles.sin(),
            query_starts=torch.tensor([0, *new]).cumsum(0).to(CARD, torch.int32),
            arrivals=torch.zeros(max(1, num_decode) * shapes.kv_heads, dtype=torch.int32, device=CARD),
        )
