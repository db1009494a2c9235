"""Models of text alone, which also stand inside others (backbones.py). Their config is data: a family says what its
class defaults to and how it differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from fovea.core.errors import UnsupportedModelError
from fovea.core.types import ImagePlan, PixelBudget
from fovea.families.base import Family, ModelFiles
from fovea.families.config_reader import Section
from fovea.families.parts import decoder_weights, llama_decoder, plain_rope
from fovea.families.rope import read_rope, rotary_width
from fovea.families.spec import DecoderSpec, ModelSpec, RopeSpec, WeightMap, WeightSlot

Windows = tuple[int | None, tuple[int, ...]]


class TextModel(Family):
    """`defaults` are what transformers' config class takes for a key that config.json lacks (null is no lack).

    qkv_bias: always there; `attention_bias` of the config is read where `reads_bias`, and then means `o_proj` too.
    """

    placeholder = ""
    defaults: ClassVar[Mapping[str, Any]] = {}
    qkv_bias: ClassVar[bool] = False
    reads_bias: ClassVar[bool] = False
    qk_norm: ClassVar[bool] = False
    partial_rotary: ClassVar[bool] = False
    activation_key: ClassVar[str] = "hidden_act"
    activation: ClassVar[str] = "silu"  # the value of that key that is implemented
    fused: ClassVar[bool] = False  # the checkpoint joins q, k, v in one matrix, and gate and up

    def __init__(self, files: ModelFiles) -> None:
        super().__init__(replace(files, config={**self.defaults, **files.config}))

    def read_spec(self) -> ModelSpec:
        tied = self.config.get(bool, "tie_word_embeddings", False)
        return ModelSpec(decoder=self.read_decoder(self.config, tied_head=tied), dtype=self.dtype("bfloat16"))

    @classmethod
    def read_decoder(cls, config: Section, *, tied_head: bool) -> DecoderSpec:
        """From a config that has the class's defaults where it says nothing: a model's own, or part of another's.

        Raises UnsupportedModelError for settings of the class that are not implemented.
        """
        config.expect("mlp_bias", False)
        if not cls.reads_bias:
            config.expect("attention_bias", cls.qkv_bias)
        bias = cls.reads_bias and config.get(bool, "attention_bias", False)
        plain = llama_decoder(
            config,
            plain_rope(10000.0),
            qkv_bias=bias or cls.qkv_bias,
            tied_head=tied_head,
            activation_key=cls.activation_key,
            activation=cls.activation,
        )
        window, sliding = cls.windows(config, plain.num_layers)
        width = rotary_width(config, plain.head_dim, partial=cls.partial_rotary)
        return replace(
            plain,
            rope=cls.read_rope(config, width, plain.max_positions),
            rotary_dim=None if width == plain.head_dim else width,
            qk_norm=cls.qk_norm,
            out_bias=bias,
            sliding_window=window,
            sliding_layers=sliding,
        )

    @classmethod
    def decoder_slots(cls, prefix: str, head: str, decoder: DecoderSpec) -> dict[str, WeightSlot]:
        """Published names of the decoder's tensors below `prefix` ("model.") and of the head."""
        return decoder_weights(prefix, head, decoder, fused=cls.fused)

    @classmethod
    def read_rope(cls, config: Section, width: int, max_positions: int) -> RopeSpec:
        """For that many rotated dimensions of a head."""
        return read_rope(config, width, max_positions)

    @classmethod
    def windows(cls, config: Section, num_layers: int) -> Windows:
        """How many tokens attention sees at most (None: all), and in which layers."""
        return windows_of(config, range(num_layers))

    def plan_image(self, width_px: int, height_px: int, options: Mapping[str, Any]) -> ImagePlan:
        raise self.no_pictures()

    def largest_picture(self, options: Mapping[str, Any]) -> int:
        return 0

    def token_grid(self, plan: ImagePlan) -> tuple[int, int]:
        raise self.no_pictures()

    def most_pixels(self, options: Mapping[str, Any]) -> int:
        return 0

    def budgeted(self, options: Mapping[str, Any], budget: PixelBudget | None) -> dict[str, Any]:
        raise self.no_pictures()

    def weight_map(self) -> WeightMap:
        """Old checkpoints hold the rotary frequencies, which follow from the config."""
        decoder = self.spec.decoder
        slots = self.decoder_slots("model.", "lm_head", decoder)
        ignored = tuple(f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(decoder.num_layers))
        return WeightMap(slots, (*ignored, "lm_head.") if decoder.tied_head else ignored)


def windows_of(config: Section, layers: Iterable[int]) -> Windows:
    window = config.count("sliding_window") if "sliding_window" in config else None
    return window, () if window is None else tuple(layers)


def windows_of_some_layers(config: Section, num_layers: int) -> Windows:
    """Qwen's spelling: a switch, and the layers that slide listed or counted from `max_window_layers`."""
    kinds = config.get(list, "layer_types", [])
    unknown = [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]
    if unknown or (kinds and len(kinds) != num_layers):
        raise UnsupportedModelError(
            f"config.json: 'layer_types' must hold {num_layers} times full_attention or sliding_attention."
        )
    first = config.get(int, "max_window_layers")
    slides = [i for i in range(num_layers) if (kinds[i] == "sliding_attention" if kinds else i >= first)]
    is_used = bool(slides) and bool(config.get(bool, "use_sliding_window", False))
    return windows_of(config, slides) if is_used else (None, ())
