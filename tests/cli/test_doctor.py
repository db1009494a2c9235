"""`fovea doctor`: it reports what there is, and a broken installation is found and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fovea.cli import checks, facts, selftest
from fovea.cli.checks import Check, check_model_files, safetensors_bytes
from fovea.cli.main import main
from fovea.cli.pictures import Ask
from tests.cli.support import FakeLLM, needs_embedded
from tests.parity.support import Checkpoints


def all_well() -> list[Check]:
    return [Check("python", "ok", "fine"), Check("torchvision", "warn", "odd")]


def test_json_is_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(checks, "run_checks", all_well)
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["checks"][1] == {"name": "torchvision", "status": "warn", "detail": "odd"}
    assert set(report["facts"]) == {"software", "packages", "cpu", "memory", "cuda", "hub"}
    assert report["facts"]["packages"]["torch"] == torch.__version__.partition("+")[0]


def test_the_table_ends_with_a_verdict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(checks, "run_checks", all_well)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("software\n  fovea ")
    assert out.endswith("Fovea works here. See the lines that begin with warn.\n")


def test_a_failed_check_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(checks, "run_checks", lambda: [Check("kernels", "fail", "wrong")])
    assert main(["doctor"]) == 1
    assert main(["doctor", "--json"]) == 1
    assert "Fovea does not work here" in capsys.readouterr().out


def test_this_installation_has_what_it_needs() -> None:
    found = {check.name: check for check in (checks.check_python(), checks.check_packages(), checks.check_kernels())}
    assert {check.status for check in found.values()} == {"ok"}, found


@pytest.mark.parametrize("name", ["rms_norm", "silu_mul", "paged_attention", "rotate_and_store"])
def test_a_wrong_kernel_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fovea import kernels

    right = getattr(kernels, name)

    def wrong(*arguments: Any) -> Tensor:
        return torch.as_tensor(right(*arguments)) * 1.001

    monkeypatch.setattr(kernels, name, wrong)
    assert selftest.worst_error("cpu") > selftest.TOLERANCE["cpu"]
    assert checks.check_kernels().status == "fail"


def test_a_package_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        checks, "package_version", lambda name: "1.0" if name == "torch" else facts.package_version(name)
    )
    check = checks.check_packages()
    assert check.status == "fail"
    assert "torch>=" in check.detail
    assert "found: 1.0" in check.detail


def test_a_complete_model_folder_passes_and_a_damaged_one_does_not(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for file in checkpoints.folder("qwen2_vl").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert check_model_files(tmp_path).status == "ok"
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    assert safetensors_bytes(weights) == len(whole)
    for damaged in (whole[:-1], whole + b"x", b"version https://git-lfs.github.com/spec/v1\n", b""):
        weights.write_bytes(damaged)
        assert check_model_files(tmp_path).status == "fail"
    weights.unlink()
    assert "lacks model.safetensors" in check_model_files(tmp_path).detail


def test_a_check_that_breaks_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Check:
        raise OSError("no such thing")

    monkeypatch.setattr(checks, "check_kernels", broken)
    monkeypatch.setattr(checks, "check_model_files", lambda: Check("embedded model", "fail", "gone"))
    found = {check.name: check for check in checks.run_checks()}
    assert found["kernels"] == Check("kernels", "fail", "OSError: no such thing")
    assert found["answer"].detail.startswith("not tried")


@pytest.mark.parametrize(("expected", "status"), [("a red square", "ok"), ("", "ok"), ("A blue circle.", "warn")])
def test_the_answer_is_judged(
    expected: str, status: str, fake: type[FakeLLM], picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "bundled_asks", lambda: [Ask((picture,), "What is it?", expected)])
    check = checks.check_answer()
    assert check.status == status
    assert "'A red square.'" in check.detail


def test_facts_are_reported_where_nothing_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """On other systems there is no /proc; that is no error."""
    monkeypatch.setattr(facts, "_read", lambda path: "")
    assert facts.collect_facts()["memory"]["total"] == "unknown"


@needs_embedded
def test_the_doctor_finds_nothing_wrong_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0, capsys.readouterr().out
