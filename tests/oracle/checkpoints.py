"""Tiny random checkpoints, each a folder as a model's authors publish it.

File names, config keys (the old ones included), weight names, token layout and chat templates are those of
llava-hf/llava-1.5-7b-hf, Qwen/Qwen2-VL-2B-Instruct and microsoft/Phi-3.5-vision-instruct, and for text alone those of
Llama, SmolLM2, Mistral, Qwen2.5, Qwen3 and Phi-3. Only the sizes and the
vocabulary are small and the numbers random, so a loader that copes with these folders copes with the real ones.

The random scales are chosen so that greedy decoding is a meaningful test: logits spread (standard deviation 2 to 3),
attention is far from uniform, a different picture changes the answer, and the best token leads the second by far more
than rounding. Rows of the output head that belong to special or unused ids are zero (or tiny where the head is tied),
so greedy decoding never meets a stop token or a picture placeholder.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from . import text_parts

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


# ---------------------------------------------------------------------------------------------------------- pictures


def picture(width: int, height: int, seed: int) -> Image.Image:
    """A smooth coloured pattern with noise: the smooth part survives resizing, the noise shows the resize filter."""
    rng = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[0:height, 0:width]
    x, y = x[..., None] / max(width, height), y[..., None] / max(width, height)
    angles = rng.uniform(0, 2 * np.pi, (2, 3))
    wave = np.cos(9 * x * np.cos(angles[0]) + 9 * y * np.sin(angles[0]) + angles[1])
    pixels = rng.uniform(70, 185, 3) + 60 * wave + rng.normal(0, 18, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Case:
    """One prompt, the (width, height, seed) of its pictures, in order, and its videos (see videos.py)."""

    name: str
    prompt: str
    sizes: tuple[tuple[int, int, int], ...] = ()
    clips: tuple[tuple[int, int, int, int, float | None], ...] = ()

    def images(self) -> list[Image.Image]:
        return [picture(*size) for size in self.sizes]


def _chatml(user: str) -> str:
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    return f"{system}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def _text_cases(turn: str) -> tuple[Case, ...]:
    """A short question, one of several sentences, and text that is no chat."""
    return (
        Case("short", turn.format("What is it?")),
        Case("story", turn.format("Tell me a story about the river and the sea. " * 3 + "How do they differ?")),
        Case("bare", "the day is blue and the river"),
    )


_SEE = "<|vision_start|><|image_pad|><|vision_end|>"

# The pictures of the Qwen2-VL cases: free; enlarged to min_pixels; shrunk to max_pixels; portrait.
# For Qwen2.5-VL's windows of 3x3 merged patches none of them is a whole number of windows.
# Those of Phi: 2x2 crops; 1x2; 2x2 from a portrait; 4x1.
CASES: Mapping[str, tuple[Case, ...]] = {
    "llava": (
        Case("one", "USER: <image>\nWhat is shown in this picture? ASSISTANT:", ((90, 60, 1),)),
        Case(
            "several",
            "USER: <image>\nThis is the first picture. <image>\n<image>\nHow do they differ? ASSISTANT:",
            ((40, 120, 2), (200, 130, 3), (56, 56, 4)),
        ),
        Case("text", "USER: Tell me a story about the river and the sea. ASSISTANT:"),
    ),
    "qwen2_vl": (
        Case("one", _chatml(f"{_SEE}What is shown in this picture?"), ((100, 70, 1),)),
        Case(
            "several",
            _chatml(f"{_SEE}This is the first picture. {_SEE}{_SEE}How do they differ?"),
            ((30, 20, 2), (400, 300, 3), (84, 200, 4)),
        ),
        Case("text", _chatml("Tell me a story about the river and the sea.")),
    ),
    "phi3_v": (
        Case("one", "<|user|>\n<|image_1|>\nWhat is shown in this picture?<|end|>\n<|assistant|>\n", ((300, 200, 1),)),
        Case(
            "several",
            "<|user|>\n<|image_1|>\nThis is the first picture. <|image_2|>\n<|image_3|>\n"
            "How do they differ?<|end|>\n<|assistant|>\n",
            ((320, 140, 2), (160, 220, 3), (60, 250, 4)),
        ),
        Case("text", "<|user|>\nTell me a story about the river and the sea.<|end|>\n<|assistant|>\n"),
    ),
    # Wide and tall, larger than the largest field, tiny, square; margins of an odd number of pixels.
    "llava_next": (
        Case("one", "USER: <image>\nWhat is shown in this picture? ASSISTANT:", ((90, 60, 1),)),
        Case(
            "several",
            "USER: <image>\nThis is the first picture. <image>\n<image>\n<image>\nHow do they differ? ASSISTANT:",
            ((40, 120, 2), (400, 131, 3), (9, 7, 4), (112, 112, 5)),
        ),
        Case("text", "USER: Tell me a story about the river and the sea. ASSISTANT:"),
    ),
    "vipllava": (
        Case("one", "###Human: <image>\nWhat is shown in this picture?###Assistant:", ((90, 60, 1),)),
        Case(
            "several",
            "###Human: <image>\nThis is the first picture. <image>\n<image>\nHow do they differ?###Assistant:",
            ((40, 120, 2), (200, 130, 3), (56, 56, 4)),
        ),
        Case("text", "###Human: Tell me a story about the river and the sea.###Assistant:"),
    ),
    "llama": _text_cases("USER: {} ASSISTANT:"),
    "mistral": _text_cases("USER: {} ASSISTANT:"),
    "phi3": _text_cases("<|user|>\n{}<|end|>\n<|assistant|>\n"),
    "qwen2": _text_cases(_chatml("{}")),
    "qwen3": _text_cases(_chatml("{}")),
    "qwen3_moe": _text_cases(_chatml("{}")),
    "glm": _text_cases("USER: {} ASSISTANT:"),
    "glm4": _text_cases("USER: {} ASSISTANT:"),
}
TEXT_FAMILIES = ("llama", "mistral", "phi3", "qwen2", "qwen3", "qwen3_moe", "glm", "glm4")


CASES = {**CASES, "qwen2_5_vl": CASES["qwen2_vl"]}


# ----------------------------------------------------------------------------------------------------------- tensors

# What seed=0 stands for: of a few hundred draws one where, in every case above, each of 24 greedy tokens leads by
# more than 0.03 and few tokens repeat.
_FIRST_SEED = {
    "llava": 295,
    "llava_next": 92,
    "llava_next-mistral": 95,
    "llava_next-qwen2": 113,
    "vipllava": 17,
    "qwen2_vl": 91,
    "qwen2_5_vl": 1,
    "qwen2_5_vl-nested": 3,
    "phi3_v": 329,
    "llama": 1,
    "mistral": 15,
    "phi3": 10,
    "qwen2": 22,
    "qwen3": 0,
    "qwen3_moe": 6,
    "glm": 16,
    "glm4": 23,
}


class _Tensors:
    """Random tensors by published name, each value exact in the dtype it is stored in."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self.dtype = dtype
        self.by_name: dict[str, torch.Tensor] = {}

    def normal(self, name: str, *shape: int, std: float, mean: float = 0.0) -> torch.Tensor:
        values = torch.from_numpy(self.rng.normal(mean, std, shape)).to(self.dtype)
        self.by_name[name] = values
        return values

    def linear(self, name: str, rows: int, columns: int, *, gain: float = 1.0, bias: bool = False) -> None:
        """Rows of about unit output for inputs of unit variance, times `gain`."""
        self.normal(f"{name}.weight", rows, columns, std=gain / columns**0.5)
        if bias:
            self.normal(f"{name}.bias", rows, std=0.1)

    def norm(self, name: str, width: int, *, bias: bool = False) -> None:
        self.normal(f"{name}.weight", width, std=0.1, mean=1.0)
        if bias:
            self.normal(f"{name}.bias", width, std=0.1)

    def save(self, folder: Path) -> None:
        save_file(self.by_name, folder / "model.safetensors", metadata={"format": "pt"})


