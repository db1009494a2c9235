"""Which family runs a model folder."""

from __future__ import annotations

from pathlib import Path

from fovea.core.errors import UnsupportedModelError, nearest
from fovea.families.base import Family, ModelFiles
from fovea.families.internvl import InternVL
from fovea.families.llama import Llama
from fovea.families.llava import Llava
from fovea.families.llava_next import LlavaNext
from fovea.families.mistral import Mistral
from fovea.families.mistral3 import Mistral3, Pixtral
from fovea.families.ovis2 import Ovis2
from fovea.families.phi3 import Phi3
from fovea.families.phi3_v import Phi3V
from fovea.families.qwen2 import Qwen2
from fovea.families.qwen2_5_vl import Qwen2_5VL
from fovea.families.qwen2_vl import Qwen2VL
from fovea.families.qwen3 import Qwen3
from fovea.families.vipllava import VipLlava

FAMILIES: tuple[type[Family], ...] = (
    Pixtral,  # before Llava, whose class it has
    Llava,
    LlavaNext,
    VipLlava,
    Phi3V,
    Qwen2VL,
    Qwen2_5VL,
    Mistral3,
    InternVL,
    Ovis2,
    Llama,
    Mistral,
    Phi3,
    Qwen2,
    Qwen3,
)


def load_family(folder: Path) -> Family:
    """The family of the model in `folder`.

    Raises UnsupportedModelError, naming what is supported, if no family has the config's architecture.
    """
    files = ModelFiles.read(folder)
    names = files.config.get("architectures") or []
    if not isinstance(names, list) or any(not isinstance(name, str) for name in names):
        raise UnsupportedModelError(f"{folder}: 'architectures' in config.json must be a list of names.")
    for family in FAMILIES:
        if set(family.architectures) & set(names) and family.describes(files.config):
            return family(files)
    known = sorted({name for family in FAMILIES for name in family.architectures})
    wanted = ", ".join(map(str, names)) or "no architecture"
    hint = nearest(str(names[0]), known) if names else ""
    raise UnsupportedModelError(f"{folder} has {wanted}; supported: {', '.join(known)}.{hint}")
