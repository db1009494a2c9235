"""What transformers answers: token ids, logits, greedy tokens and picture embeddings in float32 on the CPU.

Pictures go through the PIL backend of the image processors. The default is torchvision where that is installed, whose
resize rounds differently (up to 0.03 on normalised pixels), so an unpinned comparison depends on the environment.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    Idefics3Processor,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaNextProcessor,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    Ovis2Processor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from .checkpoints import TEXT_FAMILIES
from .gemma import TEXT_MODELS
from .gemma_vl import BUILDERS as GEMMA_BUILDERS
from .gemma_vl import PROCESSORS as GEMMA_PROCESSORS
from .gemma_vl import inputs as gemma_inputs
from .gemma_vl import processor as gemma_processor
from .videos import intern_inputs, llava_inputs, video_inputs

# Its own grouped product of experts refuses sizes that are no multiples of 16 bytes.
PLAIN: dict[str, Any] = {"attn_implementation": "eager", "experts_implementation": "eager"}
Floats = npt.NDArray[np.float32]
LLAVA_PROCESSORS: dict[str, Any] = {
    "idefics3": Idefics3Processor,
    "smolvlm": Idefics3Processor,  # writes what SmolVLM's does, which wants one more package for videos
    "llava": LlavaProcessor,
    "llava_next": LlavaNextProcessor,
    "llava_next_video": LlavaNextVideoProcessor,
    "llava_onevision": LlavaOnevisionProcessor,
    "vipllava": LlavaProcessor,
    "mistral3": PixtralProcessor,
    "pixtral": PixtralProcessor,
    "internvl": partial(InternVLProcessor, video_processor=InternVLVideoProcessor()),
    "ovis2": Ovis2Processor,
}
# What the processors of models that see videos insist on (and what needs torchvision).
VIDEO_PROCESSORS: dict[str, Any] = {
    "llava_next_video": LlavaNextVideoVideoProcessor,
    "llava_onevision": LlavaOnevisionVideoProcessor,
}
QWEN_PROCESSORS: dict[str, Any] = {
    "qwen2_vl": Qwen2VLProcessor,
    "qwen2_5_vl": Qwen2_5_VLProcessor,
    "qwen3_vl": Qwen3VLProcessor,
    "qwen3_vl_moe": Qwen3VLProcessor,
}


@dataclass(frozen=True)
class Reference:
    """The answer to one prompt.

    `token_ids` has a placeholder id at each picture position. `logits` are those of the whole prompt. `greedy` are the
    argmax tokens that follow and `margins` how far each leads the runner-up: a difference between engines that is
    larger than the margin can change the token, a smaller one cannot.
    """

    token_ids: list[int]
    logits: Floats
    greedy: list[int]
    margins: list[float]


def reference(
    folder: str | Path,
    prompt: str,
    images: Sequence[Image.Image] = (),
    *,
    clips: Sequence[tuple[Sequence[Image.Image], float | None]] = (),
    max_new_tokens: int = 24,
) -> Reference:
    """Run one prompt (with the family's own placeholder text for pictures) and continue it greedily, never stopping.

    clips: frames and frames a second of each video.
    """
    if model_type(folder) == "phi3_v":
        from . import phi3v

        return phi3v.reference(folder, prompt, images, max_new_tokens=max_new_tokens)
    return _transformers_reference(folder, prompt, images, clips, max_new_tokens)


def image_features(folder: str | Path, images: Sequence[Image.Image]) -> list[Floats]:
    """The embeddings that stand at each picture's positions, one array of (tokens, hidden) a picture."""
    if model_type(folder) == "phi3_v":
        from . import phi3v

        return phi3v.image_features(folder, images)
    if len(images) > 1 and model_type(folder) in ("idefics3", "smolvlm"):  # whose answer is one for a whole prompt
        return [rows for image in images for rows in image_features(folder, [image])]
    model, processor = load(folder)
    options = _image_options(folder)
    batch = processor.image_processor(images=_of_one_prompt(folder, images), return_tensors="pt", **options)
    counts, grids = batch.pop("num_patches", None), batch.pop("grids", None)
    batch.pop("num_crops", None)
    with torch.no_grad():
        output = model.model.get_image_features(**batch, return_dict=True)
    if counts is not None:
        return [tiles.flatten(0, 1).numpy() for tiles in output.pooler_output.split(list(map(int, counts)))]
    if grids is not None:
        return _marked(output.pooler_output, output.visual_indicator_features, grids.tolist())
    levels: list[Any] = getattr(output, "deepstack_features", None) or []
    return [np.concatenate([part.numpy() for part in parts], axis=1) for parts in zip(output.pooler_output, *levels)]


def _image_options(folder: str | Path) -> dict[str, Any]:
    """What the processor tells its image processor."""
    if model_type(folder) == "mistral3":
        return {"patch_size": 28}  # of the tower, merged
    return {"crop_to_patches": True} if model_type(folder) in ("internvl", "aya_vision") else {}


def _marked(views: torch.Tensor, marks: torch.Tensor, grids: list[list[int]]) -> list[Floats]:
    """Ovis2's rows with its indicators: start, overview, grid, tiles with the end of a column or a row, end."""
    start, behind_overview, column, line, end = marks.unsqueeze(1).unbind()
    rows, first = [], 0
    for lines, columns in grids:
        parts = [start, views[first], behind_overview]
        first += 1
        if lines * columns > 1:
            for place in range(lines * columns):
                parts += [views[first + place], column if (place + 1) % columns else line]
            first += lines * columns
            parts.pop()
        rows.append(torch.cat([*parts, end]).numpy())
    return rows


def pixels(folder: str | Path, images: Sequence[Image.Image]) -> dict[str, npt.NDArray[Any]]:
    """What the image processor hands to the vision tower, by the names transformers uses."""
    if model_type(folder) == "phi3_v":
        from . import phi3v

        return phi3v.pixels(folder, images)
    batch = load(folder)[1].image_processor(images=list(images), return_tensors="np", **_image_options(folder))
    return {name: np.asarray(values) for name, values in batch.items()}


def positions(folder: str | Path, prompt: str, images: Sequence[Image.Image] = ()) -> npt.NDArray[np.int64]:
    """Qwen2-VL's three rows of rope positions (time, height, width), shape (3, prompt length)."""
    model, processor = load(folder)
    inputs = _inputs(processor, prompt, images)
    rows, _ = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], image_grid_thw=inputs.get("image_grid_thw")
    )
    result: npt.NDArray[np.int64] = rows[:, 0].numpy()
    return result