def _mute(weight: torch.Tensor, ids: Iterable[int], factor: float) -> None:
    """Scale the rows of ids that greedy decoding must never choose."""
    weight[list(ids)] *= factor


def _clip(t: _Tensors, prefix: str, width: int, mlp: int, layers: int, patches: int) -> None:
    """CLIP's vision transformer; `pre_layrnorm` is the published spelling."""
    t.normal(f"{prefix}.embeddings.class_embedding", width, std=0.5)
    t.normal(f"{prefix}.embeddings.patch_embedding.weight", width, 3, 14, 14, std=(3 * 14 * 14) ** -0.5)
    t.normal(f"{prefix}.embeddings.position_embedding.weight", patches + 1, width, std=0.4)
    t.norm(f"{prefix}.pre_layrnorm", width, bias=True)
    for index in range(layers):
        layer = f"{prefix}.encoder.layers.{index}"
        t.norm(f"{layer}.layer_norm1", width, bias=True)
        for name, gain in (("q_proj", 1.4), ("k_proj", 1.4), ("v_proj", 1.0), ("out_proj", 2.0)):
            t.linear(f"{layer}.self_attn.{name}", width, width, gain=gain, bias=True)
        t.norm(f"{layer}.layer_norm2", width, bias=True)
        t.linear(f"{layer}.mlp.fc1", mlp, width, bias=True)
        t.linear(f"{layer}.mlp.fc2", width, mlp, bias=True)
    t.norm(f"{prefix}.post_layernorm", width, bias=True)


def _split_layer(t: _Tensors, layer: str, *, width: int, mlp: int, kv_width: int, bias: bool) -> None:
    """One decoder layer with separate matrices, as Llama and Qwen2 are published."""
    t.norm(f"{layer}.input_layernorm", width)
    for name, rows, gain in (("q_proj", width, 1.5), ("k_proj", kv_width, 1.5), ("v_proj", kv_width, 1.0)):
        t.linear(f"{layer}.self_attn.{name}", rows, width, gain=gain, bias=bias)
    t.linear(f"{layer}.self_attn.o_proj", width, width, gain=2.0)
    t.norm(f"{layer}.post_attention_layernorm", width)
    t.linear(f"{layer}.mlp.gate_proj", mlp, width, gain=1.5)
    t.linear(f"{layer}.mlp.up_proj", mlp, width, gain=1.5)
    t.linear(f"{layer}.mlp.down_proj", width, mlp, gain=1.0)


def _fused_layer(t: _Tensors, layer: str, *, width: int, mlp: int) -> None:
    """One decoder layer as Phi-3 is published: q, k, v in one matrix, gate and up in another."""
    t.norm(f"{layer}.input_layernorm", width)
    t.linear(f"{layer}.self_attn.qkv_proj", 3 * width, width, gain=2.0)
    t.linear(f"{layer}.self_attn.o_proj", width, width, gain=2.0)
    t.norm(f"{layer}.post_attention_layernorm", width)
    t.linear(f"{layer}.mlp.gate_up_proj", 2 * mlp, width, gain=1.5)
    t.linear(f"{layer}.mlp.down_proj", width, mlp, gain=1.0)


# -------------------------------------------------------------------------------------------------------- tokenizers

_TEXT = (
    "the a is in it me this they what how do differ first picture shown tell story about river and sea you are helpful "
    "assistant USER ASSISTANT on of to one two image red blue green day"
)
_LINE_STARTS = ["system", "user", "assistant", "What", "This", "How", "Tell", "You"]
_PRINTABLE = [chr(code) for code in range(33, 127)]


