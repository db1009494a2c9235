"""How one request is sampled. Names and defaults are vLLM's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fovea.core.errors import SamplingError, nearest

MAX_LOGPROBS = 20
MAX_COMPLETIONS = 64
MAX_STOP_STRINGS = 16
MAX_LIST_ITEMS = 1024
MAX_LOGIT_BIAS = 100.0
MIN_REPETITION_PENALTY = 0.01  # it divides logits, which must stay finite


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling options of one request.

    Raises SamplingError for a value out of range, naming the permitted range.

    n: completions for each prompt, 1 to 64.
    temperature: 0 is greedy.
    top_p, top_k, min_p: which tokens may be drawn; top_k 0 or -1 means all.
    seed: makes the draw repeatable whatever else runs beside it.
    stop: strings that end the text; they are cut off unless include_stop_str_in_output.
    stop_token_ids: further ids that end it.
    ignore_eos: go on after the model's own end tokens.
    max_tokens: None means up to the model's length.
    presence_penalty, frequency_penalty: -2 to 2, over the tokens generated so far.
    repetition_penalty: 0.01 to 100, over prompt and generated tokens; 1 is none.
    logprobs: for each generated token the likeliest 0 to 20 and the chosen one; prompt_logprobs: of the prompt.
    logit_bias: token id to a number from -100 to 100.
    bad_words: strings that must not be produced.
    allowed_token_ids: if given, only these can be produced.
    detokenize: False leaves `text` empty.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | tuple[str, ...] | None = None
    stop_token_ids: list[int] | tuple[int, ...] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None
    bad_words: list[str] | tuple[str, ...] | None = None
    allowed_token_ids: list[int] | tuple[int, ...] | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    detokenize: bool = True

    def __post_init__(self) -> None:
        self._check_integers()
        self._check_floats()
        self._check_lists()
        self._check_flags()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> SamplingParams:
        """Build from names in a mapping; an unknown name is an error that offers the nearest."""
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise _wrong(
                    "unsupported_value", name, f"Unknown sampling option {name[:60]!r}.{nearest(name[:60], known)}"
                )
        return cls(**values)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    def _check_integers(self) -> None:
        _integer("n", self.n, 1, MAX_COMPLETIONS)
        _integer("top_k", self.top_k, -1, None)
        _integer("min_tokens", self.min_tokens, 0, None)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, None)
            if self.min_tokens > self.max_tokens:
                raise _wrong(
                    "invalid_value",
                    "min_tokens",
                    f"min_tokens ({_shown(self.min_tokens)}) is larger than max_tokens ({_shown(self.max_tokens)}).",
                )
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63), 2**63 - 1)
        for name, value in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if value is not None:
                _integer(name, value, 0, MAX_LOGPROBS)

    def _check_floats(self) -> None:
        _number("temperature", self.temperature, 0.0, 100.0)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, 100.0)

    def _check_lists(self) -> None:
        _strings("stop", [self.stop] if isinstance(self.stop, str) else self.stop or (), MAX_STOP_STRINGS)
        _strings("bad_words", self.bad_words or (), MAX_LIST_ITEMS)
        _ids("stop_token_ids", self.stop_token_ids or ())
        if self.allowed_token_ids is not None:
            if not self.allowed_token_ids:
                raise _wrong(
                    "invalid_value",
                    "allowed_token_ids",
                    "allowed_token_ids is empty: nothing could be produced. Leave it out to allow all.",
                )
            _ids("allowed_token_ids", self.allowed_token_ids)
        bias = self.logit_bias or {}
        if not isinstance(bias, Mapping) or len(bias) > MAX_LIST_ITEMS:
            code = "array_too_long" if isinstance(bias, Mapping) else "invalid_type"
            raise _wrong(code, "logit_bias", f"logit_bias must map at most {MAX_LIST_ITEMS} token ids to numbers.")
        _ids("logit_bias", tuple(bias))
        for value in bias.values():
            _number("logit_bias", value, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)

    def _check_flags(self) -> None:
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output", "detokenize"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong("invalid_type", name, f"{name} must be True or False, not {_shown(getattr(self, name))}.")
        if not self.detokenize and self.stop_strings:
            raise _wrong("unsupported_combination", "stop", "stop strings need detokenize=True.")


def _integer(name: str, value: object, low: int, high: int | None) -> None:
    span = f"{low} or more" if high is None else f"{low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong("invalid_type", name, f"{name} must be a whole number ({span}), not {_shown(value)}.")
    if value < low or (high is not None and value > high):
        code = "below_min_value" if value < low else "above_max_value"
        raise _wrong(code, name, f"{name} is {_shown(value)}; permitted: {span}.")


def _number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    span = f"above {low:g} up to {high:g}" if open_low else f"{low:g} to {high:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong("invalid_type", name, f"{name} must be a finite number ({span}), not {_shown(value)}.")
    if value != value or abs(value) == math.inf:
        raise _wrong("invalid_value", name, f"{name} must be a finite number ({span}), not {value!r}.")
    if value < low or value > high or (open_low and value == low):
        shown = f"{value:g}" if isinstance(value, float) else _shown(value)  # a huge int does not fit a float
        code = "above_max_value" if value > high else "below_min_value"
        raise _wrong(code, name, f"{name} is {shown}; permitted: {span}.")


def _strings(name: str, values: object, most: int) -> None:
    if not isinstance(values, (list, tuple)):
        raise _wrong("invalid_type", name, f"{name} must be a list of at most {most} strings.")
    if len(values) > most:
        raise _wrong("array_too_long", name, f"{name} must be a list of at most {most} strings.")
    if any(not isinstance(v, str) for v in values):
        raise _wrong("invalid_type", name, f"{name} must hold non-empty strings.")
    if any(not v for v in values):
        raise _wrong("invalid_value", name, f"{name} must hold non-empty strings.")


def _ids(name: str, values: object) -> None:
    if not isinstance(values, (list, tuple)):
        raise _wrong("invalid_type", name, f"{name} must be a list of token ids.")
    if any(isinstance(v, bool) or not isinstance(v, int) for v in values):
        raise _wrong("invalid_type", name, f"{name} must hold token ids (whole numbers from 0).")
    if any(v < 0 for v in values):
        raise _wrong("below_min_value", name, f"{name} must hold token ids (whole numbers from 0).")


def _wrong(code: str, name: str, message: str) -> SamplingError:
    return SamplingError(message, code=code, param=name)


def _shown(value: object) -> str:
    """A value short enough for a message. Numbers of thousands of digits, and what holds some, cannot be printed."""
    if isinstance(value, int) and value.bit_length() > 128:
        return "a very large number" if value > 0 else "a very small number"
    return repr(value)[:60] if value is None or isinstance(value, (str, int, float)) else type(value).__name__
