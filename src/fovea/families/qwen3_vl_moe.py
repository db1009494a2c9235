"""Qwen3-VL with a mixture of experts in its decoder; a layer's experts are published as one tensor."""

from __future__ import annotations

from dataclasses import replace

from fovea.families.config_reader import Section
from fovea.families.parts import qwen3_experts
from fovea.families.qwen3_vl import Qwen3VL
from fovea.families.spec import DecoderSpec


class Qwen3VLMoe(Qwen3VL):
    architectures = ("Qwen3VLMoeForConditionalGeneration",)
    text_defaults = {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 128000,
    }
    stacked_experts = True

    def read_decoder(self, text: Section) -> DecoderSpec:
        text.expect("norm_topk_prob", True)
        plain = super().read_decoder(text)
        return replace(plain, moe=qwen3_experts(text, plain, num_experts=60, top_k=4, width=1408))