def _merges(space: str) -> list[tuple[str, str]]:
    """Merges that build each word letter by letter, so that every prefix of it is a token too."""
    merges: dict[tuple[str, str], None] = {}
    for word in [space + word for word in _TEXT.split()] + _LINE_STARTS:
        for end in range(1, len(word)):
            merges[word[:end], word[end]] = None
    return list(merges)


def _special(content: str, *, rstrip: bool = False, special: bool = True) -> AddedToken:
    return AddedToken(content, rstrip=rstrip, normalized=False, special=special)


def _llama_tokenizer(added: Sequence[AddedToken], *, end_rstrip: bool) -> Tokenizer:
    """SentencePiece's BPE as Llama publishes it: control ids, 256 bytes, pieces, characters, then added tokens.

    Every piece of text between special tokens gets a leading "▁", a newline is the byte token 13, and BOS is put in
    front by the post-processor.
    """
    merges = _merges("▁")
    controls = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = [*controls, *("".join(merge) for merge in merges), "▁", *_PRINTABLE]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(content=" ", left=1, right=0)
    fallback = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    tokenizer.decoder = decoders.Sequence(fallback)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    end = _special("</s>", rstrip=end_rstrip, special=not end_rstrip)
    _add(tokenizer, [_special("<unk>"), _special("<s>"), end, *added])
    return tokenizer


_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _qwen_tokenizer(added: Sequence[AddedToken]) -> Tokenizer:
    """Byte-level BPE with Qwen2's splitting pattern; no BOS."""
    merges = _merges("Ġ")
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_QWEN_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    _add(tokenizer, added)
    return tokenizer


def _add(tokenizer: Tokenizer, added: Sequence[AddedToken]) -> None:
    """One by one, because a batch of special and ordinary tokens would not keep its order."""
    for token in added:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])


def _added_tokens_decoder(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """The table of added tokens that tokenizer_config.json repeats."""
    fields = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    table = sorted(tokenizer.get_added_tokens_decoder().items())
    return {str(index): {field: getattr(token, field) for field in fields} for index, token in table}


def _token_map(tokens: Mapping[str, Any]) -> dict[str, Any]:
    """special_tokens_map.json: each named token with its flags."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {name: {"content": token, **flags} if isinstance(token, str) else token for name, token in tokens.items()}


def _write(folder: Path, tokenizer: Tokenizer, files: Mapping[str, dict[str, Any]]) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _id(tokenizer: Tokenizer, token: str) -> int:
    index = tokenizer.token_to_id(token)
    assert index is not None, token
    return int(index)


# ------------------------------------------------------------------------------------------------------------- LLaVA

LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_llava(folder: str | Path, *, seed: int = 0, kv_heads: int = 4) -> Path:
    """LLaVA-1.5: CLIP at 56 pixels (16 tokens a picture) and a Llama of 3 layers.

    The published model has as many kv heads as heads (4 here); `kv_heads=2` makes a grouped variant.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _llama_tokenizer([_special("<image>"), _special("<pad>")], end_rstrip=False)
    config = _llava_config(_id(tokenizer, "<image>"), kv_heads)
    _llava_weights(config, seed).save(folder)
    _write(folder, tokenizer, _llava_files(tokenizer, config))
    (folder / "chat_template.jinja").write_text(LLAVA_TEMPLATE, encoding="utf-8")
    return folder


def _llava_config(image_id: int, kv_heads: int) -> dict[str, Any]:
    """The published keys; the text sizes, which the original leaves to LlamaConfig's defaults, are added."""
    text = {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": image_id + 64,
    }
    vision = {
        "hidden_size": 32,
        "image_size": 56,
        "intermediate_size": 64,
        "model_type": "clip_vision_model",
        "num_attention_heads": 2,
        "num_hidden_layers": 4,
        "patch_size": 14,
        "projection_dim": 32,
        "vocab_size": image_id,
    }
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": image_id,
        "model_type": "llava",
        "pad_token_id": image_id + 1,
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.36.0.dev0",
        "vision_config": vision,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": image_id + 64,
    }


def _llava_weights(config: dict[str, Any], seed: int) -> _Tensors:
    text, vision, image_id = config["text_config"], config["vision_config"], config["image_token_index"]
    width, vocab = text["hidden_size"], text["vocab_size"]
    first = _FIRST_SEED.get(f"{config['model_type']}-{text['model_type']}", _FIRST_SEED[config["model_type"]])
    t = _Tensors(first + seed, torch.float16)
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    sizes = (vision["hidden_size"], vision["intermediate_size"], vision["num_hidden_layers"], patches)
    _clip(t, "vision_tower.vision_model", *sizes)
    joined = vision["hidden_size"] * len(config.get("vision_feature_layers", [-2]))
    if config["model_type"] == "vipllava":
        t.norm("multi_modal_projector.projector_layernorm", joined, bias=True)
    t.linear("multi_modal_projector.linear_1", width, joined, gain=0.8, bias=True)
    t.linear("multi_modal_projector.linear_2", width, width, gain=0.8, bias=True)
    t.normal("language_model.model.embed_tokens.weight", vocab, width, std=1.0)
    kv_width = width // text["num_attention_heads"] * text["num_key_value_heads"]
    for index in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{index}"
        bias = text["model_type"] == "qwen2"
        _split_layer(t, layer, width=width, mlp=text["intermediate_size"], kv_width=kv_width, bias=bias)
    t.norm("language_model.model.norm", width)
    head = t.normal("language_model.lm_head.weight", vocab, width, std=2.2 * width**-0.5)
    _mute(head, [0, 1, 2, *range(image_id, vocab)], 0.0)
    if config["model_type"] == "llava_next":
        t.normal("image_newline", width, std=0.8)
    return t


