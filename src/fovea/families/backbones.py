"""The language models that stand inside other models' configs ("text_config"), by their model_type.

Each is one of the models of text alone, with its defaults and refusals: a published config leaves out what equals its
class's defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fovea.core.errors import UnsupportedModelError
from fovea.families.cohere2 import Cohere2
from fovea.families.config_reader import Section
from fovea.families.gemma import Gemma, Gemma2, Gemma3
from fovea.families.llama import Llama
from fovea.families.mistral import Mistral
from fovea.families.phi3 import Phi3
from fovea.families.qwen2 import Qwen2
from fovea.families.qwen3 import Qwen3
from fovea.families.text import TextModel

BACKBONES: Mapping[str, type[TextModel]] = {
    "cohere2": Cohere2,
    "gemma": Gemma,
    "gemma2": Gemma2,
    "gemma3_text": Gemma3,
    "llama": Llama,
    "mistral": Mistral,
    "phi3": Phi3,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
}


def text_backbone(
    config: Mapping[str, Any], usual: str = "llama", defaults: Mapping[str, Any] | None = None
) -> tuple[type[TextModel], Section]:
    """The language model inside a model's config, and its config filled up with its class's defaults.

    usual: the model_type where "text_config" names none. defaults: what the outer class says where that is so.
    Raises UnsupportedModelError for a model_type that is not among the backbones.
    """
    where = "config.json.text_config"
    values = Section(config, "config.json").get(dict, "text_config", {})
    kind = Section(values, where).get(str, "model_type", usual)
    if kind not in BACKBONES:
        known = ", ".join(map(repr, BACKBONES))
        raise UnsupportedModelError(f"{where}: 'model_type' is {kind!r}; supported: {known}.")
    outer = {} if "model_type" in values else defaults or {}
    return BACKBONES[kind], Section({**BACKBONES[kind].defaults, **outer, **values}, where)
