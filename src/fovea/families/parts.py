"""Pieces that several families share: specs and weight names of the modules they have in common, M-RoPE positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fovea.core.errors import EmbeddingsError, UnsupportedModelError
from fovea.core.types import ImagePlan, MediaSpan
from fovea.families.config_reader import Section, tensor_names
from fovea.families.spec import DecoderSpec, MoeSpec, RopeRegime, RopeSpec, TowerSpec, WeightSlot

if TYPE_CHECKING:
    from numpy.typing import NDArray


# Where transformers 5 puts what published checkpoints have elsewhere; towers that it saves itself are flat.
VLM_RENAMES = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    *(
        (f"{root}{part}", f"vision_tower.vision_model.{part}")
        for root in ("vision_tower.", "model.vision_tower.")
        for part in ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "head.")
    ),
    ("model.vision_tower.", "vision_tower."),
)


def plain_rope(theta: float, sections: tuple[int, ...] | None = None) -> RopeSpec:
    return RopeSpec(regimes=(RopeRegime(theta),), sections=sections)


def llama_decoder(
    text: Section,
    rope: RopeSpec,
    *,
    qkv_bias: bool,
    tied_head: bool,
    activation_key: str = "hidden_act",
    activation: str = "silu",
) -> DecoderSpec:
    """A Llama-shaped decoder from the usual keys; defaults are LlamaConfig's, which published configs rely on."""
    text.expect(activation_key, activation)
    hidden_size, num_heads = text.count("hidden_size", 4096), text.count("num_attention_heads", 32)
    num_kv_heads = text.count("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise UnsupportedModelError(f"config.json: {num_kv_heads} key-value heads do not divide {num_heads} heads.")
    return DecoderSpec(
        vocab_size=text.count("vocab_size", 32000),
        hidden_size=hidden_size,
        intermediate_size=text.count("intermediate_size", 11008),
        num_layers=text.count("num_hidden_layers", 32),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=text.count("head_dim", hidden_size // num_heads),
        norm_eps=text.positive("rms_norm_eps", 1e-6),
        rope=rope,
        qkv_bias=qkv_bias,
        tied_head=tied_head,
        max_positions=text.count("max_position_embeddings", 2048),
    )


def qwen3_experts(text: Section, decoder: DecoderSpec, *, num_experts: int, top_k: int, width: int) -> MoeSpec | None:
    """Qwen3's spelling, with its class's defaults: every so many layers but those listed. None: no layer has any."""
    experts = text.get(int, "num_experts", text.get(int, "num_local_experts", num_experts))
    step = text.count("decoder_sparse_step", 1)
    plain = text.floats("mlp_only_layers") if "mlp_only_layers" in text else ()
    layers = tuple(i for i in range(decoder.num_layers) if (i + 1) % step == 0 and i not in plain)
    if experts < 1 or not layers:
        return None
    top_k = text.count("num_experts_per_tok", top_k)
    if top_k > experts:
        raise UnsupportedModelError(f"config.json: 'num_experts_per_tok' is {top_k}; there are {experts} experts.")
    return MoeSpec(experts, top_k, text.count("moe_intermediate_size", width), layers)


def clip_tower(
    *,
    width: int,
    num_layers: int,
    num_heads: int,
    mlp_width: int,
    patch_px: int,
    image_px: int,
    eps: float,
    feature_layers: tuple[int, ...] = (),
) -> TowerSpec:
    """CLIP's vision transformer (arXiv:2103.00020) as transformers' CLIPVisionModel has it."""
    return TowerSpec(
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        mlp_width=mlp_width,
        activation="quick_gelu",
        norm_eps=eps,
        patch_px=patch_px,
        class_token=True,
        pre_norm=True,
        num_positions=(image_px // patch_px) ** 2 + 1,
        feature_layers=feature_layers,
    )


def siglip_tower(
    vision: Section,
    *,
    num_layers: int | None = None,
    feature_layers: tuple[int, ...] = (),
    post_norm: bool = False,
    by_place: bool = False,
) -> TowerSpec:
    """SigLIP's vision transformer (arXiv:2303.15343); defaults are those of transformers' SiglipVisionConfig.

    num_layers: fewer than there are, where an earlier layer's output is used. post_norm: over the last one's; what
    transformers calls `last_hidden_state` has it, `hidden_states` never.
    """
    vision.expect("num_channels", 3)
    vision.expect("hidden_act", "gelu_pytorch_tanh")
    width, num_heads = vision.count("hidden_size", 768), vision.count("num_attention_heads", 12)
    if width % num_heads:
        raise UnsupportedModelError(f"config.json: {num_heads} heads of the vision tower do not divide its {width}.")
    patch_px = vision.count("patch_size", 16)
    return TowerSpec(
        num_layers=vision.count("num_hidden_layers", 12) if num_layers is None else num_layers,
        width=width,
        num_heads=num_heads,
        mlp_width=vision.count("intermediate_size", 3072),
        activation="gelu_tanh",
        norm_eps=vision.positive("layer_norm_eps", 1e-6),
        patch_px=patch_px,
        patch_bias=True,
        num_positions=(vision.count("image_size", 224) // patch_px) ** 2,
        feature_layers=feature_layers,
        post_norm=post_norm,
        by_place=by_place,
    )


def decoder_weights(
    prefix: str,
    head: str,
    spec: DecoderSpec,
    *,
    fused: bool,
    fused_mlp: bool = False,
    stacked_experts: bool = False,
    pairs: bool = False,
) -> dict[str, WeightSlot]:
    """Names below `prefix` ("model."); `fused` when the checkpoint itself joins qkv and gate_up, `fused_mlp` gate_up.

    stacked_experts: one tensor holds what all experts of a layer have. pairs: see WeightSlot.
    """
    slots = {f"{prefix}embed_tokens.weight": WeightSlot("decoder.embed.weight")}
    slots[f"{prefix}norm.weight"] = WeightSlot("decoder.norm.weight")
    if not spec.tied_head:
        slots[f"{head}.weight"] = WeightSlot("decoder.head.weight")
    for i in range(spec.num_layers):
        theirs, ours = f"{prefix}layers.{i}.", f"decoder.layers.{i}."
        slots[f"{theirs}input_layernorm.weight"] = WeightSlot(f"{ours}attention_norm.weight")
        slots[f"{theirs}post_attention_layernorm.weight"] = WeightSlot(f"{ours}mlp_norm.weight")
        slots[f"{theirs}self_attn.o_proj.weight"] = WeightSlot(f"{ours}out.weight")
        if spec.moe is not None and i in spec.moe.layers:
            slots |= _expert_weights(f"{theirs}mlp.", f"{ours}experts.", spec, stacked=stacked_experts)
        else:
            slots |= _mlp_weights(f"{theirs}mlp.", ours, spec.intermediate_size, fused=fused or fused_mlp)
        if spec.branch_norms:
            slots[f"{theirs}post_self_attn_layernorm.weight"] = WeightSlot(f"{ours}attention_branch_norm.weight")
            slots[f"{theirs}post_mlp_layernorm.weight"] = WeightSlot(f"{ours}mlp_branch_norm.weight")
        if spec.out_bias:
            slots[f"{theirs}self_attn.o_proj.bias"] = WeightSlot(f"{ours}out.bias")
        if spec.qk_norm:
            slots[f"{theirs}self_attn.q_norm.weight"] = WeightSlot(f"{ours}q_norm.weight")
            slots[f"{theirs}self_attn.k_norm.weight"] = WeightSlot(f"{ours}k_norm.weight")
        if fused:
            slots[f"{theirs}self_attn.qkv_proj.weight"] = WeightSlot(f"{ours}qkv.weight")
            continue
        kinds = ("weight", "bias") if spec.qkv_bias else ("weight",)
        names = joined(theirs + "self_attn.", ours + "qkv", qkv_rows(spec), kinds)
        slots |= {name: _turned(name, slot, spec) for name, slot in names.items()} if pairs else names
    return slots


def _turned(name: str, slot: WeightSlot, spec: DecoderSpec) -> WeightSlot:
    rotated = any(f".{part}." in name for part in ("q_proj", "k_proj"))
    return replace(slot, pairs=(spec.head_dim, spec.rotary_dim or spec.head_dim)) if rotated else slot


def _mlp_weights(theirs: str, ours: str, width: int, *, fused: bool) -> dict[str, WeightSlot]:
    """A gated MLP; `fused` when the checkpoint itself joins gate and up."""
    slots = {f"{theirs}down_proj.weight": WeightSlot(f"{ours}down.weight")}
    if fused:
        return slots | {f"{theirs}gate_up_proj.weight": WeightSlot(f"{ours}gate_up.weight")}
    return slots | joined(theirs, ours + "gate_up", {"gate_proj": width, "up_proj": width}, ("weight",))


def _expert_weights(theirs: str, ours: str, spec: DecoderSpec, *, stacked: bool) -> dict[str, WeightSlot]:
    moe, hidden = spec.moe, spec.hidden_size
    assert moe is not None
    slots = {f"{theirs}gate.weight": WeightSlot(f"{ours}router")}
    if moe.scoring == "sigmoid":
        slots[f"{theirs}gate.e_score_correction_bias"] = WeightSlot(f"{ours}router_bias")
    if moe.shared_width:
        slots |= _mlp_weights(f"{theirs}shared_experts.", f"{ours}shared_", moe.shared_width, fused=False)
    if stacked:
        for name, our_name in (("gate_up_proj", "gate_up"), ("down_proj", "down")):
            slots[f"{theirs}experts.{name}"] = WeightSlot(ours + our_name, stacked=moe.num_experts)
        return slots
    for i in range(moe.num_experts):
        for part, name in enumerate(("gate_proj", "up_proj")):
            start = (2 * i + part) * moe.width
            slots[f"{theirs}experts.{i}.{name}.weight"] = WeightSlot(f"{ours}gate_up", start, moe.width)
        slots[f"{theirs}experts.{i}.down_proj.weight"] = WeightSlot(f"{ours}down", i * hidden, hidden)
    return slots


def qkv_rows(spec: DecoderSpec) -> dict[str, int]:
    kv_rows = spec.num_kv_heads * spec.head_dim
    return {"q_proj": spec.num_heads * spec.head_dim, "k_proj": kv_rows, "v_proj": kv_rows}


def joined(theirs: str, ours: str, rows: dict[str, int], kinds: tuple[str, ...]) -> dict[str, WeightSlot]:
    """Several checkpoint tensors stacked into one parameter, in the order of `rows`."""
    slots, start = {}, 0
    for name, count in rows.items():
        for kind in kinds:
            slots[f"{theirs}{name}.{kind}"] = WeightSlot(f"{ours}.{kind}", start, count)
        start += count
    return slots


def clip_weights(prefix: str, spec: TowerSpec) -> dict[str, WeightSlot]:
    """Published names of a CLIP vision model below `prefix`; "pre_layrnorm" is their spelling."""
    slots = {
        f"{prefix}embeddings.class_embedding": WeightSlot("encoder.tower.class_token"),
        f"{prefix}embeddings.patch_embedding.weight": WeightSlot("encoder.tower.patch.weight"),
        f"{prefix}embeddings.position_embedding.weight": WeightSlot("encoder.tower.positions"),
    }
    slots |= same_names(f"{prefix}pre_layrnorm", "encoder.tower.pre_norm")
    return slots | _clip_layers(prefix, spec)


def siglip_weights(prefix: str, spec: TowerSpec) -> dict[str, WeightSlot]:
    """Published names of a SigLIP vision model below `prefix`."""
    slots = same_names(f"{prefix}embeddings.patch_embedding", "encoder.tower.patch")
    slots[f"{prefix}embeddings.position_embedding.weight"] = WeightSlot("encoder.tower.positions")
    if spec.post_norm:
        slots |= same_names(f"{prefix}post_layernorm", "encoder.tower.post_norm")
    return slots | _clip_layers(prefix, spec)


def siglip_unused(prefix: str, spec: TowerSpec, total_layers: int) -> tuple[str, ...]:
    """SigLIP tensors that no row of ours sees: later layers, a norm behind them, the head that pools a picture."""
    layers = tuple(f"{prefix}encoder.layers.{i}." for i in range(spec.num_layers, total_layers))
    norm = () if spec.post_norm else (f"{prefix}post_layernorm.",)
    return (*layers, *norm, f"{prefix}head.", f"{prefix}embeddings.position_ids")


def _clip_layers(prefix: str, spec: TowerSpec) -> dict[str, WeightSlot]:
    slots: dict[str, WeightSlot] = {}
    for i in range(spec.num_layers):
        theirs, ours = f"{prefix}encoder.layers.{i}.", f"encoder.tower.blocks.{i}."
        rows = {"q_proj": spec.width, "k_proj": spec.width, "v_proj": spec.width}
        slots |= joined(theirs + "self_attn.", ours + "qkv", rows, ("weight", "bias"))
        pairs = {"self_attn.out_proj": "out", "layer_norm1": "norm1", "layer_norm2": "norm2"}
        for their_name, our_name in {**pairs, "mlp.fc1": "up", "mlp.fc2": "down"}.items():
            slots |= same_names(theirs + their_name, ours + our_name)
    return slots


def clip_unused(prefix: str, num_layers: int, total_layers: int) -> tuple[str, ...]:
    """CLIP tensors beyond the feature layer, and the text-free rest of its checkpoint."""
    layers = tuple(f"{prefix}encoder.layers.{i}." for i in range(num_layers, total_layers))
    return (*layers, f"{prefix}post_layernorm.", f"{prefix}embeddings.position_ids")


def same_names(theirs: str, ours: str, kinds: tuple[str, ...] = ("weight", "bias")) -> dict[str, WeightSlot]:
    return {f"{theirs}.{kind}": WeightSlot(f"{ours}.{kind}") for kind in kinds}


def mrope_positions(
    num_tokens: int,
    spans: Sequence[MediaSpan],
    grids: Sequence[tuple[int, int, int]],
    intervals: Sequence[float] = (),
) -> tuple[NDArray[np.int32], int]:
    """Time, height and width positions (Qwen2-VL, arXiv:2409.12191 section 2.1); `grids` in merged patches.

    Text advances all three rows together; a picture's tokens spread over its grid; what follows starts one after the
    largest position so far. Videos too: transformers 5's own function forgets the time axis there. `intervals`: how far
    one step of a video's time is, rounded down where it ends (Qwen2.5-VL); 1 for each if none are given.
    """
    rows = np.empty((3, num_tokens), np.int32)
    cursor, position = 0, 0
    for span, (frames, height, width), interval in zip(spans, grids, intervals or [1.0] * len(spans), strict=True):
        text = span.start - cursor
        rows[:, cursor : span.start] = np.arange(position, position + text)
        position += text
        cells = np.indices((frames, height, width)).reshape(3, -1)
        if interval != 1.0:  # in float32, as the published code works it out
            cells[0] = (cells[0].astype(np.float32) * np.float32(interval)).astype(np.int64)
        rows[:, span.start : span.end] = cells + position
        position += max(int(cells[0, -1]) + 1, height, width)
        cursor = span.end
    rows[:, cursor:] = np.arange(position, position + num_tokens - cursor)
    position += num_tokens - cursor
    return rows, position - num_tokens


def longrope_scale(max_positions: int, original: int) -> float:
    """sqrt(1 + ln(max/original) / ln(original)), LongRoPE's factor on cos and sin as in Phi-3's published code."""
    ratio = max_positions / original
    return 1.0 if ratio <= 1.0 else math.sqrt(1 + math.log(ratio) / math.log(original))


def tied_unless_published(config: Section, folder: Path) -> bool:
    """Whether the head is the embedding: by default it is, but a head in the checkpoint is one of its own (the rule of
    transformers 5, on which published configs rely). Without a checkpoint only a config that says so ties."""
    names = tensor_names(folder)
    if names is None:
        return config.get(bool, "tie_word_embeddings", False)
    published = any(name.endswith("lm_head.weight") for name in names)
    return config.get(bool, "tie_word_embeddings", True) and not published


def given_grid(
    name: str, merge: int, num_rows: int, grid: tuple[int, int, int] | None, *, still: bool = False
) -> tuple[int, int, int]:
    """The patch grid that must come beside embeddings of a picture of any size. `still`: it has no frames."""
    if grid is None:
        raise EmbeddingsError(
            f"{name} needs image_grid_thw beside image_embeds: pass a dict "
            '{"image_embeds": ..., "image_grid_thw": ...}.'
        )
    if any(n < 1 for n in grid) or grid[1] % merge or grid[2] % merge:
        raise EmbeddingsError(f"image_grid_thw is {list(grid)}; height and width must be multiples of {merge}.")
    if still and grid[0] != 1:
        raise EmbeddingsError(f"image_grid_thw is {list(grid)}; {name} takes single pictures, whose time is 1.")
    if grid[0] * grid[1] * grid[2] != num_rows * merge**2:
        raise EmbeddingsError(
            f"image_grid_thw {list(grid)} means {math.prod(grid) // merge**2} embeddings, {num_rows} were given."
        )
    return grid


def resized_plan(width_px: int, height_px: int, patch_px: int, merge: int) -> ImagePlan:
    """The whole picture resized to this, and a row for each `merge` x `merge` patches."""
    rows, columns = height_px // patch_px, width_px // patch_px
    return ImagePlan(
        resize_width_px=width_px,
        resize_height_px=height_px,
        resample="bicubic",
        canvas_width_px=width_px,
        canvas_height_px=height_px,
        grid=(1, rows, columns),
        num_patches=rows * columns,
        num_tokens=rows * columns // merge**2,
    )


def largest_fitting(width_px: int, height_px: int, factor: int, max_pixels: int) -> tuple[int, int]:
    """Width and height of this shape, as nearly as multiples of `factor` of at most `max_pixels` in all can have it."""
    beta = math.sqrt(width_px * height_px / max_pixels)
    columns, rows = (max(1, math.floor(side / beta / factor)) for side in (width_px, height_px))
    most = max_pixels // factor**2
    if columns > rows:
        columns = min(columns, most // rows)
    else:
        rows = min(rows, most // columns)
    return columns * factor, rows * factor


def interpolated(rows: int, columns: int, side: int, max_tiles: int) -> tuple[int, int]:
    """The (rows, columns) that a field's rows of embeddings are interpolated to (LLaVA-OneVision's "anyres_max_9").

    As they are if there is no limit, or about as many as fit: side**2 in each of `max_tiles` tiles.
    """
    ratio = math.sqrt(rows * columns / (max_tiles * side**2)) if max_tiles else 0.0
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)
