"""P: sampling options and other fields out of their range. One request's fault, told with the permitted range."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.corpus import files
from tests.corpus.case import (
    SAMPLED,
    Body,
    Case,
    Expect,
    Fields,
    Messages,
    Parts,
    Route,
    always,
    answered,
    case,
    either,
    refused,
)
from tests.corpus.routes import good_body, image, text
from tests.corpus.scene import Scene

VALUE = ("invalid_value", "above_max_value", "below_min_value")
CHAT: tuple[Route, ...] = ("chat", "chat_stream")
COMPLETIONS: tuple[Route, ...] = ("completions", "completions_stream")
CHATS: tuple[Route, ...] = (*CHAT, "tokenize_chat")
BAD = refused(*VALUE)
TYPED = refused("invalid_type", *VALUE)
UNSUPPORTED = refused("unsupported_value", "unsupported_combination", *VALUE)
GOOD = answered()
VOCABULARY = 704

Row = tuple[str, dict[str, Any], Expect]


def out_of_range() -> list[Row]:
    """Refused on every route that samples; `says` is the limit that must be named."""
    return [
        ("P01-n-9", {"n": 9}, refused(*VALUE, says="8", param="n")),
        ("P02-n-million", {"n": 10**6}, refused(*VALUE, param="n", within_s=0.05)),
        ("P02-n-2e31", {"n": 2**31}, refused(*VALUE, param="n", within_s=0.05)),
        ("P03-n-0", {"n": 0}, refused(*VALUE, param="n")),
        ("P03-n-minus-1", {"n": -1}, refused(*VALUE, param="n")),
        ("P05-max-tokens-minus-1", {"max_tokens": -1}, refused(*VALUE, param="max_tokens")),
        ("P05-max-tokens-0", {"max_tokens": 0}, refused(*VALUE, param="max_tokens")),
        (
            "P06-max-tokens-over-length",
            {"max_tokens": 100_000, "logit_bias": {"677": 100}},
            either("context_length_exceeded", *VALUE),
        ),
        ("P08-temperature-negative", {"temperature": -0.1}, refused(*VALUE, says="0", param="temperature")),
        ("P08-temperature-high", {"temperature": 2.1}, refused(*VALUE, says="2", param="temperature")),
        ("P08-temperature-1e308", {"temperature": 1e308}, refused(*VALUE, param="temperature")),
        ("P08-temperature-text", {"temperature": "hot"}, TYPED),
        ("P09-top-p-0", {"top_p": 0}, refused(*VALUE, param="top_p")),
        ("P09-top-p-1.1", {"top_p": 1.1}, refused(*VALUE, param="top_p")),
        ("P09-top-p-negative", {"top_p": -1}, refused(*VALUE, param="top_p")),
        ("P10-top-k-minus-2", {"top_k": -2}, refused(*VALUE, param="top_k")),
        ("P10-top-k-half", {"top_k": 1.5}, TYPED),
        ("P11-min-p-negative", {"min_p": -0.1}, refused(*VALUE, param="min_p")),
        ("P11-min-p-1.1", {"min_p": 1.1}, refused(*VALUE, param="min_p")),
        ("P12-min-tokens-over-max", {"min_tokens": 9, "max_tokens": 8}, refused(*VALUE, "unsupported_combination")),
        (
            "P12-min-tokens-over-length",
            {"min_tokens": 10**6, "max_tokens": None},
            refused(*VALUE, "context_length_exceeded"),
        ),
        ("P13-min-tokens-negative", {"min_tokens": -1}, refused(*VALUE, param="min_tokens")),
        ("P14-seed-low", {"seed": -(2**63) - 1}, TYPED),
        ("P14-seed-high", {"seed": 2**64}, TYPED),
        ("P14-seed-half", {"seed": 1.5}, TYPED),
        ("P14-seed-text", {"seed": "a"}, TYPED),
        ("P19-presence", {"presence_penalty": 2.1}, refused(*VALUE, says="2", param="presence_penalty")),
        ("P19-presence-low", {"presence_penalty": -2.1}, refused(*VALUE, param="presence_penalty")),
        ("P19-frequency", {"frequency_penalty": 2.1}, refused(*VALUE, param="frequency_penalty")),
        ("P19-repetition-0", {"repetition_penalty": 0}, refused(*VALUE, param="repetition_penalty")),
        ("P19-repetition-negative", {"repetition_penalty": -1}, refused(*VALUE, param="repetition_penalty")),
        ("P19-repetition-1e9", {"repetition_penalty": 1e9}, refused(*VALUE, param="repetition_penalty")),
        ("P20-stop-empty", {"stop": ""}, refused(*VALUE, "string_too_short")),
        ("P20-stop-empty-in-list", {"stop": ["a", ""]}, refused(*VALUE, "string_too_short")),
        ("P20-stop-257", {"stop": "a" * 257}, refused(*VALUE, "string_too_long", says="256")),
        ("P20-stop-null-in-list", {"stop": [None]}, TYPED),
        ("P20-stop-number", {"stop": 5}, TYPED),
        ("P23-allowed-empty", {"allowed_token_ids": []}, refused(*VALUE, "array_too_short")),
        ("P23-allowed-negative", {"allowed_token_ids": [-1]}, BAD),
        ("P23-allowed-width", {"allowed_token_ids": [VOCABULARY]}, BAD),
        ("P24-stop-id-width", {"stop_token_ids": [VOCABULARY]}, BAD),
        ("P24-stop-id-2e31", {"stop_token_ids": [2**31 - 1]}, BAD),
        ("P24-stop-id-negative", {"stop_token_ids": [-1]}, BAD),
        ("P24-bad-words-empty", {"bad_words": [""]}, refused(*VALUE, "string_too_short")),
        ("P24-bad-words-type", {"bad_words": [5]}, TYPED),
        ("P25-bias-negative", {"logit_bias": {"-1": 1}}, BAD),
        ("P25-bias-word", {"logit_bias": {"abc": 1}}, BAD),
        ("P25-bias-width", {"logit_bias": {str(VOCABULARY): 1}}, BAD),
        ("P25-bias-blank", {"logit_bias": {" 5": 1}}, BAD),
        ("P25-bias-full-width", {"logit_bias": {"５": 1}}, BAD),
        ("P25-bias-underscore", {"logit_bias": {"1_0": 1}}, BAD),
        ("P25-bias-long-key", {"logit_bias": {"1" * 5000: 1}}, refused(*VALUE, "string_too_long")),
        ("P25-bias-101", {"logit_bias": {"5": 101}}, refused(*VALUE, says="100")),
        ("P25-bias-minus-101", {"logit_bias": {"5": -101}}, BAD),
        ("P25-bias-text", {"logit_bias": {"5": "1"}}, TYPED),
        ("P25-bias-null", {"logit_bias": {"5": None}}, TYPED),
        ("P28-best-of", {"best_of": 10**6}, UNSUPPORTED),
        ("P28-beam", {"use_beam_search": True}, UNSUPPORTED),
        ("P28-suffix", {"suffix": "x"}, UNSUPPORTED),
        ("P28-logits-processors", {"logits_processors": ["os.system"]}, UNSUPPORTED),
        ("P29-truncate-minus-5", {"truncate_prompt_tokens": -5}, UNSUPPORTED),
        ("P29-truncate-0", {"truncate_prompt_tokens": 0}, UNSUPPORTED),
        ("P32-timeout-minus-1", {"timeout": -1}, BAD),
        ("P32-timeout-0", {"timeout": 0}, BAD),
        ("P32-timeout-1e9", {"timeout": 1e9}, BAD),
        ("P32-timeout-text", {"timeout": "x"}, TYPED),
        ("P37-skip-text", {"skip_special_tokens": "true"}, TYPED),
        ("P37-skip-1", {"skip_special_tokens": 1}, TYPED),
        ("P37-ignore-eos-text", {"ignore_eos": "true"}, TYPED),
        ("P38-user-long", {"user": "u" * 10_240}, refused("string_too_long", *VALUE)),
        ("P38-salt-empty", {"cache_salt": ""}, refused("string_too_short", *VALUE)),
        ("P38-salt-long", {"cache_salt": "s" * 10_240}, refused("string_too_long", *VALUE)),
        ("P38-salt-control", {"cache_salt": "a\nb"}, BAD),
        ("P38-salt-number", {"cache_salt": 5}, TYPED),
        ("P16-prompt-logprobs-21", {"prompt_logprobs": 21}, refused(*VALUE, says="20")),
        ("P16-prompt-logprobs-negative", {"prompt_logprobs": -1}, BAD),
    ]


def accepted() -> list[Row]:
    """Unusual, and fine."""
    return [
        ("P08-temperature-denormal", {"temperature": 1e-320}, GOOD),
        ("P08-temperature-tiny", {"temperature": 1e-6}, GOOD),
        ("P08-temperature-minus-0", {"temperature": -0.0}, GOOD),
        ("P08-temperature-2", {"temperature": 2}, GOOD),
        ("P09-top-p-denormal", {"top_p": 1e-320, "temperature": 1}, GOOD),
        ("P10-top-k-0", {"top_k": 0}, GOOD),
        ("P10-top-k-all", {"top_k": -1}, GOOD),
        ("P10-top-k-1e9", {"top_k": 10**9, "temperature": 1}, GOOD),
        ("P11-min-p-1", {"min_p": 1, "temperature": 1}, GOOD),
        ("P13-min-tokens", {"min_tokens": 8, "max_tokens": 8, "stop": ["e"], "ignore_eos": True}, GOOD),
        ("P14-seed-minus-1", {"seed": -1, "temperature": 1}, GOOD),
        ("P14-seed-0", {"seed": 0, "temperature": 1}, GOOD),
        ("P14-seed-lowest", {"seed": -(2**63), "temperature": 1}, GOOD),
        ("P19-repetition-denormal", {"repetition_penalty": 1e-320}, either(*VALUE)),
        ("P20-stop-null", {"stop": None}, GOOD),
        ("P20-stop-256", {"stop": "a" * 256}, GOOD),
        ("P24-bad-words", {"bad_words": ["the", "\ud83d\ude00", "<|im_end|>", "zzzzqqqq"]}, GOOD),
        (
            "P26-all-banned",
            {"allowed_token_ids": [5, 6], "logit_bias": {"5": -100, "6": -100}},
            either(*VALUE, "unsupported_combination"),
        ),
        (
            "P26-allowed-and-banned",
            {"allowed_token_ids": [32], "bad_words": ["A"]},
            either(*VALUE, "unsupported_combination"),
        ),
        ("P26-only-the-end", {"allowed_token_ids": [677], "min_tokens": 5}, either(*VALUE, "unsupported_combination")),
        ("P26-one-allowed", {"allowed_token_ids": [5], "bad_words": ["!"]}, either(*VALUE, "unsupported_combination")),
        ("P31-priority", {"priority": 2**31}, either("unsupported_value", *VALUE)),
        ("P34-internals", {"id_slot": 1, "index": 5, "rank": 3, "request_id": "../../x"}, GOOD),
        ("P37-nulls", {"stream_options": None, "n": None, "seed": None, "logit_bias": None, "user": None}, GOOD),
        ("P38-salt", {"cache_salt": "tenant-1"}, GOOD),
        ("P32-timeout-long", {"timeout": 600}, GOOD),
        ("P17-n-8", {"n": 8, "temperature": 1, "max_tokens": 4}, GOOD),
    ]


def chat_only() -> list[Row]:
    return [
        ("P07-both-equal", {"max_tokens": 4, "max_completion_tokens": 4}, GOOD),
        (
            "P07-both-different",
            {"max_tokens": 4, "max_completion_tokens": 5},
            refused("unsupported_combination", *VALUE),
        ),
        ("P15-top-logprobs-21", {"logprobs": True, "top_logprobs": 21}, refused(*VALUE, says="20")),
        ("P15-top-logprobs-129", {"logprobs": True, "top_logprobs": 129}, BAD),
        ("P16-top-logprobs-minus-1", {"logprobs": True, "top_logprobs": -1}, BAD),
        ("P16-top-logprobs-minus-2", {"logprobs": True, "top_logprobs": -2}, BAD),
        (
            "P17-top-logprobs-alone",
            {"top_logprobs": 2},
            refused("unsupported_combination", "missing_required_parameter", *VALUE),
        ),
        ("P17-logprobs-n-8", {"logprobs": True, "top_logprobs": 20, "n": 8, "temperature": 1, "max_tokens": 4}, GOOD),
        ("P18-logprobs-number", {"logprobs": 5}, TYPED),
        ("P35-format-unknown", {"response_format": {"type": "yaml"}}, UNSUPPORTED),
        (
            "P35-format-no-type",
            {"response_format": {}},
            refused("unsupported_value", "missing_required_parameter", *VALUE),
        ),
        ("P35-format-list", {"response_format": []}, refused("unsupported_value", "invalid_type", *VALUE)),
        ("P35-format-text", {"response_format": {"type": "text"}}, GOOD),
        ("P36-echo-chat", {"echo": True}, UNSUPPORTED),
        ("P50-choice-without-tools", {"tool_choice": {"type": "function", "function": {"name": "f"}}}, UNSUPPORTED),
        ("P50-choice-required", {"tool_choice": "required"}, UNSUPPORTED),
        ("P50-choice-none", {"tool_choice": "none"}, GOOD),
        ("P50-functions", {"functions": [{"name": "f"}]}, UNSUPPORTED),
        (
            "P51-generation-and-continue",
            {"add_generation_prompt": True, "continue_final_message": True},
            refused("unsupported_combination", *VALUE, "invalid_prompt"),
        ),
    ]


def pixels() -> list[Case]:
    """P40 to P47: what a client may say about a picture; it can only lower what the server does."""
    good = files.data_url(files.good_png())
    rows: list[tuple[str, dict[str, Any], Expect]] = [
        ("P40-max-1e12", {"max_pixels": 10**12}, BAD),
        ("P40-max-0", {"max_pixels": 0}, BAD),
        ("P40-max-minus-1", {"max_pixels": -1}, BAD),
        ("P40-max-half", {"max_pixels": 1.5}, TYPED),
        ("P40-max-text", {"max_pixels": "big"}, TYPED),
        ("P41-min-over-max", {"min_pixels": 50_000, "max_pixels": 10_000}, refused("unsupported_combination", *VALUE)),
        ("P41-min-over-cap", {"min_pixels": 10**9}, BAD),
        ("P43-size", {"size": {"longest_edge": 10**6}}, refused("unsupported_value", "unknown_parameter", *VALUE)),
        ("P43-size-text", {"size": "big"}, refused("unsupported_value", "unknown_parameter", *VALUE)),
        ("P43-do-resize", {"do_resize": False}, refused("unsupported_value", "unknown_parameter", *VALUE)),
        ("P47-detail-ultra", {"detail": "ultra"}, BAD),
        ("P47-detail-5", {"detail": 5}, TYPED),
        ("P47-detail-null", {"detail": None}, GOOD),
        ("P47-detail-low", {"detail": "low"}, GOOD),
        ("P47-detail-high", {"detail": "high"}, GOOD),
        ("P48-uuid-long", {"uuid": "u" * 10_240}, refused("string_too_long", "unknown_parameter", *VALUE)),
    ]
    cases = []
    for id, fields, expect in rows:
        inside = Parts([image(good, **fields), text()])
        beside = Parts([{**image(good), **fields}, text()])
        cases.append(case(f"{id}-inside", always(inside), expect, routes=CHATS))
        cases.append(case(f"{id}-beside", always(beside), expect, routes=CHATS))
    return cases


def processor_kwargs() -> list[Case]:
    """P44 to P46 and T15 for the other map: names are from a list, and nothing of them reaches a constructor."""
    unknown = refused("unsupported_value", "unknown_parameter", *VALUE, "invalid_prompt")
    rows: list[tuple[str, Any, Expect]] = [
        ("P44-unknown", {"nonsense": 1}, unknown),
        ("P45-code-revision", {"code_revision": "main", "trust_remote_code": True}, unknown),
        ("P45-pretrained", {"pretrained_model_name_or_path": "../../x"}, unknown),
        ("P45-class", {"__class__": "x", "self": 1, "cls": 1}, unknown),
        ("P45-do-resize", {"do_resize": False}, unknown),
        ("P45-patch-size", {"patch_size": 1}, unknown),
        ("P46-max-pixels-1e12", {"max_pixels": 10**12}, refused(*VALUE, "unsupported_value", "invalid_prompt")),
        ("P46-max-pixels-text", {"max_pixels": "many"}, refused("invalid_type", *VALUE, "invalid_prompt")),
        ("P46-list", [1], refused("invalid_type", *VALUE)),
        ("P46-text", "max_pixels", refused("invalid_type", *VALUE)),
        ("P46-large", {"max_pixels": "x" * 100_000}, refused("string_too_long", "invalid_type", *VALUE)),
        ("P46-good", {"max_pixels": 20_000}, GOOD),
    ]
    part = [image(files.data_url(files.good_png())), text()]
    return [
        case(
            id,
            always(_chat_fields(part, {"mm_processor_kwargs": value})),
            expect,
            routes=CHATS,
            flags="quick" if id.startswith("P45-code") else "",
        )
        for id, value, expect in rows
    ]


def _chat_fields(parts: list[Any], fields: dict[str, Any]) -> Fields:
    return Fields({"messages": [{"role": "user", "content": parts}], **fields})


def completions_only() -> list[Row]:
    return [
        ("P15-logprobs-21", {"logprobs": 21}, refused(*VALUE, says="20")),
        ("P16-logprobs-minus-1", {"logprobs": -1}, BAD),
        ("P18-logprobs-true", {"logprobs": True}, TYPED),
        ("P04-best-of-under-n", {"best_of": 1, "n": 2}, UNSUPPORTED),
        ("P04-best-of-1", {"best_of": 1}, either("unsupported_value")),
        ("P36-echo", {"echo": True}, either("unsupported_value")),
        ("P36-echo-text", {"echo": "yes"}, TYPED),
    ]


def _cases(rows: list[Row], routes: tuple[Route, ...]) -> list[Case]:
    def make(fields: dict[str, Any]) -> Callable[[Scene], Fields]:
        return lambda _: Fields(fields)

    quick = ("P02-n-million", "P12-min-tokens-over-length", "P24-stop-id-width", "P25-bias-width")
    return [
        case(id, make(fields), expect, routes=routes, flags="quick" if id in quick else "")
        for id, fields, expect in rows
    ]


def no_change() -> list[Case]:
    """P49: a model's name never reaches a file; P22: a stop text never leaks, streamed or not."""

    def null_of_all(route: Route) -> bytes:
        body = good_body(route)
        nulls = (
            "n",
            "stop",
            "seed",
            "top_p",
            "top_k",
            "min_p",
            "logit_bias",
            "bad_words",
            "stream_options",
            "tools",
            "tool_choice",
            "response_format",
            "functions",
            "suffix",
            "best_of",
            "guided_json",
            "structured_outputs",
            "chat_template",
        )
        return json.dumps({**dict.fromkeys(nulls), **body}).encode()

    nulls = [case(f"P37-null-{route}", always(Body(null_of_all(route))), GOOD, routes=(route,)) for route in SAMPLED]
    long_name = Messages([{"role": "user", "name": "n" * 10_000, "content": "a"}])
    name = case("P38-name-long", lambda _: long_name, refused("string_too_long", *VALUE), routes=CHATS)
    return [*nulls, name]


CASES: tuple[Case, ...] = (
    *_cases(out_of_range(), SAMPLED),
    *_cases(accepted(), SAMPLED),
    *_cases(chat_only(), CHAT),
    *_cases(completions_only(), COMPLETIONS),
    *pixels(),
    *processor_kwargs(),
    *no_change(),
)
