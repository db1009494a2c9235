"""Flags are made from the dataclasses; this is how they read what people type."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from fovea.cli.options import (
    Parser,
    UsageError,
    add_options,
    engine_options,
    given,
    parse_mapping,
    parse_number,
    parse_whole,
    sampling_options,
)
from fovea.core.config import EngineConfig


def engine_flags(*argv: str) -> dict[str, Any]:
    parser = Parser("test", description="", examples=())
    options = engine_options()
    add_options(parser, "engine", options)
    namespace, words = parser.parse(argv)
    assert not words
    return given(namespace, options)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), {}),
        (("--max-model-len", "4096"), {"max_model_len": 4096}),
        (("--max_model_len=4096",), {"max_model_len": 4096}),
        (("--max-model-len", "32k"), {"max_model_len": 32_000}),
        (("--max-model-len", "32K"), {"max_model_len": 32_768}),
        (("--kv-cache-memory-bytes", "1.5G"), {"kv_cache_memory_bytes": 3 * 2**29}),
        (("--gpu-memory-utilization", "0.5"), {"gpu_memory_utilization": 0.5}),
        (("--dtype", "bfloat16"), {"dtype": "bfloat16"}),
        (("--trust-remote-code",), {"trust_remote_code": True}),
        (("--no-enable-prefix-caching",), {"enable_prefix_caching": False}),
        (("--no_enable_prefix_caching",), {"enable_prefix_caching": False}),
        (("--limit-mm-per-prompt", "image=2"), {"limit_mm_per_prompt": {"image": 2}}),
        (("--limit-mm-per-prompt", '{"image": 2, "video": 0}'), {"limit_mm_per_prompt": {"image": 2, "video": 0}}),
        (
            ("--mm-processor-kwargs=min_pixels=4,max_pixels=8",),
            {"mm_processor_kwargs": {"min_pixels": 4, "max_pixels": 8}},
        ),
        (("--chat-template", "{{ a_b }}"), {"chat_template": "{{ a_b }}"}),
        (("--seed", "1", "--seed", "2"), {"seed": 2}),
        (("--allowed-media-domains", "a.test, b.test"), {"allowed_media_domains": ["a.test", "b.test"]}),
        (
            ("--allowed_media_domains=a.test", "--allowed-media-domains", "b"),
            {"allowed_media_domains": ["a.test", "b"]},
        ),
        (("--allowed-media-domains", ""), {"allowed_media_domains": []}),
        (("--allowed-media-networks", "10.0.0.0/8,::1"), {"allowed_media_networks": ["10.0.0.0/8", "::1"]}),
        (("--media-fetch-timeout-s", "2.5"), {"media_fetch_timeout_s": 2.5}),
    ],
)
def test_flags_are_read(argv: tuple[str, ...], expected: dict[str, Any]) -> None:
    assert engine_flags(*argv) == expected
    EngineConfig.from_options(engine_flags(*argv))


def test_values_keep_their_underscores() -> None:
    assert engine_flags("--model=my_org/my_model") == {"model": "my_org/my_model"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--max-modle-len", "8"), "unknown option --max-modle-len. Did you mean '--max-model-len'?"),
        (("--max-model-len", "8.5"), "'8.5' is not a whole number"),
        (("--max-model-len", "many"), "'many' is not a whole number"),
        (("--max-model-len",), "--max-model-len: expected one argument"),
        (("--gpu-memory-utilization", "half"), "'half' is not a number"),
        (("--dtype", "int4"), "--dtype: invalid choice: 'int4'"),
        (("--limit-mm-per-prompt", "2"), "'2' is neither key=value nor a JSON object"),
        (("--limit-mm-per-prompt", "{image: 2}"), "is not valid JSON"),
        (("--max-model",), "unknown option --max-model."),
    ],
)
def test_mistakes_are_named(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        engine_flags(*argv)
    assert message in str(caught.value)
    assert str(caught.value).endswith('See "fovea test --help".')


def test_abbreviations_are_not_guessed() -> None:
    """--max-num could mean three options today and a fourth tomorrow."""
    with pytest.raises(UsageError, match="unknown option --max-num"):
        engine_flags("--max-num", "8")


def test_words_may_stand_anywhere_and_after_two_dashes_everything_is_a_word() -> None:
    parser = Parser("test", description="", examples=())
    add_options(parser, "engine", engine_options())
    namespace, words = parser.parse(["a", "--seed", "3", "b c", "-", "--", "--seed", "4"])
    assert words == ["a", "b c", "-", "--seed", "4"]
    assert namespace.seed == 3


def test_a_word_that_begins_with_a_dash_and_is_no_flag_stays_a_word() -> None:
    _, words = Parser("test", description="", examples=()).parse(["-5 + 3 = ?"])
    assert words == ["-5 + 3 = ?"]


def test_the_help_shows_every_default_that_is_not_none(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("test", description="", examples=())
    add_options(parser, "engine", engine_options({"max_num_seqs": 3}))
    add_options(parser, "answer", sampling_options({"max_tokens": 9}))
    text = " ".join(parser.format_help().split())
    assert "Most sequences in one step. [3]" in text
    assert "Longest answer in tokens. [9]" in text
    assert "Reuse KV blocks of equal prompt beginnings. [on]" in text
    assert "None" not in text
    assert "()" not in text
    assert "--allowed-media-domains TEXT,..." in text


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
