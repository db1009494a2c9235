"""Checkpoint to parameters: streamed, cast and placed tensor by tensor; nothing missing, nothing left over.

Tensors are mapped files: reading them from the disk happens when they are copied, in several threads at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from fovea.core.config import Quantization
from fovea.core.errors import WeightsError
from fovea.families.config_reader import read_json
from fovea.families.gguf_file import is_gguf
from fovea.families.spec import ModelSpec, WeightMap, WeightSlot
from fovea.models.gguf_weights import check_gguf, gguf_map, gguf_shapes, gguf_tensors
from fovea.models.moe import Experts
from fovea.models.quantized import Staged, quantised_layers
from fovea.models.vlm import VLM

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
DUMMY_SCALE = 0.02
LOAD_THREADS = 8
STAGED_THREADS = 2  # each may hold a whole weight while another is quantised
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def build_empty(
    spec: ModelSpec, dtype: torch.dtype, device: torch.device, quantization: Quantization | None = None
) -> VLM:
    """The model with uninitialised memory for its parameters; weights to be quantised are left on the meta device."""
    with torch.device("meta"):
        model = VLM(spec).to(dtype)
    for module in model.modules():
        if isinstance(module, Experts):
            module.keep_exact()
    later = set() if quantization is None else {linear for _, _, _, linear in quantised_layers(model, quantization)}
    # Not nn.Module.to_empty: of a meta tensor torch 2.14 imports sympy for that, half a second of every start.
    for module in model.modules():
        for name, meta in list(module.named_parameters(recurse=False)):
            if module not in later or name == "bias":
                memory = torch.empty(meta.shape, dtype=meta.dtype, device=device)
                setattr(module, name, nn.Parameter(memory, requires_grad=False))
    return model.requires_grad_(False).eval()


def check_checkpoint(folder: Path, spec: ModelSpec, weight_map: WeightMap) -> None:
    """Refuse an incomplete checkpoint before memory is taken for its weights: what files lack, and a GGUF file whose
    tensors are not those of the model. Raises WeightsError."""
    if not is_gguf(folder):
        checkpoint_files(folder)
        return
    check_gguf(folder)
    with torch.device("meta"):
        parameters = dict(VLM(spec).named_parameters())
    for _ in _places(gguf_shapes(folder), gguf_map(weight_map, folder, spec.decoder.head_dim), parameters, folder):
        pass


def load_weights(
    model: VLM, folder: Path, weight_map: WeightMap, *, use_tqdm: bool, staged: Staged | None = None
) -> None:
    """Fill every parameter from the safetensors files in `folder`, or from the GGUF file that it is.

    staged: those that are quantised on their way.

    Raises WeightsError naming what is absent: a shard, a tensor, or a parameter no tensor fills; a tensor the model
    does not know; a shape that differs; a quantised type.
    """
    parameters = dict(model.named_parameters())
    if is_gguf(folder):
        weight_map = gguf_map(weight_map, folder, model.spec.decoder.head_dim)
        tensors = gguf_tensors(folder, next(iter(parameters.values())).dtype)
    else:
        tensors = _tensors(checkpoint_files(folder))
    copies: list[Future[None]] = []
    threads = LOAD_THREADS if staged is None else STAGED_THREADS
    with ThreadPoolExecutor(threads, thread_name_prefix="fovea-weights") as pool:
        for slot, target, source in _places(tensors, weight_map, parameters, folder):
            if staged is not None and target.is_meta:
                copies.append(pool.submit(_stage, staged, slot, source))
            else:
                copies.append(pool.submit(_copy, target, source))
            if len(copies) > 2 * threads:  # tensors of a GGUF file are no mapped memory: few may wait
                copies[-2 * threads].result()
        done = tqdm(copies, desc="Loading weights", unit="tensor", disable=not use_tqdm, leave=False)
        for copied in done:
            copied.result()
    _check_covered(weight_map, parameters)
    if staged is not None:
        staged.finish()


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, each of which exists."""
    index = read_json(folder, INDEX_FILE)
    places = index.get("weight_map", {})
    if not isinstance(places, dict) or any(not isinstance(name, str) for name in places.values()):
        raise WeightsError(f"{folder / INDEX_FILE}: 'weight_map' must map names of tensors to names of files.")
    names = sorted(set(places.values())) or [SINGLE_FILE]
    if any(Path(name).name != name for name in names):
        raise WeightsError(f"{folder / INDEX_FILE} names files outside its folder.")
    for name in names:
        if not (folder / name).is_file():
            raise WeightsError(f'{folder} lacks {name}. For random weights pass load_format="dummy".')
    return [folder / name for name in names]


