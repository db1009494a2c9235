"""Videos in prompts and messages: forms, options, places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from fovea.core.errors import FoveaError, PlaceholderError
from fovea.core.types import PixelBudget, Sampling
from fovea.prompt.build import tokenize
from fovea.prompt.chat import chat_media
from fovea.prompt.forms import parse_media, parse_prompt
from fovea.prompt.video_parts import parse_videos
from tests.parity.support import Engines

FRAME = Image.new("RGB", (8, 8))
ARRAY = np.zeros((2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (None, 0),
        ([FRAME, FRAME], 1),
        (ARRAY, 1),
        ([ARRAY[0], ARRAY[1]], 1),
        ((ARRAY, {"fps": 2}), 1),
        ([(ARRAY, {"fps": 2}), (ARRAY, {})], 2),
        ([ARRAY, ARRAY, ARRAY], 3),
        ([[FRAME], [FRAME, FRAME]], 2),
        (b"bytes", 1),
        ({"video": ARRAY, "num_frames": 2}, 1),
        ([], 0),
    ],
)
def test_one_video_or_several(value: object, count: int) -> None:
    assert len(parse_videos(value)) == count


def test_options_of_a_video() -> None:
    (one,) = parse_videos({"video": ARRAY, "fps": 2, "max_pixels": 1000})
    assert (one.video, one.budget) == (Sampling(fps=2.0), PixelBudget("auto", 1000))
    with pytest.raises(FoveaError, match="num_frame"):
        parse_videos({"video": ARRAY, "num_frame": 2})


def test_pictures_and_videos_are_told_apart() -> None:
    media = parse_media({"video": ARRAY, "image": FRAME})
    assert [m.video for m in media] == [None, Sampling()]
    form = parse_prompt(
        {
            "prompt": "a",
            "multi_modal_data": {"image": [FRAME, FRAME], "video": ARRAY},
            "multi_modal_uuids": {"image": ["a", None], "video": "v"},
        }
    )
    assert [m.uuid for m in form.media] == ["a", "", "v"]


def part(**more: object) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "https://a.test/b.mp4"}, **more}]}]


def test_a_part_with_options() -> None:
    (one,) = chat_media(part(num_frames=8, max_pixels=10_000, uuid="u"), from_json=True)
    assert (one.kind, one.value, one.uuid) == ("url", "https://a.test/b.mp4", "u")
    assert (one.video, one.budget) == (Sampling(8), PixelBudget("auto", 10_000))
    assert one.param == "messages.0.content.0.video_url"
    inside = [{"role": "user", "content": [{"video_url": {"url": "https://a.test/b.mp4", "fps": 0.5}}]}]
    assert chat_media(inside)[0].video == Sampling(fps=0.5)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (part(fps=1e9), "messages.0.content.0.fps"),
        (part(num_frames=0), "messages.0.content.0.num_frames"),
        (part(num_frames=2**63), "messages.0.content.0.num_frames"),
        (part(max_pixels=-1), "messages.0.content.0.max_pixels"),
        (part(max_pixels=1, min_pixels=2), "messages.0.content.0.min_pixels"),
        (part(max_frames=4), "messages.0.content.0.max_frames"),
        (part(detail="low"), "messages.0.content.0.detail"),
        (part(fps=1, num_frames=2), "messages.0.content.0.fps"),
        ([{"role": "user", "content": [{"type": "video_url"}]}], "messages.0.content.0.video_url"),
        ([{"role": "user", "content": [{"type": "video_url", "video_url": 7}]}], "messages.0.content.0.video_url"),
        ([{"role": "user", "content": [{"type": "video", "video": [FRAME]}]}], "messages.0.content.0.type"),
    ],
)
def test_parts_that_are_refused(messages: list[dict[str, Any]], param: str) -> None:
    with pytest.raises(FoveaError) as caught:
        chat_media(messages, from_json=True)
    assert caught.value.param == param


def test_each_place_takes_the_next_of_its_kind(engines: Engines) -> None:
    llm = engines.get("qwen2_vl")
    image, video = llm.family.image_text(1), llm.family.video_text(1)
    data = {"image": [FRAME, Image.new("RGB", (9, 9))], "video": [(ARRAY, {}), [FRAME]]}
    form = parse_prompt({"prompt": f"{video}a{image}b{image}c{video}", "multi_modal_data": data})
    slotted = tokenize(form, llm.family, llm.get_tokenizer())
    pictures, videos = form.media[:2], form.media[2:]
    assert slotted.media == (videos[0], *pictures, videos[1])
    for prompt in (f"{image}{video}{video}", f"{image}{image}", f"{video}{video}"):
        with pytest.raises(PlaceholderError, match="places for"):
            tokenize(parse_prompt({"prompt": prompt, "multi_modal_data": data}), llm.family, llm.get_tokenizer())
    assert len(slotted.slots) == 4
