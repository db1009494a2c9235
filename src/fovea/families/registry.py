"""Which family runs a model folder."""

from __future__ import annotations

from pathlib import Path

from fovea.core.config import ModelImpl
from fovea.core.errors import UnsupportedModelError, nearest
from fovea.core.log import logger
from fovea.families.aya_vision import AyaVision
from fovea.families.base import Family, ModelFiles
from fovea.families.bridged import BRIDGED, CANNOT_RUN, GENERIC, Bridged
from fovea.families.cohere2 import Cohere2
from fovea.families.gemma import Gemma, Gemma2, Gemma3
from fovea.families.gemma3 import Gemma3VL
from fovea.families.gguf_file import is_gguf
from fovea.families.glm4 import Glm, Glm4
from fovea.families.glm4v import Glm4V, Glm4VMoe, Glm46V, GlmOcr
from fovea.families.idefics3 import Idefics3, SmolVLM
from fovea.families.internvl import InternVL
from fovea.families.llama import Llama
from fovea.families.llava import Llava
from fovea.families.llava_next import LlavaNext
from fovea.families.llava_next_video import LlavaNextVideo
from fovea.families.llava_onevision import LlavaOnevision
from fovea.families.mistral import Mistral
from fovea.families.mistral3 import Mistral3, Pixtral
from fovea.families.ovis2 import Ovis2
from fovea.families.paligemma import PaliGemma
from fovea.families.phi3 import Phi3
from fovea.families.phi3_v import Phi3V
from fovea.families.qianfan_ocr import QianfanOCR
from fovea.families.qwen2 import Qwen2
from fovea.families.qwen2_5_vl import Qwen2_5VL
from fovea.families.qwen2_vl import Qwen2VL
from fovea.families.qwen3 import Qwen3
from fovea.families.qwen3_moe import Qwen3Moe
from fovea.families.qwen3_vl import Qwen3VL
from fovea.families.qwen3_vl_moe import Qwen3VLMoe
from fovea.families.vipllava import VipLlava

FAMILIES: tuple[type[Family], ...] = (
    Pixtral,  # before Llava, whose class it has
    Llava,
    LlavaNext,
    LlavaNextVideo,
    LlavaOnevision,
    VipLlava,
    Idefics3,
    SmolVLM,
    Phi3V,
    Qwen2VL,
    Qwen2_5VL,
    Qwen3VL,
    Qwen3VLMoe,
    Mistral3,
    InternVL,
    QianfanOCR,
    Ovis2,
    AyaVision,
    Gemma3VL,
    PaliGemma,
    Cohere2,
    Gemma,
    Gemma2,
    Gemma3,
    Glm4V,
    Glm4VMoe,
    Glm46V,
    GlmOcr,
    Llama,
    Mistral,
    Phi3,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    Glm,
    Glm4,
)


def load_family(folder: Path, model_impl: ModelImpl = "auto") -> Family:
    """The family of the model in `folder`. model_impl: see the option of that name.

    Raises UnsupportedModelError, naming what is supported, if nothing here runs the config's architecture that way.
    """
    files = ModelFiles.read(folder)
    if is_gguf(folder) and model_impl in ("generic", "compatible"):
        raise UnsupportedModelError(
            f"model_impl is {model_impl!r}, but {folder} is a GGUF file, which only Fovea's own modules run."
        )
    own = _own_family(files, folder)
    if own is not None and model_impl == "fused":
        return own(files)
    if own is not None and model_impl == "auto":
        try:
            return own(files)
        except UnsupportedModelError as error:
            if not _is_mapped(files):
                raise
            logger.warning("transformers runs this model, more slowly than Fovea's own modules would: %s", error)
    if model_impl in ("generic", "compatible") or (model_impl == "auto" and _is_mapped(files)):
        return _bridged(files, model_impl)
    raise _unsupported(files, folder, model_impl)


def _is_mapped(files: ModelFiles) -> bool:
    """Whether it is a class of transformers' image-text-to-text map."""
    name = BRIDGED.get(str(files.config.get("model_type")))
    return name is not None and name in (files.config.get("architectures") or [name])


def _bridged(files: ModelFiles, model_impl: ModelImpl) -> Bridged:
    model_type = str(files.config.get("model_type"))
    if model_type in CANNOT_RUN:
        raise UnsupportedModelError(f"{BRIDGED[model_type]} does not run here: {CANNOT_RUN[model_type]}.")
    if model_impl == "generic" and model_type not in GENERIC:
        raise UnsupportedModelError(
            f"model_impl is 'generic', which is not known to answer right with the model type {model_type!r}; "
            f"it is with: {', '.join(sorted(GENERIC))}. Use 'auto' or 'compatible'."
        )
    is_generic = model_impl != "compatible" and model_type in GENERIC
    return Bridged(files, "generic" if is_generic else "compatible")


def _own_family(files: ModelFiles, folder: Path) -> type[Family] | None:
    names = files.config.get("architectures") or []
    if not isinstance(names, list) or any(not isinstance(name, str) for name in names):
        raise UnsupportedModelError(f"{folder}: 'architectures' in config.json must be a list of names.")
    for family in FAMILIES:
        if set(family.architectures) & set(names) and family.describes(files.config):
            return family
    return None


def _unsupported(files: ModelFiles, folder: Path, model_impl: ModelImpl) -> UnsupportedModelError:
    names = files.config.get("architectures") or []
    known = sorted({name for family in FAMILIES for name in family.architectures})
    wanted = ", ".join(map(str, names)) or "no architecture"
    hint = nearest(str(names[0]), known) if names else ""
    others = "" if model_impl == "fused" else ", and by transformers the model types of `fovea models`"
    code = " Code that comes with a model folder (auto_map) is never run." if "auto_map" in files.config else ""
    return UnsupportedModelError(f"{folder} has {wanted}; supported: {', '.join(known)}{others}.{code}{hint}")
