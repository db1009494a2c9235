"""Linear layers of a decoder become integers or float8 on their way from the checkpoint, one at a time."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fovea.core.config import Quantization
from fovea.core.errors import WeightsError
from fovea.families.registry import load_family
from fovea.kernels.fp8_weights import Fp8Weight, fits_fp8
from fovea.kernels.int_weights import Int4Weight, Int8Weight
from fovea.models.quantized import QuantizedLinear, Staged, quantised_layers, weights_bytes
from fovea.models.vlm import VLM
from fovea.models.weights import build_empty, fill_dummy, load_weights
from tests.parity.support import Checkpoints

CPU = torch.device("cpu")
ALL: tuple[Quantization, ...] = get_args(Quantization)
VARIANTS = ("qwen2_vl", "llava", "llava_onevision-tied", "phi3_v", "qwen3_vl_moe", "internvl")
STEP = {"int8": 0.02, "int4": 0.2, "fp8": 0.04}  # of a weight's norm


def loaded(folder: Path, asked: Quantization | None, dtype: torch.dtype = torch.float32) -> tuple[VLM, Staged | None]:
    family = load_family(folder)
    model = build_empty(family.spec, dtype, CPU, asked)
    staged = None if asked is None else Staged(model, asked, CPU)
    load_weights(model, folder, family.weight_map(), use_tqdm=False, staged=staged)
    return model, staged


def integers(model: VLM) -> dict[str, QuantizedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


@pytest.mark.parametrize("asked", ALL)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_linear_layer_of_the_decoder_is_integers_and_nothing_else(
    checkpoints: Checkpoints, variant: str, asked: Quantization
) -> None:
    plain, _ = loaded(checkpoints.folder(variant), None)
    model, _ = loaded(checkpoints.folder(variant), asked)
    made = integers(model)
    linears = {path.removesuffix(".weight"): linear for path, _, _, linear in quantised_layers(plain, asked)}
    tied = {"decoder.tied_head"} if plain.spec.decoder.tied_head and asked != "fp8" else set()
    assert set(made) == set(linears) | tied
    for path, linear in linears.items():
        restored = made[path].weight.restored()
        assert float((restored - linear.weight).norm() / linear.weight.norm()) < STEP[asked], path
        if linear.bias is not None:
            bias = made[path].bias
            assert bias is not None
            assert torch.equal(bias, linear.bias)
    if tied:
        table = plain.decoder.embed.weight
        assert float((made["decoder.tied_head"].weight.restored() - table).norm() / table.norm()) < STEP["int8"]
    others = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        if name.removesuffix(".weight").removesuffix(".bias") not in linears:
            assert torch.equal(others[name], parameter), name
    left = {name: module for name, module in model.decoder.named_modules() if isinstance(module, nn.Linear)}
    assert all(asked == "fp8" and (name == "head" or not fits_fp8(*m.weight.shape)) for name, m in left.items())
    assert not any(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("asked", ALL)
@pytest.mark.parametrize("variant", VARIANTS)
def test_planned_bytes_are_those_that_are_there(checkpoints: Checkpoints, variant: str, asked: Quantization) -> None:
    model, _ = loaded(checkpoints.folder(variant), asked, torch.bfloat16)
    there = sum(parameter.nbytes for parameter in model.parameters())
    there += sum(layer.weight.nbytes for layer in integers(model).values())
    spec = load_family(checkpoints.folder(variant)).spec
    # A float32 bias of a router is planned in the model's type, as without integers.
    assert there == pytest.approx(weights_bytes(spec, torch.bfloat16, asked), abs=64)
    plain = VLM(spec)
    assert weights_bytes(spec, torch.float32, None) == 4 * sum(p.numel() for p in plain.parameters())


def test_int4_keeps_heads_and_what_has_no_whole_groups_in_int8(checkpoints: Checkpoints) -> None:
    model, _ = loaded(checkpoints.folder("qwen2_vl"), "int4")
    kinds = {name: layer.weight for name, layer in integers(model).items()}
    for name, weight in kinds.items():
        width = weight.restored().shape[1]
        is_int8 = name.endswith("head") or width % 32 != 0
        assert isinstance(weight, Int8Weight if is_int8 else Int4Weight), name
    assert {type(weight) for weight in kinds.values()} == {Int8Weight, Int4Weight}


def test_fp8_keeps_heads_and_logits_near_those_of_the_plain_weights(checkpoints: Checkpoints) -> None:
    """A layer's output is off by some 3 % of its norm in all."""
    folder = checkpoints.folder("llava")
    plain, model = (loaded(folder, asked)[0] for asked in (None, "fp8"))
    assert isinstance(model.decoder.head, nn.Linear)
    made = integers(model)
    assert all(isinstance(layer.weight, Fp8Weight) for layer in made.values())
    torch.manual_seed(0)
    for path, _, _, linear in quantised_layers(plain, "fp8"):
        x = torch.randn(5, linear.in_features)
        ours, theirs = made[path.removesuffix(".weight")](x), linear(x)
        assert float((ours - theirs).norm() / theirs.norm()) < 0.04, path


