"""What others build on: public names and options. A change here is a decision, so it must show in a diff.

After a decision, FOVEA_WRITE_SNAPSHOTS=1 pytest tests/contract writes the files anew.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from pathlib import Path

import pytest

import fovea
from fovea.cli.main import COMMANDS
from fovea.cli.options import SAMPLING_HELP, engine_options, sampling_options
from fovea.cli.page import options_page
from fovea.core import errors
from fovea.core.config import EngineConfig
from fovea.core.params import SamplingParams
from fovea.core.types import CompletionOutput, MediaReport, RequestMetrics, RequestOutput
from tests.contract.source import ROOT

SNAPSHOTS = Path(__file__).parent / "snapshots"
RECORDS = (EngineConfig, SamplingParams, RequestOutput, CompletionOutput, MediaReport, RequestMetrics)


def check_snapshot(path: Path, text: str) -> None:
    if os.environ.get("FOVEA_WRITE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text, f"{path.name} has changed; see the docstring of {__file__}"


def public_names() -> str:
    lines = [f"fovea.{name}" for name in sorted(fovea.__all__)]
    for name, member in sorted(vars(fovea.LLM).items()):
        if inspect.isfunction(member) and (not name.startswith("_") or name == "__init__"):
            lines.append(f"LLM.{name}({', '.join(inspect.signature(member).parameters)})")
    lines += [f"fovea {name}" for name in COMMANDS]
    return "\n".join(lines) + "\n"


def fields_and_defaults() -> str:
    lines = []
    for record in RECORDS:
        for field in dataclasses.fields(record):
            default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
            lines.append(f"{record.__name__}.{field.name}: {field.type}{default}")
    return "\n".join(lines) + "\n"


def error_table() -> str:
    found = [value for value in vars(errors).values() if inspect.isclass(value)]
    return "".join(f"{e.__name__} {e.code} {e.status}\n" for e in found if issubclass(e, errors.FoveaError))


def test_public_names() -> None:
    check_snapshot(SNAPSHOTS / "names.txt", public_names())


def test_options_and_fields() -> None:
    check_snapshot(SNAPSHOTS / "fields.txt", fields_and_defaults())


def test_errors() -> None:
    check_snapshot(SNAPSHOTS / "errors.txt", error_table())


def test_error_codes_are_told_apart() -> None:
    leaves = [e for e in vars(errors).values() if inspect.isclass(e) and issubclass(e, errors.FoveaError)]
    codes = [e.code for e in leaves]
    assert len(codes) == len(set(codes))


def test_the_options_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert page == options_page(), "run: python -m fovea.cli.page > docs/options.md"


def test_every_option_has_a_help_text_and_a_flag() -> None:
    for option in engine_options():
        assert option.help.endswith("."), option.name
        assert option.flag == "--" + option.name.replace("_", "-")
    assert [option.name for option in engine_options()] == [f.name for f in dataclasses.fields(EngineConfig)]


def test_sampling_flags_are_fields_of_sampling_params() -> None:
    assert set(SAMPLING_HELP) <= {f.name for f in dataclasses.fields(SamplingParams)}
    assert [option.name for option in sampling_options({})] == list(SAMPLING_HELP)


@pytest.mark.parametrize("name", sorted(set(fovea.__all__)))
def test_public_names_can_be_loaded(name: str) -> None:
    assert getattr(fovea, name) is not None


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'LMM'"):
        fovea.LMM  # noqa: B018
