"""VipLLaVA: LLaVA-1.5 that sees the outputs of several of CLIP's layers side by side (arXiv:2312.00784)."""

from __future__ import annotations

from dataclasses import replace

from fovea.families.llava import Llava
from fovea.families.parts import same_names
from fovea.families.spec import ProjectorSpec, WeightMap


class VipLlava(Llava):
    architectures = ("VipLlavaForConditionalGeneration",)
    text_ties = False
    default_layers = (-2, -5, -8, -11, 6)
    layer_keys = ("vision_feature_layers", "vision_feature_layer")  # the first is in the published config

    def projector(self, width: int) -> ProjectorSpec:
        eps = self.config.positive("projector_layernorm_eps", 1e-5)
        return replace(super().projector(width), norm="layer", norm_eps=eps)

    def weight_map(self) -> WeightMap:
        known = super().weight_map()
        norm = same_names("multi_modal_projector.projector_layernorm", "encoder.projector.norm")
        return replace(known, slots=known.slots | norm)
