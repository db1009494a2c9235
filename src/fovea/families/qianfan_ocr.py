"""Qianfan-OCR: InternVL's tower, tiles and projector before a Qwen3, its tensors named as InternVL's first release has
them."""

from __future__ import annotations

from fovea.families.config_reader import Section
from fovea.families.internvl import InternVL
from fovea.families.parts import same_names
from fovea.families.spec import ModelSpec, WeightMap, WeightSlot


class QianfanOCR(InternVL):
    architectures = ("QianfanOCRForConditionalGeneration",)
    text_placeholder = "<image>"
    usual_text = "qwen3"
    tower_kind = "qianfan_ocr_vision"
    tower_bias = True

    def read_spec(self) -> ModelSpec:
        vision = self.config.section("vision_config")
        vision.expect("use_qk_norm", False)
        vision.expect("attention_bias", True)
        vision.expect("norm_type", "layer_norm")
        return super().read_spec()

    def _tied(self, text: Section) -> bool:
        return self.config.get(bool, "tie_word_embeddings", False)

    def image_text(self, number: int) -> str:
        return f"{self.text_placeholder}\n"

    def weight_map(self) -> WeightMap:
        decoder, tower = self.spec.decoder, "vision_model."
        slots = self.backbone.decoder_slots("language_model.model.", "language_model.lm_head", decoder)
        slots |= {
            f"{tower}embeddings.class_embedding": WeightSlot("encoder.tower.class_token"),
            f"{tower}embeddings.position_embedding": WeightSlot("encoder.tower.positions"),
        }
        slots |= same_names(f"{tower}embeddings.patch_embedding", "encoder.tower.patch")
        pairs = {"attn.qkv": "qkv", "attn.proj": "out", "norm1": "norm1", "norm2": "norm2"}
        for i in range(self.spec.tower.num_layers):
            theirs, ours = f"{tower}encoder.layers.{i}.", f"encoder.tower.blocks.{i}."
            for name, own in {**pairs, "mlp.fc1": "up", "mlp.fc2": "down"}.items():
                slots |= same_names(theirs + name, ours + own)
            slots |= {f"{theirs}ls{n}": WeightSlot(f"{ours}scale{n}") for n in (1, 2)}
        for number, own in ((0, "norm"), (1, "first"), (3, "second")):
            slots |= same_names(f"mlp1.{number}", f"encoder.projector.{own}")
        unused = [f"{tower}encoder.layers.{i}." for i in range(self.spec.tower.num_layers, self._total_layers)]
        tied = ["language_model.lm_head."] if decoder.tied_head else []
        # What transformers 5 makes of the name when it saves the model.
        renames = (("language_model.model.encoder.layers.", "language_model.model.layers."),)
        return WeightMap(slots, (*unused, *tied), renames)
