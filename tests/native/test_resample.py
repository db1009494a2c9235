"""Pictures resized by the C kernels are Pillow's to the bit."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fovea.core.types import Resample
from fovea.native import build, resample
from fovea.native.library import SIGNATURES, make_library
from tests.native.variants import VARIANTS, variant

FILTERS: dict[Resample, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@pytest.fixture(scope="module", params=VARIANTS, autouse=True)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("kernels")
    folder.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "FLAGS", variant(request.param))
        library = make_library(folder)
        if library is None:
            pytest.skip("no compiler here")
        patch.setattr(resample, "existing_library", lambda: library)
        yield


def pixels(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    made = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return (made > 127).astype(np.uint8) * 255 if seed % 3 == 0 else made  # overshoots are clipped


@pytest.mark.parametrize("seed", range(60))
def test_random_sizes_have_pillows_bits(seed: int) -> None:
    random.seed(seed)
    most = 900 if seed % 10 == 0 else 90
    width, height, new_width, new_height = (random.randint(1, most) for _ in range(4))
    new_width, new_height = (width if seed % 7 == 0 else new_width), (height if seed % 11 == 0 else new_height)
    given = pixels(width, height, seed)
    for kind, its in FILTERS.items():
        made = resample.resized(given, (new_width, new_height), kind)
        assert made is not None
        assert np.array_equal(made, np.asarray(Image.fromarray(given).resize((new_width, new_height), its)))


def test_a_view_of_a_picture_is_resized_as_its_copy() -> None:
    given = pixels(64, 48, 1)[5:40, 3:60]
    made = resample.resized(given, (31, 77), "bicubic")
    assert made is not None
    assert np.array_equal(made, np.asarray(Image.fromarray(given.copy()).resize((31, 77), Image.Resampling.BICUBIC)))


def test_other_filters_are_left_to_pillow() -> None:
    assert resample.resized(pixels(8, 8, 1), (4, 4), "lanczos") is None


def test_without_the_compiled_file_everything_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "existing_library", lambda: None)
    assert resample.resized(pixels(8, 8, 1), (4, 4), "bicubic") is None


def test_every_function_is_described() -> None:
    sources = "".join((build.FOLDER / name).read_text() for name in build.SOURCES)
    named = set(re.findall(r"^(?:void|int) (fovea_\w+)", sources, re.MULTILINE))
    assert named - {"fovea_rms_norm"} == set(SIGNATURES)  # which only C calls
