"""Pictures in unusual forms are shown to the model as what they look like: same identity, same answer."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tests.bad_input.harness import image
from tests.media.corpus import encode, exif, noise, over_white, png
from tests.oracle.checkpoints import CASES
from tests.oracle.reference import reference
from tests.parity.support import FAMILIES, GREEDY, Checkpoints, Engines, ask, tokens

RGBA = noise(90, 60, 4, seed=3)
GREY16 = np.random.default_rng(4).integers(0, 65536, (60, 90), np.uint16)


def _jpeg(picture: Image.Image, orientation: int = 1) -> bytes:
    return encode(picture, "JPEG", quality=95, exif=exif(orientation))


def _rgb(picture: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(picture.convert("RGB"))


def _decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def _grey(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)


def _grey16_png() -> bytes:
    rows = [struct.pack(">90H", *row) for row in GREY16.tolist()]
    return png((90, 60), rows, depth=16, colour=0)


CMYK = image().convert("CMYK")
PALETTE = image().quantize(17)
# What is handed in, and the plain RGB pixels that it means.
ODD: dict[str, tuple[object, NDArray[np.uint8]]] = {
    "rgba picture": (Image.fromarray(RGBA), over_white(RGBA)),
    "rgba array": (RGBA, over_white(RGBA)),
    "rgba png": (encode(Image.fromarray(RGBA), "PNG"), over_white(RGBA)),
    "palette picture": (PALETTE, _rgb(PALETTE)),
    "palette png": (encode(PALETTE, "PNG"), _rgb(PALETTE)),
    "gif": (encode(PALETTE, "GIF"), _rgb(PALETTE)),
    "cmyk picture": (CMYK, _rgb(CMYK)),
    "cmyk jpeg": (encode(CMYK, "JPEG"), _rgb(_decoded(encode(CMYK, "JPEG")))),
    "grey picture": (image().convert("L"), _grey(np.asarray(image().convert("L")))),
    "grey array": (np.asarray(image().convert("L")), _grey(np.asarray(image().convert("L")))),
    "16-bit grey png": (_grey16_png(), _grey((GREY16.astype(np.int64) * 255 + 32767) // 65535)),
    "16-bit grey picture": (
        Image.fromarray(GREY16.astype(np.int32)),
        _grey((GREY16.astype(np.int64) * 255 + 32767) // 65535),
    ),
    "one bit": (image().convert("1"), _grey(np.asarray(image().convert("1")) * 255)),
    "one pixel": (Image.new("RGB", (1, 1), (9, 99, 199)), np.full((1, 1, 3), (9, 99, 199), np.uint8)),
    "not contiguous": (np.asfortranarray(_rgb(image())), _rgb(image())),
    "read-only": (_rgb(image()), _rgb(image())),
    "bytearray": (bytearray(encode(image(), "PNG")), _rgb(image())),
    "memoryview": (memoryview(encode(image(), "PNG")), _rgb(image())),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_picture_is_the_plain_picture_it_looks_like(engines: Engines, name: str) -> None:
    llm, prompt = engines.get("qwen2_vl"), CASES["qwen2_vl"][0].prompt
    odd, plain = ODD[name]
    first, second = (
        ask(llm, {"prompt": prompt, "multi_modal_data": {"image": value}}) for value in (Image.fromarray(plain), odd)
    )
    assert tokens(first) == tokens(second)
    assert second.media[0].cache_hit, "the same pixels have the same identity"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_is_seen_upright(engines: Engines, orientation: int) -> None:
    llm, prompt = engines.get("qwen2_vl"), CASES["qwen2_vl"][0].prompt
    data = _jpeg(image(), orientation)
    upright = ImageOps.exif_transpose(_decoded(data)).convert("RGB")
    first, second = (ask(llm, {"prompt": prompt, "multi_modal_data": {"image": v}}) for v in (upright, data))
    assert (second.media[0].original_width_px, second.media[0].original_height_px) == upright.size
    assert tokens(first) == tokens(second)
    assert second.media[0].cache_hit


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["rgba picture", "palette png", "cmyk jpeg", "16-bit grey png", "one pixel"])
def test_an_odd_picture_gets_the_reference_answer_to_the_plain_one(
    checkpoints: Checkpoints, engines: Engines, family: str, name: str
) -> None:
    odd, plain = ODD[name]
    prompt = CASES[family][0].prompt
    if family == "phi3_v" and name == "one pixel":
        prompt = CASES[family][0].prompt.replace("What", "How")
    want = reference(checkpoints.folder(family), prompt, [Image.fromarray(plain)], max_new_tokens=6)
    got = ask(engines.get(family), {"prompt": prompt, "multi_modal_data": {"image": odd}})
    assert tokens(got)[:6] == want.greedy


def test_a_file_by_path_is_read(engines: Engines, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encode(image(), "PNG"))
    llm, prompt = engines.get("llava"), CASES["llava"][0].prompt
    first, second = (ask(llm, {"prompt": prompt, "multi_modal_data": {"image": v}}) for v in (image(), path))
    assert tokens(first) == tokens(second)


def test_the_caller_s_picture_is_not_changed(engines: Engines) -> None:
    picture = Image.open(io.BytesIO(_jpeg(image(), 6)))
    before = picture.copy()
    ask(engines.get("llava"), {"prompt": CASES["llava"][0].prompt, "multi_modal_data": {"image": picture}}, GREEDY)
    assert picture.mode == before.mode
    assert picture.size == before.size
    assert picture.tobytes() == before.tobytes()


def test_one_picture_object_in_many_prompts_at_once(checkpoints: Checkpoints, engines: Engines) -> None:
    """A lazily opened file is loaded by several threads; each prompt sees the whole picture."""
    llm, case = engines.get("llava"), CASES["llava"][0]
    lazy = Image.open(io.BytesIO(encode(case.images()[0], "PNG")))
    prompt = {"prompt": case.prompt, "multi_modal_data": {"image": lazy}}
    outputs = llm.generate([prompt] * 12, GREEDY, use_tqdm=False)
    want = reference(checkpoints.folder("llava"), case.prompt, case.images()).greedy
    assert [tokens(output) for output in outputs] == [want] * 12
