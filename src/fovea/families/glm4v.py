"""GLM-4.1V, 4.5V, 4.6V and GLM-OCR: pictures of any size, 3-row positions, one tower before three decoders.

Report: arXiv:2507.01006; names and defaults are those of transformers' Glm4vConfig, Glm4vMoeConfig, GlmOcrConfig.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from fovea.core.errors import MediaLimitError, UnsupportedModelError
from fovea.core.types import ImagePlan
from fovea.families.config_reader import Section
from fovea.families.parts import decoder_weights, joined, llama_decoder, plain_rope, same_names
from fovea.families.qwen2_vl import MAX_ASPECT, Qwen2VL, smart_resize, tower_theta
from fovea.families.rope import rotary_width
from fovea.families.spec import DecoderSpec, MoeSpec, ProjectorSpec, RopeSpec, TowerSpec, WeightMap, WeightSlot

TIME_SLOTS = 2  # the published processor counts a picture's pixels once for each
SECTIONS = (8.0, 12.0, 12.0)


@dataclass(frozen=True)
class GlmText:
    """A decoder of the family by its model_type: its class's defaults, and how it differs."""

    defaults: Mapping[str, Any]
    biased: bool = True
    pairs: bool = True  # rotated dimensions stand pair by pair, branches have norms, gate and up are one matrix
    own_head_dim: bool = True  # "head_dim" is read
    experts: bool = False


_COMMON = {"rms_norm_eps": 1e-5}
TEXTS: Mapping[str, GlmText] = {
    "glm4v_text": GlmText(
        {
            **_COMMON,
            "vocab_size": 151552,
            "hidden_size": 4096,
            "intermediate_size": 13696,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
        },
        own_head_dim=False,
    ),
    "glm_ocr_text": GlmText(
        {
            **_COMMON,
            "vocab_size": 59392,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
        },
        biased=False,
    ),
    "glm4v_moe_text": GlmText(
        {
            **_COMMON,
            "vocab_size": 151424,
            "hidden_size": 4096,
            "intermediate_size": 10944,
            "num_hidden_layers": 46,
            "num_attention_heads": 96,
            "num_key_value_heads": 8,
            "max_position_embeddings": 65536,
            "partial_rotary_factor": 0.5,
        },
        pairs=False,
        experts=True,
    ),
}


