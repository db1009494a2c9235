"""L: every limit at one below, at, and one above its value, on a server whose limits are small (see profiles.SMALL)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.corpus import files
from tests.corpus.case import (
    PICTURES,
    PROMPTS,
    SAMPLED,
    Body,
    Case,
    Expect,
    Fields,
    Messages,
    Parts,
    Route,
    answered,
    case,
    refused,
)
from tests.corpus.profiles import SMALL
from tests.corpus.routes import build, image, text
from tests.corpus.scene import Scene

CHATS: tuple[Route, ...] = ("chat", "chat_stream", "tokenize_chat")
Make = Callable[[Scene], Any]


def _three(name: str, make: Callable[[int], Make], limit: int, over: Expect, routes: tuple[Route, ...]) -> list[Case]:
    ok = answered()
    return [
        case(f"L-{name}-{label}", make(limit + delta), over if delta > 0 else ok, routes=routes, profile="small")
        for label, delta in (("below", -1), ("at", 0), ("above", 1))
    ]


def _picture(data: bytes) -> dict[str, Any]:
    return image(files.data_url(data))


def _bytes_of_picture(num_bytes: int) -> Make:
    return lambda _: Parts([_picture(files.good_png().ljust(num_bytes, b"\0")), text("Hi")])


def _pixels(area: int) -> Make:
    """250,000 is 500 x 500; the next below and above that are still pictures."""
    width, height = {0: (500, 500), -1: (499, 500), 1: (501, 500)}[area - SMALL.max_image_pixels]
    return lambda _: Parts([_picture(files.flat_png(width, height)), text("Hi")])


def _pixels_together(area: int) -> Make:
    """400,000 in all: 500 x 500 and 500 x 300."""
    delta = area - SMALL.max_request_pixels
    second = files.flat_png(500 + delta, 300)
    return lambda _: Parts([_picture(files.flat_png(500, 500)), _picture(second), text("Hi")])


def _bytes_together(num_bytes: int) -> Make:
    first = files.good_png().ljust(SMALL.max_image_bytes, b"\0")
    second = files.good_png(seed=1).ljust(num_bytes - len(first), b"\0")
    return lambda _: Parts([_picture(first), _picture(second), text("Hi")])


def _images(count: int) -> Make:
    return lambda _: Parts([*[_picture(files.good_png(seed=n)) for n in range(count)], text("Hi")])


def _aspect(long: int) -> Make:
    return lambda _: Parts([_picture(files.flat_png(10, long)), text("Hi")])


def _chars(count: int) -> Make:
    return lambda _: Messages([{"role": "user", "content": "a " * (count // 2) + "a" * (count % 2)}])


def _prompt_chars(count: int) -> Make:
    return lambda _: Fields({"prompt": "a " * (count // 2) + "a" * (count % 2)})


def _completions(count: int) -> Make:
    return lambda _: Fields({"n": count, "temperature": 1})


def _body(route: Route, num_bytes: int) -> Make:
    """A good body, filled up with blanks, which JSON permits."""
    return lambda _: Body(build(route, Fields({})).body.ljust(num_bytes, b" "))


def _bodies() -> list[Case]:
    over = refused("content_too_large", status=413, within_s=0.5)
    routes: tuple[Route, ...] = ("chat", "chat_stream", "completions", "tokenize_chat", "tokenize_text", "detokenize")
    return [
        found
        for route in routes
        for found in _three(f"body-{route}", partial(_body, route), SMALL.max_body_bytes, over, (route,))
    ]


CASES: tuple[Case, ...] = (
    *_three(
        "picture-bytes",
        _bytes_of_picture,
        SMALL.max_image_bytes,
        refused("media_too_large", param="messages.0.content.0"),
        PICTURES,
    ),
    *_three(
        "picture-pixels",
        _pixels,
        SMALL.max_image_pixels,
        refused("image_too_many_pixels", param="messages.0.content.0"),
        PICTURES,
    ),
    *_three("request-pixels", _pixels_together, SMALL.max_request_pixels, refused("image_too_many_pixels"), PICTURES),
    *_three("request-bytes", _bytes_together, SMALL.max_request_media_bytes, refused("media_too_large"), PICTURES),
    *_three("images", _images, SMALL.images, refused("too_many_media_items", says=str(SMALL.images)), PICTURES),
    *_three(
        "aspect",
        _aspect,
        10 * SMALL.max_image_aspect,
        refused("above_max_value", param="messages.0.content.0"),
        PICTURES,
    ),
    *_three("n", _completions, SMALL.max_n, refused("above_max_value", "invalid_value", param="n"), SAMPLED),
    case("L-chars-at", _chars(SMALL.max_text_chars), answered(), routes=CHATS, profile="small"),
    case(
        "L-chars-above",
        _chars(SMALL.max_text_chars + 1),
        refused("string_too_long", says=f"{SMALL.max_text_chars}"),
        routes=CHATS,
        profile="small",
    ),
    case("L-prompt-chars-at", _prompt_chars(SMALL.max_text_chars), answered(), routes=PROMPTS, profile="small"),
    case(
        "L-prompt-chars-above",
        _prompt_chars(SMALL.max_text_chars + 1),
        refused("string_too_long"),
        routes=PROMPTS,
        profile="small",
    ),
    *_bodies(),
)