def _llava_files(tokenizer: Tokenizer, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    size = config["vision_config"]["image_size"]
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return {
        "config.json": config,
        "generation_config.json": {
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": config["pad_token_id"],
            "transformers_version": "4.36.0.dev0",
        },
        "preprocessor_config.json": {
            "crop_size": {"height": size, "width": size},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": CLIP_MEAN,
            "image_processor_type": "CLIPImageProcessor",
            "image_std": CLIP_STD,
            "processor_class": "LlavaProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": size},
        },
        "processor_config.json": {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": 14,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
        "added_tokens.json": {token: _id(tokenizer, token) for token in ("<image>", "<pad>")},
        "special_tokens_map.json": _token_map(tokens),
        "chat_template.json": {"chat_template": LLAVA_TEMPLATE},
        "tokenizer_config.json": {
            "add_bos_token": True,
            "add_eos_token": False,
            "add_prefix_space": None,
            "added_tokens_decoder": _added_tokens_decoder(tokenizer),
            **tokens,
            "clean_up_tokenization_spaces": False,
            "extra_special_tokens": {"image_token": "<image>"},
            "image_token": "<image>",
            "legacy": False,
            "model_max_length": 1000000000000000019884624838656,
            "padding_side": "left",
            "processor_class": "LlavaProcessor",
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
            "trust_remote_code": False,
            "use_default_system_prompt": False,
        },
    }


# --------------------------------------------------------------------------------------------- LLaVA-NeXT, VipLLaVA

PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]  # the published ones, for tiles of 56
# What each backbone's published config says beside the sizes (v1.6-vicuna, v1.6-mistral, and Qwen2's own).
_TEXTS: Mapping[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {
        "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2",
        "architectures": ["MistralForCausalLM"],
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "sliding_window": None,
    },
    "qwen2": {
        "_name_or_path": "Qwen/Qwen2-7B-Instruct",
        "architectures": ["Qwen2ForCausalLM"],
        "max_position_embeddings": 32768,
        "max_window_layers": 3,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "use_sliding_window": False,
    },
}


def build_llava_next(folder: str | Path, *, seed: int = 0, text: str = "llama") -> Path:
    """LLaVA-1.6: LLaVA's parts, up to four tiles a picture and a row that ends each line; its backbones."""
    return _build_kin(folder, "llava_next", seed, _TEXTS[text] | {"model_type": text})


def build_vipllava(folder: str | Path, *, seed: int = 0) -> Path:
    """VipLLaVA: LLaVA's parts and a projector over four layers' outputs, the first one's input among them."""
    return _build_kin(folder, "vipllava", seed, {})


def _build_kin(folder: str | Path, model_type: str, seed: int, text: dict[str, Any]) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _llama_tokenizer([_special("<image>"), _special("<pad>")], end_rstrip=False)
    config = _llava_config(_id(tokenizer, "<image>"), 2) | {"model_type": model_type}
    config["text_config"] |= text
    if model_type == "llava_next":
        config |= {"architectures": ["LlavaNextForConditionalGeneration"], "image_grid_pinpoints": PINPOINTS}
        config["use_image_newline_parameter"] = True
    else:
        del config["vision_feature_layer"], config["vision_feature_select_strategy"]
        config |= {"architectures": ["VipLlavaForConditionalGeneration"], "vision_feature_layers": [-2, -5, -4, 2]}
        config["projector_layernorm_eps"] = 1e-05
    files = _llava_files(tokenizer, config)
    if model_type == "llava_next":
        more = {"image_processor_type": "LlavaNextImageProcessor", "aspect_ratio_setting": "anyres", "do_pad": True}
        files["preprocessor_config.json"] |= more | {"image_grid_pinpoints": PINPOINTS}
        for name in ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json"):
            files[name]["processor_class"] = "LlavaNextProcessor"
    _llava_weights(config, seed).save(folder)
    _write(folder, tokenizer, files)
    (folder / "chat_template.jinja").write_text(LLAVA_TEMPLATE, encoding="utf-8")
    return folder


# ---------------------------------------------------------------------------------------------------------- Qwen2-VL

QWEN_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]

