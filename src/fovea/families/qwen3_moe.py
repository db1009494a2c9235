"""Qwen3 with a mixture of experts: text alone (arXiv:2505.09388); each expert is published by itself."""

from __future__ import annotations

from dataclasses import replace

from fovea.families.config_reader import Section
from fovea.families.parts import qwen3_experts
from fovea.families.spec import DecoderSpec
from fovea.families.text import TextModel, Windows, windows_of


class Qwen3Moe(TextModel):
    architectures = ("Qwen3MoeForCausalLM",)
    defaults = {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    }
    reads_bias = True
    qk_norm = True

    @classmethod
    def read_decoder(cls, config: Section, *, tied_head: bool) -> DecoderSpec:
        plain = super().read_decoder(config, tied_head=tied_head)
        experts = qwen3_experts(config, plain, num_experts=128, top_k=8, width=768)
        if experts is not None:
            experts = replace(experts, normed=config.get(bool, "norm_topk_prob", False))
        return replace(plain, moe=experts)

    @classmethod
    def windows(cls, config: Section, num_layers: int) -> Windows:
        return windows_of(config, range(num_layers)) if config.get(bool, "use_sliding_window", False) else (None, ())