def fill_dummy(model: VLM, seed: int, staged: Staged | None = None) -> None:
    """Random weights of a sane scale for benchmarks: norms 1, biases 0, the rest normal."""
    generator = torch.Generator(model.device).manual_seed(seed)
    for name, parameter in list(model.named_parameters()):
        if parameter.ndim == 1:
            parameter.data.fill_(1.0 if name.endswith("weight") else 0.0)
        elif parameter.is_meta:
            assert staged is not None
            staged.whole(name).normal_(0.0, DUMMY_SCALE, generator=generator)
            staged.arrived(name, len(parameter))
        else:
            parameter.data.normal_(0.0, DUMMY_SCALE, generator=generator)
    if staged is not None:
        staged.finish()


def _tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    for path in files:
        try:
            with safe_open(path, framework="pt") as checkpoint:
                for name in checkpoint.keys():  # noqa: SIM118 - not a mapping
                    yield name, checkpoint.get_tensor(name)
        except (SafetensorError, OSError):
            raise WeightsError(f"{path} is not a readable safetensors file; it may be cut short.") from None


def _places(
    tensors: Iterable[tuple[str, Tensor]], weight_map: WeightMap, parameters: dict[str, nn.Parameter], folder: Path
) -> Iterator[tuple[WeightSlot, Tensor, Tensor]]:
    """Each tensor's slot, its place in the model, and the tensor in that shape."""
    missing = set(weight_map.slots)
    for name, tensor in tensors:
        published = _published_name(name, weight_map)
        if published.startswith(weight_map.ignored):
            continue
        slot = weight_map.slots.get(published)
        if slot is None:
            raise WeightsError(f"{folder} has a tensor that the model does not know: {name!r}.")
        if published not in missing:
            raise WeightsError(f"{folder} holds {published!r} twice.")
        missing.discard(published)
        yield slot, *_matched(tensor, name, slot, parameters)
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise WeightsError(f"{folder} lacks {len(missing)} of {len(weight_map.slots)} tensors: {some} ...")


def _published_name(name: str, weight_map: WeightMap) -> str:
    for other, published in weight_map.renames:
        if name.startswith(other):
            return published + name[len(other) :]
    return name


def _matched(tensor: Tensor, name: str, slot: WeightSlot, parameters: dict[str, nn.Parameter]) -> tuple[Tensor, Tensor]:
    """The place of a checkpoint's tensor in the model, and the tensor in that shape."""
    if tensor.dtype not in FLOAT_DTYPES:
        raise WeightsError(f"{name!r} is {tensor.dtype}; quantised checkpoints are not supported.")
    target = parameters[slot.parameter].data
    if slot.rows is not None:
        target = target[slot.row : slot.row + slot.rows]
    if slot.pairs is not None and tensor.shape[0] == target.shape[0]:
        tensor = _halves(tensor, *slot.pairs)
    if slot.stacked:
        target, tensor = _stacked(target, tensor, slot.stacked)
    squeezed = tensor.reshape(target.shape) if tensor.numel() == target.numel() else tensor
    rows = tensor.shape[1] if 2 < tensor.ndim > target.ndim and tensor.shape[0] == 1 else tensor.shape[:1].numel()
    same_rows = tensor.ndim < 2 or target.ndim < 2 or rows == target.shape[0]
    if squeezed.shape != target.shape or not same_rows:
        raise WeightsError(f"{name!r} has shape {list(tensor.shape)}, the model needs {list(target.shape)}.")
    return target, squeezed


def _halves(tensor: Tensor, head_dim: int, rotated: int) -> Tensor:
    """Rows of heads with the first of all rotated pairs before the second ones."""
    heads = tensor.unflatten(0, (-1, head_dim))
    order = [*range(0, rotated, 2), *range(1, rotated, 2), *range(rotated, head_dim)]
    return heads[:, order].flatten(0, 1)


def _stacked(target: Tensor, tensor: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Both as `count` matrices; those of the checkpoint are turned where they fit only so, as transformers does."""
    target = target.unflatten(0, (count, -1))
    turned = tensor.ndim == 3 and tensor.shape != target.shape and tensor.transpose(1, 2).shape == target.shape
    return target, tensor.transpose(1, 2) if turned else tensor


@torch.inference_mode()
def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)


@torch.inference_mode()
def _stage(staged: Staged, slot: WeightSlot, source: Tensor) -> None:
    whole = staged.whole(slot.parameter)
    rows = whole if slot.rows is None else whole[slot.row : slot.row + slot.rows]
    rows.copy_(source)
    staged.arrived(slot.parameter, len(rows))


def _check_covered(weight_map: WeightMap, parameters: dict[str, nn.Parameter]) -> None:
    """Our own invariant: the map fills every row of every parameter exactly once."""
    rows = dict.fromkeys(parameters, 0)
    for slot in weight_map.slots.values():
        rows[slot.parameter] += parameters[slot.parameter].shape[0] if slot.rows is None else slot.rows
    short = [name for name, count in rows.items() if count != parameters[name].shape[0]]
    assert not short, f"parameters not covered exactly once by the weight map: {short[:3]}"
