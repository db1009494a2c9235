"""Frozen descriptions of a model, read from its config files. Integers, floats and names only: no torch.

The engine builds modules from these; nothing else about a model reaches it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]
NormKind = Literal["layer", "rms"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, slots=True)
class RopeRegime:
    """One set of rotary frequencies: theta^(-2i/d), divided by `factors[i]` if there are factors.

    Sources: RoFormer (arXiv:2104.09864), LongRoPE (arXiv:2402.13753). `scale` multiplies cos and sin.
    """

    theta: float
    factors: tuple[float, ...] = ()  # [head_dim / 2] or empty
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions.

    `sections` splits the frequencies between the rows of 3-row positions (M-RoPE: time, height, width); None means
    1-row positions. `interleaved`: the rows take turns along the frequencies instead of having a stretch each: height
    those at 1, 4, 7, ..., width those at 2, 5, 8, ..., as many as its section says, time the rest (Qwen3-VL).
    `switch_tokens`: a sequence with more tokens than this uses `regimes[1]` for all its positions.
    """

    regimes: tuple[RopeRegime, ...]
    sections: tuple[int, ...] | None = None
    switch_tokens: int | None = None
    interleaved: bool = False

    def regime(self, num_tokens: int) -> int:
        return int(self.switch_tokens is not None and num_tokens > self.switch_tokens)


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """A mixture of experts in place of the MLP in `layers`: of `num_experts` gated MLPs a token goes through `top_k`.

    `normed`: the chosen weights are divided by their sum. `scoring` "sigmoid": experts are chosen by that plus a bias
    of their own, in the best `top_groups` of `num_groups`, and weighted without it (DeepSeek-V3, arXiv:2412.19437).
    `scale` multiplies the weights. `shared_width`: of one more MLP, which every token goes through.
    """

    num_experts: int
    top_k: int
    width: int
    layers: tuple[int, ...]
    normed: bool = True
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    num_groups: int = 1
    top_groups: int = 1
    scale: float = 1.0
    shared_width: int = 0


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A Llama-shaped decoder: RMSNorm, rotary attention with grouped queries, gated SiLU MLP.

    `qk_norm`: an RMSNorm over each query and key head before it is rotated (Qwen3, arXiv:2505.09388). `out_bias`: a
    bias behind attention. `rotary_dim`: only the first so many dimensions of a head are rotated; None: all. `moe`:
    layers with experts.

    Gemma (arXiv:2403.08295, 2408.00118, 2503.19786): `norm_offset`: norms multiply by 1 + weight. `embed_scale`
    multiplies embeddings of tokens. `branch_norms`: an RMSNorm over what attention and MLP add, too (GLM-4, Gemma 2).
    `attention_scale` instead of 1 / sqrt(head_dim). `sliding_layers` see `sliding_window` tokens, itself included, in
    whatever context; `local_rope` is theirs alone, and without `full_rope` the others rotate nothing (Cohere 2).
    `attention_softcap` and `logit_softcap`: cap * tanh(x / cap). `logit_scale` multiplies the logits before that.
    `spans_exceed_window`: see AttentionRule. `norm` "layer" is a LayerNorm without bias. `parallel`: MLP and attention
    both see the layer's one norm, and both are added to its input.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeSpec
    qkv_bias: bool
    tied_head: bool
    max_positions: int
    qk_norm: bool = False
    out_bias: bool = False
    rotary_dim: int | None = None
    activation: Literal["silu", "gelu_tanh"] = "silu"
    norm: NormKind = "rms"
    norm_offset: bool = False
    branch_norms: bool = False
    parallel: bool = False
    embed_scale: float = 1.0
    attention_scale: float | None = None
    attention_softcap: float | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] = ()
    spans_exceed_window: bool = False
    local_rope: RopeSpec | None = None
    full_rope: bool = True
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    moe: MoeSpec | None = None

    @property
    def has_rules(self) -> bool:
        """Whether some layer's attention is not the usual one."""
        return (self.attention_scale, self.attention_softcap, self.sliding_window) != (None, None, None)

    def within(self, num_tokens: int) -> DecoderSpec:
        """The same for sequences up to that length: a window that none outgrows is none."""
        window = self.sliding_window
        return self if window is None or window < num_tokens else replace(self, sliding_window=None)

    def num_layer_weights(self) -> int:
        """Of the matrices of all layers, as if none had experts: a token takes twice as many operations."""
        heads = 2 * self.num_heads + 2 * self.num_kv_heads
        return self.num_layers * self.hidden_size * (heads * self.head_dim + 3 * self.intermediate_size)

    def kv_bytes_per_token(self, element_bytes: int, scale_bytes: int = 0) -> int:
        """scale_bytes: beside each head's key, and each head's value."""
        return 2 * self.num_layers * self.num_kv_heads * (self.head_dim * element_bytes + scale_bytes)


