"""A decoder's linear layers with integer or float8 weights, made while a checkpoint is read.

A weight exists in full only from the arrival of its first tensor to that of its last. Norms, embeddings, routers and
experts stay as they are, and so does the tower: its steps have hundreds of rows, where integers gain nothing. A tied
head becomes an int8 copy of the embedding table, which stays for looking tokens up; beside float8 heads stay as they
are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fovea import kernels as ops
from fovea.core.config import Quantization
from fovea.core.log import logger
from fovea.families.spec import ModelSpec
from fovea.kernels.cpu.weight import NativeWeight
from fovea.kernels.fp8_weights import SIDE, Fp8Weight, fits_fp8, fp8_bytes, quantise_fp8
from fovea.kernels.int_weights import GROUP, IntWeight, int4_bytes, int8_bytes, quantise_int4, quantise_int8
from fovea.models.moe import Experts
from fovea.models.vlm import VLM

HEAD = "head"


class QuantizedLinear(nn.Module):
    """Stands for an nn.Linear. Its weight is no parameter: nothing but `product` reads it."""

    def __init__(self, weight: IntWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.native: NativeWeight | None = None  # multiplies few rows

    def forward(self, x: Tensor) -> Tensor:  # [rows, K] to [rows, N], in the type of x
        if self.native is not None and self.native.multiplies(x):
            return self.native.linear(x)
        weight = self.weight
        made = ops.fp8_product(weight, x) if isinstance(weight, Fp8Weight) else weight.product(x)
        return made if self.bias is None else made + self.bias


def kind_of(name: str, width: int, asked: Quantization) -> Quantization:
    """How a layer of that name and input width is kept: beside int4, heads in int8, and what has no whole groups."""
    if asked == "fp8":
        return "fp8"
    return "int4" if asked == "int4" and name != HEAD and width % GROUP == 0 else "int8"


def quantise(name: str, weight: Tensor, asked: Quantization) -> IntWeight:
    """weight [N, K] of any float type."""
    match kind_of(name, weight.shape[1], asked):
        case "fp8":
            return quantise_fp8(weight)
        case "int4":
            return quantise_int4(weight, GROUP)
        case _:
            return quantise_int8(weight)


def quantised_bytes(name: str, rows: int, width: int, asked: Quantization) -> int:
    """Bytes of what `quantise` makes of a weight [rows, width]."""
    match kind_of(name, width, asked):
        case "fp8":
            return fp8_bytes(rows, width)
        case "int4":
            return int4_bytes(rows, width, GROUP)
        case _:
            return int8_bytes(rows, width)


def quantised_layers(model: VLM, asked: Quantization) -> Iterator[tuple[str, nn.Module, str, nn.Linear]]:
    """Of each layer that is quantised: its weight's name in the model, its parent, its name there, and itself."""
    for path, parent in model.decoder.named_modules(prefix="decoder"):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and (asked != "fp8" or (name != HEAD and fits_fp8(*child.weight.shape))):
                yield f"{path}.{name}.weight", parent, name, child


def weights_bytes(spec: ModelSpec, dtype: torch.dtype, asked: Quantization | None) -> int:
    """Bytes of the model's weights as they will be, without allocating it."""
    with torch.device("meta"):
        model = VLM(spec)
    total = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    if asked is None:
        return total
    for _, _, name, linear in quantised_layers(model, asked):
        rows, width = linear.weight.shape
        total += quantised_bytes(name, rows, width, asked)
        total -= rows * width * dtype.itemsize
    copies_table = spec.decoder.tied_head and asked != "fp8"
    return total + (int8_bytes(*model.decoder.embed.weight.shape) if copies_table else 0)


class Staged:
    """Weights of a model's layers to be quantised, which are on the meta device until their tensors arrive.

    Several threads may add tensors; one weight is quantised at a time. `most_bytes`: the most that whole weights held
    at once.
    """

    def __init__(self, model: VLM, asked: Quantization, device: torch.device) -> None:
        self.most_bytes = 0
        self._asked, self._model, self._device = asked, model, device
        self._layers = {path: (parent, name, linear) for path, parent, name, linear in quantised_layers(model, asked)}
        self._missing = {path: len(linear.weight) for path, (_, _, linear) in self._layers.items()}
        self._whole: dict[str, Tensor] = {}
        self._counting, self._quantising = threading.Lock(), threading.Lock()

    def whole(self, path: str) -> Tensor:
        """The place of a weight's tensors, allocated when it is first asked for."""
        with self._counting:
            if path not in self._whole:
                self._whole[path] = torch.empty_like(self._layers[path][2].weight, device=self._device)
                self.most_bytes = max(self.most_bytes, sum(weight.nbytes for weight in self._whole.values()))
            return self._whole[path]

    def arrived(self, path: str, rows: int) -> None:
        """So many rows more of a weight are there. With the last ones it is quantised."""
        with self._counting:
            self._missing[path] -= rows
            if self._missing[path]:
                return
        parent, name, linear = self._layers[path]
        with self._quantising:
            made = quantise(name, self._whole[path], self._asked)
        setattr(parent, name, QuantizedLinear(made, linear.bias))
        with self._counting:
            del self._whole[path]

    def finish(self) -> None:
        """When all have arrived: the head of a model that has none of its own; and what was done is told."""
        decoder = self._model.decoder
        if decoder.spec.tied_head and self._asked != "fp8":
            decoder.tied_head = QuantizedLinear(quantise_int8(decoder.embed.weight), None)
        kept = " (its experts stay as they are)" if any(isinstance(m, Experts) for m in decoder.modules()) else ""
        logger.info("the decoder's %d linear layers have %s weights%s", len(self._layers), self._asked, kept)
        linears = [(name, m) for name, m in decoder.named_modules() if isinstance(m, nn.Linear) and name != HEAD]
        if linears:
            told = "%d linear layers stay as they are: the sides of a float8 weight are multiples of %d, %s is %s"
            name, first = linears[0]
            logger.warning(told, len(linears), SIDE, name, tuple(first.weight.shape))
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # whole weights are gone, and their memory is for pages