@dataclass(frozen=True)
class GlmVision:
    """A tower of the family: its class's defaults, and how it differs."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    is_ocr: bool = False


VISIONS: Mapping[str, GlmVision] = {
    "glm4v_vision": GlmVision(
        {"hidden_size": 1536, "num_heads": 12, "attention_bias": False, "out_hidden_size": 4096}
        | {"intermediate_size": 13696}
    ),
    "glm_ocr_vision": GlmVision(
        {"hidden_size": 1024, "num_heads": 16, "attention_bias": True, "out_hidden_size": 1536}
        | {"intermediate_size": 4096},
        is_ocr=True,
    ),
}
# Published configs name the whole model's type inside "vision_config".
_VISION_NAMES = {"glm4v_moe_vision": "glm4v_vision", "glm4v": "glm4v_vision", "glm4v_moe": "glm4v_vision"}
_VISION_NAMES |= {"glm46v": "glm4v_vision", "glm_ocr": "glm_ocr_vision"}
_TEXT_NAMES = {"glm4v": "glm4v_text", "glm4v_moe": "glm4v_moe_text", "glm_ocr": "glm_ocr_text"}


class Glm4V(Qwen2VL):
    architectures: ClassVar[tuple[str, ...]] = ("Glm4vForConditionalGeneration",)
    text_defaults: ClassVar[Mapping[str, Any]] = {}  # they depend on the model_type
    placeholder = "<|image|>"
    video_placeholder: ClassVar[str | None] = None  # its videos have timestamps of their own, which nobody writes here
    usual_text, usual_vision = "glm4v_text", "glm4v_vision"

    @property
    def text(self) -> GlmText:
        kind = self._kind("text_config", self.usual_text, TEXTS, _TEXT_NAMES)
        return TEXTS[kind]

    @property
    def vision(self) -> GlmVision:
        return VISIONS[self._kind("vision_config", self.usual_vision, VISIONS, _VISION_NAMES)]

    def _kind(self, key: str, usual: str, known: Mapping[str, Any], names: Mapping[str, str]) -> str:
        said = self.config.section(key).get(str, "model_type", usual)
        kind = names.get(said, said)
        if kind not in known:
            supported = ", ".join(map(repr, known))
            raise UnsupportedModelError(f"config.json.{key}: 'model_type' is {said!r}; supported: {supported}.")
        return kind

    def read_decoder(self, text: Section) -> DecoderSpec:
        text = text.filled(self.text.defaults)
        if not self.text.own_head_dim and "head_dim" in text:
            text.expect("head_dim", text.count("hidden_size") // text.count("num_attention_heads"))
        text.expect("attention_bias", self.text.biased)
        text.expect("use_qk_norm", False)
        plain = llama_decoder(text, plain_rope(1.0), qkv_bias=self.text.biased, tied_head=self._tied(text))
        width = rotary_width(text, plain.head_dim, partial=True)
        return replace(
            plain,
            rope=self._stretched_rope(text, width),
            rotary_dim=None if width == plain.head_dim else width,
            branch_norms=self.text.pairs,
            moe=_experts(text, plain.num_layers) if self.text.experts else None,
        )

    def _stretched_rope(self, text: Section, width: int) -> RopeSpec:
        scaling = text.section("rope_scaling" if "rope_scaling" in text else "rope_parameters")
        scaling.expect("type", "mrope", "default")
        scaling.expect("rope_type", "mrope", "default")
        said = scaling.floats("mrope_section") if "mrope_section" in scaling else SECTIONS
        sections = tuple(int(n) for n in said)
        if len(sections) != 3 or min(sections) < 1 or sum(sections) != width // 2:
            raise UnsupportedModelError(
                f"config.json: 'mrope_section' is {list(sections)}; it must add up to {width // 2}."
            )
        return plain_rope(text.positive("rope_theta", scaling.positive("rope_theta", 10000.0)), sections)

    def read_tower(self, vision: Section, out_width: int) -> TowerSpec:
        vision, is_ocr = vision.filled(self.vision.defaults), self.vision.is_ocr
        vision.expect("hidden_act", "silu")
        vision.expect("out_hidden_size", out_width)
        bias = vision.get(bool, "attention_bias")
        patch_px = vision.count("patch_size", 14)
        return TowerSpec(
            num_layers=vision.count("depth", 24),
            width=vision.count("hidden_size"),
            num_heads=vision.count("num_heads"),
            mlp_width=vision.count("intermediate_size") if is_ocr else out_width,
            activation="silu",
            norm_eps=vision.positive("rms_norm_eps", 1e-5),
            patch_px=patch_px,
            temporal_patch=vision.count("temporal_patch_size", TIME_SLOTS),
            patch_bias=True,
            num_positions=0 if is_ocr else (vision.count("image_size", 336) // patch_px) ** 2,
            rope_theta=tower_theta(vision),
            norm="rms",
            gated=True,
            interpolation=None if is_ocr else "bicubic",
            bias=bias and is_ocr,
            qkv_bias=bias,
            patch_norm=not is_ocr,
            head_norms=is_ocr,
            post_norm=True,
        )

    def read_projector(self, vision: Section, tower: TowerSpec, merge: int, out_width: int) -> ProjectorSpec:
        inner = 3 * out_width if self.vision.is_ocr else vision.filled(self.vision.defaults).count("intermediate_size")
        return ProjectorSpec(merge=merge, mid_width=inner, out_width=out_width, norm_eps=1e-5, gated=True)

    def _read_preprocessor(self, tower: TowerSpec, merge: int) -> None:
        """Its range counts the pixels of both time slots; ours those of the picture."""
        super()._read_preprocessor(tower, merge)
        for key in ("min_pixels", "max_pixels"):
            self.preprocessor.expect(key)
        size = self.preprocessor.section("size")
        low, high = size.count("shortest_edge", 112 * 112), size.count("longest_edge", 28 * 28 * 15000)
        for key, value in (("shortest_edge", low), ("longest_edge", high)):
            if value % TIME_SLOTS:
                raise UnsupportedModelError(f"preprocessor_config.json.size: {key!r} is {value}; it must be even.")
        self.min_pixels, self.max_pixels = low // TIME_SLOTS, high // TIME_SLOTS

    def plan_image(self, width_px: int, height_px: int, options: Mapping[str, Any]) -> ImagePlan:
        """The published `smart_resize`: what is smaller than a cell is first made as large."""
        cell = self._cell_px
        width, height = width_px, height_px
        if min(width, height) < cell:
            scale = max(cell / height, cell / width)
            width, height = int(width * scale), int(height * scale)
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise MediaLimitError(
                f"A picture of {width_px}x{height_px} pixels is more elongated than {MAX_ASPECT}:1, "
                f"the most that {self.name} takes. Crop it.",
                code="above_max_value",
            )
        low, high = options.get("min_pixels", self.min_pixels), options.get("max_pixels", self.max_pixels)
        return self._plan(*smart_resize(width, height, cell, low, high))

    def image_text(self, number: int) -> str:
        return "<|begin_of_image|><|image|><|end_of_image|>"

    def weight_map(self) -> WeightMap:
        spec, tower = self.spec, self.spec.tower
        pairs = self.text.pairs
        slots = decoder_weights(
            "model.language_model.", "lm_head", spec.decoder, fused=False, fused_mlp=pairs, pairs=pairs
        )
        slots |= same_names("model.visual.patch_embed.proj", "encoder.tower.patch")
        if tower.num_positions:
            slots["model.visual.embeddings.position_embedding.weight"] = WeightSlot("encoder.tower.positions")
            slots |= same_names("model.visual.post_conv_layernorm", "encoder.tower.patch_norm", ("weight",))
        slots |= same_names("model.visual.post_layernorm", "encoder.tower.post_norm", ("weight",))
        for i in range(tower.num_layers):
            slots |= _block_weights(f"model.visual.blocks.{i}.", f"encoder.tower.blocks.{i}.", tower)
        slots |= same_names("model.visual.downsample", "encoder.projector.joining")
        slots |= same_names("model.visual.merger.proj", "encoder.projector.first", ("weight",))
        slots |= same_names("model.visual.merger.post_projection_norm", "encoder.projector.norm")
        rows = {"gate_proj": spec.projector.mid_width, "up_proj": spec.projector.mid_width}
        slots |= joined("model.visual.merger.", "encoder.projector.gate_up", rows, ("weight",))
        slots |= same_names("model.visual.merger.down_proj", "encoder.projector.down", ("weight",))
        beyond = f"model.language_model.layers.{spec.decoder.num_layers}."  # the layer that guesses a token ahead
        return WeightMap(slots, (beyond, "lm_head.") if spec.decoder.tied_head else (beyond,))


class Glm46V(Glm4V):
    """With either decoder, as its config says."""

    architectures = ("Glm46VForConditionalGeneration",)


class Glm4VMoe(Glm4V):
    architectures = ("Glm4vMoeForConditionalGeneration",)
    usual_text = "glm4v_moe_text"


class GlmOcr(Glm4V):
    architectures = ("GlmOcrForConditionalGeneration",)
    usual_text, usual_vision = "glm_ocr_text", "glm_ocr_vision"


def _experts(text: Section, num_layers: int) -> MoeSpec:
    """DeepSeek-V3's experts with one MLP beside them, in all layers but the first."""
    experts, top_k = text.count("n_routed_experts", 128), text.count("num_experts_per_tok", 8)
    groups, top_groups = text.count("n_group", 1), text.count("topk_group", 1)
    if experts % groups or top_groups > groups or top_k > experts // groups * top_groups:
        raise UnsupportedModelError(
            f"config.json: {top_k} of {experts} experts in {top_groups} of {groups} groups can't be chosen."
        )
    first, width = text.get(int, "first_k_dense_replace", 1), text.count("moe_intermediate_size", 1408)
    return MoeSpec(
        num_experts=experts,
        top_k=top_k,
        width=width,
        layers=tuple(range(max(0, first), num_layers)),
        normed=text.get(bool, "norm_topk_prob", True),
        scoring="sigmoid",
        num_groups=groups,
        top_groups=top_groups,
        scale=text.positive("routed_scaling_factor", 1.0),
        shared_width=width * text.count("n_shared_experts", 1),
    )


def _block_weights(theirs: str, ours: str, tower: TowerSpec) -> dict[str, WeightSlot]:
    kinds = ("weight", "bias") if tower.bias else ("weight",)
    slots = same_names(f"{theirs}attn.qkv", f"{ours}qkv", ("weight", "bias") if tower.qkv_bias else ("weight",))
    slots |= same_names(f"{theirs}attn.proj", f"{ours}out", kinds)
    for norm in ("norm1", "norm2"):
        slots |= same_names(theirs + norm, ours + norm, ("weight",))
    if tower.head_norms:
        for norm in ("q_norm", "k_norm"):
            slots |= same_names(f"{theirs}attn.{norm}", ours + norm, ("weight",))
    rows = {"gate_proj": tower.mlp_width, "up_proj": tower.mlp_width}
    slots |= joined(f"{theirs}mlp.", f"{ours}up", rows, kinds)
    return slots | same_names(f"{theirs}mlp.down_proj", f"{ours}down", kinds)
