"""Streaming gives the text of decoding everything at once, whole characters only, and no stop string."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea.prompt.detokenizer import Detokenizer
from fovea.prompt.tokenizer import Tokenizer
from tests.prompt.test_tokenizer import CORPUS, PUBLISHED, byte_level, published, sentencepiece

BYTES = Tokenizer(byte_level(stop=True, tool=False))
TINY = {
    "byte_level": BYTES,
    "sentencepiece": Tokenizer(sentencepiece()),
    "sentencepiece_first": Tokenizer(sentencepiece(first_only=True)),
}
STOP_ID = BYTES.special_tokens["<|stop|>"]


def byte_ids(data: bytes) -> list[int]:
    """One token for each byte."""
    alphabet = {BYTES.decode([i], skip_special_tokens=False): i for i in range(256)}
    assert len(alphabet) > 128
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    names = {**{byte: chr(byte) for byte in shown}, **{byte: chr(256 + n) for n, byte in enumerate(hidden)}}
    found = [BYTES.token_id(names[byte]) for byte in data]
    return [token_id for token_id in found if token_id is not None]


def stream(tokenizer: Tokenizer, ids: Sequence[int], *, tail: Sequence[int] = (), skip: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt_token_ids_tail=tail, skip_special_tokens=skip)
    deltas = [detokenizer.push(token_id) for token_id in ids]
    deltas.append(detokenizer.finish())
    assert detokenizer.text == "".join(deltas)
    return deltas


def at_once(
    tokenizer: Tokenizer, ids: Sequence[int], *, tail: Sequence[int] = (), skip: bool = True, cut: int = 0
) -> str:
    """In two parts, the second from `cut` on, where the bytes of a run may be cut."""
    cut = cut if tokenizer.is_byte_level else 0
    detokenizer = Detokenizer(tokenizer, prompt_token_ids_tail=tail, skip_special_tokens=skip)
    detokenizer.push_all(ids[:cut])
    detokenizer.push_all(ids[cut:])
    detokenizer.finish()
    return detokenizer.text


def with_stops(
    ids: Sequence[int], *stops: str, include: bool = False, unchecked: int = 0
) -> tuple[str, str | None, list[str]]:
    detokenizer = Detokenizer(BYTES, stop=stops, include_stop=include)
    deltas = [detokenizer.push(token_id, check_stop=n >= unchecked) for n, token_id in enumerate(ids)]
    deltas.append(detokenizer.finish())
    return "".join(deltas), detokenizer.stopped, deltas


# --- one by one or at once --------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(
    kind=st.sampled_from(sorted(TINY)),
    ids=st.lists(st.integers(0, BYTES.vocab_size + 2), max_size=300),
    tail=st.lists(st.integers(0, 300), max_size=9),
    skip=st.booleans(),
    cut=st.integers(0, 300),
)
def test_pushing_all_gives_the_text_of_pushing_each(
    kind: str, ids: list[int], tail: list[int], skip: bool, cut: int
) -> None:
    tokenizer = TINY[kind]
    each = "".join(stream(tokenizer, ids, tail=tail, skip=skip))
    if tokenizer.is_byte_level or "\ufffd" not in each:  # byte fallback breaks a whole run for one byte of it
        assert at_once(tokenizer, ids, tail=tail, skip=skip, cut=cut) == each


@settings(deadline=None, max_examples=100)
@given(
    kind=st.sampled_from(sorted(TINY)),
    text=st.text(alphabet="ab é👍漢", max_size=400),
    prompt=st.text(max_size=9),
    cut=st.integers(0, 400),
)
def test_pushing_all_of_a_text_gives_that_of_pushing_each(kind: str, text: str, prompt: str, cut: int) -> None:
    tokenizer = TINY[kind]
    ids, tail = tokenizer.encode(text), tokenizer.encode(prompt)
    assert at_once(tokenizer, ids, tail=tail, cut=cut) == "".join(stream(tokenizer, ids, tail=tail))


# --- equal to decoding at once ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(ids=st.lists(st.integers(0, BYTES.vocab_size + 2), max_size=60), skip=st.booleans())
def test_any_ids_of_a_byte_level_vocabulary_stream_as_they_decode(ids: list[int], skip: bool) -> None:
    assert "".join(stream(BYTES, ids, skip=skip)) == BYTES.decode(ids, skip_special_tokens=skip)


@settings(deadline=None, max_examples=200)
@given(
    data=st.lists(
        st.sampled_from([b"\xf0", b"\x9f", b"\x98", b"\x80", b"a", b"\xc3", b"\xff", b"\xed\xa0"]), max_size=80
    )
)
def test_broken_bytes_stream_as_they_decode(data: list[bytes]) -> None:
    ids = byte_ids(b"".join(data))
    assert "".join(stream(BYTES, ids)) == BYTES.decode(ids)


@settings(deadline=None, max_examples=200)
@given(
    kind=st.sampled_from(sorted(TINY)), text=st.text(max_size=40), prompt=st.sampled_from(["", "hi", "a ", "é", " "])
)
def test_any_text_streams_as_it_decodes_after_any_prompt(kind: str, text: str, prompt: str) -> None:
    tokenizer = TINY[kind]
    tail = tokenizer.encode(prompt, add_special_tokens=False)
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.decode([*tail[-8:], *ids])
    assert "".join(stream(tokenizer, ids, tail=tail)) == whole[len(tokenizer.decode(tail[-8:])) :]
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("skip", [True, False])
def test_published_tokenizers_stream_as_they_decode(name: str, skip: bool) -> None:
    tokenizer = published(name)
    for text in [*CORPUS, "".join(CORPUS)]:
        ids = tokenizer.encode(text)
        assert "".join(stream(tokenizer, ids, skip=skip)) == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", PUBLISHED)
def test_random_ids_of_published_tokenizers_stream_as_they_decode(name: str) -> None:
    """Byte tokens of SentencePiece vocabularies are left out: see the module's exceptions."""
    import random

    tokenizer = published(name)
    byte_fallback = tokenizer.token_id("<0x00>") is not None
    pool = [i for i in range(tokenizer.vocab_size) if not (byte_fallback and 3 <= i < 259)]
    for seed in range(40):
        ids = random.Random(seed).choices(pool, k=80)
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_the_prompt_decides_whether_the_first_space_stays() -> None:
    tokenizer = TINY["sentencepiece"]
    word = tokenizer.encode("hi a", add_special_tokens=False)[-1:]
    assert stream(tokenizer, word, tail=tokenizer.encode("hi", add_special_tokens=False))[0] == " a"
    assert stream(tokenizer, word)[0] == "a"


