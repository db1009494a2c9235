"""transformers' own modules, loaded from safetensors without running code of the model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fovea.core.errors import WeightsError
from fovea.families.bridged import Bridged
from fovea.families.spec import ModelSpec

LISTED = "[]"  # see pipeline.processor


class BridgedModel:
    """A whole model of transformers, and what the engine asks of any model."""

    def __init__(self, module: Any, spec: ModelSpec) -> None:
        self.module = module
        self.spec = spec

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())


def to_model(arrays: Mapping[str, NDArray[Any]], model: BridgedModel) -> dict[str, Any]:
    """On the model's device; numbers with a fraction in its type."""
    made: dict[str, Any] = {}
    for name, array in arrays.items():
        if name.endswith(LISTED):
            made[name.removesuffix(LISTED)] = array.tolist()
            continue
        tensor = torch.from_numpy(np.array(array)).to(model.device)
        made[name] = tensor.to(model.dtype) if tensor.is_floating_point() else tensor
    return made


def count_parameters(family: Bridged) -> int:
    """Of the whole model, without allocating it."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        module = AutoModelForImageTextToText.from_config(family.read_config(), trust_remote_code=False)
    return sum(parameter.numel() for parameter in module.parameters())


def load_module(
    family: Bridged, folder: Path, dtype: torch.dtype, device: torch.device, *, dummy_seed: int | None
) -> Any:
    """transformers' module. dummy_seed: with random weights. Raises WeightsError for a checkpoint that does not fit."""
    from transformers import AutoModelForImageTextToText

    if dummy_seed is not None:
        torch.manual_seed(dummy_seed)
        module = AutoModelForImageTextToText.from_config(family.read_config(), dtype=dtype, trust_remote_code=False)
        return module.to(device).eval()
    try:
        module, report = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever transformers or safetensors raises
        raise WeightsError(f"{folder}: transformers can't load {family.name}: {error}") from None
    missing = sorted(report.get("missing_keys", ()))
    if missing or report.get("mismatched_keys"):
        raise WeightsError(f"{folder}: tensors of {family.name} are missing or misshapen: {missing[:3]}.")
    return module.to(device).eval()
