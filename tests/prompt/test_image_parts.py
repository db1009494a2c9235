"""Image parts: their keys, their budgets, their places; and the pictures of messages without rendering them."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest

from fovea.core.errors import EmbeddingsError, FoveaError, PromptError
from fovea.core.types import PixelBudget
from fovea.families.base import Family
from fovea.families.registry import load_family
from fovea.prompt.chat import build_chat, chat_media
from fovea.prompt.forms import MediaInput, PromptForm
from fovea.prompt.template import ChatTemplate
from tests.oracle.checkpoints import QWEN_TEMPLATE
from tests.parity.support import Checkpoints

TEMPLATE = ChatTemplate(QWEN_TEMPLATE)
ROWS = np.arange(8, dtype=np.float32).reshape(4, 2)


@pytest.fixture(scope="module")
def family(checkpoints: Checkpoints) -> Family:
    return load_family(checkpoints.folder("qwen2_vl"))


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": ["see", *parts]}]


def url_part(*, inside: dict[str, Any] | None = None, **beside: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": "data:1", **(inside or {})}, **beside}


def read(part: dict[str, Any], **options: Any) -> MediaInput:
    (media,) = chat_media(user(part), **options)
    return media


def npy(array: Any = ROWS) -> str:
    file = io.BytesIO()
    np.save(file, array)
    return base64.b64encode(file.getvalue()).decode()


def fault(call: Any) -> tuple[str, str | None]:
    with pytest.raises(FoveaError) as caught:
        call()
    assert caught.value.status == 400
    return caught.value.code, caught.value.param


# --------------------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize("inside", [True, False])
def test_a_budget_may_stand_on_the_part_or_inside_its_image_url(inside: bool) -> None:
    budget: dict[str, Any] = {"detail": "low", "max_pixels": 2000, "min_pixels": 1000}
    part = url_part(inside=budget) if inside else url_part(**budget)
    assert read(part).budget == PixelBudget("low", 2000, 1000)


def test_pictures_handed_in_as_objects_have_budgets_too() -> None:
    assert read({"type": "image_pil", "image_pil": b"1", "detail": "high"}).budget == PixelBudget("high")


def test_without_a_wish_there_is_no_budget() -> None:
    assert read(url_part()).budget is None
    assert read(url_part(detail=None, max_pixels=None)).budget is None, "null is the default"


PART, URL = "messages.0.content.1", "messages.0.content.1.image_url"


@pytest.mark.parametrize(
    ("part", "want"),
    [
        (url_part(detail="ultra"), ("invalid_value", f"{PART}.detail")),
        (url_part(inside={"detail": "ultra"}), ("invalid_value", f"{URL}.detail")),
        (url_part(detail=5), ("invalid_type", f"{PART}.detail")),
        (url_part(max_pixels="9"), ("invalid_type", f"{PART}.max_pixels")),
        (url_part(max_pixels=True), ("invalid_type", f"{PART}.max_pixels")),
        (url_part(max_pixels=1e6), ("invalid_type", f"{PART}.max_pixels")),
        (url_part(max_pixels=0), ("below_min_value", f"{PART}.max_pixels")),
        (url_part(min_pixels=-(10**5000)), ("below_min_value", f"{PART}.min_pixels")),
        (url_part(max_pixels=10**5000), ("above_max_value", f"{PART}.max_pixels")),
        (url_part(inside={"min_pixels": 0}), ("below_min_value", f"{URL}.min_pixels")),
        (url_part(max_pixels=5, min_pixels=6), ("invalid_value", f"{PART}.min_pixels")),
        (url_part(max_pixels=5, inside={"max_pixels": 5}), ("unsupported_combination", f"{URL}.max_pixels")),
        (url_part(max_pixel=5), ("unsupported_value", f"{PART}.max_pixel")),
        (url_part(inside={"max_pixel": 5}), ("unsupported_value", f"{URL}.max_pixel")),
        (url_part(uuid=5), ("invalid_type", f"{PART}.uuid")),
        (url_part(uuid="a" * 257), ("string_too_long", f"{PART}.uuid")),
        ({"type": "image_url"}, ("missing_required_parameter", URL)),
        ({"type": "image_url", "image_url": {}}, ("missing_required_parameter", URL)),
        ({"type": "image_url", "image_url": 5}, ("invalid_type", URL)),
        ({"type": "image_pil"}, ("missing_required_parameter", f"{PART}.image_pil")),
        ({"type": "audio_url", "audio_url": "a"}, ("unsupported_value", f"{PART}.type")),
        ({"type": 10**5000}, ("unsupported_value", f"{PART}.type")),
        ({"type": ["image_url"]}, ("unsupported_value", f"{PART}.type")),
        ({}, ("unsupported_value", f"{PART}.type")),
        ({"type": "text"}, ("missing_required_parameter", f"{PART}.text")),
        ({"type": "text", "text": 5}, ("invalid_type", f"{PART}.text")),
        (5, ("invalid_type", PART)),
    ],
)
def test_a_part_that_is_wrong_says_how_and_where(part: Any, want: tuple[str, str], family: Family) -> None:
    assert fault(lambda: chat_media(user(part))) == want
    assert fault(lambda: build_chat(user(part), TEMPLATE, family)) == want


def test_a_misspelt_cap_is_met_with_the_right_name() -> None:
    with pytest.raises(PromptError, match="Did you mean 'max_pixels'"):
        read(url_part(maxpixels=5))


@pytest.mark.parametrize(
    ("messages", "want"),
    [
        ("hello", ("invalid_type", "messages")),
        ([], ("invalid_value", "messages")),
        ([5], ("invalid_type", "messages.0")),
        ([{"content": "a"}], ("missing_required_parameter", "messages.0.role")),
        ([{"role": 5, "content": "a"}], ("invalid_type", "messages.0.role")),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": 5}], ("invalid_type", "messages.1.content")),
    ],
)
def test_a_message_that_is_wrong_says_how_and_where(messages: Any, want: tuple[str, str]) -> None:
    assert fault(lambda: chat_media(messages)) == want


# ------------------------------------------------------------------------------------------------ without rendering


def test_the_pictures_of_messages_are_those_of_the_form(family: Family) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        *user(url_part(detail="low"), "and", {"type": "input_image", "image_url": "data:2", "uuid": "u"}),
        *user({"image_url": {"url": "https://example.org/a.png"}}),
    ]
    form = build_chat(messages, TEMPLATE, family)
    assert chat_media(messages) == list(form.media)
    assert [media.param for media in form.media] == [
        "messages.1.content.1.image_url",
        "messages.1.content.3.image_url",
        "messages.2.content.1.image_url",
    ]


# -------------------------------------------------------------------------------------------------------- from JSON


def embeds(value: Any, **more: Any) -> dict[str, Any]:
    return {"type": "image_embeds", "image_embeds": value, **more}


def form_of(part: Any, family: Family, **options: Any) -> PromptForm:
    return build_chat(user(part), TEMPLATE, family, from_json=True, **options)


def test_embeddings_may_come_as_text(family: Family) -> None:
    (media,) = form_of(embeds(npy(), uuid="u"), family).media
    assert (media.kind, media.uuid, media.param) == ("embeds", "u", f"{PART}.image_embeds")
    np.testing.assert_array_equal(media.value, ROWS)


def test_a_grid_may_stand_beside_them(family: Family) -> None:
    (media,) = form_of(embeds(npy(), image_grid_thw=[1, 4, 4]), family).media
    assert media.grid == (1, 4, 4)
    np.testing.assert_array_equal(media.value, ROWS)


def test_counting_pictures_reads_no_embeddings() -> None:
    assert read(embeds("not base64"), from_json=True).value == "not base64"


def test_switched_off_embeddings_are_refused_before_they_are_read(family: Family) -> None:
    for part in (embeds("@"), embeds(None), embeds(ROWS)):
        want = ("embeddings_disabled", PART)
        assert fault(lambda part=part: form_of(part, family, allow_embeds=False)) == want
        assert fault(lambda part=part: chat_media(user(part), allow_embeds=False)) == want


@pytest.mark.parametrize(
    ("part", "want"),
    [
        (embeds("@@@@"), ("invalid_embeddings", f"{PART}.image_embeds")),
        (embeds(npy(np.ones((2, 2), np.int32))), ("invalid_embeddings", f"{PART}.image_embeds")),
        (embeds([[1.0]]), ("invalid_type", f"{PART}.image_embeds")),
        (embeds(None), ("missing_required_parameter", f"{PART}.image_embeds")),
        (embeds(npy(), image_grid_thw=[1, 4]), ("invalid_embeddings", f"{PART}.image_embeds")),
        (embeds(npy(), image_grid_thw="1,4,4"), ("invalid_embeddings", f"{PART}.image_embeds")),
        (embeds(npy(), image_grid_thw=[1, 10**400, 4]), ("invalid_embeddings", f"{PART}.image_embeds")),
        (embeds(npy(), image_grid_thw=[[1, 2, 2], [1, 2, 2]]), ("invalid_value", f"{PART}.image_embeds")),
        (embeds(npy(), image_url={"url": "data:1"}), ("unsupported_value", f"{PART}.image_url")),
        ({"type": "image_pil", "image_pil": "a"}, ("unsupported_value", f"{PART}.type")),
        ({"type": "image", "image": "a"}, ("unsupported_value", f"{PART}.type")),
    ],
)
def test_what_json_cannot_hold_is_refused(part: Any, want: tuple[str, str], family: Family) -> None:
    assert fault(lambda: form_of(part, family)) == want


def test_arrays_of_a_program_are_taken_as_before(family: Family) -> None:
    (media,) = build_chat(user(embeds(ROWS)), TEMPLATE, family).media
    np.testing.assert_array_equal(media.value, ROWS)
    with pytest.raises(EmbeddingsError):
        build_chat(user(embeds(np.array([1.0], np.float32))), TEMPLATE, family)
