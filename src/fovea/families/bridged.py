"""Models that transformers runs: any class of its image-text-to-text map for which Fovea has no decoder of its own.

Nothing here knows a model. Its config is read by transformers' own class, and a picture's size says nothing about its
tokens: the model's own processor does, later (`pipeline/bridged.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fovea.core.errors import EmbeddingsError, MediaError, ModelError, UnsupportedModelError
from fovea.core.types import ImagePlan, MediaSpan, PixelBudget
from fovea.families.base import Family, ModelFiles
from fovea.families.parts import mrope_positions, plain_rope
from fovea.families.spec import DecoderSpec, ModelPath, ModelSpec, WeightMap

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Those whose decoder runs over Fovea's pages of keys and values; each gives what transformers gives (docs/models.md).
_PROVEN = """
lighton_ocr llava llava_next llava_next_video llava_onevision mistral3 paddleocr_vl pp_chart2table qianfan_ocr
qwen2_5_omni_thinker qwen2_5_vl qwen2_vl video_llama_3 video_llava vipllava
"""
GENERIC: frozenset[str] = frozenset(_PROVEN.split())

# The model types of transformers' MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES (5.23).
_TYPES = """
aria aya_vision blip blip-2 chameleon cohere2_vision cohere_compass cosmos3_edge cosmos3_omni deepseek_ocr2
deepseek_vl deepseek_vl_hybrid diffusion_gemma dots3_note emu3 ernie4_5_vl_moe evolla exaone4_5 fast_vlm florence2
fuyu gemma3 gemma3n gemma4 gemma4_unified git glm46v glm4v glm4v_moe glm5_next glm_ocr glmga got_ocr2
granite4_vision granite_docling hunyuan_vl hyperclovax_vision_v2 idefics idefics2 idefics3 inkling2 inkling_mm_model
instructblip instructblipvideo internvl janus kimi_k25 kosmos-2 kosmos-2.5 lfm2_vl lfm3_vl lighton_ocr llama4 llava
llava_next llava_next_video llava_onevision minicpm_ocr minicpmv4_6 minicpmv4_7 minimax_m3_vl mistral3 mistral4
mistral_large4 mllama molmo2 muse_glimmer muse_spark nemotron_h_omni ovis2 paddleocr_vl paligemma perception_lm pi0
pix2struct pp_chart2table pp_formulanet qianfan_ocr qwen2_5_omni_thinker qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe
qwen3_omni_moe_thinker qwen3_vl qwen3_vl_moe qwen4_exp shieldgemma2 smolvlm step3p7 t5gemma2 udop unlimited_ocr
video_llama_3 video_llava vipllava vision-encoder-decoder
"""
BRIDGED: frozenset[str] = frozenset(_TYPES.split())

_LAYERS = ("num_hidden_layers", "n_layer", "decoder_layers", "num_decoder_layers", "num_layers", "n_layers")
_HIDDEN = ("hidden_size", "d_model", "n_embd", "dim")
_HEADS = ("num_attention_heads", "n_head", "decoder_attention_heads", "num_heads", "n_heads")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions", "seq_length", "max_length")
DEFAULT_POSITIONS = 4096


class Bridged(Family):
    """`path` says who keeps the keys and values: Fovea's pages ("generic") or transformers' own ("compatible")."""

    architectures = ()
    placeholder = ""

    def __init__(self, files: ModelFiles, path: ModelPath) -> None:
        self.path = path
        self.model_type = str(files.config.get("model_type", ""))
        names = files.config.get("architectures") or [self.model_type]
        self._architecture = str(names[0])
        starts = (files.config.get(key) for key in ("decoder_start_token_id", "bos_token_id", "pad_token_id"))
        self.start_token_id = next((token_id for token_id in starts if isinstance(token_id, int)), 0)
        ids = (files.config.get(key) for key in ("image_token_id", "image_token_index"))
        self.image_token_id = next((token_id for token_id in ids if isinstance(token_id, int)), -1)
        super().__init__(files)

    @property
    def name(self) -> str:
        return self._architecture

    def read_spec(self) -> ModelSpec:
        config = self.read_config()
        text = config.get_text_config(decoder=True)
        num_heads, hidden_size = _number(text, _HEADS, 1), _number(text, _HIDDEN, 1)
        decoder = DecoderSpec(
            vocab_size=_number(text, ("vocab_size",), 0) or _number(config, ("vocab_size",), 0),
            hidden_size=hidden_size,
            intermediate_size=_number(text, ("intermediate_size", "decoder_ffn_dim", "d_ff"), 4 * hidden_size),
            num_layers=_number(text, _LAYERS, 1),
            num_heads=num_heads,
            num_kv_heads=_number(text, ("num_key_value_heads",), num_heads),
            head_dim=_number(text, ("head_dim",), max(1, hidden_size // num_heads)),
            norm_eps=0.0,
            rope=plain_rope(10000.0, _sections(text)),
            qkv_bias=False,
            tied_head=False,
            max_positions=_number(text, _POSITIONS, DEFAULT_POSITIONS),
        )
        if not decoder.vocab_size:
            raise UnsupportedModelError(f"{self.files.folder}: config.json of {self.name} names no vocabulary.")
        return ModelSpec(decoder=decoder, encoder="bridged", dtype=_dtype_name(config, text))

    def read_config(self) -> Any:
        """transformers' own configuration object. Raises ModelError if it can't read config.json."""
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.files.folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # whatever a config class raises
            where = f"{self.files.folder}/config.json"
            raise ModelError(f"transformers can't read {where} of {self.name}: {error}") from None

    def plan_image(self, width_px: int, height_px: int, options: Mapping[str, Any]) -> ImagePlan:
        """The picture as it is: what happens to it is the processor's business."""
        return _as_it_is(width_px, height_px)

    def plan_within(
        self, width_px: int, height_px: int, options: Mapping[str, Any], budget: PixelBudget | None
    ) -> ImagePlan:
        """A picture above its budget is made smaller before the processor sees it."""
        if budget is None:
            return _as_it_is(width_px, height_px)
        self._refuse_least(budget)
        num_pixels = width_px * height_px
        most = min(budget.max_pixels or num_pixels, self._wished(budget, 1, num_pixels))
        if most >= num_pixels:
            return _as_it_is(width_px, height_px)
        scale = math.sqrt(most / num_pixels)
        return _as_it_is(max(1, math.floor(width_px * scale)), max(1, math.floor(height_px * scale)))

    def budgeted(self, options: Mapping[str, Any], budget: PixelBudget | None) -> dict[str, Any]:
        return dict(options)

    def largest_picture(self, options: Mapping[str, Any]) -> int:
        return 0

    def token_grid(self, plan: ImagePlan) -> tuple[int, int]:
        """Unknown."""
        return 0, 0

    def most_pixels(self, options: Mapping[str, Any]) -> int:
        return 0

    def embeds_grid(self, num_rows: int, grid: tuple[int, int, int] | None) -> tuple[int, int, int]:
        raise EmbeddingsError(f"{self.name} runs by transformers and takes no embeddings in place of pictures.")

    def weight_map(self) -> WeightMap:
        raise MediaError("transformers reads the weights of this model.")

    def grid_positions(
        self, token_ids: Sequence[int], grids: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int32] | None, int]:
        """M-RoPE positions where the model has them. grids [pictures, 3]: time, height and width in patches."""
        if self.spec.decoder.rope.sections is None or grids is None or not len(grids):
            return None, 0
        merge = int(self.config.section("vision_config").get(int, "spatial_merge_size", 2))
        merged = [(int(t), int(h) // merge, int(w) // merge) for t, h, w in grids]
        return mrope_positions(len(token_ids), self._spans(token_ids, merged), merged)

    def _spans(self, token_ids: Sequence[int], grids: Sequence[tuple[int, int, int]]) -> list[MediaSpan]:
        spans: list[MediaSpan] = []
        end = 0
        for grid in grids:
            start = token_ids.index(self.image_token_id, end)
            spans.append(MediaSpan(start, math.prod(grid)))
            end = spans[-1].end
        return spans


def _sections(text: Any) -> tuple[int, ...] | None:
    """How M-RoPE splits the frequencies; None for plain positions."""
    found = (getattr(text, name, None) or {} for name in ("rope_parameters", "rope_scaling"))
    sections = next((values["mrope_section"] for values in found if values.get("mrope_section")), None)
    return None if sections is None else tuple(int(section) for section in sections)


def _as_it_is(width_px: int, height_px: int) -> ImagePlan:
    return ImagePlan(width_px, height_px, "bicubic", width_px, height_px, (1, 1, 1), num_patches=0, num_tokens=1)


def _number(config: Any, names: tuple[str, ...], default: int) -> int:
    """The first of these that is a positive whole number. Where layers differ, the first layer speaks for all."""
    for name in names:
        try:
            value = getattr(config, name, None)
        except Exception:  # transformers will not say, because layers differ
            value = getattr(config.per_layer_config[0], name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return default


def _dtype_name(config: Any, text: Any) -> str:
    found = getattr(config, "dtype", None) or getattr(text, "dtype", None) or "bfloat16"
    return str(found).removeprefix("torch.")
