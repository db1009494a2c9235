"""J, second half: JSON of another shape than ours, lists without end, long and unusual texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from tests.corpus.case import (
    ALL,
    SAMPLED,
    Case,
    Expect,
    Fields,
    Messages,
    Route,
    always,
    answered,
    case,
    either,
    refused,
)
from tests.corpus.json_syntax import raw
from tests.corpus.routes import good_body, image, text
from tests.corpus.scene import Scene

JSON = "invalid_json"
CHATS: tuple[Route, ...] = ("chat", "chat_stream", "tokenize_chat")
VALUE = ("invalid_value", "above_max_value", "below_min_value")


def lengths() -> list[Case]:
    """J14 to J18: every list has a bound, which is told before anything is rendered."""
    long = refused("array_too_long", within_s=1.0)
    value = refused("array_too_long", *VALUE)
    message = {"role": "user", "content": "a"}

    def messages(count: int) -> Callable[[Scene], Messages]:
        return lambda _: Messages([message] * count)

    def parts(part: dict[str, Any], count: int) -> Callable[[Scene], Messages]:
        return lambda _: Messages([{"role": "user", "content": [part] * count}])

    def fields(**values: Any) -> Callable[[Scene], Fields]:
        return lambda _: Fields(values)

    some = either("context_length_exceeded", within_s=10)
    rows: list[tuple[str, Callable[[Scene], Any], Expect, tuple[Route, ...], str]] = [
        (
            "J14-0",
            messages(0),
            refused("invalid_value", "array_too_short", "missing_required_parameter", param="messages"),
            CHATS,
            "",
        ),
        ("J14-1024", messages(1024), some, CHATS, ""),
        ("J14-1025", messages(1025), long, CHATS, ""),
        ("J14-million", messages(10**6), refused("array_too_long", within_s=3.0), CHATS, "alone"),
        (
            "J16-images-17",
            parts(image("data:image/png;base64,AAAA"), 17),
            refused("too_many_media_items", says="16"),
            CHATS,
            "quick",
        ),
        ("J16-images-256", parts(image("data:image/png;base64,AAAA"), 256), refused("too_many_media_items"), CHATS, ""),
        ("J17-256-parts", parts(text("a"), 256), some, CHATS, ""),
        ("J17-257-parts", parts(text("a"), 257), long, CHATS, ""),
        ("J17-empty-parts", parts(text(""), 10**5), refused("array_too_long", within_s=1.0), CHATS, ""),
        ("J18-stop-5", fields(stop=["a"] * 5), value, SAMPLED, ""),
        ("J18-stop-many", fields(stop=["a"] * 10**5), value, SAMPLED, ""),
        ("J18-bias-301", fields(logit_bias={str(n): 1 for n in range(301)}), value, SAMPLED, ""),
        (
            "J18-bias-million",
            fields(logit_bias={str(n): 1 for n in range(10**6)}),
            refused("array_too_long", *VALUE, within_s=3),
            SAMPLED,
            "alone",
        ),
        ("J18-bad-words-129", fields(bad_words=["a"] * 129), value, SAMPLED, ""),
        ("J18-stop-ids-129", fields(stop_token_ids=[1] * 129), value, SAMPLED, ""),
        ("J18-allowed-ids", fields(allowed_token_ids=[1] * 20_000), value, SAMPLED, ""),
        (
            "J18-tools-129",
            fields(tools=[{"type": "function", "function": {"name": "x"}}] * 129),
            refused("array_too_long", "unsupported_value"),
            SAMPLED,
            "",
        ),
        (
            "J15-prompts-0",
            fields(prompt=[]),
            refused("invalid_value", "array_too_short", "below_min_value"),
            ("completions", "completions_stream"),
            "",
        ),
        ("J15-prompts-65", fields(prompt=["a"] * 65), long, ("completions", "completions_stream"), ""),
        (
            "J15-prompts-64",
            fields(prompt=["a"] * 64, max_tokens=1),
            either("unsupported_value", "array_too_long"),
            ("completions",),
            "",
        ),
        (
            "J15-prompts-mixed",
            fields(prompt=["a", [5, 6]]),
            either("invalid_type", "invalid_value"),
            ("completions", "completions_stream"),
            "",
        ),
        (
            "J15-prompts-nested",
            fields(prompt=[[["a"]]]),
            refused("invalid_type", "invalid_value"),
            ("completions",),
            "",
        ),
        ("J15-ids-negative", fields(prompt=[-1]), refused(*VALUE), ("completions", "completions_stream"), ""),
        (
            "J15-ids-width",
            fields(prompt=[5, 704]),
            refused(*VALUE, "invalid_prompt"),
            ("completions", "completions_stream"),
            "",
        ),
        (
            "J15-ids-2e63",
            fields(prompt=[2**63]),
            refused(*VALUE, "invalid_type", JSON),
            ("completions", "completions_stream"),
            "",
        ),
        ("J15-ids-empty-list", fields(prompt=[[]]), refused(*VALUE, "invalid_prompt"), ("completions",), ""),
        (
            "J15-ids-too-long",
            fields(prompt=[5] * 5000),
            refused("context_length_exceeded"),
            ("completions", "completions_stream"),
            "",
        ),
        (
            "J15-ids-million",
            fields(prompt=[5] * 2_000_000),
            refused("array_too_long", "context_length_exceeded", within_s=2),
            ("completions",),
            "",
        ),
        (
            "J15-detokenize-million",
            fields(tokens=[5] * 2_000_000),
            refused("array_too_long", within_s=2),
            ("detokenize",),
            "",
        ),
        ("J15-detokenize-negative", fields(tokens=[-1]), refused(*VALUE), ("detokenize",), ""),
        ("J15-detokenize-width", fields(tokens=[10**6]), refused(*VALUE, "invalid_prompt"), ("detokenize",), ""),
        ("J15-detokenize-2e63", fields(tokens=[2**63]), refused(*VALUE, "invalid_type", JSON), ("detokenize",), ""),
        ("J15-detokenize-empty", fields(tokens=[]), answered(), ("detokenize",), ""),
    ]
    return [case(id, make, expect, routes=routes, flags=flags) for id, make, expect, routes, flags in rows]


def shapes() -> list[Case]:
    """J20: content of another shape, with the place named."""
    content = "messages.0.content"
    part = content + ".0"
    kinds = ("invalid_type", "invalid_value", "missing_required_parameter", "unsupported_value", "invalid_prompt")
    rows: dict[str, tuple[Any, str]] = {
        "content-number": ({"role": "user", "content": 5}, content),
        "content-list-of-lists": ({"role": "user", "content": [["a"]]}, part),
        "content-list-of-numbers": ({"role": "user", "content": [5]}, part),
        "content-object": ({"role": "user", "content": {"type": "text", "text": "a"}}, content),
        "content-empty-list": ({"role": "user", "content": []}, content),
        "part-unknown": ({"role": "user", "content": [{"type": "hologram", "hologram": 1}]}, part),
        "part-without-type": ({"role": "user", "content": [{"text": "a"}]}, part),
        "part-type-null": ({"role": "user", "content": [{"type": None, "text": "a"}]}, part),
        "part-type-list": ({"role": "user", "content": [{"type": ["text"], "text": "a"}]}, part),
        "image-missing": ({"role": "user", "content": [{"type": "image_url"}]}, part),
        "image-null": ({"role": "user", "content": [{"type": "image_url", "image_url": None}]}, part),
        "image-number": ({"role": "user", "content": [{"type": "image_url", "image_url": 5}]}, part),
        "image-list": ({"role": "user", "content": [{"type": "image_url", "image_url": []}]}, part),
        "image-empty": ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, part),
        "image-url-null": ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": None}}]}, part),
        "image-url-list": ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": ["a"]}}]}, part),
        "image-url-object": ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": {}}}]}, part),
        "image-text": ({"role": "user", "content": [{"type": "image_url", "image_url": "no address"}]}, part),
        "text-null": ({"role": "user", "content": [{"type": "text", "text": None}]}, part),
        "text-number": ({"role": "user", "content": [{"type": "text", "text": 5}]}, part),
        "text-missing": ({"role": "user", "content": [{"type": "text"}]}, part),
        "text-of-file": ({"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}, part),
        "image-pil": ({"role": "user", "content": [{"type": "image_pil", "image_pil": {"__type__": "PIL"}}]}, part),
        "role-missing": ({"content": "a"}, "messages.0"),
        "role-null": ({"role": None, "content": "a"}, "messages.0.role"),
        "role-unknown": ({"role": "root", "content": "a"}, "messages.0.role"),
        "role-number": ({"role": 5, "content": "a"}, "messages.0.role"),
        "role-empty": ({"role": "", "content": "a"}, "messages.0.role"),
        "message-text": ("hello", "messages.0"),
        "message-null": (None, "messages.0"),
    }
    codes = (*kinds, "media_url_not_allowed", "array_too_short", "invalid_data_url", "string_too_short")
    cases = [
        case(f"J20-{name}", always(Messages([message])), refused(*codes, param=param), routes=CHATS)
        for name, (message, param) in rows.items()
    ]
    null = refused(*codes, "context_length_exceeded")
    cases.append(case("J20-messages-null", lambda _: Messages(None), null, routes=CHATS))
    cases.append(case("J20-messages-text", lambda _: Messages("hello"), null, routes=CHATS))
    cases.append(case("J20-messages-object", lambda _: Messages({"role": "user"}), null, routes=CHATS))
    cases.append(
        case("J20-content-null", lambda _: Messages([{"role": "user", "content": None}]), either(*codes), routes=CHATS)
    )
    cases.append(
        case("J20-prompt-null", lambda _: Fields({"prompt": None}), null, routes=("completions", "tokenize_text"))
    )
    cases.append(
        case("J20-prompt-object", lambda _: Fields({"prompt": {}}), null, routes=("completions", "tokenize_text"))
    )
    cases.append(case("J20-tokens-text", lambda _: Fields({"tokens": "abc"}), null, routes=("detokenize",)))
    return cases


def booleans() -> list[Case]:
    """J23: true is no number. J29, J30: streaming options and fields that are not ours."""
    typed = refused("invalid_type", "invalid_value")
    numbers = (
        "n",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "min_tokens",
        "prompt_logprobs",
        "timeout",
    )
    odd: tuple[Any, ...] = (True, False, "1", [], {})
    cases = [
        case(f"J23-{name}-{value}", always(Fields({name: value})), typed, routes=("chat", "completions"))
        for name in numbers
        for value in odd
    ]
    rows: Iterable[tuple[str, dict[str, Any], Expect]] = (
        ("J29-stream-yes", {"stream": "yes"}, typed),
        ("J29-stream-1", {"stream": 1}, typed),
        ("J29-options-5", {"stream_options": 5, "stream": True}, typed),
        (
            "J29-options-alone",
            {"stream_options": {"include_usage": True}, "stream": False},
            refused("invalid_value", "unsupported_combination", "invalid_type", "unsupported_value"),
        ),
        ("J30-audio", {"audio": {"voice": "x"}}, refused("unsupported_value", param="audio")),
        ("J30-modalities", {"modalities": ["audio"]}, refused("unsupported_value", param="modalities")),
        ("J30-modalities-text", {"modalities": ["text"]}, either("unsupported_value")),
        ("J30-unknown", {"zzz": 1}, either("unknown_parameter")),
        ("J30-unknown-long", {"z" * 10_000: 1}, either("unknown_parameter")),
        ("J30-unknown-control", {"z\r\nX-Evil: 1": 1}, either("unknown_parameter")),
        ("J30-proto", {"__proto__": {"a": 1}, "constructor": 1, "__class__": "x"}, either("unknown_parameter")),
    )
    cases += [case(id, always(Fields(fields)), expect, routes=("chat", "completions")) for id, fields, expect in rows]
    return cases


def models() -> list[Case]:
    """J24: names of models."""
    bad = refused("model_not_found", "invalid_value", "invalid_type", status=(400, 404), param="model")
    missing = refused("missing_required_parameter", "invalid_value", param="model")
    names = {
        "empty": "",
        "unknown": "gpt-4",
        "long": "a" * 10_240,
        "path": "../../etc",
        "lines": "a\r\nb",
        "case": "FOVEA-TINY",
        "adapter": "fovea-tiny:../../x",
        "address": "http://x",
        "slash": "fovea-tiny/x",
    }
    cases = [case(f"J24-{name}", always(Fields({"model": value})), bad, routes=ALL) for name, value in names.items()]
    for route in ("chat", "completions"):
        body = {key: value for key, value in good_body(route).items() if key != "model"}
        cases.append(case(f"J24-missing-{route}", raw(json.dumps(body)), missing, routes=(route,)))
    return cases


def texts() -> list[Case]:
    """J26, J27: very long texts and unusual ones. /tokenize may count what is too long to be answered."""
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    very_long = {
        "J26-8-mib-letters": "a" * (8 << 20),
        "J26-8-mib-blanks": " " * (8 << 20),
        "J26-1-mib-word": "a" * (1 << 20),
        "J27-emoji": family * 200_000,
    }
    unusual = {
        "J26-just-below": "a " * 3_000,
        "J27-some-emoji": family * 20,
        "J27-marks": "a" + "\u0301" * 500,
        "J27-right-to-left": "\u202e abc \u202c \u200f",
        "J27-unassigned": "\U000e0fff\ufdd0\uffff\U0010ffff",
        "J27-private-marks": "\ue010\ue011\ue000\ue001",
        "J27-controls": "".join(map(chr, range(32))) + "\x7f\x80\x85\u2028",
    }
    too_long = refused("context_length_exceeded", "string_too_long", within_s=2.0)
    countable = either("string_too_long", "context_length_exceeded", within_s=5.0)
    fine = answered()
    cases = []
    for id, value in very_long.items():
        for route in ("chat", "chat_stream", "completions", "tokenize_chat", "tokenize_text"):
            expect = countable if route.startswith("tokenize") else too_long
            cases.append(case(f"{id}-{route}", _said(route, value), expect, routes=(route,), flags="alone"))
    for id, value in unusual.items():
        for route in (*CHATS, "completions", "tokenize_text"):
            cases.append(case(f"{id}-{route}", _said(route, value), fine, routes=(route,)))
    return cases


def _said(route: str, value: str) -> Callable[[Scene], Fields]:
    """The text where the route takes it."""
    if route in ("completions", "tokenize_text"):
        return lambda _: Fields({"prompt": value})
    return lambda _: Fields({"messages": [{"role": "user", "content": value}]})


def roles() -> list[Case]:
    """J32, J33: messages of tools and assistants, pictures where they are unusual."""
    codes = (
        "invalid_value",
        "invalid_type",
        "unsupported_value",
        "invalid_prompt",
        "missing_required_parameter",
        "chat_template_error",
        "invalid_image",
    )
    good = image("data:image/png;base64,iVBORw0KGgo=")
    user = {"role": "user", "content": "a"}
    rows: dict[str, list[Any]] = {
        "J32-tool-without-id": [user, {"role": "tool", "content": "x"}],
        "J32-arguments": [
            user,
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}],
            },
        ],
        "J32-empty-assistant": [user, {"role": "assistant"}],
        "J32-calls-text": [user, {"role": "assistant", "content": "x", "tool_calls": "all"}],
        "J32-function-role": [user, {"role": "function", "name": "f", "content": "x"}],
        "J33-system": [{"role": "system", "content": [good]}, user],
        "J33-assistant": [user, {"role": "assistant", "content": [good]}],
        "J33-tool": [user, {"role": "tool", "content": [good]}],
    }
    return [case(id, always(Messages(messages)), either(*codes), routes=CHATS) for id, messages in rows.items()]


CASES: tuple[Case, ...] = (*lengths(), *shapes(), *booleans(), *models(), *texts(), *roles())
