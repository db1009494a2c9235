"""Gemma 3: SigLIP at one fixed size, its patches averaged in squares, a decoder with windows (arXiv:2503.19786).

The tokens of a picture all see each other. Pan-and-scan, which adds crops of long pictures, is refused where the
preprocessor config asks for it; published ones do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from fovea.core.errors import EmbeddingsError, UnsupportedModelError
from fovea.core.types import ImagePlan, MediaSpan, Resample
from fovea.families.backbones import text_backbone
from fovea.families.config_reader import Section
from fovea.families.llava import Llava
from fovea.families.parts import VLM_RENAMES, siglip_tower, siglip_unused, siglip_weights
from fovea.families.spec import EncoderKind, ModelSpec, ProjectorSpec, TowerSpec, WeightMap, WeightSlot

HALF = (0.5, 0.5, 0.5)
STEPS = ("do_resize", "do_rescale", "do_normalize")


class PooledSiglip(Llava):
    """A picture is stretched to SigLIP's square, and its patches, or means of squares of them, become tokens."""

    encoder: ClassVar[EncoderKind] = "pooled"
    usual_backbone: ClassVar[str]
    text_ignored: ClassVar[tuple[str, ...]] = ()
    resample: ClassVar[Resample]
    resample_code: ClassVar[int]  # PIL's number for it

    def read_spec(self) -> ModelSpec:
        self.backbone, text = text_backbone(self.files.config, self.usual_backbone)
        tied = self.config.get(bool, "tie_word_embeddings", text.get(bool, "tie_word_embeddings", True))
        decoder = self.backbone.read_decoder(text.without(*self.text_ignored), tied_head=tied)
        vision = Section(self.config.get(dict, "vision_config", {}), "config.json.vision_config")
        vision.expect("model_type", "siglip_vision_model")
        self._check_steps(vision.count("image_size", 224))
        tower = siglip_tower(vision, post_norm=True)
        return ModelSpec(
            decoder=decoder,
            tower=tower,
            projector=self.pooled(tower, decoder.hidden_size),
            encoder=self.encoder,
            image_mean=self.triple("image_mean", HALF),
            image_std=self.triple("image_std", HALF),
            dtype=self.dtype("bfloat16"),
            tile_px=vision.count("image_size", 224),
        )

    def pooled(self, tower: TowerSpec, width: int) -> ProjectorSpec:
        return ProjectorSpec(merge=1, mid_width=width, out_width=width)

    def _check_steps(self, tower_px: int) -> None:
        for step in STEPS:
            self.preprocessor.expect(step, True)
        self.preprocessor.expect("do_center_crop", False)
        self.preprocessor.expect("do_pan_and_scan", False)
        self.preprocessor.expect("resample", self.resample_code)
        self.preprocessor.expect("size", {"height": tower_px, "width": tower_px})

    def plan_image(self, width_px: int, height_px: int, options: Mapping[str, Any]) -> ImagePlan:
        tile, merge = self.spec.tile_px, self.spec.projector.merge
        side = tile // self.spec.tower.patch_px
        return ImagePlan(
            resize_width_px=tile,
            resize_height_px=tile,
            resample=self.resample,
            canvas_width_px=tile,
            canvas_height_px=tile,
            grid=(1, side // merge, side // merge),
            num_patches=side * side,
            num_tokens=(side // merge) ** 2,
        )

    def embeds_grid(self, num_rows: int, grid: tuple[int, int, int] | None) -> tuple[int, int, int]:
        side = self.spec.tile_px // self.spec.tower.patch_px // self.spec.projector.merge
        if grid is not None or num_rows != side * side:
            raise EmbeddingsError(f"Image embeddings have {num_rows} rows; {self.name} takes {side * side}.")
        return (1, side, side)

    def weight_map(self) -> WeightMap:
        decoder, tower, vision = self.spec.decoder, self.spec.tower, "vision_tower.vision_model."
        slots = self.backbone.decoder_slots("language_model.model.", "language_model.lm_head", decoder)
        slots |= siglip_weights(vision, tower)
        slots |= self.projector_slots()
        unused = siglip_unused(vision, tower, tower.num_layers)
        return WeightMap(
            slots,
            ignored=(*unused, "language_model.lm_head.") if decoder.tied_head else unused,
            renames=VLM_RENAMES,
        )

    def projector_slots(self) -> dict[str, WeightSlot]:
        raise NotImplementedError


class Gemma3VL(PooledSiglip):
    architectures = ("Gemma3ForConditionalGeneration",)
    placeholder = "<image_soft_token>"
    tag = "<start_of_image>"
    usual_backbone = "gemma3_text"
    resample = "bilinear"
    resample_code = 2

    def pooled(self, tower: TowerSpec, width: int) -> ProjectorSpec:
        side = math.isqrt(tower.num_positions)
        count = self.config.count("mm_tokens_per_image", 256)
        tokens = math.isqrt(count)
        if tokens**2 != count or side % tokens:
            raise UnsupportedModelError(
                f"config.json: 'mm_tokens_per_image' is {count}; supported: squares of numbers that divide {side}."
            )
        plain = super().pooled(tower, width)
        return replace(plain, merge=side // tokens, norm="rms", norm_eps=tower.norm_eps)

    def markup(self, texts: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
        """What the processor puts around a picture; blank lines become tokens together with the text beside them."""
        whole = f"\n\n{self.tag}{self.placeholder}<end_of_image>\n\n"
        return [(text.replace(self.tag, whole) if trusted else text, trusted) for text, trusted in texts]

    def image_text(self, number: int) -> str:
        return self.tag

    def open_spans(self, num_tokens: int, spans: Sequence[MediaSpan]) -> tuple[MediaSpan, ...]:
        """Each picture; those without anything between them are one (get_block_sequence_ids_for_mask)."""
        found: list[MediaSpan] = []
        for span in spans:
            if found and found[-1].end == span.start:
                found[-1] = MediaSpan(found[-1].start, found[-1].length + span.length)
            else:
                found.append(span)
        return tuple(found)

    def projector_slots(self) -> dict[str, WeightSlot]:
        theirs = "multi_modal_projector.mm_"
        return {
            f"{theirs}input_projection_weight": WeightSlot("encoder.projector.matrix"),
            f"{theirs}soft_emb_norm.weight": WeightSlot("encoder.projector.norm.weight"),
        }
