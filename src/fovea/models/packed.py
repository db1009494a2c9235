"""Linear layers for CPUs: in oneDNN's own layout, about twice as fast at one row and at sixty-four, or for our kernels.

The layout is made once after loading and replaces the plain weight, so it costs no memory. The two torch operations are
what torch's compiler uses itself; where a build lacks them, layers stay as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fovea.core.log import logger
from fovea.kernels.batch import PLAIN
from fovea.kernels.cpu.library import Crew
from fovea.kernels.cpu.step import NativeLayer, NativeStep
from fovea.kernels.cpu.weight import NativeWeight
from fovea.kernels.fp8_weights import Fp8Weight
from fovea.kernels.int_weights import dense_dtype
from fovea.models.decoder import DecoderLayer
from fovea.models.quantized import QuantizedLinear
from fovea.models.vlm import VLM

ROWS_HINT = 8  # the number of rows the layout is chosen for; others work too
PACKED_DTYPES = (torch.float32, torch.bfloat16)
# Up to so many bytes a layer's time is that of calls, and one call for a whole step is worth a plain weight.
SMALL_BYTES = {torch.float32: 256 * 1024, torch.bfloat16: 4 * 1024**2}


class PackedLinear(nn.Module):
    """Takes over an nn.Linear's weight and bias."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_HINT)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        packed: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return packed


class PlainLinear(nn.Module):
    """Takes over a weight and a bias as they are: few rows are multiplied by our kernels, many by torch."""

    def __init__(self, weight: Tensor, bias: Tensor | None, crew: Crew) -> None:
        super().__init__()
        self.weight, self.bias = weight.detach(), bias
        self.native = NativeWeight(crew, self.weight, bias)

    def forward(self, x: Tensor) -> Tensor:  # [rows, K] to [rows, N]
        return self.native.linear(x) if self.native.takes(x) else F.linear(x, self.weight, self.bias)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch has the operations, for this type."""
    if dtype not in PACKED_DTYPES or not torch.backends.mkldnn.is_available():
        return False
    try:
        probe = PackedLinear(nn.Linear(16, 16, dtype=dtype))
        with torch.inference_mode():
            probe(torch.zeros(1, 16, dtype=dtype))
    except (AttributeError, RuntimeError):
        return False
    return True


def pack_linears(model: nn.Module, dtype: torch.dtype) -> int:
    """Replace every nn.Linear of a CPU model by a PackedLinear; returns how many."""
    if not can_pack(dtype):
        logger.info("this build of torch has no packed linear layers for %s on this CPU; plain ones are used", dtype)
        return 0
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]
    for parent, name, child in places:
        setattr(parent, name, PackedLinear(child))
        child.weight = None  # type: ignore[assignment]  # free it before the next layer is packed
    return len(places)


def use_kernels(model: VLM, crew: Crew) -> None:
    """Let our kernels attend in the tower, and multiply few rows in the decoder: by integers, by small weights, and by
    an embedding table that is the head."""
    decoder = model.decoder
    if model.spec.takes_pictures:
        model.encoder.tower.crew = crew
    for parent in list(decoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, QuantizedLinear) and not isinstance(child.weight, Fp8Weight):
                child.native = NativeWeight(crew, child.weight, child.bias)
            elif isinstance(child, nn.Linear) and _stays_plain(child.weight):
                setattr(parent, name, PlainLinear(child.weight, child.bias, crew))
    table = decoder.embed.weight
    if decoder.spec.tied_head and decoder.tied_head is None and table.dtype in SMALL_BYTES:
        decoder.tied_head = PlainLinear(table, None, crew)
    layers = [_native_layer(layer) for layer in decoder.layers if isinstance(layer, DecoderLayer)]
    whole = [layer for layer in layers if layer is not None]
    if len(whole) == len(decoder.layers) and decoder.spec.local_rope is None and decoder.spec.full_rope:
        decoder.native_step = NativeStep(crew, whole, decoder.norm, decoder.spec.num_heads)


def _stays_plain(weight: Tensor) -> bool:
    """Whether our kernels may have this weight, which torch then multiplies many rows by as it is.

    Without oneDNN's layout torch is half as fast in float32, but loses 5 to 15 % with hundreds of rows in bfloat16, for
    which our kernels win more in every step that decodes. With AMX its products are too fast for that.
    """
    if weight.dtype == torch.bfloat16 == dense_dtype(weight.dtype) and not _has_amx():
        return True
    return weight.nbytes <= SMALL_BYTES.get(weight.dtype, 0)


def _has_amx() -> bool:
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return asked is not None and bool(asked())


def _native_layer(layer: DecoderLayer) -> NativeLayer | None:
    """The layer as NativeStep runs it; None if it is another kind, or its weights are not there for our kernels."""
    if not layer.is_usual or layer.has_experts or layer.rule is not PLAIN or layer.branch_norms is not None:
        return None
    linears: tuple[nn.Module, ...] = (layer.qkv, layer.out, layer.gate_up, layer.down)
    weights = [linear.native for linear in linears if isinstance(linear, PlainLinear | QuantizedLinear)]
    there = [weight for weight in weights if weight is not None]
    if len(there) < len(linears) or not there[2].has_halves:
        return None
    qkv, out, gate_up, down = there
    return NativeLayer(layer.attention_norm, qkv, out, layer.mlp_norm, gate_up, down, layer.head_norms)
