"""What the builders of tiny checkpoints share: a tokenizer of bytes, random weights of a useful scale, one folder.

A builder states a configuration and a processor; ``builder`` makes them a function that fills a folder. The weights
are random, but every term takes part: what an initialisation leaves at zero or one (norms, gates, layer scales,
biases, learned queries) gets noise, and matrices are scaled so that attention is far from uniform and logits spread.
"""

import importlib.util
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.every.entry import Entry

BASE = ("<unk>", "<s>", "</s>", "<pad>")
VOCAB = 400
CHATML = ("<|im_start|>", "<|im_end|>")
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

# The sizes of a small decoder; most text configurations take all of these.
TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
# The ids that BASE gives; a configuration's own defaults lie outside a small vocabulary.
STOPS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 32,
}
SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "vision_use_head": False,
}


def tokenizer(
    specials: Sequence[str] = (), extra: Mapping[str, str] | None = None, base: Sequence[str] = BASE
) -> PreTrainedTokenizerFast:
    """One token for each byte, after ``base`` (unknown, begin, end, padding) and ``specials``; no merges."""
    vocab: dict[str, int] = {}
    for token in (*base, *specials, *sorted(pre_tokenizers.ByteLevel.alphabet())):
        vocab.setdefault(token, len(vocab))
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=base[0]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    result = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=base[0],
        bos_token=base[1],
        eos_token=base[2],
        pad_token=base[3],
        extra_special_tokens=dict(extra or {}),
    )
    result.add_tokens([AddedToken(token, special=True) for token in specials], special_tokens=True)
    return result


def ids(tok: PreTrainedTokenizerFast, **tokens: str) -> dict[str, int]:
    """The ids of the named tokens, as configuration keys."""
    return {name: tok.convert_tokens_to_ids(token) for name, token in tokens.items()}


def text(model_type: str, **changes: Any) -> dict[str, Any]:
    """The small text configuration of a kind, as a dictionary with every default written out."""
    written: dict[str, Any] = CONFIG_MAPPING[model_type](**{**TEXT, **STOPS, **changes}).to_dict()
    return written


def needing(package: str, entry: Entry) -> Entry:
    """The entry of a class that transformers itself runs with another package only."""
    if importlib.util.find_spec(package) is not None:
        return entry
    return Entry(entry.model_type, None, why_not=f"transformers runs it with the package {package}, which isn't there.")


def builder(
    parts: Callable[[], tuple[Any, Any]],
    *,
    spread: float = 0.5,
    gain: float = 1.0,
    own_names: bool = False,
) -> Callable[[Path, int], None]:
    """A function that fills a folder with the checkpoint of ``parts``: its (configuration, processor).

    ``spread`` is the standard deviation of the output head's rows, ``gain`` scales all other matrices, and
    ``own_names`` writes the module's names instead of those that published files have.
    """

    def build(folder: Path, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        config, processor = parts()
        model = AutoModelForImageTextToText.from_config(config)
        randomize(model, seed, spread, gain, _used(processor))
        model.save_pretrained(folder, save_original_format=not own_names)
        if not own_names:
            _publish_towers(model, folder / "model.safetensors")
        processor.save_pretrained(folder)

    return build


def _publish_towers(model: nn.Module, path: Path) -> None:
    """Published CLIP and SigLIP towers have a ``vision_model`` in their names, which saving leaves out."""
    kinds = ("CLIPVisionModel", "SiglipVisionModel", "Siglip2VisionModel")
    found = {name.rpartition(".")[2] for name, m in model.named_modules() if type(m).__name__ in kinds}
    if found:
        pattern = re.compile(rf"(^|\.)({'|'.join(sorted(found))})\.(?!vision_model\.)")
        tensors = {pattern.sub(r"\1\2.vision_model.", name): tensor for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})


def _used(processor: Any) -> range:
    """The ids of the printable bytes: what an answer may consist of."""
    tok = getattr(processor, "tokenizer", processor)
    return range(tok.convert_tokens_to_ids("!"), tok.convert_tokens_to_ids("~") + 1)


@torch.no_grad()
def randomize(model: Any, seed: int, spread: float, gain: float, used: range) -> None:
    """Gives every parameter of ``model`` its random values; output rows outside ``used`` become small."""
    generator = torch.Generator().manual_seed(seed)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() < 2 or bool((parameter == parameter.flatten()[0]).all()):
            constant = bool((parameter == parameter.flatten()[0]).all()) if parameter.numel() else True
            parameter.add_(0.1 * noise) if constant else parameter.add_(0.02 * noise)
        elif id(parameter) in tables:
            parameter.copy_(0.5 * noise)
        else:
            parameter.copy_(noise * (gain / math.sqrt(_inputs(name, parameter))))
    named = [m for name, m in model.named_modules() if name.endswith("lm_head")]
    head = model.get_output_embeddings() or (named[0] if named else None)
    if head is not None:
        _set_head(model, head.weight, spread, used, generator)


def _inputs(name: str, parameter: torch.Tensor) -> int:
    """How many inputs each output of a matrix sums over; experts are stacked matrices."""
    if parameter.dim() == 3 and "expert" in name:
        return parameter.shape[-1]
    return max(1, parameter.numel() // parameter.shape[0])


def _set_head(model: nn.Module, weight: torch.Tensor, spread: float, used: range, generator: torch.Generator) -> None:
    """Rows of the answer's bytes spread; all others are zero, or small where the head is the embedding table."""
    tied = any(isinstance(m, nn.Embedding) and m.weight is weight for m in model.modules())
    weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
    scale = torch.full((weight.shape[0], 1), 0.2 if tied else 0.0)
    scale[used.start : used.stop] = 1.0
    weight.mul_(scale)
    if tied:
        _turn_last_norm(model, generator)


def _turn_last_norm(model: Any, generator: torch.Generator) -> None:
    """Half of the last norm's factors turn negative, or a tied head would predict the token it was given."""
    named = model.get_decoder().named_modules()
    weight = [m for name, m in named if "Norm" in type(m).__name__ and "layers." not in name][-1].weight
    factor = weight if weight.mean() > 0.5 else 1 + weight
    sign = torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
    weight.add_(factor * sign - factor)