# --- whole characters -------------------------------------------------------------------------------------------------


def test_a_character_is_given_out_with_its_last_byte() -> None:
    assert stream(BYTES, byte_ids("é👍a".encode())) == ["", "é", "", "", "", "👍", "a", ""]


def test_byte_fallback_characters_are_given_out_with_their_last_byte() -> None:
    tokenizer = TINY["sentencepiece"]
    ids = [3 + byte for byte in "👍👍".encode()]
    assert stream(tokenizer, ids) == ["", "", "", "👍", "", "", "", "👍", ""]


def test_an_unfinished_character_comes_out_at_the_end() -> None:
    assert stream(BYTES, byte_ids(b"a\xf0\x9f")) == ["a", "", "", "\ufffd"]


def test_a_replacement_character_the_model_writes_is_kept() -> None:
    assert "".join(stream(BYTES, byte_ids("a\ufffdb\ufffd".encode()))) == "a\ufffdb\ufffd"


def test_skipped_and_unknown_ids_give_nothing() -> None:
    assert stream(BYTES, [STOP_ID, 10**9, -1, *byte_ids(b"a")]) == ["", "", "", "a", ""]
    assert stream(BYTES, [STOP_ID], skip=False)[0] == "<|stop|>"


@pytest.mark.parametrize("ids", [[3 + 0xFF] * 3000, [4] * 3000, [1] * 3000], ids=["invalid", "control", "special"])
def test_the_cost_of_a_token_does_not_grow_with_the_text(ids: list[int]) -> None:
    """Also for a model that repeats a broken byte for ever: the window stays small."""
    tokenizer = TINY["sentencepiece"]
    detokenizer = Detokenizer(tokenizer)
    start = time.perf_counter()
    for token_id in ids:
        detokenizer.push(token_id)
        assert len(detokenizer._window) <= 64
    assert time.perf_counter() - start < 3


