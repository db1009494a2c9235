"""These tests need a CUDA card: `make gpu-test`. Elsewhere they are collected and skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.gpu.small import build_small

if TYPE_CHECKING:
    from tests.gpu.judge import Judge

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card")
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.gpu)
            item.add_marker(skip)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's small checkpoint, built when first wanted."""
    root = tmp_path_factory.mktemp("small")
    return cache(lambda family: build_small(family, root / family))


@pytest.fixture(scope="session")
def judges(small: Callable[[str], Path]) -> Iterator[Callable[[str, torch.dtype], Judge]]:
    """transformers' model of a family in one type."""
    from tests.gpu.judge import Judge

    made = cache(lambda family, dtype: Judge(small(family), dtype))
    yield made
    made.cache_clear()
