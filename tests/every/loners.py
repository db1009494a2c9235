"""Models of which there is no second one: cross-attention, raw patches, an encoder-decoder, convolutions."""

from typing import Any

import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.every.entry import Entry
from tests.every.making import BASE, STOPS, TEXT, VOCAB, builder, ids, tokenizer


def _idefics() -> tuple[Any, Any]:
    """Gated cross-attention to resampled pictures. The processor puts a picture before its text.

    Several pictures in one prompt must be given to it as a list of lists.
    """
    tok = tokenizer(["<fake_token_around_image>", "<image>", "<end_of_utterance>"])
    processor = hf.IdeficsProcessor(image_processor=hf.IdeficsImageProcessor(image_size=28), tokenizer=tok)
    written = {name: size for name, size in TEXT.items() if name != "num_key_value_heads"}
    config = CONFIG_MAPPING["idefics"](
        **written,
        **STOPS,
        cross_layer_interval=1,
        qk_layer_norms=True,
        use_resampler=True,
        alpha_initializer="ones",
        vision_config={
            "embed_dim": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        perceiver_config={
            "use_resampler": True,
            "resampler_n_latents": 4,
            "resampler_depth": 2,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
        },
    )
    return config, processor


def _spaced_tokenizer() -> Any:
    """Bytes and Fuyu's tokens as pieces; a space comes first, before a picture too."""
    pieces = [*BASE, "|SPEAKER|", "|NEWLINE|", "<0x04>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.Unigram([(piece, -float(len(piece) == 1)) for piece in pieces], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    names = ("unk_token", "bos_token", "eos_token", "pad_token")
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, **dict(zip(names, BASE, strict=True)))


def _fuyu() -> tuple[Any, Any]:
    """Raw patches row by row, a line token behind each row; the processor puts the picture before the text.

    It drops the first token, for published tokenizers begin every text with a space.
    """
    tok = _spaced_tokenizer()
    pictures = hf.FuyuImageProcessor(size={"height": 60, "width": 60}, patch_size={"height": 15, "width": 15})
    written = {name: size for name, size in TEXT.items() if name != "num_key_value_heads"}
    config = CONFIG_MAPPING["fuyu"](
        text_config={"model_type": "persimmon", **written, **STOPS, "hidden_dropout": 0.0, "qk_layernorm": True},
        image_size=60,
        patch_size=15,
        **ids(tok, image_token_id="|SPEAKER|"),
    )
    return config, hf.FuyuProcessor(image_processor=pictures, tokenizer=tok)


def _florence2() -> tuple[Any, Any]:
    """An encoder over picture and text, a decoder that reads it; the processor puts the one picture first."""
    tok = tokenizer(["<image>"], {"image_token": "<image>"})
    side = {"height": 64, "width": 64}
    pictures = hf.CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False)
    pictures.image_seq_length = 65
    tower = {
        "depths": [1, 1],
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "embed_dim": [16, 32],
        "num_heads": [2, 2],
        "num_groups": [2, 2],
        "window_size": 6,
        "drop_path_rate": 0.0,
        "projection_dim": 64,
    }
    written = {
        "model_type": "bart",
        "vocab_size": VOCAB,
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 96,
        "decoder_ffn_dim": 96,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "max_position_embeddings": 256,
        "dropout": 0.0,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
    }
    config = CONFIG_MAPPING["florence2"](
        text_config={**written, **STOPS}, vision_config=tower, **ids(tok, image_token_id="<image>")
    )
    return config, hf.Florence2Processor(image_processor=pictures, tokenizer=tok)


_INKLING_TEXT: dict[str, Any] = {
    **TEXT,
    **STOPS,
    "head_dim": 16,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "sliding_window_size": 8,
    "d_rel": 8,
    "rel_extent": 16,
    "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "unpadded_vocab_size": VOCAB,
}
_INKLING_TOKENS = ("<|unused_200054|>", "<|unused_200053|>", "<|content_image|>", "<|content_audio_input|>")


def _inkling() -> tuple[Any, Any]:
    """With fewer tower layers than a patch has factors transformers would need scipy to plan them."""
    tok = tokenizer(_INKLING_TOKENS)
    processor = hf.InklingProcessor(
        feature_extractor=hf.InklingFeatureExtractor(),
        image_processor=hf.InklingImageProcessor(size={"height": 10, "width": 10}),
        tokenizer=tok,
    )
    config = CONFIG_MAPPING["inkling_mm_model"](
        text_config=_INKLING_TEXT
        | {"mlp_layer_types": ["dense", "sparse", "sparse"], "logits_mup_width_multiplier": 2.0},
        vision_config={"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 10},
        audio_config={"n_mel_bins": 8, "mel_vocab_size": 16},
        **ids(
            tok,
            image_token_id="<|unused_200054|>",
            audio_token_id="<|unused_200053|>",
            image_bos_token_id="<|content_image|>",
            audio_bos_token_id="<|content_audio_input|>",
        ),
    )
    return config, processor


def _inkling2() -> tuple[Any, Any]:
    tok = tokenizer(_INKLING_TOKENS)
    pictures = hf.Inkling2ImageProcessor(size={"height": 40, "width": 40})
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "posemb_grid_size": 8,
        "projection_hidden_dim": 48,
        "text_hidden_size": 64,
    }
    config = CONFIG_MAPPING["inkling2"](
        text_config={name: value for name, value in _INKLING_TEXT.items() if name != "intermediate_size"}
        | {"n_layers_per_attn_res_block": 2},
        vision_config=tower,
        **ids(tok, image_token_id="<|unused_200054|>"),
    )
    return config, hf.Inkling2Processor(image_processor=pictures, tokenizer=tok)


def _inkling_prompt(count: int) -> str:
    return "<|content_image|><|unused_200054|>" * count + "What is it?"


ENTRIES = (
    Entry("evolla", None, why_not="It answers about a protein's sequence and folded shape, not about pictures."),
    Entry("florence2", builder(_florence2), lambda n: "What does the image describe?", most_pictures=1),
    Entry("fuyu", builder(_fuyu), lambda n: "What is it?\n", most_pictures=1),
    Entry("idefics", builder(_idefics), lambda n: "What is it?", most_pictures=1),
    Entry("inkling2", builder(_inkling2), _inkling_prompt),
    Entry("inkling_mm_model", builder(_inkling), _inkling_prompt),
)
