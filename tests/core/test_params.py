"""SamplingParams refuses what is out of range, naming the range, and takes everything inside."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from fovea.core.errors import SamplingError
from fovea.core.params import SamplingParams

NAN, INF = float("nan"), float("inf")

# A field, bad values, and what the error says besides the field's name.
BAD: list[tuple[str, list[Any], str]] = [
    ("n", [0, -1, 65, 2**70], "1 to 64"),
    ("n", [1.0, "1", None, True], "whole number (1 to 64)"),
    ("temperature", [-0.1, 100.1], "0 to 100"),
    ("temperature", [NAN, INF, -INF, "0", None, True], "finite number (0 to 100)"),
    ("top_p", [0.0, -0.1, 1.1], "above 0 up to 1"),
    ("top_p", [NAN, "1"], "finite number"),
    ("top_k", [-2], "-1 or more"),
    ("top_k", [1.5, None, True], "whole number"),
    ("min_p", [-0.1, 1.1], "0 to 1"),
    ("min_p", [NAN], "finite number"),
    ("seed", [2**63, -(2**63) - 1], "permitted"),
    ("seed", ["1", 1.0, True], "whole number"),
    ("stop", ["", [""], ["a", ""]], "non-empty"),
    ("stop", [[5], [None], [b"a"]], "strings"),
    ("stop", [["a"] * 17], "at most 16"),
    ("stop", [5, 1.5, object], "strings"),
    ("stop_token_ids", [5, "12", [1.5], [-1], [True], [None]], "token ids"),
    ("ignore_eos", [0, 1, None, "yes"], "True or False"),
    ("max_tokens", [0, -1], "1 or more"),
    ("max_tokens", [1.0, "1", True], "whole number"),
    ("min_tokens", [-1], "0 or more"),
    ("min_tokens", [17], "larger than max_tokens (16)"),
    ("presence_penalty", [-2.1, 2.1], "-2 to 2"),
    ("frequency_penalty", [-2.1, 2.1], "-2 to 2"),
    ("repetition_penalty", [0, -1, 1e-320, 0.0099, 100.1], "0.01 to 100"),
    ("repetition_penalty", [NAN], "finite number"),
    ("logprobs", [-1, 21], "0 to 20"),
    ("logprobs", [True, 1.0], "whole number"),
    ("prompt_logprobs", [-1, 21], "0 to 20"),
    ("logit_bias", [5, [1, 2], "a"], "map"),
    ("logit_bias", [{-1: 0.0}, {"1": 0.0}, {True: 0.0}], "token ids"),
    ("logit_bias", [{1: 100.1}, {1: -100.1}], "-100 to 100"),
    ("logit_bias", [{1: NAN}, {1: "1"}], "finite number"),
    ("logit_bias", [dict.fromkeys(range(1025), 1.0)], "1024"),
    ("bad_words", [5, "word", [""], [5]], "strings"),
    ("bad_words", [["a"] * 1025], "at most 1024"),
    ("allowed_token_ids", [[]], "nothing could be produced"),
    ("allowed_token_ids", [5, [-1], ["a"]], "token ids"),
    ("skip_special_tokens", [1], "True or False"),
    ("include_stop_str_in_output", [None], "True or False"),
    ("detokenize", ["no"], "True or False"),
]
EACH_BAD = [(name, value, says) for name, values, says in BAD for value in values]

GOOD: list[tuple[str, list[Any]]] = [
    ("n", [1, 64]),
    ("temperature", [0, 0.0, 1, 100.0]),
    ("top_p", [1e-9, 1, 1.0]),
    ("top_k", [-1, 0, 1, 10**9]),
    ("min_p", [0, 1]),
    ("seed", [None, 0, -1, 2**63 - 1, -(2**63)]),
    ("stop", [None, "a", [], ["a"] * 16, ("a", "b")]),
    ("stop_token_ids", [None, [], [0, 5], (1,)]),
    ("max_tokens", [None, 1, 10**9]),
    ("min_tokens", [0, 16]),
    ("repetition_penalty", [0.01, 1, 100]),
    ("logprobs", [None, 0, 20]),
    ("logit_bias", [None, {}, {0: -100, 5: 100.0}]),
    ("bad_words", [None, [], ["a"]]),
    ("allowed_token_ids", [None, [0]]),
]


@pytest.mark.parametrize(("name", "value", "says"), EACH_BAD, ids=lambda value: repr(value)[:40])
def test_a_value_out_of_range_is_refused_with_the_range(name: str, value: Any, says: str) -> None:
    with pytest.raises(SamplingError) as caught:
        SamplingParams(**{name: value})
    assert name in str(caught.value)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("name", "values"), GOOD)
def test_a_value_in_range_is_taken_as_it_is(name: str, values: list[Any]) -> None:
    for value in values:
        assert getattr(SamplingParams(**{name: value}), name) == value


@pytest.mark.parametrize("name", ["temperature", "top_p", "presence_penalty", "repetition_penalty"])
def test_a_number_too_large_for_a_float_is_refused(name: str) -> None:
    values: dict[str, Any] = {name: 10**400}
    with pytest.raises(SamplingError, match=name):
        SamplingParams(**values)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"n": "1"}, "invalid_type"),
        ({"n": True}, "invalid_type"),
        ({"n": 0}, "below_min_value"),
        ({"n": 65}, "above_max_value"),
        ({"n": 10**5000}, "above_max_value"),
        ({"seed": -(10**5000)}, "below_min_value"),
        ({"seed": [10**5000]}, "invalid_type"),
        ({"temperature": "hot"}, "invalid_type"),
        ({"temperature": NAN}, "invalid_value"),
        ({"temperature": -0.1}, "below_min_value"),
        ({"temperature": 10**400}, "above_max_value"),
        ({"top_p": 0.0}, "below_min_value"),
        ({"stop": 5}, "invalid_type"),
        ({"stop": ["a"] * 17}, "array_too_long"),
        ({"stop": [None]}, "invalid_type"),
        ({"stop": ""}, "invalid_value"),
        ({"stop_token_ids": [-1]}, "below_min_value"),
        ({"allowed_token_ids": []}, "invalid_value"),
        ({"logit_bias": 5}, "invalid_type"),
        ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, "array_too_long"),
        ({"logit_bias": {1: 101}}, "above_max_value"),
        ({"detokenize": "no"}, "invalid_type"),
        ({"min_tokens": 17}, "invalid_value"),
        ({"temprature": 1.0}, "unsupported_value"),
        ({"stop": "a", "detokenize": False}, "unsupported_combination"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else next(iter(value)),
)
def test_a_refusal_has_a_code_and_names_the_field(values: dict[str, Any], code: str) -> None:
    with pytest.raises(SamplingError) as caught:
        SamplingParams.from_mapping(values)
    assert (caught.value.code, caught.value.param, caught.value.status) == (code, next(iter(values)), 400)


def test_every_field_is_tested_here() -> None:
    assert {f.name for f in fields(SamplingParams)} == {name for name, _, _ in BAD}


def test_stop_strings_without_text_are_refused() -> None:
    with pytest.raises(SamplingError, match="detokenize"):
        SamplingParams(stop="a", detokenize=False)


def test_defaults_are_vllm_s() -> None:
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k, params.max_tokens) == (1, 1.0, 1.0, 0, 16)
    assert params.stop_strings == ()
    assert not params.is_greedy


def test_params_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        SamplingParams().temperature = 0.0  # type: ignore[misc]


def test_a_mistyped_name_offers_the_nearest() -> None:
    with pytest.raises(SamplingError, match=r"'max_token'.* Did you mean 'max_tokens'\?"):
        SamplingParams.from_mapping({"max_token": 5})
    assert SamplingParams.from_mapping({"max_tokens": 5}).max_tokens == 5


def test_one_stop_string_is_a_list_of_one() -> None:
    assert SamplingParams(stop="ab").stop_strings == ("ab",)
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")
