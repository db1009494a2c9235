"""Pictures and a fake model for the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.cli.support import FakeLLM


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (100, 70), "red").save(path)
    return path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    """Commands use this class instead of a model."""

    class Fake(FakeLLM):
        pass

    monkeypatch.setattr("fovea.llm.LLM", Fake)
    return Fake
