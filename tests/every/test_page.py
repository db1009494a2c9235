"""docs/models.md says of every class which path it takes, as the registry chooses."""

from __future__ import annotations

from pathlib import Path

from fovea.families.bridged import BRIDGED, CANNOT_RUN, GENERIC
from fovea.families.registry import FAMILIES
from tests.every.catalogue import MODEL_TYPES

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = {cells[1].strip(): cells for cells in (line.split("|") for line in PAGE.splitlines()) if len(cells) > 3}


def test_every_class_has_a_row() -> None:
    assert [name for name in MODEL_TYPES if name not in ROWS] == []


def test_the_path_of_a_class_is_the_one_it_takes() -> None:
    own = {name for family in FAMILIES for name in family.architectures}
    for model_type, name in BRIDGED.items():
        if f"`{name}`" not in ROWS[model_type][2]:
            continue  # not run: the row says why
        usual = "fused" if name in own else "generic" if model_type in GENERIC else "compatible"
        assert ROWS[model_type][3].split(",")[0].strip() == usual, model_type


def test_what_cannot_run_says_why() -> None:
    for model_type, why in CANNOT_RUN.items():
        assert why in ROWS[model_type][2]
