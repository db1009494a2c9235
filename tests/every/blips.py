"""BLIP and its kind: learned queries, or cross-attention, between a tower and an older decoder."""

from typing import Any

import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.every.entry import Entry
from tests.every.making import STOPS, VOCAB, builder, ids, tokenizer

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_TOWER = _SMALL | {"image_size": 28, "patch_size": 14}
_QFORMER = _SMALL | {"vocab_size": VOCAB, "max_position_embeddings": 128, "cross_attention_frequency": 2}
_OPT: dict[str, Any] = STOPS | {
    "model_type": "opt",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "ffn_dim": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "dropout": 0.0,
}


def _pictures() -> Any:
    return hf.BlipImageProcessor(size={"height": 28, "width": 28})


def _blip() -> tuple[Any, Any]:
    """Generation drops the prompt's last token (published tokenizers put a separator there) and begins with bos."""
    tok = tokenizer()
    written = _SMALL | STOPS | {"vocab_size": VOCAB, "max_position_embeddings": 128, "sep_token_id": 2}
    config = CONFIG_MAPPING["blip"](text_config=written, vision_config=_TOWER, image_text_hidden_size=16)
    return config, hf.BlipProcessor(image_processor=_pictures(), tokenizer=tok)


def _blip_2() -> tuple[Any, Any]:
    """The processor puts the picture's tokens in front of the text, before its bos, without any placeholder."""
    tok = tokenizer(["<image>"])
    config = CONFIG_MAPPING["blip-2"](
        text_config=_OPT,
        vision_config=_TOWER,
        qformer_config=_QFORMER,
        num_query_tokens=4,
        image_text_hidden_size=16,
        **ids(tok, image_token_index="<image>"),
    )
    return config, hf.Blip2Processor(image_processor=_pictures(), tokenizer=tok, num_query_tokens=4)


def _instructblip() -> tuple[Any, Any]:
    """The question also goes to the learned queries, encoded by a second tokenizer in its own folder."""
    tok = tokenizer(["<image>"])
    config = CONFIG_MAPPING["instructblip"](
        text_config=_OPT,
        vision_config=_TOWER,
        qformer_config=_QFORMER,
        num_query_tokens=4,
        **ids(tok, image_token_index="<image>"),
    )
    processor = hf.InstructBlipProcessor(
        image_processor=_pictures(), tokenizer=tok, qformer_tokenizer=tokenizer(), num_query_tokens=4
    )
    return config, processor


def _git() -> tuple[Any, Any]:
    """The picture's rows stand before the text, without places in the ids."""
    config = CONFIG_MAPPING["git"](
        vision_config=_TOWER, **_SMALL | STOPS | {"vocab_size": VOCAB, "max_position_embeddings": 128}
    )
    pictures = hf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return config, hf.GitProcessor(image_processor=pictures, tokenizer=tokenizer())


_KOSMOS: dict[str, Any] = STOPS | {
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "embed_dim": 64,
    "layers": 3,
    "ffn_dim": 96,
    "attention_heads": 4,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


def _kosmos_2() -> tuple[Any, Any]:
    """A picture has 64 places, whose ids count up from the one behind the unknown token."""
    tok = tokenizer()
    pictures = hf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = hf.Kosmos2Processor(image_processor=pictures, tokenizer=tok, num_patch_index_tokens=4)
    config = CONFIG_MAPPING["kosmos-2"](text_config=_KOSMOS, vision_config=_TOWER, latent_query_num=64)
    return config, processor


def _kosmos_2_5() -> tuple[Any, Any]:
    """The processor pads a picture's patches to 4096 and puts its places before the text, bos included."""
    names = {"image_token": "<s_img>", "boi_token": "<img>", "eoi_token": "</img>"}
    tok = tokenizer(tuple(names.values()), names)
    pictures = hf.Kosmos2_5ImageProcessor(patch_size={"height": 8, "width": 8})
    processor = hf.Kosmos2_5Processor(image_processor=pictures, tokenizer=tok, num_image_tokens=8)
    tower = _SMALL | {"head_dim": 16, "patch_embed_hidden_size": 8 * 8 * 3, "max_num_patches": 4096}
    config = CONFIG_MAPPING["kosmos-2.5"](text_config=_KOSMOS, vision_config=tower, latent_query_num=8)
    return config, processor


def _question(count: int) -> str:
    return "Question: what is it? Answer:"


ENTRIES = (
    Entry("blip", builder(_blip), lambda n: "a picture of", most_pictures=1, takes_text_only=False),
    Entry("blip-2", builder(_blip_2), _question, most_pictures=1, takes_text_only=False),
    Entry("git", builder(_git), lambda n: "what is it?", most_pictures=1),
    Entry("instructblip", builder(_instructblip), _question, most_pictures=1, takes_text_only=False),
    Entry(
        "instructblipvideo",
        None,
        why_not="It answers about videos of four frames; its processor gives a single picture tokens for four.",
    ),
    Entry("kosmos-2", builder(_kosmos_2), lambda n: "What is it?", most_pictures=1, takes_text_only=False),
    Entry("kosmos-2.5", builder(_kosmos_2_5), lambda n: "What is it?", most_pictures=1, takes_text_only=False),
)
