"""GLM-4 and its successor GLM-4-0414: text alone, half of each head rotated pair by pair (arXiv:2406.12793)."""

from __future__ import annotations

from dataclasses import replace

from fovea.families.config_reader import Section
from fovea.families.parts import decoder_weights
from fovea.families.spec import DecoderSpec, WeightSlot
from fovea.families.text import TextModel


class Glm(TextModel):
    architectures = ("GlmForCausalLM",)
    defaults = {
        "vocab_size": 151552,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1.5625e-07,
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
        "eos_token_id": [151329, 151336, 151338],
    }
    partial_rotary = True

    @classmethod
    def read_decoder(cls, config: Section, *, tied_head: bool) -> DecoderSpec:
        """A bias is on queries, keys and values alone."""
        bias = config.get(bool, "attention_bias", True)
        return replace(super().read_decoder(config.without("attention_bias"), tied_head=tied_head), qkv_bias=bias)

    @classmethod
    def decoder_slots(cls, prefix: str, head: str, decoder: DecoderSpec) -> dict[str, WeightSlot]:
        return decoder_weights(prefix, head, decoder, fused=False, fused_mlp=True, pairs=True)

    @classmethod
    def window(cls, config: Section, num_layers: int) -> int | None:
        return None  # transformers' GLM has none, whatever the config says


class Glm4(Glm):
    """With norms over what attention and MLP add, too."""

    architectures = ("Glm4ForCausalLM",)

    @classmethod
    def read_decoder(cls, config: Section, *, tied_head: bool) -> DecoderSpec:
        return replace(super().read_decoder(config, tied_head=tied_head), branch_norms=True)
