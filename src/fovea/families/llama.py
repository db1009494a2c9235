"""Llama and all that took its shape, such as SmolLM2: text alone (arXiv:2302.13971, arXiv:2407.21783)."""

from __future__ import annotations

from fovea.families.config_reader import Section
from fovea.families.text import TextModel, Windows


class Llama(TextModel):
    architectures = ("LlamaForCausalLM",)
    defaults = {"eos_token_id": 2}
    reads_bias = True

    @classmethod
    def windows(cls, config: Section, num_layers: int) -> Windows:
        return None, ()  # transformers' Llama has none, whatever the config says
