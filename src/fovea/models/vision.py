"""The one vision tower: CLIP-like, SigLIP-like and Qwen2-VL-like transformers by TowerSpec, over packed patches.

Pictures lie behind one another in one [P, ...] tensor; attention stays inside each segment, so any number of pictures
of any sizes is one forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fovea import kernels as ops
from fovea.families.spec import Activation, Interpolation, NormKind, TowerSpec
from fovea.kernels.batch import Segments
from fovea.kernels.cpu.library import Crew
from fovea.models.decoder import RMSNorm

QK_NORM_EPS = 1e-6
BICUBIC_A = -0.75  # of Keys' kernel, as torch has it


Blocks = Callable[[Tensor, Segments, Segments, tuple[Tensor, Tensor] | None], Tensor | None]


def activate(x: Tensor, kind: Activation) -> Tensor:
    if kind == "quick_gelu":
        return ops.quick_gelu(x)
    if kind == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


def activate_gated(x: Tensor, kind: Activation) -> Tensor:
    """activation(gate) * up for rows that hold gate and up side by side: [P, 2 * F] to [P, F]."""
    if kind == "silu":
        return ops.silu_mul(x)
    gate, up = x.chunk(2, dim=-1)
    return activate(gate, kind) * up


def axis_weights(size: int, side: int, kind: Interpolation, device: torch.device) -> Tensor:
    """How much of each of `side` learned positions stands at each of `size` places [size, side], in float32.

    bilinear: the first place and the last are the first position and the last. bicubic: a place is a pixel's middle,
    and what lies outside counts for the edge (F.interpolate with align_corners True and False).
    """
    places = torch.arange(size, dtype=torch.float32, device=device)
    if kind == "bilinear":
        at, offsets = places * ((side - 1) / max(1, size - 1)), torch.arange(2, device=device)
    else:
        at, offsets = (places + 0.5) * side / size - 0.5, torch.arange(-1, 3, device=device)
    first = at.floor()
    away = (at[:, None] - first[:, None] - offsets).abs()
    taps = (first.long()[:, None] + offsets).clamp(0, side - 1)
    return places.new_zeros(size, side).scatter_add_(1, taps, _kernel(away, kind))


def _kernel(away: Tensor, kind: Interpolation) -> Tensor:
    if kind == "bilinear":
        return (1 - away).clamp_min(0)
    near = ((BICUBIC_A + 2) * away - (BICUBIC_A + 3)) * away**2 + 1
    far = ((BICUBIC_A * away - 5 * BICUBIC_A) * away + 8 * BICUBIC_A) * away - 4 * BICUBIC_A
    return torch.where(away <= 1, near, far)


def make_norm(kind: NormKind, width: int, eps: float) -> nn.LayerNorm | RMSNorm:
    return nn.LayerNorm(width, eps) if kind == "layer" else RMSNorm(width, eps)


def shifted_norm(x: Tensor, norm: nn.LayerNorm | RMSNorm, shift: Tensor | None = None) -> Tensor:
    """The norm of x [P, width], or of x + shift [width] in float32."""
    if isinstance(norm, nn.LayerNorm):
        return ops.layer_norm(x, norm, shift)
    return norm(x if shift is None else (x + shift).to(x.dtype))


class VisionBlock(nn.Module):
    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        self.head_dim, self.activation = spec.width // spec.num_heads, spec.activation
        self.activate = activate_gated if spec.gated else activate
        self.norm1 = make_norm(spec.norm, spec.width, spec.norm_eps)
        self.qkv = nn.Linear(spec.width, 3 * spec.width, bias=spec.qkv_bias)
        self.qk_norms: tuple[RMSNorm, RMSNorm] | None = None
        self.head_norms: tuple[RMSNorm, RMSNorm] | None = None
        if spec.qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(spec.width, QK_NORM_EPS) for _ in range(2))
            self.qk_norms = self.q_norm, self.k_norm
        elif spec.head_norms:
            self.q_norm, self.k_norm = (RMSNorm(self.head_dim, spec.norm_eps) for _ in range(2))
            self.head_norms = self.q_norm, self.k_norm
        self.out = nn.Linear(spec.width, spec.width, bias=spec.bias)
        self.norm2 = make_norm(spec.norm, spec.width, spec.norm_eps)
        self.up = nn.Linear(spec.width, spec.mlp_width * (2 if spec.gated else 1), bias=spec.bias)
        self.down = nn.Linear(spec.mlp_width, spec.width, bias=spec.bias)
        self.scaled = spec.layer_scale
        if spec.layer_scale:
            self.scale1, self.scale2 = (nn.Parameter(torch.empty(spec.width)) for _ in range(2))

    @property
    def scales(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        return (self.scale1, self.scale2) if self.scaled else (None, None)

    def forward(self, x: Tensor, owed: Tensor | None, segments: Segments, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """The residual stream [P, width] before and after the block, which may write over it.

        owed [2, width]: what the stream is without before attention and before the MLP; see VisionTower.
        """
        shifts = (None, None) if owed is None else owed
        qkv = self.qkv(shifted_norm(x, self.norm1, shifts[0]))
        if self.qk_norms is not None:
            q, k, v = qkv.chunk(3, dim=-1)
            qkv = torch.cat((self.qk_norms[0](q), self.qk_norms[1](k), v), dim=-1)
        heads = qkv.view(x.shape[0], -1, self.head_dim)
        if self.head_norms is not None:
            q, k, v = heads.chunk(3, dim=1)
            heads = torch.cat((self.head_norms[0](q), self.head_norms[1](k), v), dim=1)
        if rope is not None:
            heads = ops.rotate_qk(heads, *rope)
        q, k, v = heads.chunk(3, dim=1)
        attended = ops.segment_attention(q, k, v, segments).flatten(1)
        x = self._add(x, attended, self.out, self.scales[0], owed)
        hidden = self._activated(shifted_norm(x, self.norm2, shifts[1]))
        return self._add(x, hidden, self.down, self.scales[1], owed)

    def _activated(self, x: Tensor) -> Tensor:
        made = None if self.activate is activate_gated else ops.activated(x, self.up, self.activation)
        return self.activate(self.up(x), self.activation) if made is None else made

    def _add(self, x: Tensor, rows: Tensor, linear: nn.Linear, scale: Tensor | None, owed: Tensor | None) -> Tensor:
        """x and a layer of rows; without its bias, where that is owed."""
        if scale is not None:
            return x + linear(rows) * scale
        return ops.linear_add(rows, linear, x) if owed is None else ops.product_add(rows, linear, x)


class VisionTower(nn.Module):
    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.patch = nn.Linear(spec.patch_values, spec.width, bias=spec.patch_bias)
        if spec.class_token:
            self.class_token = nn.Parameter(torch.empty(spec.width))
        if spec.num_positions:
            self.positions = nn.Parameter(torch.empty(spec.num_positions, spec.width))
        self._places: dict[int, Tensor] = {}
        self.crew: Crew | None = None  # on a CPU
        self.graphs: Blocks | None = None  # something faster than run_blocks that may decline
        if spec.pre_norm:
            self.pre_norm = make_norm(spec.norm, spec.width, spec.norm_eps)
        self.blocks = nn.ModuleList(VisionBlock(spec) for _ in range(spec.num_layers))
        if spec.patch_norm:
            self.patch_norm = make_norm(spec.norm, spec.width, spec.norm_eps)
        if spec.post_norm:
            self.post_norm = make_norm(spec.norm, spec.width, spec.norm_eps)

    @property
    def dtype(self) -> torch.dtype:
        block = self.blocks[0]
        assert isinstance(block, VisionBlock)
        return block.norm1.weight.dtype

    def tiles(self, patches: Tensor) -> Tensor:
        """Tiles of one size with learned positions: [tiles, n, values] to [tiles, n, out width], no class token."""
        num_tiles, num_patches, _ = patches.shape
        x = self.patch(patches)
        if self.spec.patch_norm:
            x = self.patch_norm(x)
        first = int(self.spec.class_token)
        if first:
            x = torch.cat((self.class_token.expand(num_tiles, 1, -1), x), dim=1)
        positions = self._by_place(num_patches) if self.spec.by_place else self.positions
        x = self._run((x + positions).flatten(0, 1), [first + num_patches] * num_tiles, None)
        return x.unflatten(0, (num_tiles, -1))[:, first:]

    def _by_place(self, num_patches: int) -> Tensor:
        """The learned positions of a square of patches, each by its place as a part of the side [n, width].

        Patches that are as many as the positions have their own, but for what float32 rounds, as in Idefics3's code.
        """
        if num_patches not in self._places:
            side, known = math.isqrt(num_patches), math.isqrt(self.spec.num_positions)
            borders = torch.arange(1 / known, 1.0, 1 / known)
            parts = (torch.arange(side).float() * (1.0 / torch.tensor([side]))).clamp(max=1.0 - 1e-6)
            buckets = torch.bucketize(parts, borders, right=True)
            self._places[num_patches] = (buckets[:, None] * known + buckets).flatten().to(self.positions.device)
        return self.positions[self._places[num_patches]]

    def packed(
        self, patches: Tensor, lengths: list[int], places: Tensor, windows: list[int], learned: Tensor | None = None
    ) -> Tensor:
        """Segments of any lengths with rotary positions: [P, values] and (row, column) places [P, 2] to [P, out width].

        `windows`: lengths of the shorter segments that they are made of, where the tower has windows. `learned`:
        positions [P, width] added to the patches.
        """
        x = self.patch(patches)
        if self.spec.patch_norm:
            x = self.patch_norm(x)
        return self._run(x if learned is None else x + learned, lengths, self._rope(places), windows)

    def stretched(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Learned positions over a grid [R, C, width], from each axis's weights [R, side] and [C, side] in float32."""
        side = rows.shape[1]
        table = self.positions.float().view(side, -1)
        return columns @ (rows @ table).unflatten(1, (side, -1))

    def _run(
        self, x: Tensor, lengths: list[int], rope: tuple[Tensor, Tensor] | None, windows: list[int] | None = None
    ) -> Tensor:
        whole = Segments.of(lengths, x.device, self.crew)
        near = Segments.of(windows, x.device, self.crew) if self.spec.window and windows else whole
        made = None if self.graphs is None else self.graphs(x, whole, near, rope)
        return self.run_blocks(x, whole, near, rope) if made is None else made

    def run_blocks(self, x: Tensor, whole: Segments, near: Segments, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """All that is between the patches' first values [P, width], which may be overwritten, and the tower's result
        [P, out width]."""
        if self.spec.pre_norm:
            x = shifted_norm(x, self.pre_norm)
        owed = self._owed(x)
        kept: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks):
            owing = None if owed is None else owed[2 * number : 2 * number + 2]
            if number in self.spec.feature_layers:  # a copy: the block may write over x
                kept[number] = x.clone() if owing is None else (x + owing[0]).to(x.dtype)
            x = block(x, owing, whole if number in self.spec.full_layers else near, rope)
        last = None if owed is None else owed[-1]
        if self.spec.post_norm:
            return shifted_norm(x, self.post_norm, last)
        x = x if last is None else (x + last).to(x.dtype)
        if not self.spec.feature_layers:
            return x
        kept[len(self.blocks)] = x
        return torch.cat([kept[number] for number in self.spec.feature_layers], dim=-1)

    def _owed(self, x: Tensor) -> Tensor | None:
        """What the residual stream is without; None: nothing."""
        return self.bias_sums() if x.is_cuda and self.spec.bias and not self.spec.layer_scale else None

    def bias_sums(self) -> Tensor:
        """The biases of all layers before each norm and the end [2 * blocks + 1, width], in float32.

        A product that is added to the residual stream has no pass for its bias. So biases stay out of the stream, and
        are added where it is read.
        """
        biases: list[Tensor] = []
        for block in self.blocks:
            assert isinstance(block, VisionBlock)
            biases += (block.out.bias, block.down.bias)
        return F.pad(torch.stack(biases).float().cumsum(0), (0, 0, 1, 0))

    def _rope(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """A quarter of the head's values turns with the row, the next with the column (Qwen2-VL's published code)."""
        assert self.spec.rope_theta is not None
        quarter = self.spec.width // self.spec.num_heads // 4
        exponents = torch.arange(0, 2 * quarter, 2, dtype=torch.float32, device=places.device) / (2 * quarter)
        if self.spec.rope_between:
            exponents = torch.stack((exponents, exponents + 0.5 / quarter))
        angles = places.float()[:, :, None] * (1.0 / self.spec.rope_theta**exponents)  # [P, 2, D / 4]
        angles = angles.flatten(1)  # [P, D / 2]
        return angles.cos(), angles.sin()
