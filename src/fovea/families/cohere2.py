"""Cohere 2 (Command R7B, Command A): text alone.

Attention and MLP stand side by side behind one norm. Layers that see a window rotate pairs of dimensions, those that
see everything have no positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from fovea.families.config_reader import Section
from fovea.families.gemma import sliding_layers
from fovea.families.parts import decoder_weights
from fovea.families.spec import DecoderSpec, WeightSlot
from fovea.families.text import TextModel


class Cohere2(TextModel):
    architectures = ("Cohere2ForCausalLM",)
    defaults: ClassVar[Mapping[str, Any]] = {
        "eos_token_id": 255001,
        "hidden_size": 8192,
        "intermediate_size": 22528,
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.0625,
        "max_position_embeddings": 8192,
        "num_attention_heads": 64,
        "num_hidden_layers": 40,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
        "vocab_size": 256000,
    }
    reads_bias = True

    @classmethod
    def read_decoder(cls, config: Section, *, tied_head: bool) -> DecoderSpec:
        config.expect("use_qk_norm", False)
        config.expect("use_parallel_block", True)
        config.expect("use_gated_activation", True)
        config.expect("rotary_pct", 1.0)
        plain = super().read_decoder(config, tied_head=tied_head)
        sliding = sliding_layers(config, plain.num_layers, config.count("sliding_window_pattern", 4))
        return replace(
            plain,
            norm="layer",
            norm_eps=config.positive("layer_norm_eps"),
            parallel=True,
            logit_scale=config.positive("logit_scale"),
            sliding_window=config.count("sliding_window") if sliding else None,
            sliding_layers=sliding,
            full_rope=False,
        )

    @classmethod
    def window(cls, config: Section, num_layers: int) -> int | None:
        return None

    @classmethod
    def decoder_slots(cls, prefix: str, head: str, decoder: DecoderSpec) -> dict[str, WeightSlot]:
        slots = decoder_weights(prefix, head, decoder, fused=False, pairs=True)
        return {name: slot for name, slot in slots.items() if not slot.parameter.endswith(".mlp_norm.weight")}
