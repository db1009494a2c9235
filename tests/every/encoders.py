"""Encoder-decoders: Donut, Pix2Struct, the two of PaddlePaddle, T5Gemma 2; and the two that can't be asked."""

from typing import Any

import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.every.entry import Entry
from tests.every.making import SIGLIP, STOPS, TEXT, builder, ids, text, tokenizer

_SAM: dict[str, Any] = {
    "hidden_size": 32,
    "output_channels": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 128,
    "patch_size": 16,
    "window_size": 3,
    "global_attn_indexes": [1],
    "mlp_dim": 48,
}


def _pix2struct() -> tuple[Any, Any]:
    processor = hf.Pix2StructProcessor(
        image_processor=hf.Pix2StructImageProcessor(patch_size={"height": 8, "width": 8}),
        tokenizer=tokenizer(),
    )
    decoder = {
        "vocab_size": TEXT["vocab_size"],
        "hidden_size": 64,
        "d_kv": 16,
        "d_ff": 96,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 3,
    }
    vision = {
        "hidden_size": 64,
        "patch_embed_hidden_size": 192,
        "d_ff": 96,
        "d_kv": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "seq_len": 128,
    }
    return CONFIG_MAPPING["pix2struct"](text_config=decoder | STOPS, vision_config=vision), processor


def _pp_chart2table() -> tuple[Any, Any]:
    tok = tokenizer(["<img>", "</img>", "<imgpad>"])
    processor = hf.PPChart2TableProcessor(
        image_processor=hf.PPChart2TableImageProcessor(size={"height": 128, "width": 128}), tokenizer=tok
    )
    config = CONFIG_MAPPING["pp_chart2table"](
        text_config=text("qwen2", tie_word_embeddings=True),
        vision_config=_SAM,
        image_seq_length=4,
        **ids(tok, image_token_index="<imgpad>"),
    )
    return config, processor


def _pp_formulanet() -> tuple[Any, Any]:
    """Turns the picture of a formula into its source; there is nothing to ask."""
    processor = hf.PPFormulaNetProcessor(
        image_processor=hf.PPFormulaNetImageProcessor(size={"height": 128, "width": 128}), tokenizer=tokenizer()
    )
    decoder = {
        "vocab_size": TEXT["vocab_size"],
        "d_model": 64,
        "encoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_layers": 2,
        "decoder_ffn_dim": 96,
        "decoder_attention_heads": 4,
        "max_position_embeddings": 256,
        "decoder_start_token_id": 1,
        "forced_eos_token_id": None,
    }
    vision = _SAM | {
        "post_conv_in_channels": 32,
        "post_conv_mid_channels": 48,
        "post_conv_out_channels": 64,
        "decoder_hidden_size": 64,
    }
    return CONFIG_MAPPING["pp_formulanet"](text_config=decoder | STOPS, vision_config=vision), processor


_GEMMA_PICTURES = {
    "image_token": "<image_soft_token>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
}


def _t5gemma2() -> tuple[Any, Any]:
    tok = tokenizer(tuple(_GEMMA_PICTURES.values()), _GEMMA_PICTURES)
    pictures = hf.Gemma3ImageProcessor(size={"height": 56, "width": 56})
    processor = hf.Gemma3Processor(image_processor=pictures, tokenizer=tok, image_seq_length=4)
    coder = {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }
    places = ids(tok, **{f"{name}_index": token for name, token in _GEMMA_PICTURES.items()})
    encoder = {
        "text_config": TEXT | STOPS | coder,
        "vision_config": dict(SIGLIP) | {"image_size": 56},
        "mm_tokens_per_image": 4,
        **places,
    }
    config = CONFIG_MAPPING["t5gemma2"](
        encoder=encoder, decoder=TEXT | STOPS | coder, **{k: v for k, v in places.items() if "boi" not in k}
    )
    return config, processor


def _donut() -> tuple[Any, Any]:
    tok = tokenizer(["<s_docvqa>", "<s_question>", "</s_question>", "<s_answer>"])
    pictures = hf.DonutImageProcessor(size={"height": 64, "width": 48})
    processor = hf.DonutProcessor(image_processor=pictures, tokenizer=tok)
    encoder = {
        "model_type": "donut-swin",
        "image_size": [64, 48],
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 2],
        "window_size": 4,
    }
    decoder = {
        "model_type": "mbart",
        "vocab_size": TEXT["vocab_size"],
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_layers": 2,
        "decoder_ffn_dim": 48,
        "decoder_attention_heads": 2,
        "max_position_embeddings": 256,
        "is_decoder": True,
        "add_cross_attention": True,
        "scale_embedding": True,
        "add_final_layer_norm": True,
        "forced_eos_token_id": None,
        "is_encoder_decoder": False,
        **STOPS,
    }
    config = CONFIG_MAPPING["vision-encoder-decoder"](
        encoder=encoder, decoder=decoder, decoder_start_token_id=1, tie_word_embeddings=False, **STOPS
    )
    return config, processor


def _donut_prompt(count: int) -> str:
    return "<s_docvqa><s_question>What is it?</s_question><s_answer>"


def _chart_prompt(count: int) -> str:
    return f"{('<img>' + '<imgpad>' * 4 + '</img>') * count}\nWhat is it?"


def _gemma_prompt(count: int) -> str:
    return "<start_of_image>" * count + "What is it?"


ENTRIES = (
    Entry(
        "pi0",
        None,
        why_not="It answers with a robot's actions as numbers, found by integrating a flow; it generates no text.",
    ),
    Entry("pix2struct", builder(_pix2struct), lambda n: "What is it?", most_pictures=1, takes_text_only=False),
    Entry("pp_chart2table", builder(_pp_chart2table), _chart_prompt, takes_text_only=False),
    Entry("pp_formulanet", builder(_pp_formulanet), lambda n: "", most_pictures=1, takes_text_only=False, seed=3),
    Entry("t5gemma2", builder(_t5gemma2), _gemma_prompt, seed=32),
    Entry(
        "udop",
        None,
        why_not="It reads the words of a page with the place of each from an OCR step beside the picture; "
        "its processor refuses a picture and a question without them.",
    ),
    Entry("vision-encoder-decoder", builder(_donut), _donut_prompt, most_pictures=1, takes_text_only=False, seed=4),
)