QWEN_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_qwen2_vl(folder: str | Path, *, seed: int = 0, max_pixels: int = 64 * 28 * 28) -> Path:
    """Qwen2-VL: its own vision transformer of 2 layers and a Qwen2 of 3 layers (4 heads, 2 kv heads, tied head)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _qwen_tokenizer([_special(token) for token in QWEN_TOKENS])
    config = _qwen_config(_id(tokenizer, "<|endoftext|>"))
    _qwen_weights(config, seed).save(folder)
    _write(folder, tokenizer, _qwen_files(tokenizer, config, max_pixels))
    return folder


def _qwen_config(first: int) -> dict[str, Any]:
    """The flat published form: text sizes at the top level, and `rope_scaling` with the old type "mrope"."""
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "mlp_ratio": 4,
        "num_heads": 2,
        "in_chans": 3,
        "hidden_size": 64,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    }
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": first,
        "eos_token_id": first + 2,
        "vision_start_token_id": first + 9,
        "vision_end_token_id": first + 10,
        "vision_token_id": first + 11,
        "image_token_id": first + 12,
        "video_token_id": first + 13,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "max_position_embeddings": 32768,
        "max_window_layers": 3,
        "model_type": "qwen2_vl",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": vision,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vocab_size": first + 64,
    }


def _qwen_weights(config: dict[str, Any], seed: int) -> _Tensors:
    width, vocab = config["hidden_size"], config["vocab_size"]
    t = _Tensors(_FIRST_SEED["qwen2_vl"] + seed, torch.bfloat16)
    _qwen_vision(t, config["vision_config"])
    # The head is this matrix too: small embeddings, so that a layer's output and not the token just read decides.
    table = t.normal("model.embed_tokens.weight", vocab, width, std=0.3)
    _mute(table, range(config["bos_token_id"], vocab), 0.1)
    kv_width = width // config["num_attention_heads"] * config["num_key_value_heads"]
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        _split_layer(t, layer, width=width, mlp=config["intermediate_size"], kv_width=kv_width, bias=True)
    t.norm("model.norm", width)
    return t


def _qwen_vision(t: _Tensors, vision: dict[str, Any]) -> None:
    width, patch = vision["embed_dim"], vision["patch_size"]
    mlp, merged = width * vision["mlp_ratio"], width * vision["spatial_merge_size"] ** 2
    std = (3 * 2 * patch * patch) ** -0.5
    t.normal("visual.patch_embed.proj.weight", width, 3, vision["temporal_patch_size"], patch, patch, std=std)
    for index in range(vision["depth"]):
        block = f"visual.blocks.{index}"
        t.norm(f"{block}.norm1", width, bias=True)
        t.linear(f"{block}.attn.qkv", 3 * width, width, gain=1.4, bias=True)
        t.linear(f"{block}.attn.proj", width, width, gain=2.0, bias=True)
        t.norm(f"{block}.norm2", width, bias=True)
        t.linear(f"{block}.mlp.fc1", mlp, width, bias=True)
        t.linear(f"{block}.mlp.fc2", width, mlp, bias=True)
    t.norm("visual.merger.ln_q", width, bias=True)
    t.linear("visual.merger.mlp.0", merged, merged, gain=1.5, bias=True)
    t.linear("visual.merger.mlp.2", vision["hidden_size"], merged, gain=1.5, bias=True)


def _qwen_files(tokenizer: Tokenizer, config: dict[str, Any], max_pixels: int) -> dict[str, dict[str, Any]]:
    first = config["bos_token_id"]
    return {
        "config.json": config,
        "generation_config.json": {
            "bos_token_id": first,
            "pad_token_id": first,
            "do_sample": True,
            "eos_token_id": [first + 2, first],
            "repetition_penalty": 1.0,
            "temperature": 0.01,
            "top_p": 0.001,
            "top_k": 1,
            "transformers_version": "4.37.0",
        },
        "preprocessor_config.json": {
            "min_pixels": 3136,
            "max_pixels": max_pixels,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
        },
        "chat_template.json": {"chat_template": QWEN_TEMPLATE},
        "tokenizer_config.json": {
            "add_prefix_space": False,
            "added_tokens_decoder": _added_tokens_decoder(tokenizer),
            "additional_special_tokens": QWEN_TOKENS[1:],
            "bos_token": None,
            "chat_template": QWEN_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "padding_side": "left",
            "errors": "replace",
            "model_max_length": 32768,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    }


# -------------------------------------------------------------------------------------------------------- Qwen2.5-VL


def build_qwen2_5_vl(folder: str | Path, *, seed: int = 0, nested: int = 0) -> Path:
    """Qwen2.5-VL: a tower of 3 layers, windows in the first and last of them, before the same Qwen2 of 3 layers.

    As published, with a tied head as the 3B has; or `nested`, as transformers 5 saves its own models, with a head of
    its own as the 7B has: text_config, rope_parameters, all processors in one file, names below `model.`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _qwen_tokenizer([_special(token) for token in QWEN_TOKENS])
    config = _qwen25_config(_id(tokenizer, "<|endoftext|>"), tied=not nested)
    tensors = _qwen25_weights(config, _FIRST_SEED["qwen2_5_vl-nested" if nested else "qwen2_5_vl"] + seed)
    files = _qwen_files(tokenizer, config, 64 * 28 * 28)
    files["generation_config.json"]["repetition_penalty"] = 1.05
    files["generation_config.json"]["temperature"] = 0.000001
    files["preprocessor_config.json"]["processor_class"] = "Qwen2_5_VLProcessor"
    if nested:
        files = _as_saved_anew(files)
        prefixes = {"model": "model.language_model", "visual": "model.visual", "lm_head": "lm_head"}
        parts = ((name.partition("."), values) for name, values in tensors.by_name.items())
        tensors.by_name = {f"{prefixes[first]}.{rest}": values for (first, _, rest), values in parts}
    tensors.save(folder)
    _write(folder, tokenizer, files)
    return folder


def _qwen25_config(first: int, *, tied: bool) -> dict[str, Any]:
    """The flat published form; its `vision_config` names other sizes than Qwen2-VL's."""
    vision = {
        "depth": 3,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_heads": 2,
        "in_chans": 3,
        "out_hidden_size": 64,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 84,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    }
    own = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "max_position_embeddings": 128000,
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": tied,
        "vision_config": vision,
    }
    return {**_qwen_config(first), **own}