@dataclass(frozen=True, slots=True)
class TowerSpec:
    """A vision transformer over packed patches: CLIP-like, SigLIP-like or Qwen2-VL-like by its fields.

    `num_layers` counts the layers whose output is used: the feature layer -2 of CLIP's 24 means 23. `rope_theta` set
    means 2-D rotary positions, `num_positions` a table of learned ones; with both, `interpolation` stretches the
    table, a square, over the picture's own grid. `temporal_patch` 2 means that a still picture is repeated for both
    time slots. `gated`: the MLP is activation(gate) * up. `window` set means that layers attend inside squares of so
    many merged patches a side, those of `full_layers` over the whole frame.
    `feature_layers`: what comes out of the first so many layers stands side by side, in this order (0: what goes into
    the first); without any, the last layer's output alone.

    `bias` and `qkv_bias`: whether linear layers have one. `qk_norm`: an RMSNorm over queries and keys, all heads
    together; `head_norms`: one over each query and key head before it is rotated (GLM-OCR). `layer_scale`: a learned
    factor for each value of what a branch adds. `patch_norm`: a norm before positions are added. `post_norm`: one
    behind the last layer. `rope_between`: columns turn by frequencies that lie between the rows' (Pixtral), not by the
    same. `by_place`: a tile's patches have the learned positions of where they lie as a part of the side (Idefics3).
    """

    num_layers: int
    width: int
    num_heads: int
    mlp_width: int
    activation: Activation
    norm_eps: float
    patch_px: int
    temporal_patch: int = 1
    class_token: bool = False
    pre_norm: bool = False
    patch_bias: bool = False
    bias: bool = True
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: bool = False
    patch_norm: bool = False
    rope_between: bool = False
    num_positions: int = 0
    rope_theta: float | None = None
    norm: NormKind = "layer"
    gated: bool = False
    window: int = 0
    full_layers: tuple[int, ...] = ()
    feature_layers: tuple[int, ...] = ()
    post_norm: bool = False
    by_place: bool = False
    interpolation: Interpolation | None = None
    head_norms: bool = False

    @property
    def out_width(self) -> int:
        return self.width * max(1, len(self.feature_layers))

    @property
    def patch_values(self) -> int:
        return 3 * self.temporal_patch * self.patch_px**2


@dataclass(frozen=True, slots=True)
class ProjectorSpec:
    """From tower width to decoder width: linear, GELU (erf), linear, over `merge` x `merge` patches joined.

    `norm`: on each patch before joining (Qwen2-VL's merger; VipLLaVA's patches of several layers). `norm_joined`: it
    is on the joined patches. `deepstack`: so many layers of the tower beside the last have a merger of their own, with
    such a norm, whose rows are added to the hidden states behind the decoder's first layers (arXiv:2406.04334).
    `separators`: learned line and view separators before projection (Phi-3-vision). `newline`: a learned row after it
    that ends each line (LLaVA-NeXT). `mid_width` 0: one linear layer alone. `gated`: GLM's merger instead, which ends
    in a gated MLP of `mid_width`. `swiglu`: instead of GELU the second half of `mid_width` is a gate for the first
    (Aya Vision).

    `merge_linear`: joined patches become as wide as one by a linear layer of their own, whose columns stand value by
    value and not patch by patch (Mistral 3). `vocabulary`: a softmax over so many visual tokens, by which rows of a
    table are mixed, and `marks` more rows of it that stand between tiles (Ovis2).
    """

    merge: int
    mid_width: int
    out_width: int
    norm: NormKind | None = None
    separators: bool = False
    norm_eps: float = 1e-6
    newline: bool = False
    norm_joined: bool = False
    deepstack: int = 0
    merge_linear: bool = False
    bias: bool = True
    vocabulary: int = 0
    marks: int = 0
    gated: bool = False
    swiglu: bool = False


EncoderKind = Literal[
    "none", "fixed", "pooled", "anyres", "hd_crops", "merged_grid", "tiles", "marked_tiles", "bridged"
]

# Who runs a model: Fovea's own modules; transformers' decoder over Fovea's pages; transformers with its own caches.
ModelPath = Literal["fused", "generic", "compatible"]

# What stands in the place of a tower and a projector where there are none: every size is 0.
NO_TOWER = TowerSpec(0, 0, 0, 0, activation="gelu", norm_eps=0.0, patch_px=0)
NO_PROJECTOR = ProjectorSpec(merge=0, mid_width=0, out_width=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """All the engine needs to build and run a model.

    `encoder` says how canvases become rows of embeddings; "none" is a model of text alone, which has no tower,
    projector, mean and deviation.
    """

    decoder: DecoderSpec
    tower: TowerSpec = NO_TOWER
    projector: ProjectorSpec = NO_PROJECTOR
    encoder: EncoderKind = "none"
    image_mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    image_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    dtype: str
    tile_px: int = 0  # side of the square the tower sees; 0: any multiple of the patch
    video_pool: Literal["none", "average", "bilinear"] = "none"  # to half a tile's side; bilinear: of projected rows
    max_tiles: int = 0  # a field of more tiles has its rows interpolated to about so many tiles' worth; 0: never

    @property
    def takes_pictures(self) -> bool:
        return self.encoder != "none"

    @property
    def row_width(self) -> int:
        """Of a picture's rows: an embedding, and beside it what deepstack adds, level by level."""
        return self.decoder.hidden_size * (1 + self.projector.deepstack)


@dataclass(frozen=True, slots=True)
class WeightSlot:
    """Where a checkpoint tensor goes: rows [row, row + rows) of a parameter, or all of it when rows is None.

    `stacked`: the tensor is so many matrices, which lie below one another in the parameter; each may be transposed.
    `pairs` (head width, rotated width): rows of query or key heads whose rotated dimensions stand pair by pair, the two
    that turn together side by side; here the first of all pairs come before the second, which attention can't tell.
    """

    parameter: str
    row: int = 0
    rows: int | None = None
    stacked: int = 0
    pairs: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class WeightMap:
    """Exact checkpoint names to slots; `ignored` prefixes are unused, `renames` map other layouts' prefixes."""

    slots: dict[str, WeightSlot]
    ignored: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
