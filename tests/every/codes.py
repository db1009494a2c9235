"""Models that turn a picture into tokens of their own vocabulary, or could."""

from typing import Any

import torch
import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.every.entry import Entry
from tests.every.making import STOPS, TEXT, builder, ids, tokenizer

_CODES = 16


def _chameleon() -> tuple[Any, Any]:
    """A picture's code 12 is the token IMGIMGBCZ; the model never answers with such a token.

    The processor ends each prompt with the separator unless it is told return_for_text_completion.
    """
    codes = ["IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z" for code in range(_CODES)]
    tok = tokenizer(["<image>", "<racm3:break>", "<eoss>", "<reserved08706>", *codes], {"image_token": "<image>"})
    tok.sep_token = "<reserved08706>"
    side = {"height": 16, "width": 16}
    pictures = hf.ChameleonImageProcessor(size={"shortest_edge": 16}, crop_size=side)
    processor = hf.ChameleonProcessor(image_processor=pictures, tokenizer=tok, image_seq_length=16)
    codebook = {
        "embed_dim": 8,
        "num_embeddings": _CODES,
        "latent_channels": 8,
        "resolution": 16,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1],
        "num_res_blocks": 1,
    }
    config = CONFIG_MAPPING["chameleon"](**TEXT, **STOPS, vq_config=codebook, vocabulary_map=tok.get_vocab())
    return config, processor


def _emu3() -> tuple[Any, Any]:
    """Text and code ids share one table; the processor writes the picture's rows and columns into the prompt."""
    names = {
        "image_token": "<image>",
        "boi_token": "<|image start|>",
        "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>",
    }
    codes = [f"<|visual token {code:06d}|>" for code in range(_CODES)]
    tok = tokenizer([*names.values(), "<|extra_200|>", *codes], names)
    pictures = hf.Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=48 * 48, spatial_factor=8)
    codebook = {
        "codebook_size": _CODES,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "hidden_size": 32,
        "attn_resolutions": [3],
    }
    config = CONFIG_MAPPING["emu3"](
        text_config={**TEXT, **STOPS, "attention_dropout": 0.0}, vq_config=codebook, vocabulary_map=tok.get_vocab()
    )
    return config, hf.Emu3Processor(image_processor=pictures, tokenizer=tok)


@torch.no_grad()
def _near_codes(model: Any) -> None:
    """Codes as close together as what a picture's places give, or every place of every picture has the same one."""
    pixels = torch.randn(1, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).repeat(1, 4, 1, 1, 1)
    codebook = model.model.vqmodel
    middle = codebook.quant_conv(codebook.encoder(pixels).permute(0, 2, 1, 3, 4)).mean(dim=(0, 2, 3, 4))
    codebook.quantize.embedding.weight.mul_(0.1).add_(middle)


def _janus() -> tuple[Any, Any]:
    """The codes are for pictures that it makes; what it sees goes through a tower."""
    names = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    tok = tokenizer(tuple(names.values()), names)
    pictures = hf.JanusImageProcessor(size={"height": 28, "width": 28}, min_size=14)
    processor = hf.JanusProcessor(image_processor=pictures, tokenizer=tok, num_image_tokens=4)
    tower = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "mlp_ratio": 2.0,
        "projection_dim": 64,
        "num_image_tokens": 4,
    }
    codebook = {
        "embed_dim": 8,
        "num_embeddings": _CODES,
        "latent_channels": 8,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "projection_dim": 64,
        "image_token_embed_dim": 64,
    }
    config = CONFIG_MAPPING["janus"](
        text_config={"model_type": "llama", **TEXT, **STOPS},
        vision_config=tower,
        vq_config=codebook,
        **ids(tok, image_token_id="<image_placeholder>"),
    )
    return config, processor


ENTRIES = (
    Entry("chameleon", builder(_chameleon), lambda n: "<image>" * n + "What is it?"),
    Entry("emu3", builder(_emu3, after=_near_codes), lambda n: "<image>" * n + "What is it?"),
    Entry("janus", builder(_janus), lambda n: "<image_placeholder>" * n + "What is it?"),
)
