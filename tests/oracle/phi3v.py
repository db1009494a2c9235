"""What Phi-3.5-vision answers, from transformers' Phi-3 and CLIP and a little glue.

transformers has no `phi3_v`: the published model brings its own code. This follows that code's behaviour (crops,
token layout, separators, one BOS for each piece of text, rope factors by total length) and was checked against what
the published code itself answers.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import CLIPVisionConfig, CLIPVisionModel, DynamicCache, Phi3Config, Phi3ForCausalLM

from .reference import Floats, Reference, best

SIDE = 336  # pixels of a crop
GRID = 12  # tokens along one side of a crop
VISION = "model.vision_embed_tokens."
IMAGE_TAG = re.compile(r"<\|image_\d+\|>")


@dataclass(frozen=True)
class Phi3V:
    """A loaded checkpoint folder."""

    tokenizer: Tokenizer
    image_id: int
    num_crops: int
    mean: torch.Tensor
    std: torch.Tensor
    clip: Any
    decoder: Any
    vision: dict[str, torch.Tensor]  # separators and projection, by name below VISION
    switch: int  # longest total length with short factors


def reference(
    folder: str | Path, prompt: str, images: Sequence[Image.Image] = (), *, max_new_tokens: int = 24
) -> Reference:
    """Ids, logits and greedy continuation; the picture positions hold the id of `<|image|>`."""
    model = load(folder)
    with torch.no_grad():
        features = [_features(model, image) for image in images]
        token_ids = _token_ids(model, prompt, [len(rows) for rows in features])
        embeds = _embeds(model, token_ids, features)
        prompt_logits, steps = _decode(model, embeds, max_new_tokens)
    return Reference(token_ids, prompt_logits.numpy(), [token for token, _ in steps], [lead for _, lead in steps])


def image_features(folder: str | Path, images: Sequence[Image.Image]) -> list[Floats]:
    """The projected embeddings of each picture, separators included, shape (tokens, hidden)."""
    model = load(folder)
    with torch.no_grad():
        return [_features(model, image).numpy() for image in images]


def pixels(folder: str | Path, images: Sequence[Image.Image]) -> dict[str, npt.NDArray[Any]]:
    """`pixel_values` (pictures, num_crops + 1, 3, 336, 336), the whole view first and zeros behind; `image_sizes`."""
    model = load(folder)
    values = np.zeros((len(images), model.num_crops + 1, 3, SIDE, SIDE), dtype=np.float32)
    sizes = np.zeros((len(images), 2), dtype=np.int64)
    for index, image in enumerate(images):
        crops, (rows, columns) = _crops(model, image)
        values[index, : len(crops)] = crops.numpy()
        sizes[index] = rows * SIDE, columns * SIDE
    return {"pixel_values": values, "image_sizes": sizes}


# ---------------------------------------------------------------------------------------------------------- loading


def load(folder: str | Path) -> Phi3V:
    """The model of a folder, kept until its weights are written anew."""
    folder = Path(folder).resolve()
    return _load(folder, (folder / "model.safetensors").stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _load(folder: Path, _written: int) -> Phi3V:
    config, pictures = (_json(folder / name) for name in ("config.json", "preprocessor_config.json"))
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    vision = {name.removeprefix(VISION): weights.pop(name) for name in list(weights) if name.startswith(VISION)}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    image_id = tokenizer.token_to_id("<|image|>")
    assert image_id is not None
    return Phi3V(
        tokenizer=tokenizer,
        image_id=image_id,
        num_crops=pictures["num_crops"],
        mean=torch.tensor(pictures["image_mean"]).view(3, 1, 1),
        std=torch.tensor(pictures["image_std"]).view(3, 1, 1),
        clip=_clip(config["img_processor"], vision),
        decoder=_decoder(config, weights),
        vision=vision,
        switch=config["original_max_position_embeddings"],
    )


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _clip(sizes: dict[str, Any], vision: dict[str, torch.Tensor]) -> Any:
    """CLIP ViT-L/14-336, which the published code fixes as a constant; depth and widths may be overridden."""
    width = sizes["image_dim_out"]
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=sizes.get("intermediate_size", 4096),
        num_hidden_layers=sizes.get("num_hidden_layers", 24),
        num_attention_heads=width // 64,
        image_size=SIDE,
        patch_size=14,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    )
    config._attn_implementation = "sdpa"
    clip: Any = CLIPVisionModel(config).eval()
    prefix = "img_processor.vision_model."
    weights = {name.removeprefix(prefix): vision.pop(name) for name in list(vision) if name.startswith(prefix)}
    getattr(clip, "vision_model", clip).load_state_dict(weights)
    return clip


_NOT_PHI3 = ("architectures", "auto_map", "model_type", "embd_layer", "img_processor", "_attn_implementation")


def _decoder(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Any:
    """Phi-3 is the published decoder: same tensor names, and its "longrope" is what the file calls "su".

    The rope settings are renamed here, because Phi3Config's own renaming runs after the step that fills in
    `original_max_position_embeddings`, and its validation then misses that key.
    """
    config = {key: value for key, value in config.items() if key not in _NOT_PHI3}
    scaling = config.pop("rope_scaling")
    assert scaling.pop("type") in ("su", "longrope")
    rope = {
        "rope_type": "longrope",
        "rope_theta": config.pop("rope_theta"),
        "original_max_position_embeddings": config["original_max_position_embeddings"],
        **scaling,
    }
    phi3 = Phi3Config(**config, rope_parameters=rope)
    phi3._attn_implementation = "sdpa"
    decoder: Any = Phi3ForCausalLM(phi3).float().eval()
    decoder.load_state_dict(weights)
    return decoder


# --------------------------------------------------------------------------------------------------------- pictures


def _grid(width: int, height: int, num_crops: int) -> tuple[int, int]:
    """(width, height) in pixels to resize a landscape picture to: the widest row of crops that the budget allows."""
    ratio = width / height
    columns = 1
    while columns * math.ceil(columns / ratio) <= num_crops:
        columns += 1
    columns -= 1
    return columns * SIDE, int(columns * SIDE / ratio)


def _padded(image: Image.Image, num_crops: int) -> Image.Image:
    """Resized (bilinear) and padded with white to whole crops. Portrait pictures are turned, treated, turned back."""
    image = image.convert("RGB")
    if image.width < image.height:
        turned = _padded(image.transpose(Image.Transpose.TRANSPOSE), num_crops)
        return turned.transpose(Image.Transpose.TRANSPOSE)
    image = image.resize(_grid(image.width, image.height, num_crops), Image.Resampling.BILINEAR)
    missing = math.ceil(image.height / SIDE) * SIDE - image.height
    return ImageOps.expand(image, (0, missing // 2, 0, missing - missing // 2), fill=(255, 255, 255))


def _crops(model: Phi3V, image: Image.Image) -> tuple[torch.Tensor, tuple[int, int]]:
    """The whole view and then the crops row by row, each (3, 336, 336), and how many (rows, columns) of crops."""
    padded = torch.from_numpy(np.array(_padded(image, model.num_crops))).permute(2, 0, 1)
    whole = (padded.float() / 255 - model.mean) / model.std
    rows, columns = whole.shape[1] // SIDE, whole.shape[2] // SIDE
    # The whole view is made from the padded and normalised picture, without antialiasing.
    view = F.interpolate(whole[None], size=(SIDE, SIDE), mode="bicubic")
    parts = whole.reshape(3, rows, SIDE, columns, SIDE).permute(1, 3, 0, 2, 4).reshape(-1, 3, SIDE, SIDE)
    return torch.cat([view, parts]), (rows, columns)


def _features(model: Phi3V, image: Image.Image) -> torch.Tensor:
    """Order "sub_glb": crops as one picture, `glb_GN`, whole view; `sub_GN` ends every row; then the projection."""
    crops, (rows, columns) = _crops(model, image)
    hidden = model.clip(crops, output_hidden_states=True).hidden_states[-2][:, 1:]
    merged = _merge(hidden)
    crop_rows = merged[1:].reshape(rows, columns, GRID, GRID, -1).transpose(1, 2)
    crop_rows = crop_rows.reshape(rows * GRID, columns * GRID, -1)
    separator = model.vision["glb_GN"].reshape(1, -1)
    tokens = torch.cat([_end_rows(model, crop_rows), separator, _end_rows(model, merged[0])])
    for name, activation in (("img_projection.0", F.gelu), ("img_projection.2", None)):
        tokens = F.linear(tokens, model.vision[f"{name}.weight"], model.vision[f"{name}.bias"])
        tokens = activation(tokens) if activation else tokens
    return tokens


def _merge(hidden: torch.Tensor) -> torch.Tensor:
    """(crops, 576, width) to (crops, 12, 12, 4 * width): each token is four neighbouring patches side by side."""
    blocks = hidden.reshape(len(hidden), GRID, 2, GRID, 2, -1).transpose(2, 3)
    return blocks.reshape(len(hidden), GRID, GRID, -1)


def _end_rows(model: Phi3V, picture: torch.Tensor) -> torch.Tensor:
    """(rows, columns, width) to tokens, with the learned separator at the end of each row."""
    end = model.vision["sub_GN"].reshape(1, 1, -1).expand(len(picture), 1, -1)
    return torch.cat([picture, end], dim=1).flatten(0, 1)


# ------------------------------------------------------------------------------------------------------------- text


def _token_ids(model: Phi3V, prompt: str, counts: list[int]) -> list[int]:
    """The published processor tokenises the text between pictures piece by piece, so each piece begins with BOS."""
    texts = IMAGE_TAG.split(prompt) if counts else [prompt]
    pieces = [model.tokenizer.encode(text).ids for text in texts]
    assert len(pieces) == len(counts) + 1, "one tag for each picture"
    token_ids = list(pieces[0])
    for count, piece in zip(counts, pieces[1:], strict=True):
        token_ids += [model.image_id] * count + piece
    return token_ids


def _embeds(model: Phi3V, token_ids: list[int], features: list[torch.Tensor]) -> torch.Tensor:
    ids = torch.tensor(token_ids)
    embeds: torch.Tensor = model.decoder.model.embed_tokens(ids)
    if features:
        embeds[ids == model.image_id] = torch.cat(features)
    return embeds[None]


def _decode(model: Phi3V, embeds: torch.Tensor, max_new_tokens: int) -> tuple[torch.Tensor, list[tuple[int, float]]]:
    """Logits of the prompt, and (token, lead) of each greedy step."""
    forward = _Forward(model)
    logits = prompt_logits = forward(embeds)
    steps: list[tuple[int, float]] = []
    while len(steps) < max_new_tokens:
        steps.append(best(logits[-1]))
        if len(steps) < max_new_tokens:
            row = model.decoder.model.embed_tokens(torch.tensor([[steps[-1][0]]]))
            embeds = torch.cat([embeds, row], dim=1)
            logits = forward(embeds)
    return prompt_logits, steps


class _Forward:
    """A pass over a growing prefix that keeps keys and values only while the rope factors stay the same.

    The factors hold for the whole sequence and follow its total length: when it outgrows `switch`, every key changes
    and the prefix is run afresh, as the published code does.
    """

    def __init__(self, model: Phi3V) -> None:
        self.model = model
        self.cache: Any = None
        self.seen = 0

    def __call__(self, embeds: torch.Tensor) -> torch.Tensor:
        length = embeds.shape[1]
        if self.seen <= self.model.switch < length or not self.seen:
            self.cache, self.seen = DynamicCache(), 0
        output = self.model.decoder(inputs_embeds=embeds[:, self.seen :], past_key_values=self.cache, use_cache=True)
        self.seen = length
        logits: torch.Tensor = output.logits[0]
        return logits
