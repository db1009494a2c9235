"""Prompts that cannot be answered: each fails alone with an error that says what, which limit and what to do."""

from __future__ import annotations

import decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fovea.core.errors import (
    EmbeddingsError,
    MediaDecodeError,
    MediaError,
    MediaLimitError,
    MediaSourceError,
    PlaceholderError,
    PromptError,
    PromptTooLongError,
    RequestFailedError,
)
from tests.bad_input.harness import Bad, assert_fails_alone, assert_helpful, image, rows
from tests.media.corpus import NOT_PICTURES, encoded_samples, huge_headers
from tests.oracle.checkpoints import CASES
from tests.parity.support import GREEDY, Checkpoints, Engines, answer, question, tokens

ONE = {family: cases[0].prompt for family, cases in CASES.items()}
IMAGE_ID = 503  # of <image> in the tiny LLaVA
OPTIONS: dict[str, Any] = {"limit_mm_per_prompt": {"image": 3}, "max_model_len": 2500}


def shown(value: object, family: str = "llava", **more: Any) -> dict[str, object]:
    """A prompt with one place for a picture."""
    return {"prompt": ONE[family], "multi_modal_data": {"image": value}, **more}


SHAPES = [
    Bad("a number", 5, PromptError, ("int",)),
    Bad("none", None, PromptError, ("not NoneType",)),
    Bad("bytes", b"text", PromptError, ("bytes",)),
    Bad("a picture alone", image(), PromptError, ("text, a list of token ids or a dict",)),
    Bad("a list with text in it", ["text", 1], PromptError, ("whole numbers",)),
    Bad("an empty dict", {}, PromptError, ("'prompt'", "'prompt_token_ids'")),
    Bad("text and ids", {"prompt": "a", "prompt_token_ids": [1]}, PromptError, ("either",)),
    Bad("text of another type", {"prompt": 5}, PromptError, ("'prompt' must be text", "int")),
    Bad("a mistyped key", {"promt": "a"}, PromptError, ("'promt'", "Did you mean 'prompt'?")),
    Bad("a mistyped data key", {"prompt": "a", "multimodal_data": {}}, PromptError, ("'multi_modal_data'?",)),
    Bad("a key that is a number", {"prompt": "a", 1: 2}, PromptError, ("1", "known: prompt")),
    Bad("a key that is no text", {"prompt": "a", None: 2}, PromptError, ("known: prompt",)),
    Bad("empty ids", {"prompt_token_ids": []}, PromptError, ("empty",)),
    Bad("an empty text", "", PromptError, ("empty",), family="qwen2_vl"),
    Bad("half a surrogate pair", "a \ud800 b", PromptError, ("surrogate",)),
    Bad("data that is no dict", {"prompt": "a", "multi_modal_data": [image()]}, PromptError, ("dict", "list")),
    Bad("a salt that is no text", {"prompt": "a", "cache_salt": 5}, PromptError, ("cache_salt", "128")),
    Bad("a long salt", {"prompt": "a", "cache_salt": "x" * 129}, PromptError, ("cache_salt", "128")),
    Bad("half a surrogate pair as salt", {"prompt": "a", "cache_salt": "\ud800"}, PromptError, ("cache_salt",)),
]

IDS = [
    Bad("beyond the vocabulary", {"prompt_token_ids": [1, 10**9]}, PromptError, ("1000000000", "permitted: 0 to ")),
    Bad("negative", {"prompt_token_ids": [1, -1]}, PromptError, ("-1", "permitted: 0 to ")),
    Bad("a bool", {"prompt_token_ids": [True, 1]}, PromptError, ("whole numbers",)),
    Bad("a float", {"prompt_token_ids": [1.0]}, PromptError, ("whole numbers",)),
    Bad("text", {"prompt_token_ids": "12"}, PromptError, ("whole numbers",)),
    Bad("nested", {"prompt_token_ids": [[1, 2]]}, PromptError, ("whole numbers",)),
    Bad("an array", {"prompt_token_ids": np.array([1, 2])}, PromptError, ("whole numbers",)),
    Bad("far beyond any integer type", {"prompt_token_ids": [2**70]}, PromptError, ("permitted: 0 to ",)),
]

