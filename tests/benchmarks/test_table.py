"""How the table judges, and what a comparison refuses."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare, table
from benchmarks.figure import Figure, read_figure, times_better
from benchmarks.fresh_process import RunFailed
from benchmarks.targets import MODELS, QWEN, TARGETS, VLLM, WORK


def result(model: str = QWEN, card: str = "a card", **values: float) -> dict[str, Any]:
    figures = [Figure("TTFT, one picture", values.get("ttft", 30.0), "ms", limit=15.0).content()]
    figures.append(Figure("decode alone", values.get("decode", 600.0), "tok/s").content())
    about = dict.fromkeys(table.ABOUT, "") | {"card": card, "date": "2026-01-01 00:00 UTC"}
    return {**about, "model": model, "arguments": dict(WORK), "figures": figures}


@pytest.mark.parametrize(
    ("value", "unit", "target", "verdict"),
    [(30, "ms", 32, "PASS"), (32, "ms", 32, "PASS"), (33, "ms", 32, "MISS"), (33, "req/s", 32, "PASS")]
    + [(31, "tok/s", 32, "MISS"), (31, "tok/s", None, "")],
)
def test_times_are_held_below_and_rates_above_their_target(
    value: float, unit: str, target: float | None, verdict: str
) -> None:
    assert table.judge(Figure("f", value, unit), target) == verdict


def test_the_share_of_the_limit_is_one_at_the_limit_and_less_below_it() -> None:
    assert Figure("f", 20.0, "ms", limit=10.0).share == pytest.approx(0.5)
    assert Figure("f", 20.0, "req/s", limit=40.0).share == pytest.approx(0.5)
    assert Figure("f", 20.0, "s").share is None


def test_a_row_says_value_target_verdict_share_and_ratio() -> None:
    figure = read_figure(result(ttft=30.0)["figures"][0])
    line = table.row(QWEN, figure, TARGETS[QWEN], VLLM[QWEN])
    assert line.split() == [QWEN, "TTFT,", "one", "picture", "30", "ms", "<=", "32", "PASS", "15", "50%", "65", "2.17x"]


def test_targets_and_peers_name_figures_that_the_offline_benchmark_makes() -> None:
    source = (Path(table.__file__).parent / "offline.py").read_text(encoding="utf-8")
    for model in MODELS:
        for name in (*TARGETS[model], *VLLM[model]):
            assert f'"{name.split(",")[0]}' in source or name.split(",")[0] in ("requests", "two pictures"), name


def test_a_table_goes_on_after_a_model_that_fails_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(model: Path, workloads: str, args: argparse.Namespace, options: object = None) -> dict[str, Any]:
        if model.name == MODELS[0]:
            raise RunFailed("no memory")
        return result(model.name, decode=1e6)

    monkeypatch.setattr(table, "run_offline", run)
    for name in MODELS[:2]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}", encoding="utf-8")
    folders = [str(tmp_path / name) for name in MODELS[:2]]
    assert table.main(["--models", *folders, "--results", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "FAILED: no memory" in printed
    assert "PASS" in printed
    (written,) = tmp_path.glob("table_*.json")
    assert [run["model"] for run in json.loads(written.read_text(encoding="utf-8"))["models"]] == [MODELS[1]]


def test_other_work_than_the_targets_is_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table, "run_offline", lambda *_: result(ttft=1e6))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert table.main(["--models", str(tmp_path), "--n", "8", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "MISS" not in printed
    assert "Nothing is judged" in printed


def _files(folder: Path, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    paths = [folder / "before.json", folder / "after.json"]
    for path, content in zip(paths, (before, after), strict=True):
        path.write_text(json.dumps(content), encoding="utf-8")
    return [str(path) for path in paths]


def test_a_comparison_says_how_many_times_better(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(_files(tmp_path, result(ttft=30, decode=600), result(ttft=15, decode=900))) == 0
    printed = capsys.readouterr().out
    assert [line.split()[-1] for line in printed.splitlines() if QWEN in line] == ["2.00x", "1.50x"]


def test_different_cards_are_refused_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = _files(tmp_path, result(card="one"), result(card="two"))
    assert compare.main(files) == 2
    assert "Different cards" in capsys.readouterr().out
    assert compare.main([*files, "--force"]) == 0
    assert "1.00x" in capsys.readouterr().out


def test_different_work_is_said_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = result()
    other["arguments"]["n"] = 8
    compare.main(_files(tmp_path, result(), other))
    assert f"NOT THE SAME WORK: {QWEN}: --n is 256 and 8" in capsys.readouterr().out


def test_better_is_the_same_whichever_way_a_unit_counts() -> None:
    assert times_better(2.0, 4.0, "us") == times_better(4.0, 2.0, "GB/s") == 2.0
