"""How what people type becomes a value."""

from __future__ import annotations

import argparse

import pytest

from fovea.cli.values import parse_list, parse_mapping, parse_number, parse_switch, parse_whole


@pytest.mark.parametrize("text", ["", "k", "1e3", "0x10", "1 k", "１"])
def test_whole_numbers_are_strict(text: str) -> None:
    if text == "１":  # digits of other scripts are digits to Python, and mean what they say
        assert parse_whole(text) == 1
        return
    with pytest.raises(argparse.ArgumentTypeError):
        parse_whole(text)


def test_numbers_and_mappings() -> None:
    assert parse_number("1e-3") == 0.001
    assert parse_mapping("a=true, b=x, c=1.5") == {"a": True, "b": "x", "c": 1.5}
    with pytest.raises(argparse.ArgumentTypeError):
        parse_mapping("=2")
    with pytest.raises(argparse.ArgumentTypeError):
        parse_mapping("")


def test_lists_take_commas_or_json() -> None:
    assert parse_list("a, b") == ["a", "b"]
    assert parse_list('["a,b", "c"]') == ["a,b", "c"]
    assert parse_list(" ") == parse_list("[]") == []
    assert parse_list("[::1],localhost") == ["[::1]", "localhost"]


def test_switches_take_the_usual_words_and_no_others() -> None:
    assert [parse_switch(text) for text in ("1", "TRUE", "yes", "On")] == [True] * 4
    assert [parse_switch(text) for text in ("0", "false", "No", "off")] == [False] * 4
    for text in ("", "2", "y", "enabled"):
        with pytest.raises(argparse.ArgumentTypeError, match="is none of"):
            parse_switch(text)