COUNTS = [
    Bad(
        "a picture and no place",
        {"prompt": "USER: hi", "multi_modal_data": {"image": image()}},
        PlaceholderError,
        ("0 places", "1 were given", "<image>"),
    ),
    Bad("a place and no picture", ONE["llava"], PlaceholderError, ("1 places", "0 were given")),
    Bad("two pictures for one place", shown([image(), image()]), PlaceholderError, ("1 places", "2 were given")),
    Bad(
        "one picture for two places",
        {"prompt": "<image><image>", "multi_modal_data": {"image": image()}},
        PlaceholderError,
        ("2 places", "1 were given"),
    ),
    Bad(
        "ids with a place and no picture", {"prompt_token_ids": [1, IMAGE_ID]}, PlaceholderError, ("1 places", "0 were")
    ),
    Bad(
        "more than permitted",
        {"prompt": "<image>" * 4, "multi_modal_data": {"image": [image()] * 4}},
        MediaLimitError,
        ("4 images", "limit_mm_per_prompt", "3"),
    ),
    Bad("more than permitted, unopened", shown([b"not opened"] * 1000), MediaLimitError, ("1000 images", "3")),
    Bad(
        "qwen: a picture and no place",
        {"prompt": "hi", "multi_modal_data": {"image": image()}},
        PlaceholderError,
        ("0 places", "1 were given"),
        family="qwen2_vl",
    ),
    Bad("qwen: a place and no picture", ONE["qwen2_vl"], PlaceholderError, ("1 places", "0 were"), family="qwen2_vl"),
    Bad(
        "phi: a picture and no place",
        {"prompt": "hi", "multi_modal_data": {"image": image()}},
        PlaceholderError,
        ("0 places", "1 were given"),
        family="phi3_v",
    ),
    Bad(
        "phi: the same number twice",
        {"prompt": "<|image_1|><|image_1|>", "multi_modal_data": {"image": [image()] * 2}},
        PlaceholderError,
        ("1, 2, 3", "[1, 1]"),
        family="phi3_v",
    ),
    Bad(
        "phi: a gap in the numbers",
        {"prompt": "<|image_1|><|image_3|>", "multi_modal_data": {"image": [image()] * 2}},
        PlaceholderError,
        ("[1, 3]",),
        family="phi3_v",
    ),
    Bad(
        "phi: numbers from 0",
        {"prompt": "<|image_0|>", "multi_modal_data": {"image": image()}},
        PlaceholderError,
        ("[0]",),
        family="phi3_v",
    ),
    Bad(
        "phi: numbers out of order",
        {"prompt": "<|image_2|><|image_1|>", "multi_modal_data": {"image": [image()] * 2}},
        PlaceholderError,
        ("[2, 1]",),
        family="phi3_v",
    ),
]