def _as_saved_anew(files: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """config.json and the processors' file in transformers 5's own layout."""
    old = dict(files["config.json"])
    scaling, theta = old.pop("rope_scaling"), old.pop("rope_theta")
    vision = {**old.pop("vision_config"), "model_type": "qwen2_5_vl_vision", "in_channels": 3}
    vision["rope_parameters"] = {"rope_type": "axial", "rope_theta": 10000.0}
    outer = {key: old.pop(key) for key in ("architectures", "model_type", "tie_word_embeddings", "torch_dtype")}
    outer |= {key: old.pop(key) for key in list(old) if key.endswith("_token_id") and "vision_token" not in key}
    text = {
        **old,
        "bos_token_id": outer.pop("bos_token_id"),
        "eos_token_id": outer.pop("eos_token_id"),
        "model_type": "qwen2_5_vl_text",
        "layer_types": ["full_attention"] * old["num_hidden_layers"],
        "rope_parameters": {**scaling, "rope_type": "default", "type": "default", "rope_theta": theta},
        "sliding_window": None,
    }
    images = dict(files["preprocessor_config.json"])
    size = {"shortest_edge": images.pop("min_pixels"), "longest_edge": images.pop("max_pixels")}
    flags = dict.fromkeys(("do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), True)
    images |= {"size": size, **flags, "resample": 3, "rescale_factor": 1 / 255}
    images["image_processor_type"] = "Qwen2VLImageProcessorFast"
    dtype = {"dtype": outer.pop("torch_dtype")}
    processor = {"image_processor": images, "processor_class": images.pop("processor_class")}
    others = {name: content for name, content in files.items() if name != "preprocessor_config.json"}
    config = {**outer, **dtype, "text_config": {**text, **dtype}, "vision_config": {**vision, **dtype}}
    return {**others, "config.json": config, "processor_config.json": processor}


def _qwen25_weights(config: dict[str, Any], seed: int) -> _Tensors:
    """Published names, in whichever layout the config is."""
    width, vocab, first = config["hidden_size"], config["vocab_size"], config["bos_token_id"]
    t = _Tensors(seed, torch.bfloat16)
    _qwen25_vision(t, config["vision_config"])
    tied = config["tie_word_embeddings"]
    table = t.normal("model.embed_tokens.weight", vocab, width, std=0.3 if tied else 1.0)
    _mute(table, range(first, vocab), 0.1 if tied else 1.0)
    kv_width = width // config["num_attention_heads"] * config["num_key_value_heads"]
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        _split_layer(t, layer, width=width, mlp=config["intermediate_size"], kv_width=kv_width, bias=True)
    t.norm("model.norm", width)
    if not tied:
        head = t.normal("lm_head.weight", vocab, width, std=2.2 * width**-0.5)
        _mute(head, range(first, vocab), 0.0)
    return t


def _qwen25_vision(t: _Tensors, vision: dict[str, Any]) -> None:
    width, patch, mlp = vision["hidden_size"], vision["patch_size"], vision["intermediate_size"]
    std = (3 * 2 * patch * patch) ** -0.5
    t.normal("visual.patch_embed.proj.weight", width, 3, vision["temporal_patch_size"], patch, patch, std=std)
    for index in range(vision["depth"]):
        block = f"visual.blocks.{index}"
        t.norm(f"{block}.norm1", width)
        t.linear(f"{block}.attn.qkv", 3 * width, width, gain=1.4, bias=True)
        t.linear(f"{block}.attn.proj", width, width, gain=2.0, bias=True)
        t.norm(f"{block}.norm2", width)
        t.linear(f"{block}.mlp.gate_proj", mlp, width, gain=1.5, bias=True)
        t.linear(f"{block}.mlp.up_proj", mlp, width, gain=1.5, bias=True)
        t.linear(f"{block}.mlp.down_proj", width, mlp, bias=True)
    merged = width * vision["spatial_merge_size"] ** 2
    t.norm("visual.merger.ln_q", width)
    t.linear("visual.merger.mlp.0", merged, merged, gain=1.5, bias=True)
    t.linear("visual.merger.mlp.2", vision["out_hidden_size"], merged, gain=1.5, bias=True)


# ---------------------------------------------------------------------------------------------------- Phi-3.5-vision

PHI_TEMPLATE = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}"
    "{{- '<|assistant|>\n' -}}{% endif %}"
)

# Phi-3.5-vision's own factors (Phi-3-vision's differ), without the float noise of the file.
PHI_SHORT_FACTOR = [
    *(1.08, 1.1, 1.13, 1.28, 1.31, 1.45, 1.45, 1.95, 2.03, 2.43, 2.57, 2.95, 3.73, 3.87, 4.19, 4.44),
    *(4.64, 4.98, 5.16, 5.28, 5.76, 5.89, 5.89, 5.97, 6.09, 6.28, 6.77, 6.89, 7.11, 7.13, 7.18, 7.29),
    *(7.34, 7.56, 7.62, 7.7, 7.88, 7.88, 7.88, 7.94, 7.95, 7.98, 8.2, 8.44, 8.47, 8.59, 8.81, 9.0),
]
PHI_LONG_FACTOR = [
    *(1.08, 1.11, 1.14, 1.34, 1.59, 1.6, 1.62, 2.62, 3.23, 3.23, 4.79, 7.4, 7.7, 9.09, 12.2, 17.67),
    *(24.46, 28.57, 30.42, 30.84, 32.59, 32.93, 42.32, 44.96, 50.34, 50.45, 57.55, 57.93, 58.21, 60.14, 62.61, 62.62),
    *(62.71, 63.14, 63.14, 63.77, 63.93, 63.96, 63.97, 64.03, 64.07, 64.08, 64.12, 64.41, 64.48, 64.51, 64.53, 64.84),
]


def build_phi3_v(
    folder: str | Path, *, seed: int = 0, max_position: int = 131072, original_max_position: int = 4096
) -> Path:
    """Phi-3.5-vision: a CLIP 64 wide at the published 336 pixels and a Phi-3 of 3 layers with heads of 96.

    From a total length of `original_max_position` + 1 on, the long rope factors hold; a small value makes it cheap
    to test the switch.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _llama_tokenizer(_phi_tokens(), end_rstrip=True)
    config = _phi_config(_id(tokenizer, "<|endoftext|>"), max_position, original_max_position)
    _phi_weights(config, seed).save(folder)
    _write(folder, tokenizer, _phi_files(tokenizer, config))
    return folder


def _phi_tokens() -> list[AddedToken]:
    """The 45 added tokens at their published distances from <|endoftext|>; most eat the white space after them."""
    named = {0: "<|endoftext|>", 1: "<|assistant|>", 6: "<|system|>", 7: "<|end|>", 10: "<|user|>", 44: "<|image|>"}
    free = (f"<|placeholder{number}|>" for number in range(1, 40))
    return [_special(named.get(index) or next(free), rstrip=index not in (0, 6, 7, 10)) for index in range(45)]


def _phi_config(first: int, max_position: int, original: int) -> dict[str, Any]:
    """The published keys, plus two optional ones in `img_processor`: the published code fixes those CLIP sizes."""
    return {
        "_name_or_path": "Phi-3.5-vision-instruct",
        "architectures": ["Phi3VForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_phi3_v.Phi3VConfig",
            "AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM",
        },
        "bos_token_id": 1,
        "embd_layer": {
            "embedding_cls": "image",
            "hd_transform_order": "sub_glb",
            "projection_cls": "mlp",
            "use_hd_transform": True,
            "with_learnable_separator": True,
        },
        "embd_pdrop": 0.0,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 192,
        "img_processor": {
            "image_dim_out": 64,
            "model_name": "openai/clip-vit-large-patch14-336",
            "name": "clip_vision_model",
            "num_img_tokens": 144,
            "num_hidden_layers": 3,
            "intermediate_size": 64,
        },
        "initializer_range": 0.02,
        "intermediate_size": 256,
        "max_position_embeddings": max_position,
        "model_type": "phi3_v",
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "original_max_position_embeddings": original,
        "pad_token_id": first,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"long_factor": PHI_LONG_FACTOR, "short_factor": PHI_SHORT_FACTOR, "type": "su"},
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.38.1",
        "use_cache": True,
        "vocab_size": first + 64,
        "_attn_implementation": "flash_attention_2",
    }


def _phi_weights(config: dict[str, Any], seed: int) -> _Tensors:
    width, vocab, clip = config["hidden_size"], config["vocab_size"], config["img_processor"]
    t = _Tensors(_FIRST_SEED["phi3_v"] + seed, torch.bfloat16)
    vision, merged = "model.vision_embed_tokens", 4 * clip["image_dim_out"]
    sizes = (clip["image_dim_out"], clip["intermediate_size"], clip["num_hidden_layers"], 24 * 24)
    _clip(t, f"{vision}.img_processor.vision_model", *sizes)
    t.normal(f"{vision}.glb_GN", 1, 1, merged, std=0.8)
    t.normal(f"{vision}.sub_GN", 1, 1, 1, merged, std=0.8)
    t.linear(f"{vision}.img_projection.0", width, merged, gain=0.8, bias=True)
    t.linear(f"{vision}.img_projection.2", width, width, gain=0.8, bias=True)
    t.normal("model.embed_tokens.weight", vocab, width, std=1.0)
    for index in range(config["num_hidden_layers"]):
        _fused_layer(t, f"model.layers.{index}", width=width, mlp=config["intermediate_size"])
    t.norm("model.norm", width)
    head = t.normal("lm_head.weight", vocab, width, std=2.2 * width**-0.5)
    _mute(head, [0, 1, 2, *range(config["pad_token_id"], vocab)], 0.0)
    return t


def _phi_files(tokenizer: Tokenizer, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    processor = {"AutoProcessor": "processing_phi3_v.Phi3VProcessor"}
    tokens: dict[str, Any] = {
        "additional_special_tokens": ["<|system|>", "<|end|>", "<|user|>", "<|end|>"],
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
    }
    return {
        "config.json": config,
        "generation_config.json": {
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": config["pad_token_id"],
            "transformers_version": "4.38.1",
        },
        "preprocessor_config.json": {
            "auto_map": {"AutoImageProcessor": "processing_phi3_v.Phi3VImageProcessor", **processor},
            "do_convert_rgb": True,
            "image_mean": CLIP_MEAN,
            "image_processor_type": "Phi3VImageProcessor",
            "image_std": CLIP_STD,
            "num_crops": 4,
            "num_img_tokens": 144,
            "processor_class": "Phi3VProcessor",
        },
        "processor_config.json": {"auto_map": processor, "processor_class": "Phi3VProcessor"},
        "special_tokens_map.json": _token_map(tokens),
        "tokenizer_config.json": {
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": _added_tokens_decoder(tokenizer),
            **tokens,
            "auto_map": processor,
            "chat_template": PHI_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "legacy": False,
            "model_max_length": config["max_position_embeddings"],
            "padding_side": "right",
            "processor_class": "Phi3VProcessor",
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
            "use_default_system_prompt": False,
        },
    }


# --------------------------------------------------------------------------------------------------------- text alone

_TEXT_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
}
_TEXT_COMMON = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0",
    "use_cache": True,
}
# The keys of Llama-3.1-8B, Mistral-7B-v0.3, Phi-3.5-mini, Qwen2.5-0.5B and Qwen3-0.6B that are more than sizes.
_TEXT_CONFIGS: Mapping[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "head_dim": 24,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "embd_pdrop": 0.0,
        "hidden_size": 192,
        "intermediate_size": 256,
        "max_position_embeddings": 131072,
        "model_type": "phi3",
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "original_max_position_embeddings": 4096,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"long_factor": PHI_LONG_FACTOR, "short_factor": PHI_SHORT_FACTOR, "type": "longrope"},
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": False,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "model_type": "qwen2",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 32,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "model_type": "qwen3",
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
}
_QWEN3_MOE = {**_TEXT_CONFIGS["qwen3"], **text_parts.QWEN3_MOE}
_TEXT_CONFIGS = {**_TEXT_CONFIGS, **text_parts.GLM, "qwen3_moe": _QWEN3_MOE}
_TEXT_TEMPLATES = {
    "llama": "{% for message in messages %}{{ message['role'].upper() + ': ' + message['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    "phi3": PHI_TEMPLATE,
    "qwen2": QWEN_TEMPLATE,
}
_TEXT_TEMPLATES |= {"mistral": _TEXT_TEMPLATES["llama"], "qwen3": QWEN_TEMPLATE, "qwen3_moe": QWEN_TEMPLATE}
_TEXT_TEMPLATES |= {"glm": _TEXT_TEMPLATES["llama"], "glm4": _TEXT_TEMPLATES["llama"]}


def build_text(folder: str | Path, family: str, *, seed: int = 0, **changes: Any) -> Path:
    """A decoder of 3 layers of one of TEXT_FAMILIES; `changes` are other values, or other keys, of config.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if family.startswith("qwen"):
        tokenizer = _qwen_tokenizer([_special(token) for token in QWEN_TOKENS])
        first, ends = _id(tokenizer, "<|endoftext|>"), [_id(tokenizer, "<|im_end|>")]
    else:
        added = _phi_tokens() if family == "phi3" else [_special("<pad>")]
        tokenizer = _llama_tokenizer(added, end_rstrip=family == "phi3")
        first = _id(tokenizer, "<|endoftext|>" if family == "phi3" else "<pad>")
        ends = [2, *([_id(tokenizer, "<|end|>")] if family == "phi3" else [])]
    ids = {"bos_token_id": 1, "eos_token_id": ends[0], "pad_token_id": first, "vocab_size": first + 64}
    config = {**_TEXT_COMMON, **_TEXT_SIZES, **ids, **_TEXT_CONFIGS[family], **changes}
    _text_weights(config, first, seed).save(folder)
    _write(folder, tokenizer, _text_files(tokenizer, config, ends))
    return folder


def _text_weights(config: dict[str, Any], first: int, seed: int) -> _Tensors:
    width, vocab, fused = config["hidden_size"], config["vocab_size"], config["model_type"] == "phi3"
    t = _Tensors(_FIRST_SEED[config["model_type"]] + seed, torch.bfloat16)
    never = [*([] if config["model_type"].startswith("qwen") else [0, 1, 2]), *range(first, vocab)]
    tied = config["tie_word_embeddings"]
    table = t.normal("model.embed_tokens.weight", vocab, width, std=0.3 if tied else 1.0)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        _text_attention(t, layer, config, fused=fused)
        if text_parts.has_experts(config, index):
            text_parts.separate_experts(t, f"{layer}.mlp", config, config["num_experts"])
        else:
            _text_mlp(t, f"{layer}.mlp", config, fused=fused or config["model_type"] in text_parts.GLM)
    t.norm("model.norm", width)
    if tied:
        _mute(table, never, 0.1)
    else:
        _mute(t.normal("lm_head.weight", vocab, width, std=2.2 * width**-0.5), never, 0.0)
    return t


def _text_attention(t: _Tensors, layer: str, config: dict[str, Any], *, fused: bool) -> None:
    width, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    is_glm = config["model_type"] in text_parts.GLM
    out_bias = config.get("attention_bias", False) and not is_glm
    bias = out_bias or config["model_type"] == "qwen2" or (is_glm and config["attention_bias"])
    q_width, kv_width = heads * head, config["num_key_value_heads"] * head
    t.norm(f"{layer}.input_layernorm", width)
    if fused:
        t.linear(f"{layer}.self_attn.qkv_proj", q_width + 2 * kv_width, width, gain=2.0)
    else:
        for name, rows, gain in (("q_proj", q_width, 1.5), ("k_proj", kv_width, 1.5), ("v_proj", kv_width, 1.0)):
            t.linear(f"{layer}.self_attn.{name}", rows, width, gain=gain, bias=bias)
    if config["model_type"].startswith("qwen3"):
        for name in ("q_norm", "k_norm"):
            t.normal(f"{layer}.self_attn.{name}.weight", head, std=0.3, mean=1.5)
    t.linear(f"{layer}.self_attn.o_proj", width, q_width, gain=2.0, bias=out_bias)
    t.norm(f"{layer}.post_attention_layernorm", width)
    if config["model_type"] == "glm4":
        for name in ("post_self_attn_layernorm", "post_mlp_layernorm"):
            t.norm(f"{layer}.{name}", width)


def _text_mlp(t: _Tensors, mlp: str, config: dict[str, Any], *, fused: bool) -> None:
    width, inner = config["hidden_size"], config["intermediate_size"]
    if fused:
        t.linear(f"{mlp}.gate_up_proj", 2 * inner, width, gain=1.5)
    else:
        t.linear(f"{mlp}.gate_proj", inner, width, gain=1.5)
        t.linear(f"{mlp}.up_proj", inner, width, gain=1.5)
    t.linear(f"{mlp}.down_proj", width, inner, gain=1.0)


def _text_files(tokenizer: Tokenizer, config: dict[str, Any], ends: list[int]) -> dict[str, dict[str, Any]]:
    family = config["model_type"]
    qwen = family.startswith("qwen")
    tokens: dict[str, Any] = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    if not qwen:
        pad = "<|endoftext|>" if family == "phi3" else "<pad>"
        tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": pad, "unk_token": "<unk>"}
    return {
        "config.json": config,
        "generation_config.json": {
            "bos_token_id": config["bos_token_id"],
            "eos_token_id": ends,
            "pad_token_id": config["pad_token_id"],
            "transformers_version": "4.43.0",
        },
        "tokenizer_config.json": {
            "added_tokens_decoder": _added_tokens_decoder(tokenizer),
            **tokens,
            "chat_template": _TEXT_TEMPLATES[family],
            "clean_up_tokenization_spaces": False,
            "model_max_length": config["max_position_embeddings"],
            "tokenizer_class": "Qwen2Tokenizer" if qwen else "LlamaTokenizer",
        },
    }


BUILDERS: Mapping[str, Callable[..., Path]] = {
    "llava": build_llava,
    "llava_next": build_llava_next,
    "vipllava": build_vipllava,
    "qwen2_vl": build_qwen2_vl,
    "qwen2_5_vl": build_qwen2_5_vl,
    "phi3_v": build_phi3_v,
    **{family: partial(build_text, family=family) for family in TEXT_FAMILIES},
}

from . import gemma, gemma_vl, glm, idefics3, llava_kin, qwen3vl, spans  # noqa: E402 - they build on all of this

_MORE = (gemma, gemma_vl, glm, idefics3, llava_kin, qwen3vl, spans)
CASES = {**CASES, **{name: cases for module in _MORE for name, cases in module.CASES.items()}}
BUILDERS = {**BUILDERS, **{name: build for module in _MORE for name, build in module.BUILDERS.items()}}