def model_type(folder: str | Path) -> str:
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    tower = config.get("vision_config", {}).get("model_type")
    return "pixtral" if config["model_type"] == "llava" and tower == "pixtral" else str(config["model_type"])


def is_glm(folder: str | Path) -> bool:
    return model_type(folder).startswith("glm")


def load(folder: str | Path) -> tuple[Any, Any]:
    """(model, processor) of a folder, kept until its weights are written anew."""
    folder = Path(folder).resolve()
    return _load(folder, (folder / "model.safetensors").stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _load(folder: Path, _written: int) -> tuple[Any, Any]:
    # Not AutoTokenizer by the class that tokenizer_config.json names: LlamaTokenizer of transformers 5 rebuilds the
    # pipeline and loses the "▁" after special tokens. This class reads tokenizer.json as it is.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    if model_type(folder) in (*TEXT_FAMILIES, *TEXT_MODELS):
        text: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **PLAIN)
        return text.eval(), tokenizer
    image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    processor: Any
    if model_type(folder) in LLAVA_PROCESSORS:
        settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
        settings.pop("processor_class")
        if model_type(folder) in VIDEO_PROCESSORS:
            settings["video_processor"] = VIDEO_PROCESSORS[model_type(folder)]()
        made = LLAVA_PROCESSORS[model_type(folder)]
        processor = made(image_processor=image_processor, tokenizer=tokenizer, **settings)
    elif model_type(folder) in GEMMA_BUILDERS:
        processor = gemma_processor(model_type(folder), image_processor, tokenizer)
    else:
        # unused, but the processor insists on one (it needs torchvision)
        newest: Any = Qwen3VLVideoProcessor if model_type(folder).startswith("qwen3_vl") else Qwen2VLVideoProcessor
        video_processor = Glm4vVideoProcessor() if is_glm(folder) else newest()
        processor = QWEN_PROCESSORS.get(model_type(folder), Glm4vProcessor)(image_processor, tokenizer, video_processor)
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, **PLAIN)
    return model.eval(), processor


def _of_one_prompt(folder: str | Path, images: Sequence[Image.Image]) -> list[Any]:
    """LLaVA-OneVision shows several pictures of one prompt otherwise than one, and knows by a list in the list."""
    return [list(images)] if model_type(folder) == "llava_onevision" else list(images)


