"""Flags are made from the dataclasses; this is how they read what people type."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fovea.cli.options import (
    SERVER_GROUPS,
    Parser,
    UsageError,
    add_options,
    engine_options,
    given,
    sampling_options,
    server_options,
)
from fovea.core.config import EngineConfig
from fovea.core.server_config import ServerConfig


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
        (("--allowed-media-domains", '["a.test"]'), {"allowed_media_domains": ["a.test"]}),
        (("--media-fetch-timeout-s", "2.5"), {"media_fetch_timeout_s": 2.5}),
        (("--max-model-len", "auto"), {"max_model_len": None}),
        (("--no-resize-on-device",), {"resize_on_device": False}),
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
        (("--max-num-seqs", "auto"), "'auto' is not a whole number"),
        (("--allowed-media-domains", '["a", 1]'), "it looks like JSON but is no list of texts"),
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


def test_every_option_of_a_server_is_in_one_group() -> None:
    grouped = [name for names in SERVER_GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(field.name for field in dataclasses.fields(ServerConfig))


def test_server_options_have_help_and_show_large_defaults_shortly(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(option.help.endswith(".") for option in server_options())
    parser = Parser("test", description="", examples=())
    add_options(parser, "server", server_options())
    text = " ".join(parser.format_help().split())
    assert "Largest request body. [32M]" in text
    assert "Most memory that preparing one request may take. [1G]" in text
    assert "default 16 images and 1 video." in text
