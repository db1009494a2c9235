"""Phi-3 and Phi-4-mini: text alone, joined matrices, two sets of frequencies for long contexts (arXiv:2404.14219)."""

from __future__ import annotations

from fovea.families.text import TextModel


class Phi3(TextModel):
    architectures = ("Phi3ForCausalLM",)
    defaults = {
        "eos_token_id": 32000,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "vocab_size": 32064,
    }
    partial_rotary = True
    fused = True
