"""What transformers answers: its own processor, its own model in float32 on the CPU, the plain argmax of the logits.

Pictures go through the PIL backend of the image processors where there is a choice, so that an answer doesn't depend
on what else is installed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LlavaOnevisionProcessor,
)

Floats = npt.NDArray[np.float32]

# What a generation config says about ids and not about how tokens are chosen.
_IDS = ("bos_token_id", "pad_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt.

    `prompt_ids` has a placeholder at each picture position. `prompt_logits` (T, V) are those of the whole prompt, None
    where a class gives none (encoder-decoders). `greedy` are the argmax tokens that follow, `step_logits` (N, V) what
    they were chosen from, and `margins` how far each leads the runner-up.
    """

    prompt_ids: list[int]
    prompt_logits: Floats | None
    greedy: list[int]
    margins: list[float]
    step_logits: Floats


def oracle(folder: str | Path, prompt: str, images: Sequence[Image.Image] = (), num_tokens: int = 16) -> Answer:
    """Run one prompt, with the class's own placeholders for pictures, and continue it greedily, never stopping."""
    model, processor = load(folder)
    batch = fitted(model, inputs(model, processor, prompt, images))
    asked = batch.get("input_ids", batch.get("decoder_input_ids"))
    ids = [] if asked is None else [int(token) for token in asked[0]]
    with torch.no_grad():
        logits = None if model.config.is_encoder_decoder else model(**batch).logits
        made = model.generate(
            **batch,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            return_dict_in_generate=True,
            output_logits=True,
        )
    steps = torch.cat(made.logits).float()
    best = steps.topk(2, dim=-1)
    greedy = best.indices[:, 0].tolist()
    if made.sequences[0, -num_tokens:].tolist() != greedy:
        raise AssertionError("generate did not take the plain argmax of its logits")
    whole = None if logits is None or logits.shape[:2] != (1, len(ids)) else logits[0].float().numpy()
    margins = (best.values[:, 0] - best.values[:, 1]).tolist()
    return Answer(ids, whole, greedy, margins, steps.numpy())


def inputs(model: Any, processor: Any, prompt: str, images: Sequence[Image.Image] = ()) -> dict[str, Any]:
    """What the processor makes of a prompt, a batch of one; an empty prompt is none (a class not asked).

    Some models need the kind of each token for their positions, and some of their processors don't say it unasked.
    """
    several = len(images) > 1 and isinstance(processor, LlavaOnevisionProcessor)  # whose pictures of one prompt differ
    given: dict[str, Any] = {"images": [list(images)] if several else list(images)} if images else {}
    if prompt:
        given["text"] = [prompt]
    if "mm_token_type_ids" in signature(model.forward).parameters:
        given["return_mm_token_type_ids"] = True
    made = processor(return_tensors="pt", **given)
    return {name: value for name, value in made.items() if value is not None}


def fitted(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """What the model's forward takes: floats of its type; Donut's ids (the labels copy them) are its decoder's."""
    batch = {
        name: value.to(model.dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in batch.items()
    }
    if "input_ids" in batch and "input_ids" not in signature(model.forward).parameters:
        batch["decoder_input_ids"] = batch.pop("input_ids")
        batch = {name: value for name, value in batch.items() if name not in ("labels", "attention_mask")}
    return batch


def load(folder: str | Path) -> tuple[Any, Any]:
    """(model, processor) of a folder, kept until its weights are written anew."""
    folder = Path(folder).resolve()
    return _load(folder, (folder / "model.safetensors").stat().st_mtime_ns)


def forget() -> None:
    """Free the models."""
    _load.cache_clear()


@lru_cache(maxsize=2)
def _load(folder: Path, _written: int) -> tuple[Any, Any]:
    processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
    try:
        pictures = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    except (OSError, ValueError, ImportError, AttributeError, TypeError, KeyError):
        pass  # a class without that choice
    else:
        processor.image_processor = pictures
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    model, report = loaded
    if any(report.values()):
        raise AssertionError(f"the weights and the model differ in what they hold: {report}")
    _choose_plainly(model)
    return model.eval(), processor


def _choose_plainly(model: Any) -> None:
    """Every generation config inside becomes: greedy, no penalties, no forced tokens, no stop."""
    for module in model.modules():
        old = getattr(module, "generation_config", None)
        if isinstance(old, GenerationConfig):
            kept = {name: getattr(old, name) for name in _IDS if getattr(old, name, None) is not None}
            module.generation_config = GenerationConfig(do_sample=False, num_beams=1, **kept)
