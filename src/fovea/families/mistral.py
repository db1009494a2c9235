"""Mistral: text alone, grouped queries, in its first version a sliding window (arXiv:2310.06825)."""

from __future__ import annotations

from fovea.families.text import TextModel


class Mistral(TextModel):
    architectures = ("MistralForCausalLM",)
    defaults = {
        "eos_token_id": 2,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    }
