"""docs/security.md tells the limits that hold."""

from __future__ import annotations

import re

import pytest

from fovea.core.server_config import ServerConfig
from tests.contract.source import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
LIMITS = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", PAGE, re.MULTILINE)


def test_there_is_a_table_of_limits() -> None:
    assert len(LIMITS) >= 20


@pytest.mark.parametrize(("name", "value"), LIMITS)
def test_a_limit_on_the_page_is_the_default(name: str, value: str) -> None:
    assert str(getattr(ServerConfig(), name)) == value


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"`--([a-z-]+)", PAGE))))
def test_a_flag_on_the_page_exists(flag: str) -> None:
    assert hasattr(ServerConfig(), flag.replace("-", "_"))
