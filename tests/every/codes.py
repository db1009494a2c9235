"""Models that turn a picture into tokens of their own vocabulary, or could."""

from typing import Any

import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.every.entry import Entry
from tests.every.making import STOPS, TEXT, builder, tokenizer

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


ENTRIES = (Entry("chameleon", builder(_chameleon), lambda n: "<image>" * n + "What is it?"),)