def _inputs(processor: Any, prompt: str, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
    if isinstance(processor, PreTrainedTokenizerFast):
        return dict(processor([prompt], return_tensors="pt", return_token_type_ids=False))
    if type(processor).__name__ in GEMMA_PROCESSORS:
        return gemma_inputs(processor, prompt, images)
    return dict(
        processor(text=[prompt], images=list(images) or None, return_tensors="pt", return_mm_token_type_ids=True)
    )


def _transformers_reference(
    folder: str | Path, prompt: str, images: Sequence[Image.Image], clips: Sequence[Any], max_new_tokens: int
) -> Reference:
    """Each token from a fresh pass over the whole prefix: no cache whose state could hide a mistake."""
    model, processor = load(folder)
    if clips:
        if model_type(folder) == "internvl":
            inputs = intern_inputs(processor, model.config, prompt, clips)
        elif model_type(folder) in LLAVA_PROCESSORS:
            given = _of_one_prompt(folder, images) if images else []
            inputs = _with_features(model, llava_inputs(processor, model.config, prompt, given, clips))
        else:
            inputs = video_inputs(Path(folder), processor, model.config, prompt, images, clips)
    else:
        inputs = _inputs(processor, prompt, _of_one_prompt(folder, images) if images else [])
    if model_type(folder) in LLAVA_PROCESSORS:
        inputs.pop("mm_token_type_ids", None)
    token_ids: list[int] = inputs["input_ids"][0].tolist()
    logits = _forward(model, inputs)
    prompt_logits, greedy, margins = logits.numpy(), list[int](), list[float]()
    for step in range(max_new_tokens):
        if step:
            # What PaliGemma answers is of another type than its prompt, which sees all of itself.
            logits = _forward(model, _extend(inputs, greedy, int(model_type(folder) == "paligemma")))
        token, margin = best(logits[-1])
        greedy.append(token)
        margins.append(margin)
    return Reference(token_ids, prompt_logits, greedy, margins)


def _with_features(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Videos of several lengths, which the model takes one by one, as rows in place of their embeddings."""
    inner, ids = model.model, inputs["input_ids"]
    with torch.no_grad():
        x = inner.get_input_embeddings()(ids).clone()
        config = model.config
        chosen = {
            "vision_feature_layer": config.vision_feature_layer,
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
        }
        rows = [
            inner.get_video_features(one[None], **chosen, return_dict=True).pooler_output.flatten(0, 1)
            for one in inputs.pop("videos")
        ]
        x[ids == config.video_token_id] = torch.cat(rows)
        if "pixel_values" in inputs:
            said = {
                key: inputs.pop(key) for key in ("pixel_values", "image_sizes", "batch_num_images") if key in inputs
            }
            features = inner.get_image_features(**said, **chosen, return_dict=True).pooler_output
            x[ids == config.image_token_id] = torch.cat(list(features))
    return {"inputs_embeds": x, "input_ids": ids, "attention_mask": inputs["attention_mask"]}


def best(logits: torch.Tensor) -> tuple[int, float]:
    """The argmax token and its lead over the second."""
    top = logits.topk(2)
    return int(top.indices[0]), float(top.values[0] - top.values[1])


def _forward(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        if "inputs_embeds" in inputs:
            x, ids = inputs["inputs_embeds"], inputs["input_ids"]
            x = torch.cat([x, model.get_input_embeddings()(ids[:, x.shape[1] :])], dim=1)
            inputs = {"inputs_embeds": x, "attention_mask": inputs["attention_mask"]}
        logits: torch.Tensor = model(**inputs, use_cache=False).logits[0]
    assert logits.dtype == torch.float32
    return logits


def _extend(inputs: dict[str, torch.Tensor], tokens: list[int], token_type: int) -> dict[str, torch.Tensor]:
    """The inputs with text tokens behind the prompt."""
    if "position_ids" in inputs:
        rows = inputs["position_ids"]
        following = torch.arange(len(tokens)) + rows.max() + 1
        inputs = {**inputs, "position_ids": torch.cat([rows, following.expand(3, 1, -1)], dim=2)}
    tail = {
        "input_ids": torch.tensor([tokens]),
        "attention_mask": torch.ones(1, len(tokens), dtype=torch.long),
        "mm_token_type_ids": torch.zeros(1, len(tokens), dtype=torch.long),
        "token_type_ids": torch.full((1, len(tokens)), token_type),
    }
    return {name: torch.cat([value, tail[name]], dim=1) if name in tail else value for name, value in inputs.items()}
