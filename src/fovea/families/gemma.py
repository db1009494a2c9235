"""Gemma, Gemma 2 and Gemma 3: text alone (arXiv:2403.08295, arXiv:2408.00118, arXiv:2503.19786).

Norms multiply by 1 + weight and embeddings are scaled in all of them. From Gemma 2 on what attention and MLP add is
normed too, and some layers see a window only; Gemma 3 has other rotary frequencies there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from fovea.core.errors import UnsupportedModelError
from fovea.families.config_reader import Section
from fovea.families.parts import decoder_weights
from fovea.families.rope import read_rope
from fovea.families.spec import DecoderSpec, RopeSpec, WeightSlot
from fovea.families.text import TextModel, Windows

BRANCH_NORMS = {
    "post_attention_layernorm": "attention_branch_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_branch_norm",
}


class Gemma(TextModel):
    architectures = ("GemmaForCausalLM",)
    defaults: ClassVar[Mapping[str, Any]] = {
        "eos_token_id": 1,
        "head_dim": 256,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "max_position_embeddings": 8192,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 16,
        "tie_word_embeddings": True,
        "vocab_size": 256000,
    }
    activation = "gelu_pytorch_tanh"

    @classmethod
    def read_decoder(cls, config: Section, *, tied_head: bool) -> DecoderSpec:
        config.expect("use_bidirectional_attention", False)
        plain = super().read_decoder(config, tied_head=tied_head)
        return replace(plain, activation="gelu_tanh", norm_offset=True, embed_scale=plain.hidden_size**0.5)

    @classmethod
    def windows(cls, config: Section, num_layers: int) -> Windows:
        return None, ()


class Gemma2(Gemma):
    architectures = ("Gemma2ForCausalLM",)
    defaults: ClassVar[Mapping[str, Any]] = {
        "attn_logit_softcapping": 50.0,
        "eos_token_id": 1,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "max_position_embeddings": 8192,
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
        "vocab_size": 256000,
    }
    activation_key = "hidden_activation"
    usual_pattern: ClassVar[int] = 2  # every so many layers one sees everything

    @classmethod
    def read_decoder(cls, config: Section, *, tied_head: bool) -> DecoderSpec:
        plain = super().read_decoder(config, tied_head=tied_head)
        scalar = config.positive("query_pre_attn_scalar")
        sliding = sliding_layers(config, plain.num_layers, config.count("sliding_window_pattern", cls.usual_pattern))
        return replace(
            plain,
            branch_norms=True,
            attention_scale=None if scalar == plain.head_dim else scalar**-0.5,
            attention_softcap=_cap(config, "attn_logit_softcapping"),
            logit_softcap=_cap(config, "final_logit_softcapping"),
            sliding_window=config.count("sliding_window") if sliding else None,
            sliding_layers=sliding,
        )

    @classmethod
    def decoder_slots(cls, prefix: str, head: str, decoder: DecoderSpec) -> dict[str, WeightSlot]:
        slots = decoder_weights(prefix, head, replace(decoder, branch_norms=False), fused=False)
        for i in range(decoder.num_layers):
            for theirs, ours in BRANCH_NORMS.items():
                slots[f"{prefix}layers.{i}.{theirs}.weight"] = WeightSlot(f"decoder.layers.{i}.{ours}.weight")
        return slots


class Gemma3(Gemma2):
    """Gemma3ForCausalLM: the text alone. The cap of attention is read by no code of theirs."""

    architectures = ("Gemma3ForCausalLM",)
    defaults: ClassVar[Mapping[str, Any]] = {
        **Gemma2.defaults,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "max_position_embeddings": 131072,
        "vocab_size": 262208,
    }
    qk_norm = True
    usual_pattern = 6

    @classmethod
    def read_decoder(cls, config: Section, *, tied_head: bool) -> DecoderSpec:
        plain = super().read_decoder(config, tied_head=tied_head)
        return replace(plain, attention_softcap=None, local_rope=cls._rope_of(config, "sliding_attention", plain))

    @classmethod
    def read_rope(cls, config: Section, width: int, max_positions: int) -> RopeSpec:
        return read_rope(_rope_section(config, "full_attention"), width, max_positions)

    @classmethod
    def _rope_of(cls, config: Section, kind: str, plain: DecoderSpec) -> RopeSpec:
        return read_rope(_rope_section(config, kind), plain.head_dim, plain.max_positions)


def sliding_layers(config: Section, num_layers: int, pattern: int) -> tuple[int, ...]:
    """Listed in `layer_types`, or all but every so many-th."""
    usual = ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(num_layers)]
    kinds = config.get(list, "layer_types", usual)
    if len(kinds) != num_layers or any(kind not in ("full_attention", "sliding_attention") for kind in kinds):
        raise UnsupportedModelError(
            f"config.json: 'layer_types' must hold {num_layers} times full_attention or sliding_attention."
        )
    return tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")


def _rope_section(config: Section, kind: str) -> Section:
    """Gemma 3's rotary settings of one kind of layers: by kind, or in the old spelling, which scales the full ones."""
    given = config.get(dict, "rope_parameters", {})
    Section(given, "config.json.rope_parameters").only("full_attention", "sliding_attention")
    values = dict(given.get(kind) or {})
    if kind == "full_attention":
        values |= config.get(dict, "rope_scaling", {})
        values.setdefault("rope_theta", config.positive("rope_theta", 1_000_000.0))
    else:
        values.setdefault("rope_theta", config.positive("rope_local_base_freq", 10_000.0))
    return Section({"rope_parameters": values}, "config.json")


def _cap(config: Section, key: str) -> float | None:
    return config.positive(key) if key in config else None
