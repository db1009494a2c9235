"""The language models that stand inside other models' configs ("text_config"), by their model_type.

A published config leaves out what equals its class's defaults, so each backbone has the defaults of its own class in
transformers (LlamaConfig, MistralConfig, Qwen2Config), and refuses the settings of that class that are not implemented.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fovea.core.errors import UnsupportedModelError
from fovea.families.config_reader import Section
from fovea.families.parts import llama_decoder, plain_rope
from fovea.families.spec import DecoderSpec

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {},  # llama_decoder's own
    "mistral": {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "qwen2": {
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
    },
}
_QKV_BIAS = {"llama": False, "mistral": False, "qwen2": True}


def text_decoder(config: Mapping[str, Any], *, tied_head: bool) -> DecoderSpec:
    """The decoder that a model's "text_config" describes.

    Raises UnsupportedModelError for another model_type, and for settings of these that are not implemented.
    """
    where = "config.json.text_config"
    values = Section(config, "config.json").get(dict, "text_config", {})
    kind = Section(values, where).get(str, "model_type", "llama")
    if kind not in _DEFAULTS:
        known = ", ".join(map(repr, _DEFAULTS))
        raise UnsupportedModelError(f"{where}: 'model_type' is {kind!r}; supported: {known}.")
    text = Section({**_DEFAULTS[kind], **values}, where)
    text.expect("rope_scaling")
    text.expect("attention_bias", False)
    text.expect("mlp_bias", False)
    text.expect("use_sliding_window", False)
    if any(layer != "full_attention" for layer in text.get(list, "layer_types", [])):
        raise UnsupportedModelError(f"{where}: 'layer_types' has others than 'full_attention'.")
    max_positions = text.count("max_position_embeddings", 2048)
    if kind == "mistral" and text.get(int, "sliding_window", max_positions) < max_positions:
        raise UnsupportedModelError(f"{where}: 'sliding_window' is shorter than the context.")
    return llama_decoder(text, plain_rope(_theta(text)), qkv_bias=_QKV_BIAS[kind], tied_head=tied_head)


def _theta(text: Section) -> float:
    parameters = text.section("rope_parameters")
    parameters.expect("rope_type", "default")
    parameters.expect("partial_rotary_factor", 1.0)
    return text.positive("rope_theta", parameters.positive("rope_theta", 10000.0))
