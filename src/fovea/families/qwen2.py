"""Qwen2 and Qwen2.5: text alone, queries, keys and values with biases (arXiv:2407.10671, arXiv:2412.15115)."""

from __future__ import annotations

from fovea.families.config_reader import Section
from fovea.families.text import TextModel, Windows, windows_of_some_layers

QWEN_DEFAULTS = {
    "intermediate_size": 22016,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "vocab_size": 151936,
}


class Qwen2(TextModel):
    architectures = ("Qwen2ForCausalLM",)
    defaults = QWEN_DEFAULTS
    qkv_bias = True

    @classmethod
    def windows(cls, config: Section, num_layers: int) -> Windows:
        return windows_of_some_layers(config, num_layers)
