"""EngineConfig: options are checked where they are given, with the range and the nearest name."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from fovea.core.config import EngineConfig, option_default
from fovea.core.errors import ConfigError, InvalidOptionError, UnknownOptionError

BAD: list[tuple[str, list[Any], str]] = [
    ("model", [5, None, b"a"], "text"),
    ("tokenizer", [5], "text"),
    ("trust_remote_code", [1, "yes", None], "True or False"),
    ("load_format", ["pt", None, 5], "auto, safetensors, gguf, dummy"),
    ("task", ["embed"], "generate"),
    ("dtype", ["float64", "half", None, 16], "auto, float32, bfloat16, float16"),
    ("device", ["gpu", "cuda:0", None], "auto, cpu, cuda"),
    ("seed", [-1], "0 or more"),
    ("seed", [None, 1.0, True, "0"], "whole number"),
    ("max_model_len", [0, -5], "1 or more"),
    ("max_model_len", [1.5, "4k", True], "whole number"),
    ("max_num_seqs", [0], "1 or more"),
    ("max_num_batched_tokens", [15], "16 or more"),
    ("max_num_batched_patches", [0], "1 or more"),
    ("block_size", [0, 257], "1 to 256"),
    ("block_size", [3, 24], "power of two"),
    ("gpu_memory_utilization", [0, 0.01, 1.1, -1], "0.05 to 1"),
    ("gpu_memory_utilization", ["0.9", None, True], "number"),
    ("gpu_memory_utilization", [float("nan")], "0.05 to 1"),
    ("kv_cache_memory_bytes", [0, -1], "1 or more"),
    ("enable_prefix_caching", [1, None], "True or False"),
    ("encoder_cache_bytes", [-1], "0 or more"),
    ("limit_mm_per_prompt", [5, "image=4", [("image", 4)]], "mapping"),
    ("limit_mm_per_prompt", [{"images": 4}], "image, video, audio"),
    ("limit_mm_per_prompt", [{"image": -1}, {"image": 1.5}, {"image": True}, {"image": None}], "0 or more"),
    ("mm_processor_kwargs", [5, "max_pixels=1"], "mapping"),
    ("allowed_local_media_path", [None, 5], "text"),
    ("allowed_media_domains", ["a.test", 5, [5], [b"a.test"], {"a.test": 1}], "list of texts"),
    ("allowed_media_networks", ["10.0.0.0/8", None, [5]], "list of texts"),
    ("allowed_media_networks", [["10.0.0.1/8"], ["a.test"], [""], ["10.0.0.0/33"]], "10.1.0.0/16"),
    ("media_fetch_timeout_s", [0, -1, 601], "0.01 to 600"),
    ("media_fetch_timeout_s", [None, "5", True], "number"),
    ("max_image_bytes", [0], "1 or more"),
    ("max_image_pixels", [0], "1 or more"),
    ("max_image_aspect", [0.5], "1 or more"),
    ("media_threads", [-1], "0 or more"),
    ("allowed_media_domains", ["example.com", 5, [5]], "list of texts"),
    ("allowed_media_networks", ["10.0.0.0/8", None, [None]], "list of texts"),
    ("allowed_media_networks", [["10.0.0.1/8"], ["example.com"], [""]], "IP address or a network"),
    ("media_fetch_timeout_s", [0, 601, float("nan")], "0.01 to 600"),
]
EACH_BAD = [(name, value, says) for name, values, says in BAD for value in values]


@pytest.mark.parametrize(("name", "value", "says"), EACH_BAD, ids=lambda value: repr(value)[:40])
def test_a_bad_value_is_refused_with_what_is_permitted(name: str, value: Any, says: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        EngineConfig.from_options({name: value})
    assert name in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("max_model_length", "max_model_len"),
        ("gpu_memory_utilisation", "gpu_memory_utilization"),
        ("limit_mm_per_promt", "limit_mm_per_prompt"),
        ("blocksize", "block_size"),
    ],
)
def test_an_unknown_option_offers_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UnknownOptionError, match=f"'{name}'.* Did you mean '{near}'"):
        EngineConfig.from_options({name: 1})


def test_an_option_like_no_other_offers_nothing() -> None:
    with pytest.raises(UnknownOptionError) as caught:
        EngineConfig.from_options({"zebra": 1})
    assert "Did you mean" not in str(caught.value)


def test_a_mistyped_choice_offers_the_nearest() -> None:
    with pytest.raises(InvalidOptionError, match="Did you mean 'bfloat16'"):
        EngineConfig.from_options({"dtype": "bfloat"})


def test_defaults_are_valid_and_documented() -> None:
    config = EngineConfig()
    for option in fields(EngineConfig):
        assert option.metadata["help"].endswith(".")
        default = option_default(option)
        assert getattr(config, option.name) == ({} if default is None and "Mapping" in str(option.type) else default)
    assert config.image_limit() == 999


def test_limits_by_medium() -> None:
    assert EngineConfig(limit_mm_per_prompt={"image": 0}).image_limit() == 0
    assert EngineConfig(limit_mm_per_prompt={"video": 1}).image_limit() == 999


def test_a_config_is_frozen_and_its_mappings_are_copies() -> None:
    limits = {"image": 4}
    config = EngineConfig(limit_mm_per_prompt=limits)
    limits["image"] = 1000
    assert config.image_limit() == 4
    with pytest.raises(FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]


def test_pictures_are_resized_on_a_gpu_unless_it_is_said() -> None:
    assert [EngineConfig().resizes_on(device) for device in ("cpu", "cuda", "cuda:1")] == [False, True, True]
    assert all(EngineConfig(resize_on_device=True).resizes_on(device) for device in ("cpu", "cuda:0"))
    assert not any(EngineConfig(resize_on_device=False).resizes_on(device) for device in ("cpu", "cuda:0"))


def test_lists_become_tuples() -> None:
    hosts = ["a.test"]
    config = EngineConfig.from_options(
        {"allowed_media_domains": hosts, "allowed_media_networks": ["10.0.0.0/8", "::1"]}
    )
    hosts.append("b.test")
    assert config.allowed_media_domains == ("a.test",)
    assert config.allowed_media_networks == ("10.0.0.0/8", "::1")
    assert EngineConfig(allowed_media_domains=()).allowed_media_domains == ()


def test_every_error_of_options_is_a_config_error() -> None:
    assert issubclass(InvalidOptionError, ConfigError)
    assert issubclass(UnknownOptionError, ConfigError)
