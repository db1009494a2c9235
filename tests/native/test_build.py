"""What is loaded is what this user's compiler made of our source, and nobody else can change it."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fovea.native import build

Spoil = Callable[[Path], object]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: folder.chmod(0o770),
        lambda folder: folder.parent.chmod(0o777),
        lambda folder: (folder.rmdir(), folder.symlink_to("/tmp")),
    ],
)
def test_nothing_is_loaded_from_where_others_can_write(spoil: Spoil, tmp_path: Path) -> None:
    folder = tmp_path / "outer" / "kernels"
    folder.mkdir(parents=True, mode=0o700)
    spoil(folder)
    path, why = build.built_library(folder)
    assert path is None
    assert str(tmp_path) in why


def test_a_library_that_others_can_write_is_not_loaded(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path, why = build.built_library(tmp_path)
    if path is None:
        pytest.skip(why)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o666)
    assert build.built_library(tmp_path)[0] is None


def test_the_second_start_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    first, why = build.built_library(tmp_path)
    if first is None:
        pytest.skip(why)
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("it is there already"))
    assert build.built_library(tmp_path) == (first, str(first))


def test_without_a_compiler_there_is_a_reason_and_no_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    path, why = build.built_library(tmp_path)
    assert path is None
    assert "no C compiler" in why


def test_a_compiler_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-fno-such-flag"))
    path, why = build.built_library(tmp_path)
    assert path is None
    assert why
    assert not list(tmp_path.iterdir())


def test_who_can_do_without_loads_only_what_is_there_and_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(build, "_usual_place", lambda: tmp_path / "kernels.so")
    assert build.existing_path() is None
    (tmp_path / "kernels.so").touch(0o600)
    assert build.existing_path() == tmp_path / "kernels.so"
    (tmp_path / "kernels.so").chmod(0o622)
    assert build.existing_path() is None
    (tmp_path / "kernels.so").chmod(0o600)
    tmp_path.chmod(0o777)
    assert build.existing_path() is None
    monkeypatch.setattr(build, "_usual_place", lambda: None)
    assert build.existing_path() is None