PICTURES = [
    *(Bad(f"bytes of {name}", shown(data), MediaDecodeError, ()) for name, data in NOT_PICTURES.items()),
    *(
        Bad(f"the first half of a {kind}", shown(data[: len(data) // 2]), MediaDecodeError, ())
        for kind, data in encoded_samples().items()
    ),
    *(
        Bad(name, shown(data), MediaLimitError, ("permits",))
        for name, data in huge_headers().items()
        if "frame" not in name
    ),
    Bad("random bytes", shown(np.random.default_rng(1).bytes(4000)), MediaDecodeError, ()),
    Bad("no pixels", shown(Image.new("RGB", (0, 5))), MediaLimitError, ("0 x 5", "1 x 1")),
    Bad("an array without pixels", shown(np.zeros((5, 0, 3), np.uint8)), MediaLimitError, ("0 x 5",)),
    Bad("too elongated", shown(Image.new("RGB", (1000, 4))), MediaLimitError, ("250 times", "200")),
    Bad("text", shown("picture.png"), MediaSourceError, ("pathlib.Path",)),
    Bad("a missing file", shown(Path("/nowhere/picture.png")), MediaSourceError, ("can't be opened",)),
    Bad("a folder", shown(Path("/")), MediaSourceError, ("not a regular file",)),
    Bad("a device", shown(Path("/dev/zero")), MediaSourceError, ("not a regular file",)),
    Bad("a number", shown(5), MediaSourceError, ("int",)),
    Bad("a list in a list", shown([[image()]]), MediaSourceError, ("list",)),
    Bad("a nothing in a list", shown([None]), MediaSourceError, ("PIL picture",)),
    Bad("an array of whole numbers", shown(np.zeros((8, 8, 3), np.int64)), MediaSourceError, ("int64", "uint8")),
    Bad("an array of objects", shown(np.array([[None]])), MediaSourceError, ("object", "uint8")),
    Bad("channels first", shown(np.zeros((3, 20, 30), np.uint8)), MediaSourceError, ("transpose(1, 2, 0)",)),
    Bad("floats as a PIL picture", shown(Image.new("F", (8, 8))), MediaDecodeError, ('mode "F"',)),
    Bad(
        "another kind of medium",
        {"prompt": "a", "multi_modal_data": {"audio": []}},
        MediaSourceError,
        ("'audio'", "'image'"),
    ),
    Bad("a kind that is no text", {"prompt": "a", "multi_modal_data": {1: []}}, MediaSourceError, ("'image'",)),
    Bad("too few ids", shown([image()], multi_modal_uuids={"image": []}), MediaSourceError, ("0 entries", "1 images")),
    Bad("ids that are no dict", shown(image(), multi_modal_uuids="a"), PromptError, ("multi_modal_uuids", "dict")),
    Bad("an id that is no text", shown(image(), multi_modal_uuids={"image": [5]}), PromptError, ("256",)),
    Bad("a long id", shown(image(), multi_modal_uuids={"image": ["x" * 257]}), PromptError, ("256",)),
    Bad(
        "too elongated for phi",
        shown(Image.new("RGB", (2000, 1)), "phi3_v"),
        MediaLimitError,
        ("2000x1",),
        "phi3_v",
        {"max_image_aspect": 5000.0},
    ),
    Bad(
        "too elongated for qwen",
        shown(Image.new("RGB", (201, 1)), "qwen2_vl"),
        MediaLimitError,
        ("201x1", "200:1"),
        "qwen2_vl",
        {"max_image_aspect": 5000.0},
    ),
]

QWEN_ROWS = {"image_embeds": rows(8), "image_grid_thw": [[1, 4, 8]]}


def gridded(**changes: object) -> dict[str, object]:
    return shown({**QWEN_ROWS, **changes}, "qwen2_vl")


EMBEDDINGS = [
    Bad("one dimension", shown(rows(16)[0]), EmbeddingsError, ("[64]", "[pictures, tokens, hidden]")),
    Bad("four dimensions", shown(rows(16)[None, None]), EmbeddingsError, ("[1, 1, 16, 64]",)),
    Bad("one dimension in a list", shown([rows(16)[0]]), EmbeddingsError, ("[64]", "[tokens, hidden]")),
    Bad("too few rows", shown(rows(15)), EmbeddingsError, ("15", "16")),
    Bad("too many rows", shown(rows(17)), EmbeddingsError, ("17", "16")),
    Bad("no rows", shown(rows(0)), EmbeddingsError, ("0",)),
    Bad("no pictures", shown(np.zeros((0, 16, 64), np.float32)), EmbeddingsError, ("[0, 16, 64]",)),
    Bad("no width", shown(np.zeros((16, 0), np.float32)), EmbeddingsError, ("0",)),
    Bad("another width", shown(rows(16, 65)), EmbeddingsError, ("65", "64")),
    Bad("whole numbers", shown(np.ones((16, 64), np.int64)), MediaSourceError, ("int64",)),
    Bad("complex numbers", shown(np.ones((16, 64), np.complex64)), MediaSourceError, ("complex64",)),
    Bad("not a number", shown(rows(16) * np.nan), EmbeddingsError, ("NaN",)),
    Bad("infinite", shown(np.where(np.eye(16, 64) > 0, np.inf, rows(16))), EmbeddingsError, ("infinite",)),
    Bad("infinite as float32", shown(np.full((16, 64), 1e300)), EmbeddingsError, ("infinite",)),
    Bad("a tensor without data", shown(torch.zeros(16, 64, device="meta")), EmbeddingsError, ("numbers",)),
    Bad("a sparse tensor", shown(torch.eye(16, 64).to_sparse()), EmbeddingsError, ("numbers",)),
    Bad("a dict for llava", shown(dict(QWEN_ROWS)), EmbeddingsError, ("image_grid_thw",)),
    Bad("rows of no picture", shown(rows(500, 192), "phi3_v"), EmbeddingsError, ("500",), "phi3_v"),
    Bad("no grid", shown(rows(8), "qwen2_vl"), EmbeddingsError, ("image_grid_thw",), "qwen2_vl"),
    Bad(
        "only rows in the dict",
        shown({"image_embeds": rows(8)}, "qwen2_vl"),
        EmbeddingsError,
        ("image_embeds", "image_grid_thw"),
        "qwen2_vl",
    ),
    Bad("an unknown key", gridded(other=1), EmbeddingsError, ("other",), "qwen2_vl"),
    Bad("a key that is no text", shown({1: 2, "a": 3}, "qwen2_vl"), EmbeddingsError, ("image_embeds",), "qwen2_vl"),
    Bad("a grid too large", gridded(image_grid_thw=[[1, 4, 16]]), EmbeddingsError, ("8",), "qwen2_vl"),
    Bad("a grid too small", gridded(image_grid_thw=[[1, 2, 2]]), EmbeddingsError, ("8",), "qwen2_vl"),
    Bad(
        "grids for more pictures",
        gridded(image_grid_thw=[[1, 4, 8]] * 2),
        PlaceholderError,
        ("2 were given",),
        "qwen2_vl",
    ),
    Bad("a grid of two numbers", gridded(image_grid_thw=[[4, 8]]), EmbeddingsError, ("[pictures, 3]",), "qwen2_vl"),
    Bad("a grid of four numbers", gridded(image_grid_thw=[1, 1, 4, 8]), EmbeddingsError, ("3]",), "qwen2_vl"),
    Bad("an empty grid", gridded(image_grid_thw=[]), EmbeddingsError, ("image_grid_thw",), "qwen2_vl"),
    Bad("a grid of zeros", gridded(image_grid_thw=[[0, 4, 8]]), EmbeddingsError, ("from 1",), "qwen2_vl"),
    Bad("a negative grid", gridded(image_grid_thw=[[-1, -4, 8]]), EmbeddingsError, ("from 1",), "qwen2_vl"),
    Bad("a broken grid", gridded(image_grid_thw=[[1, 5.5, 6]]), EmbeddingsError, ("whole",), "qwen2_vl"),
    Bad(
        "odd sides",
        gridded(image_embeds=rows(4), image_grid_thw=[[1, 1, 16]]),
        EmbeddingsError,
        ("multiples of 2",),
        "qwen2_vl",
    ),
    Bad("an endless grid", gridded(image_grid_thw=[[1, 1e30, 1e30]]), EmbeddingsError, ("100000",), "qwen2_vl"),
    Bad("a grid of text", gridded(image_grid_thw="1 4 8"), EmbeddingsError, ("numbers",), "qwen2_vl"),
    Bad("rows of text", gridded(image_embeds="rows"), EmbeddingsError, ("numbers",), "qwen2_vl"),
    Bad("rows that are ragged", gridded(image_embeds=[[1.0], [1.0, 2.0]]), EmbeddingsError, ("numbers",), "qwen2_vl"),
    Bad(
        "rows that are nothing",
        gridded(image_embeds=None),
        EmbeddingsError,
        ("image_embeds", "[tokens, hidden]"),
        "qwen2_vl",
    ),
    Bad("rows of objects", gridded(image_embeds=[[object()] * 64] * 8), EmbeddingsError, ("numbers",), "qwen2_vl"),
    Bad(
        "rows of decimals that are not a number",
        gridded(image_embeds=[[decimal.Decimal("NaN")] * 64] * 8),
        EmbeddingsError,
        ("NaN",),
        "qwen2_vl",
    ),
]

PROCESSOR = [
    Bad(
        "none are known",
        shown(image(), mm_processor_kwargs={"num_crops": 4}),
        MediaError,
        ("'num_crops'", "takes: none"),
    ),
    Bad(
        "mistyped",
        shown(image(), "qwen2_vl", mm_processor_kwargs={"max_pixel": 4}),
        MediaError,
        ("'max_pixel'", "Did you mean 'max_pixels'?"),
        "qwen2_vl",
    ),
    Bad(
        "a key that is a number",
        shown(image(), "qwen2_vl", mm_processor_kwargs={1: 4}),
        MediaError,
        ("max_pixels",),
        "qwen2_vl",
    ),
    Bad(
        "zero",
        shown(image(), "qwen2_vl", mm_processor_kwargs={"max_pixels": 0}),
        MediaError,
        ("max_pixels", "0", "from 1"),
        "qwen2_vl",
    ),
    Bad(
        "too few pixels",
        shown(image(), "qwen2_vl", mm_processor_kwargs={"max_pixels": 783}),
        MediaError,
        ("783", "784"),
        "qwen2_vl",
    ),
    Bad(
        "upside down",
        shown(image(), "qwen2_vl", mm_processor_kwargs={"min_pixels": 9000, "max_pixels": 8000}),
        MediaError,
        ("9000", "8000"),
        "qwen2_vl",
    ),
    Bad(
        "text",
        shown(image(), "qwen2_vl", mm_processor_kwargs={"max_pixels": "1"}),
        MediaError,
        ("whole number",),
        "qwen2_vl",
    ),
    Bad(
        "too many crops",
        shown(image(), "phi3_v", mm_processor_kwargs={"num_crops": 65}),
        MediaError,
        ("65", "1 to 64"),
        "phi3_v",
    ),
    Bad("no dict", shown(image(), "phi3_v", mm_processor_kwargs=5), PromptError, ("mm_processor_kwargs",), "phi3_v"),
]

LENGTHS = [
    Bad("a long text", "USER: " + "river " * 3000, PromptTooLongError, ("3004 tokens", "2500")),
    Bad("long ids", {"prompt_token_ids": [300] * 2500}, PromptTooLongError, ("2500 tokens", "is 2500")),
    Bad(
        "a long text beside a picture",
        {"prompt": ONE["llava"] + "river " * 2480, "multi_modal_data": {"image": image()}},
        PromptTooLongError,
        ("2500",),
    ),
    Bad(
        "pictures that fill it",
        {
            "prompt": "".join(f"<|image_{i}|>" for i in (1, 2, 3)) + "a" * 600,
            "multi_modal_data": {"image": [image()] * 3},
        },
        PromptTooLongError,
        ("2500",),
        "phi3_v",
    ),
    Bad("an endless text", "a" * 2_000_000, PromptTooLongError, ("2,000,000 characters", "2,500")),
]

EVERY = [*SHAPES, *IDS, *COUNTS, *PICTURES, *EMBEDDINGS, *PROCESSOR, *LENGTHS]


@pytest.mark.parametrize("bad", EVERY, ids=str)
def test_a_bad_prompt_fails_alone(checkpoints: Checkpoints, engines: Engines, bad: Bad) -> None:
    llm = engines.get(bad.family, **{**OPTIONS, **bad.options})
    assert_fails_alone(llm, checkpoints, bad)


@pytest.mark.parametrize("bad", [*SHAPES, *IDS, *COUNTS, *EMBEDDINGS[:10]], ids=str)
def test_a_single_bad_prompt_raises_its_own_error(engines: Engines, bad: Bad) -> None:
    llm = engines.get(bad.family, **{**OPTIONS, **bad.options})
    with pytest.raises(bad.error) as caught:
        llm.generate(bad.prompt if isinstance(bad.prompt, int) else [bad.prompt], GREEDY, use_tqdm=False)
    assert_helpful(caught.value, bad.error, bad.says)


def test_a_picture_is_counted_before_any_is_opened(engines: Engines) -> None:
    """1,000 unreadable pictures: the limit speaks, not the first of them."""
    llm = engines.get("llava", **OPTIONS)
    with pytest.raises(MediaLimitError, match="1000 images"):
        llm.generate(shown([b"junk"] * 1000), GREEDY, use_tqdm=False)


def test_a_prompt_is_measured_before_a_picture_is_decoded(engines: Engines) -> None:
    """A picture whose header is fine and whose pixels are not: too long a prompt is told first."""
    llm = engines.get("llava", **OPTIONS)
    broken = encoded_samples()["PNG"][:-30]
    with pytest.raises(PromptTooLongError):
        llm.generate({**shown(broken), "prompt": ONE["llava"] + "river " * 2480}, GREEDY, use_tqdm=False)


class Raises:
    """An object of a foreign library in a bad state: whatever is asked of it raises."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError("a foreign text with /secret/path")


def test_an_object_that_raises_whatever_is_asked_of_it_fails_alone(checkpoints: Checkpoints, engines: Engines) -> None:
    llm, canary = engines.get("llava"), CASES["llava"][0]
    outputs = llm.generate([shown(Raises()), question(canary)], GREEDY, use_tqdm=False, on_error="return")
    assert isinstance(outputs[0].error, RequestFailedError)
    assert "secret" not in str(outputs[0].error)
    assert tokens(outputs[1]) == answer(checkpoints.folder("llava"), canary).greedy
