"""C: caches and isolation. Nothing is refused here: whatever is cached, every answer must be the right one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.corpus import files, profiles
from tests.corpus.client import Reply, send
from tests.corpus.conftest import Servers
from tests.corpus.judge import answer_of, media_of
from tests.corpus.routes import MODEL, Request, image, text
from tests.corpus.watch import Watch
from tests.media.corpus import encode, noise, png, png_chunk


@pytest.fixture
def watch(servers: Servers) -> Iterator[Watch]:
    found = servers.get("plain")
    yield found
    complaints = found.check()
    assert not complaints, "\n".join(complaints)


def body(parts: Sequence[Any], **fields: Any) -> Request:
    whole = {
        "model": MODEL,
        "messages": [{"role": "user", "content": list(parts)}],
        "max_tokens": 12,
        "temperature": 0,
        "fovea": {"media": True},
        **fields,
    }
    return Request("/v1/chat/completions", json.dumps(whole).encode())


def ask(watch: Watch, parts: Sequence[Any], **fields: Any) -> Reply:
    reply, _ = watch.send(body(parts, **fields))
    assert reply.status == 200, reply.body[:400]
    return reply


def fresh(watch: Watch, parts: Sequence[Any], **fields: Any) -> tuple[object, ...]:
    """The answer without any cache: under a salt that nobody else has."""
    salt = f"fresh-{random.SystemRandom().getrandbits(64):x}"
    reply = ask(watch, parts, cache_salt=salt, **fields)
    assert reply.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert not any(picture["cache_hit"] for picture in media_of(reply)[:1])  # the second may be the first again
    return answer_of(reply)


def shown(*pictures: bytes, question: str = "What is in this picture?") -> list[Any]:
    return [*(image(files.data_url(picture)) for picture in pictures), text(question)]


def scene_png(seed: int, width_px: int = 112, height_px: int = 112) -> bytes:
    """A coloured box on a ground: pictures that are told apart at a glance."""
    rng = random.Random(seed)
    ground, box = (tuple(rng.randrange(256) for _ in range(3)) for _ in range(2))
    drawn = Image.new("RGB", (width_px, height_px), ground)
    left, top = rng.randrange(width_px // 2), rng.randrange(height_px // 2)
    drawn.paste(box, (left, top, left + width_px // 3, top + height_px // 3))
    return encode(drawn, "PNG")


def assert_as_fresh(watch: Watch, asks: Sequence[tuple[Sequence[Any], dict[str, Any]]]) -> None:
    """Each asked twice in a row of all, so that the second time meets whatever the first left in caches."""
    wanted = [fresh(watch, parts, **fields) for parts, fields in asks]
    for _ in range(2):
        got = [answer_of(ask(watch, parts, **fields)) for parts, fields in asks]
        assert got == wanted


def _transposed() -> list[bytes]:
    """C01: 30 x 100 and 100 x 30 pixels of the very same bytes."""
    pixels = noise(100, 30, seed=9)
    return [encode(Image.fromarray(pixels.reshape(shape)), "PNG") for shape in ((30, 100, 3), (100, 30, 3))]


def _palettes() -> list[bytes]:
    """C02: equal indices, other colours."""
    rows = [bytes((x // 8 + y // 8) % 4 for x in range(64)) for y in range(64)]
    colours = (b"\xff\0\0\0\xff\0\0\0\xff\xff\xff\0", b"\0\0\0\x40\x40\x40\x80\x80\x80\xff\xff\xff")
    return [png((64, 64), rows, colour=3, before=png_chunk(b"PLTE", palette)) for palette in colours]


def _modes() -> list[bytes]:
    """C03: the same bytes as grey and as colour."""
    grey = noise(96, 32, 1, seed=2)
    return [encode(Image.fromarray(grey[..., 0]), "PNG"), encode(Image.fromarray(grey.reshape(32, 32, 3)), "PNG")]


def _one_pixel() -> list[bytes]:
    """C16: one pixel differs."""
    pixels = np.asarray(files.decoded(scene_png(5))).copy()
    other = pixels.copy()
    other[60, 60] = 255 - other[60, 60]
    return [encode(Image.fromarray(each), "PNG") for each in (pixels, other)]


@pytest.mark.corpus_quick
@pytest.mark.parametrize("make", [_transposed, _palettes, _modes, _one_pixel], ids=["C01", "C02", "C03", "C16-pixel"])
def test_pictures_that_look_alike_to_a_careless_hash_are_two(watch: Watch, make: Callable[[], list[bytes]]) -> None:
    first, second = make()
    assert media_of(ask(watch, shown(first)))
    assert not media_of(ask(watch, shown(second)))[0]["cache_hit"], "another picture's embedding was taken"
    assert media_of(ask(watch, shown(first)))[0]["cache_hit"]
    assert_as_fresh(watch, [(shown(first), {}), (shown(second), {})])


@pytest.mark.corpus
def test_a_picture_at_another_size_is_another_entry(watch: Watch) -> None:
    """C04"""
    picture = files.data_url(scene_png(21, 420, 280))
    asks = [
        [image(picture, **options), text()]
        for options in ({}, {"detail": "low"}, {"max_pixels": 20_000}, {"detail": "high"})
    ]
    tokens = {media_of(ask(watch, parts))[0]["tokens"] for parts in asks}
    assert len(tokens) > 1
    assert_as_fresh(watch, [(parts, {}) for parts in asks])


@pytest.mark.corpus
def test_the_same_pixels_answer_the_same_whatever_carries_them(watch: Watch) -> None:
    """C05"""
    drawn = files.smooth(seed=3)
    forms = [
        encode(drawn, "PNG"),
        encode(drawn, "WEBP", lossless=True, exact=True),
        encode(drawn.convert("RGBA"), "PNG"),
    ]
    assert len({answer_of(ask(watch, shown(form))) for form in forms}) == 1


@pytest.mark.corpus
def test_text_around_a_picture_is_told_apart_at_every_offset(watch: Watch) -> None:
    """C13, C07: the picture crosses block borders, moves by one token, stands last."""
    picture = files.data_url(scene_png(8))
    asks = [[text("a " * count), image(picture), text("What is it?")] for count in range(18)]
    asks += [[text("a " * count + "What is it?"), image(picture)] for count in (0, 1, 15, 16, 17)]
    assert_as_fresh(watch, [(parts, {"max_tokens": 6}) for parts in asks])


@pytest.mark.corpus_quick
def test_200_pairs_of_one_text_and_two_pictures_are_not_mixed(watch: Watch) -> None:
    """C16, at once."""
    pictures = [scene_png(seed) for seed in range(40)]
    wanted = [fresh(watch, shown(picture)) for picture in pictures]
    order = [number for _ in range(5) for number in range(len(pictures))]
    random.Random(1).shuffle(order)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda number: answer_of(ask(watch, shown(pictures[number]))), order))
    assert got == [wanted[number] for number in order]


@pytest.mark.corpus
def test_the_order_of_pictures_counts(watch: Watch) -> None:
    """C17"""
    a, b, c = (scene_png(seed) for seed in (30, 31, 32))
    question = "What is in the first picture?"
    assert_as_fresh(watch, [(shown(*pair, question=question), {}) for pair in ((a, b), (b, a), (a, c), (a, a), (a,))])


@pytest.mark.corpus_quick
def test_answers_of_equal_request_ids_are_not_mixed(watch: Watch) -> None:
    """C10: 200 at once, all with one id."""

    def one(number: int) -> tuple[int, bytes, bytes]:
        request = body([text(f"Say {number}.")], max_tokens=4, user=f"user-{number}")
        headers = (*request.headers, *profiles.headers(watch.profile))
        reply = send(watch.server.port, Request(request.path, request.body, headers), "the-same-id", timeout_s=300)
        return reply.status, reply.body, repr(answer_of(reply)).encode()

    wanted = [answer_of(ask(watch, [text(f"Say {number}.")], max_tokens=4)) for number in range(200)]
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(one, range(200)))
    assert {status for status, _, _ in got} == {200}
    assert [answer for _, _, answer in got] == [repr(answer).encode() for answer in wanted]


@pytest.mark.corpus
def test_n_completions_equal_single_ones_of_a_greedy_request(watch: Watch) -> None:
    """C19"""
    reply = ask(watch, shown(scene_png(12)), n=8)
    texts = [choice["message"]["content"] for choice in reply.json["choices"]]
    assert len(texts) == 8
    assert set(texts) == {answer_of(ask(watch, shown(scene_png(12))))[0]}


@pytest.mark.corpus
def test_ids_of_clients_do_not_find_other_pictures(watch: Watch) -> None:
    """C20: equal uuids, other pictures."""
    asks = [[{**image(files.data_url(scene_png(seed))), "uuid": "the-same"}, text()] for seed in (40, 41, 42)]
    assert_as_fresh(watch, [(parts, {}) for parts in asks])


@pytest.mark.corpus
def test_salts_share_nothing(watch: Watch) -> None:
    """C08, without a clock: what is told about caches."""
    parts = shown(scene_png(50), question="Is there a box in this picture? " * 4)
    for salt in ("one", "two"):
        first = ask(watch, parts, cache_salt=salt)
        assert first.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert not media_of(first)[0]["cache_hit"]
        again = ask(watch, parts, cache_salt=salt)
        assert again.json["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        assert media_of(again)[0]["cache_hit"]


@pytest.mark.corpus
def test_keys_share_nothing_where_they_are_kept_apart(servers: Servers) -> None:
    """C08: --isolate-api-keys."""
    watch = servers.get("small")
    request = body(shown(scene_png(51), question="Is there a box in this picture? " * 4))
    for key in (profiles.KEY, profiles.OTHER_KEY):
        headers = (("Content-Type", "application/json"), ("Authorization", f"Bearer {key}"))
        first, again = (send(watch.server.port, Request(request.path, request.body, headers)) for _ in range(2))
        assert first.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert not media_of(first)[0]["cache_hit"]
        assert again.json["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert not watch.check()


@pytest.mark.corpus
def test_short_requests_with_aborts_between_equal_their_lone_runs(watch: Watch) -> None:
    """C11: rows are reused with seeds, penalties, bias and log-probabilities; a third of the clients leave."""
    rng = random.Random(11)
    settings: list[dict[str, Any]] = [
        {},
        {"temperature": 1, "seed": 5},
        {"frequency_penalty": 1.5},
        {"repetition_penalty": 1.3, "logprobs": True, "top_logprobs": 3},
        {"logit_bias": {"11": -100}, "temperature": 1, "seed": 7},
        {"bad_words": ["picture"], "min_tokens": 4},
        {"stop": ["a"], "n": 2},
    ]
    asks = [
        ([text(f"Number {n % 9}, please.")], {**settings[n % len(settings)], "max_tokens": 4 + n % 6})
        for n in range(63)
    ]
    wanted = [fresh(watch, parts, **fields) for parts, fields in asks]

    def one(number: int) -> bool:
        parts, fields = asks[number]
        if rng.random() < 0.33:
            send(watch.server.port, body(parts, **{**fields, "max_tokens": 500, "ignore_eos": True}), timeout_s=0.02)
        return answer_of(ask(watch, parts, **fields)) == wanted[number]

    order = list(range(len(asks))) * 6
    rng.shuffle(order)
    with ThreadPoolExecutor(8) as pool:
        wrong = [number for number, good in zip(order, pool.map(one, order), strict=True) if not good]
    assert not wrong


@pytest.mark.corpus
def test_a_cache_smaller_than_its_pictures_answers_right(servers: Servers) -> None:
    """C22: more pictures than a small encoder cache holds, in random order; see the options of the server `tight`."""
    watch = servers.get("tight")
    pictures = [scene_png(seed, 224, 224) for seed in range(100, 140)]
    wanted = [fresh(watch, shown(picture)) for picture in pictures]
    order = [number for _ in range(8) for number in range(len(pictures))]
    random.Random(22).shuffle(order)
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda number: answer_of(ask(watch, shown(pictures[number]))), order))
    assert got == [wanted[number] for number in order]
    values = watch.metrics()
    assert values["fovea:encoder_cache_bytes"] <= values["fovea:encoder_cache_capacity_bytes"]
    assert not watch.check()


@pytest.mark.corpus
def test_few_blocks_and_many_prefixes_answer_right(servers: Servers) -> None:
    """C14: blocks are taken from cached prefixes all the time."""
    watch = servers.get("tight")
    prefixes = [f"Topic {n}: " + " ".join(f"w{n}{m}" for m in range(40)) for n in range(40)]
    wanted = [fresh(watch, [text(prefix)], max_tokens=5) for prefix in prefixes]
    order = [random.Random(14 + n).randrange(len(prefixes)) for n in range(800)]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda number: answer_of(ask(watch, [text(prefixes[number])], max_tokens=5)), order))
    assert got == [wanted[number] for number in order]
    assert not watch.check()
