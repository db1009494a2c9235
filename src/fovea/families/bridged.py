"""Models that transformers runs: any class of its image-text-to-text map for which Fovea has no decoder of its own.

Nothing here knows a model. Its config is read by transformers' own class, and a picture's size says nothing about its
tokens: the model's own processor does, later (`pipeline/bridged.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from inspect import signature
from types import MappingProxyType
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

# MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES of transformers (5.23): the class of each model type.
_MAP = """
aria:AriaForConditionalGeneration aya_vision:AyaVisionForConditionalGeneration blip:BlipForConditionalGeneration
blip-2:Blip2ForConditionalGeneration chameleon:ChameleonForConditionalGeneration
cohere2_vision:Cohere2VisionForConditionalGeneration cohere_compass:CohereCompassForConditionalGeneration
cosmos3_edge:Cosmos3EdgeForConditionalGeneration cosmos3_omni:Cosmos3OmniForConditionalGeneration
deepseek_ocr2:DeepseekOcr2ForConditionalGeneration deepseek_vl:DeepseekVLForConditionalGeneration
deepseek_vl_hybrid:DeepseekVLHybridForConditionalGeneration diffusion_gemma:DiffusionGemmaForBlockDiffusion
dots3_note:Dots3NoteForConditionalGeneration emu3:Emu3ForConditionalGeneration
ernie4_5_vl_moe:Ernie4_5_VLMoeForConditionalGeneration evolla:EvollaForProteinText2Text
exaone4_5:Exaone4_5_ForConditionalGeneration fast_vlm:FastVlmForConditionalGeneration
florence2:Florence2ForConditionalGeneration fuyu:FuyuForCausalLM gemma3:Gemma3ForConditionalGeneration
gemma3n:Gemma3nForConditionalGeneration gemma4:Gemma4ForConditionalGeneration
gemma4_unified:Gemma4UnifiedForConditionalGeneration git:GitForCausalLM glm46v:Glm46VForConditionalGeneration
glm4v:Glm4vForConditionalGeneration glm4v_moe:Glm4vMoeForConditionalGeneration
glm5_next:Glm5NextForConditionalGeneration glm_ocr:GlmOcrForConditionalGeneration glmga:Glm46VForConditionalGeneration
got_ocr2:GotOcr2ForConditionalGeneration granite4_vision:Granite4VisionForConditionalGeneration
granite_docling:GraniteDoclingForConditionalGeneration hunyuan_vl:HunYuanVLForConditionalGeneration
hyperclovax_vision_v2:HyperCLOVAXVisionV2ForConditionalGeneration idefics:IdeficsForVisionText2Text
idefics2:Idefics2ForConditionalGeneration idefics3:Idefics3ForConditionalGeneration
inkling2:Inkling2ForConditionalGeneration inkling_mm_model:InklingForConditionalGeneration
instructblip:InstructBlipForConditionalGeneration instructblipvideo:InstructBlipVideoForConditionalGeneration
internvl:InternVLForConditionalGeneration janus:JanusForConditionalGeneration
kimi_k25:Kimi_K25ForConditionalGeneration kosmos-2:Kosmos2ForConditionalGeneration
kosmos-2.5:Kosmos2_5ForConditionalGeneration lfm2_vl:Lfm2VlForConditionalGeneration
lfm3_vl:Lfm3VlForConditionalGeneration lighton_ocr:LightOnOcrForConditionalGeneration
llama4:Llama4ForConditionalGeneration llava:LlavaForConditionalGeneration llava_next:LlavaNextForConditionalGeneration
llava_next_video:LlavaNextVideoForConditionalGeneration llava_onevision:LlavaOnevisionForConditionalGeneration
minicpm_ocr:MiniCPMOcrForConditionalGeneration minicpmv4_6:MiniCPMV4_6ForConditionalGeneration
minicpmv4_7:MiniCPMV4_7ForConditionalGeneration minimax_m3_vl:MiniMaxM3SparseForConditionalGeneration
mistral3:Mistral3ForConditionalGeneration mistral4:Mistral4ForCausalLM
mistral_large4:MistralLarge4ForConditionalGeneration mllama:MllamaForConditionalGeneration
molmo2:Molmo2ForConditionalGeneration muse_glimmer:MuseGlimmerForConditionalGeneration
muse_spark:MuseSparkForConditionalGeneration nemotron_h_omni:NemotronH_Omni_Reasoning_V3
ovis2:Ovis2ForConditionalGeneration paddleocr_vl:PaddleOCRVLForConditionalGeneration
paligemma:PaliGemmaForConditionalGeneration perception_lm:PerceptionLMForConditionalGeneration
pi0:PI0ForConditionalGeneration pix2struct:Pix2StructForConditionalGeneration
pp_chart2table:GotOcr2ForConditionalGeneration pp_formulanet:PPFormulaNetForConditionalGeneration
qianfan_ocr:QianfanOCRForConditionalGeneration qwen2_5_omni_thinker:Qwen2_5OmniThinkerForConditionalGeneration
qwen2_5_vl:Qwen2_5_VLForConditionalGeneration qwen2_vl:Qwen2VLForConditionalGeneration
qwen3_5:Qwen3_5ForConditionalGeneration qwen3_5_moe:Qwen3_5MoeForConditionalGeneration
qwen3_omni_moe_thinker:Qwen3OmniMoeThinkerForConditionalGeneration qwen3_vl:Qwen3VLForConditionalGeneration
qwen3_vl_moe:Qwen3VLMoeForConditionalGeneration qwen4_exp:Qwen4ExpForConditionalGeneration
shieldgemma2:Gemma3ForConditionalGeneration smolvlm:SmolVLMForConditionalGeneration
step3p7:Step3p7ForConditionalGeneration t5gemma2:T5Gemma2ForConditionalGeneration udop:UdopForConditionalGeneration
unlimited_ocr:UnlimitedOcrForConditionalGeneration video_llama_3:VideoLlama3ForConditionalGeneration
video_llava:VideoLlavaForConditionalGeneration vipllava:VipLlavaForConditionalGeneration
vision-encoder-decoder:VisionEncoderDecoderModel
"""
BRIDGED: Mapping[str, str] = MappingProxyType(dict(entry.split(":") for entry in _MAP.split()))

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
        try:
            return self._read_spec(self.read_config())
        except ModelError:
            raise
        except Exception as error:  # whatever a config class does with values of another kind
            raise ModelError(f"{self.files.folder}/config.json can't be read as {self.name}: {error}") from None

    def _read_spec(self, config: Any) -> ModelSpec:
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

    def wants_token_types(self) -> bool:
        """Whether the model must be told the kind of each token, which its processor may not say unasked."""
        import transformers

        made = getattr(transformers, BRIDGED.get(self.model_type, ""), None)
        return made is not None and "mm_token_type_ids" in signature(made.forward).parameters

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