# --- stop strings -----------------------------------------------------------------------------------------------------

few = st.text(alphabet="abé", min_size=1, max_size=4)


def reference_stop(text: str, stops: Sequence[str], include: bool) -> tuple[str, str | None]:
    """Read character by character; the match complete first wins, the longest of several."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@settings(deadline=None, max_examples=300)
@given(text=st.text(alphabet="abé👍", max_size=30), stops=st.lists(few, max_size=3), include=st.booleans())
def test_stops_are_found_as_by_reading_character_by_character(text: str, stops: list[str], include: bool) -> None:
    found, stopped, _ = with_stops(byte_ids(text.encode()), *stops, include=include)
    assert (found, stopped) == reference_stop(text, stops, include)
    if not include:
        assert not any(stop in found for stop in stops)


@settings(deadline=None, max_examples=100)
@given(
    text=st.text(alphabet="hel o", max_size=30),
    stops=st.lists(st.text(alphabet="hel", min_size=1, max_size=4), max_size=3),
)
def test_the_result_does_not_depend_on_how_the_text_is_cut_into_tokens(text: str, stops: list[str]) -> None:
    merged = BYTES.encode(text)
    single = byte_ids(text.encode())
    assert with_stops(merged, *stops)[:2] == with_stops(single, *stops)[:2]


def test_a_stop_string_across_tokens_is_never_partly_given_out() -> None:
    text, stopped, deltas = with_stops(byte_ids(b"one\n###\nmore"), "\n###")
    assert (text, stopped) == ("one", "\n###")
    assert deltas[:8] == ["o", "n", "e", "", "", "", "", ""]


def test_text_that_only_began_like_a_stop_string_is_given_out() -> None:
    text, stopped, deltas = with_stops(byte_ids(b"\n##x\n#"), "\n###")
    assert (text, stopped) == ("\n##x\n#", None)
    assert deltas == ["", "", "", "\n##x", "", "", "\n#"]


def test_the_stop_string_can_be_kept() -> None:
    assert with_stops(byte_ids(b"one. two"), ".", include=True)[:2] == ("one.", ".")


def test_nothing_comes_after_a_stop() -> None:
    detokenizer = Detokenizer(BYTES, stop=("b",))
    assert [detokenizer.push(i) for i in byte_ids(b"abc")] == ["a", "", ""]
    assert detokenizer.finish() == ""
    assert detokenizer.text == "a"


def test_stops_are_text_until_they_are_checked() -> None:
    assert with_stops(byte_ids(b"a.b.c"), ".", unchecked=2)[:2] == ("a.b", ".")
    assert with_stops(byte_ids(b"aba"), "ab", unchecked=5)[:2] == ("aba", None)


def test_a_stop_that_ends_after_the_minimum_counts_whole() -> None:
    assert with_stops(byte_ids(b"xabc"), "abc", unchecked=3)[:2] == ("x", "abc")


def test_long_stop_strings_cost_no_more_than_short_ones() -> None:
    ids = byte_ids(b"a" * 3000)
    start = time.perf_counter()
    assert with_stops(ids, "a" * 100_000, "a" * 2999 + "b")[1] is None
    assert time.perf_counter() - start < 5
