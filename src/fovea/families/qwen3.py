"""Qwen3: text alone, a norm on each query and key head, heads of a width of their own (arXiv:2505.09388)."""

from __future__ import annotations

from fovea.families.config_reader import Section
from fovea.families.qwen2 import QWEN_DEFAULTS
from fovea.families.text import TextModel, Windows, windows_of_some_layers


class Qwen3(TextModel):
    architectures = ("Qwen3ForCausalLM",)
    defaults = {**QWEN_DEFAULTS, "head_dim": 128}
    reads_bias = True
    qk_norm = True

    @classmethod
    def windows(cls, config: Section, num_layers: int) -> Windows:
        return windows_of_some_layers(config, num_layers)