def test_layers_that_fit_no_float8_product_stay_and_are_told_of_once(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fovea.models.quantized.fits_fp8", lambda rows, width: rows != width)
    monkeypatch.setattr(logging.getLogger("fovea"), "propagate", True)
    model, _ = loaded(checkpoints.folder("llava"), "fp8")
    assert all(isinstance(layer.out, nn.Linear) for layer in model.decoder.layers)
    assert sum("linear layers stay as they are" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("asked", ALL)
def test_whole_weights_are_never_there_all_at_once(
    tmp_path: Path, checkpoints: Checkpoints, asked: Quantization
) -> None:
    folder = checkpoints.folder("llava")
    model, staged = loaded(folder, asked)
    assert staged is not None
    plain, _ = loaded(folder, None)
    sizes = [linear.weight.nbytes for _, _, _, linear in quantised_layers(plain, asked)]
    # Two threads hold one each, and one may wait for its last part.
    assert max(sizes) <= staged.most_bytes <= sum(sorted(sizes)[-4:]) < sum(sizes)
    assert not staged._whole


def test_tensors_in_any_order_make_the_same(tmp_path: Path, checkpoints: Checkpoints) -> None:
    folder = checkpoints.folder("qwen2_vl")
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors, key=lambda name: name[::-1])
    for number, some in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in some}, tmp_path / f"{number}.safetensors")
    places = {name: f"{number}.safetensors" for number, some in enumerate((names[::2], names[1::2])) for name in some}
    index = str({"weight_map": places}).replace("'", '"')
    (tmp_path / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    for file in folder.iterdir():
        if file.suffix == ".json" and not (tmp_path / file.name).exists():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    wanted, got = (integers(loaded(place, "int4")[0]) for place in (folder, tmp_path))
    for name, layer in wanted.items():
        assert torch.equal(layer.weight.restored(), got[name].weight.restored()), name


def test_a_missing_part_of_a_fused_weight_is_named(tmp_path: Path, checkpoints: Checkpoints) -> None:
    folder = checkpoints.folder("qwen2_vl")
    family, tensors = load_family(folder), load_file(folder / "model.safetensors")
    missing = next(name for name in tensors if name.endswith("layers.1.self_attn.k_proj.weight"))
    save_file({n: t for n, t in tensors.items() if n != missing}, tmp_path / "model.safetensors")
    model = build_empty(family.spec, torch.float32, CPU, "int8")
    with pytest.raises(WeightsError, match="lacks 1 of") as caught:
        load_weights(model, tmp_path, family.weight_map(), use_tqdm=False, staged=Staged(model, "int8", CPU))
    assert missing in str(caught.value)


@pytest.mark.parametrize("asked", ALL)
def test_dummy_weights_are_those_of_the_same_seed_quantised(checkpoints: Checkpoints, asked: Quantization) -> None:
    spec = load_family(checkpoints.folder("llava")).spec
    plain, model = build_empty(spec, torch.float32, CPU), build_empty(spec, torch.float32, CPU, asked)
    fill_dummy(plain, 3)
    fill_dummy(model, 3, Staged(model, asked, CPU))
    made = integers(model)
    for path, _, _, linear in quantised_layers(plain, asked):
        restored = made[path.removesuffix(".weight")].weight.restored()
        assert float((restored - linear.weight).norm() / linear.weight.norm()) < STEP[asked]
    others = dict(model.named_parameters())
    assert torch.equal(others["decoder.embed.weight"], plain.decoder.embed.weight)
