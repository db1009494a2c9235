"""What a user may hand to generate, in one form; media are told apart and never opened."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fovea.core.errors import EmbeddingsError, FoveaError
from fovea.prompt.forms import MAX_GRID_SIDE, MediaInput, embeds_array, parse_media, parse_prompt
from fovea.prompt.pieces import Piece

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_text_ids_and_dicts() -> None:
    assert parse_prompt("a <image>").pieces == (Piece("a <image>", True),)
    assert parse_prompt("a").text == "a"
    assert parse_prompt([1, 2]).token_ids == (1, 2)
    assert parse_prompt((1, 2)).text is None
    assert parse_prompt({"prompt": "a"}).text == "a"
    assert parse_prompt({"prompt_token_ids": [3]}).token_ids == (3,)
    assert parse_prompt({"prompt": ""}).text == ""


def test_a_dict_may_hold_nothing_for_what_it_does_not_use() -> None:
    form = parse_prompt(
        {
            "prompt": "a",
            "prompt_token_ids": None,
            "multi_modal_data": None,
            "multi_modal_uuids": None,
            "mm_processor_kwargs": None,
            "cache_salt": None,
        }
    )
    assert (form.media, dict(form.processor_kwargs), form.salt) == ((), {}, "")


@pytest.mark.parametrize(
    "value",
    [Image.new("RGB", (2, 2)), b"1", Path("a"), np.zeros((2, 2), np.uint8), torch.zeros(3, 2, 2, dtype=torch.uint8), 5],
    ids=lambda value: type(value).__name__,
)
def test_anything_that_is_not_embeddings_is_a_picture_unopened(value: object) -> None:
    (alone,) = parse_media({"image": value})
    assert (alone.kind, alone.value) == ("picture", value) or alone.value is value
    assert [m.kind for m in parse_media({"image": [value, value]})] == ["picture", "picture"]


def test_no_pictures_in_every_spelling() -> None:
    spellings: list[Any] = [None, {}, {"image": None}, {"image": []}, {"image": ()}]
    for data in spellings:
        assert parse_media(data) == ()


def embeds(value: object) -> list[Any]:
    media = parse_media({"image": value})
    assert {m.kind for m in media} <= {"embeds"}
    return [m.value for m in media]


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (ROWS, 1),
        (ROWS[None], 1),
        (np.stack([ROWS, ROWS]), 2),
        (torch.from_numpy(ROWS), 1),
        (torch.from_numpy(np.stack([ROWS] * 3)).half(), 3),
        (torch.from_numpy(ROWS).bfloat16().requires_grad_(), 1),
        ([ROWS, torch.from_numpy(ROWS)], 2),
        ([ROWS[None], ROWS.astype(np.float64)], 2),
        (ROWS.astype(np.longdouble), 1),
    ],
)
def test_floats_are_embeddings_of_one_or_several_pictures(value: object, count: int) -> None:
    got = embeds(value)
    assert len(got) == count
    for rows in got:
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, ROWS)


def test_embeddings_are_copied() -> None:
    rows = ROWS.copy()
    (got,) = embeds(rows)
    rows[:] = -1
    np.testing.assert_array_equal(got, ROWS)


def test_rows_of_several_pictures_are_cut_by_their_grids() -> None:
    """12 and 4 patches merged 2 x 2 make 3 rows and 1."""
    media = parse_media({"image": {"image_embeds": ROWS, "image_grid_thw": [[1, 2, 6], [1, 2, 2]]}})
    assert [len(m.value) for m in media] == [3, 1]
    assert [m.grid for m in media] == [(1, 2, 6), (1, 2, 2)]
    np.testing.assert_array_equal(np.concatenate([m.value for m in media]), ROWS)


@pytest.mark.parametrize("grid", [[1, 2, 8], [[1, 2, 8]], np.array([[1, 2, 8]]), torch.tensor([[1, 2, 8]])], ids=type)
def test_a_grid_in_every_form(grid: object) -> None:
    (got,) = parse_media({"image": {"image_embeds": ROWS, "image_grid_thw": grid}})
    assert got.grid == (1, 2, 8)


@pytest.mark.parametrize("side", [0, -1, 1.5, MAX_GRID_SIDE + 1, float("nan"), float("inf")])
def test_a_grid_out_of_range_names_the_range(side: float) -> None:
    with pytest.raises(EmbeddingsError, match=rf"whole numbers from 1 to {MAX_GRID_SIDE}"):
        parse_media({"image": {"image_embeds": ROWS, "image_grid_thw": [[1, 2, side]]}})


def test_ids_of_a_client_go_with_their_pictures() -> None:
    data = {"prompt": "a", "multi_modal_data": {"image": [b"1", b"2"]}}
    named = parse_prompt({**data, "multi_modal_uuids": {"image": ["x", None]}}).media
    assert [m.uuid for m in named] == ["x", ""]
    (single,) = parse_prompt(
        {"prompt": "a", "multi_modal_data": {"image": b"1"}, "multi_modal_uuids": {"image": "x"}}
    ).media
    assert single == MediaInput("picture", b"1", "x")


@pytest.mark.parametrize("value", ["text", [[1, "a"]], object(), None, torch.zeros(2, device="meta")], ids=type)
def test_what_is_no_array_of_numbers_is_our_error(value: object) -> None:
    if value is None:
        assert np.isnan(embeds_array(value, "x")).all()
        return
    with pytest.raises(EmbeddingsError, match="numbers"):
        embeds_array(value, "x")


JUNK: list[Any] = [None, 0, -1, 1.5, True, "x", b"x", [], [None], {}, {"x": 1}, {1: 2}, object(), "\ud800"]


@pytest.mark.parametrize(
    "key",
    [
        "prompt",
        "prompt_token_ids",
        "multi_modal_data",
        "multi_modal_uuids",
        "mm_processor_kwargs",
        "cache_salt",
        "image",
        "image_embeds",
        "image_grid_thw",
    ],
)
def test_junk_anywhere_is_taken_or_refused_by_us(key: str) -> None:
    """No foreign exception leaves the parser, whatever stands wherever."""
    for junk in JUNK:
        prompt: dict[Any, Any] = {"prompt": "a", "multi_modal_data": {"image": b"1"}}
        if key in ("image_embeds", "image_grid_thw"):
            good = {"image_embeds": ROWS, "image_grid_thw": [[1, 2, 8]]}
            prompt["multi_modal_data"] = {"image": {**good, key: junk}}
        elif key == "image":
            prompt["multi_modal_data"] = {"image": junk}
        else:
            prompt = {**prompt, key: junk} if key != "prompt_token_ids" else {key: junk}
        for value in (prompt, junk, {junk: 1} if junk.__hash__ else junk):
            with contextlib.suppress(FoveaError):
                parse_prompt(value)
