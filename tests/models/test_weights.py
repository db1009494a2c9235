"""Checkpoint tensors arrive in the parameters they belong to, each exactly once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fovea.core.errors import WeightsError
from fovea.families.base import Family
from fovea.families.registry import load_family
from fovea.families.spec import WeightMap, WeightSlot
from fovea.models.vlm import VLM
from fovea.models.weights import build_empty, checkpoint_files, fill_dummy, load_weights
from tests.parity.support import EVERY_FAMILY, Checkpoints

CPU = torch.device("cpu")


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[VLM, Family]:
    family = load_family(folder)
    model = build_empty(family.spec, dtype, CPU)
    load_weights(model, folder, family.weight_map(), use_tqdm=False)
    return model, family


def halves(tensor: torch.Tensor, head_dim: int, rotated: int) -> torch.Tensor:
    """Heads whose rotated dimensions stand pair by pair, with the first of all pairs before the second."""
    turned, rest = tensor.unflatten(0, (-1, head_dim)).split((rotated, head_dim - rotated), dim=1)
    pairs = turned.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
    return torch.cat((pairs, rest), dim=1).flatten(0, 1)


@pytest.mark.parametrize("variant", [*EVERY_FAMILY, "llava-grouped", "llava_next-qwen2", "qwen3_vl_moe", "glm4v_moe"])
def test_every_slot_holds_its_tensor(checkpoints: Checkpoints, variant: str) -> None:
    folder = checkpoints.folder(variant)
    model, family = loaded(folder)
    parameters, weight_map = dict(model.named_parameters()), family.weight_map()
    published = load_file(folder / "model.safetensors")
    used = 0
    for name, tensor in published.items():
        if name.startswith(weight_map.ignored):
            continue
        slot = weight_map.slots[name]
        rows = slice(None) if slot.rows is None else slice(slot.row, slot.row + slot.rows)
        target = parameters[slot.parameter][rows]
        if slot.pairs is not None:
            tensor = halves(tensor, *slot.pairs)
        if slot.stacked:
            tensor = tensor.transpose(1, 2)
        assert torch.equal(target.flatten(), tensor.float().flatten()), name
        used += tensor.numel()
    assert used == sum(parameter.numel() for parameter in parameters.values())


@pytest.mark.parametrize("variant", EVERY_FAMILY)
def test_weights_are_cast_to_the_type_that_was_asked_for(checkpoints: Checkpoints, variant: str) -> None:
    model, _ = loaded(checkpoints.folder(variant), torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("variant", EVERY_FAMILY)
def test_every_single_missing_tensor_is_noticed(checkpoints: Checkpoints, tmp_path: Path, variant: str) -> None:
    folder = checkpoints.folder(variant)
    family, published = load_family(folder), load_file(folder / "model.safetensors")
    weight_map = family.weight_map()
    needed = [name for name in published if not name.startswith(weight_map.ignored)]
    model = build_empty(family.spec, torch.float32, CPU)
    for name in needed[:: max(1, len(needed) // 12)]:
        save_file({n: t for n, t in published.items() if n != name}, tmp_path / "model.safetensors")
        with pytest.raises(WeightsError, match="lacks 1 of") as caught:
            load_weights(model, tmp_path, weight_map, use_tqdm=False)
        assert name in str(caught.value)


def test_a_map_that_leaves_rows_unfilled_is_our_own_fault_and_loud(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 4, bias=False)
    save_file({"half": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    weight_map = WeightMap({"half": WeightSlot("weight", 0, 2)})
    with pytest.raises(AssertionError, match="not covered exactly once"):
        load_weights(model, tmp_path, weight_map, use_tqdm=False)  # type: ignore[arg-type]


def test_the_index_decides_which_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"unused")
    (tmp_path / "b.safetensors").write_bytes(b"")
    index = '{"weight_map": {"x": "b.safetensors", "y": "b.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    assert checkpoint_files(tmp_path) == [tmp_path / "b.safetensors"]


def test_dummy_weights_are_sane_and_repeatable(checkpoints: Checkpoints) -> None:
    family = load_family(checkpoints.folder("phi3_v"))
    models = [build_empty(family.spec, torch.float32, CPU) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        fill_dummy(model, seed)
    first, again, other = (dict(model.named_parameters()) for model in models)
    for name, values in first.items():
        assert bool(torch.isfinite(values).all())
        assert torch.equal(values, again[name])
        if values.ndim > 1:
            assert values.std() == pytest.approx(0.02, rel=0.3)
            assert not torch.equal(values, other[name])
    assert bool((first["decoder.norm.weight"] == 1).all())
