"""J: bodies that are not JSON, or JSON of another shape than ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from tests.corpus.case import ALL, SAMPLED, Body, Case, Expect, Fields, Messages, Route, answered, case, either, refused
from tests.corpus.routes import good_body, image, text
from tests.corpus.scene import Scene

JSON = "invalid_json"
CHATS: tuple[Route, ...] = ("chat", "chat_stream", "tokenize_chat")
EACH: tuple[Route, ...] = ("chat", "completions", "tokenize_chat", "tokenize_text", "detokenize")
VALUE = ("invalid_value", "above_max_value", "below_min_value")
WRONG_JSON = refused(JSON)


def _raw(data: bytes | str) -> Callable[[Scene], Body]:
    encoded = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return lambda _: Body(encoded)


def _on(
    routes: tuple[Route, ...], id: str, change: Callable[[str], bytes | str], expect: Expect, flags: str = ""
) -> list[Case]:
    """A case for each route: its good body as text, changed."""
    return [
        case(f"{id}-{route}", _raw(change(json.dumps(good_body(route)))), expect, routes=(route,), flags=flags)
        for route in routes
    ]


def no_json() -> list[Case]:
    rows: dict[str, bytes | str] = {
        "J01-nothing": b"",
        "J01-blanks": b" \n\t ",
        "J02-word": "hello",
        "J02-xml": "<xml/>",
        "J02-form": "model=x&prompt=y",
        "J02-binary": bytes(range(256)),
        "J02-zeros": bytes(1000),
        "J02-bom": b"\xef\xbb\xbf{}",
        "J02-utf16": json.dumps({"model": "x"}).encode("utf-16"),
        "J02-latin1": '{"model": "é"}'.encode("latin-1"),
        "J02-cut-utf8": b'{"model": "\xe2\x82"}',
        "J02-overlong": b'{"model": "\xc0\x80"}',
        "J04-array": "[]",
        "J04-string": '"x"',
        "J04-number": "5",
        "J04-null": "null",
        "J04-true": "true",
    }
    loose = refused(JSON, "invalid_type", "invalid_value", "missing_required_parameter")
    return [
        case(id, _raw(data), loose if id.startswith("J04") else WRONG_JSON, routes=ALL) for id, data in rows.items()
    ]


def broken() -> list[Case]:
    cases = []
    changes: dict[str, tuple[Callable[[str], bytes | str], Expect]] = {
        "J12-two-documents": (lambda body: body + body, WRONG_JSON),
        "J12-trailing": (lambda body: body + " x", WRONG_JSON),
        "J12-comment": (lambda body: "/* x */" + body, WRONG_JSON),
        "J12-comma": (lambda body: body[:-1] + ",}", WRONG_JSON),
        "J12-quotes": (lambda body: body.replace('"', "'"), WRONG_JSON),
        "J12-control": (lambda body: body.replace("Hello", "He\nllo").replace("32", "3\n2"), WRONG_JSON),
        "J12-hex": (lambda body: body[:-1] + ', "x": 0x10}', WRONG_JSON),
        "J12-plus": (lambda body: body[:-1] + ', "x": +1}', WRONG_JSON),
        "J12-leading-zero": (lambda body: body[:-1] + ', "x": 01}', WRONG_JSON),
        "J05-model-twice": (
            lambda body: body[:-1] + ', "model": "other"}',
            refused(JSON, "model_not_found", status=(400, 404)),
        ),
    }
    for id, (change, expect) in changes.items():
        cases += _on(EACH, id, change, expect)
    twice = either(JSON, *VALUE)
    cases += _on(SAMPLED, "J05-max-tokens-twice", lambda body: body[:-1] + ', "max_tokens": 2}', twice)
    for number in ("NaN", "Infinity", "-Infinity"):
        put = f', "temperature": {number}}}'
        cases += _on(SAMPLED, f"J06-{number}", lambda body, put=put: body[:-1] + put, WRONG_JSON, "quick")  # type: ignore[misc]
    nested = ', "logit_bias": {"5": NaN}}'
    cases += _on(("chat",), "J06-nested", lambda body: body[:-1] + nested, WRONG_JSON)
    return cases


def cuts() -> list[Case]:
    """J03: cut at every byte."""
    whole = json.dumps(
        {**good_body("chat"), "messages": [{"role": "user", "content": "é" * 10}]}, ensure_ascii=False
    ).encode()
    return [case(f"J03-{n}", _raw(whole[:n]), WRONG_JSON, routes=("chat",)) for n in range(len(whole))]


def surrogates() -> list[Case]:
    """J08: halves of pairs, which no text may hold; J09: NUL, which text may."""
    lone = '"\\ud800"'
    places: dict[str, tuple[tuple[Route, ...], dict[str, str]]] = {
        "text": (("chat", "chat_stream", "tokenize_chat"), {'"Hello there"': lone}),
        "prompt": (("completions", "completions_stream", "tokenize_text"), {'"Hello there"': lone}),
        "role": (("chat", "tokenize_chat"), {'"user"': lone}),
        "model": (EACH, {'"fovea-tiny"': lone}),
    }
    bad = refused("invalid_value", JSON, "model_not_found", "invalid_prompt", status=(400, 404))
    cases = []
    for name, (routes, changes) in places.items():
        for route in routes:
            body = json.dumps(good_body(route))
            for old, new in changes.items():
                body = body.replace(old, new)
            flags = "quick" if name == "text" else ""
            cases.append(case(f"J08-{name}-{route}", _raw(body), bad, routes=(route,), flags=flags))
    stop = refused("invalid_value", JSON)
    cases += _on(SAMPLED, "J08-stop", lambda body: body[:-1] + f', "stop": {lone}}}', stop)
    cases += _on(SAMPLED, "J08-key", lambda body: body[:-1] + f", {lone}: 1}}", either("invalid_value", JSON))
    nul = "Hello\0there"
    cases.append(case("J09-text", lambda _: Messages([{"role": "user", "content": nul}]), answered(), routes=CHATS))
    cases.append(
        case("J09-prompt", lambda _: Fields({"prompt": nul}), answered(), routes=("completions", "tokenize_text"))
    )
    not_found = refused("model_not_found", status=404)
    cases.append(case("J09-model", lambda _: Fields({"model": "fovea\0tiny"}), not_found, routes=EACH))
    return cases


def depths() -> list[Case]:
    """J11: nesting, which costs nothing to send."""
    deep = refused(JSON, says="64")
    cases = []
    for depth in (65, 1_000, 100_000, 250_000):
        for kind, (opening, closing) in {"lists": ("[", "]"), "objects": ('{"a":', "}")}.items():
            inside = opening * depth + "1" + closing * depth
            cases += _on(EACH, f"J11-{depth}-{kind}", lambda body, x=inside: body[:-1] + f', "x": {x}}}', deep,  # type: ignore[misc]
                         "quick" if depth != 1_000 and kind == "lists" else "")  # fmt: skip
    unclosed = _raw('{"x": ' + "[" * 250_000)
    cases.append(case("J11-unclosed", unclosed, WRONG_JSON, routes=EACH))
    inside = "[" * 63 + "]" * 63  # with the body itself 64
    cases += _on(EACH, "J11-64", lambda body: body[:-1] + f', "x": {inside}}}', answered())
    brackets = json.dumps("[{" * 5000)
    cases += _on(EACH, "J11-in-a-string", lambda body: body[:-1] + f', "x": {brackets}}}', answered())
    quotes = json.dumps('\\"[' * 5000)
    cases += _on(EACH, "J11-escapes", lambda body: body[:-1] + f', "x": {quotes}}}', answered())
    return cases


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
        ("J14-0", messages(0), refused("invalid_value", "array_too_short", "missing_required_parameter", param="messages"), CHATS, ""),
        ("J14-1024", messages(1024), some, CHATS, ""),
        ("J14-1025", messages(1025), long, CHATS, ""),
        ("J14-million", messages(10**6), refused("array_too_long", within_s=3.0), CHATS, "alone"),
        ("J16-images-17", parts(image("data:image/png;base64,AAAA"), 17), refused("too_many_media_items", says="16"), CHATS, "quick"),
        ("J16-images-256", parts(image("data:image/png;base64,AAAA"), 256), refused("too_many_media_items"), CHATS, ""),
        ("J17-256-parts", parts(text("a"), 256), some, CHATS, ""),
        ("J17-257-parts", parts(text("a"), 257), long, CHATS, ""),
        ("J17-empty-parts", parts(text(""), 10**5), refused("array_too_long", within_s=1.0), CHATS, ""),
        ("J18-stop-5", fields(stop=["a"] * 5), value, SAMPLED, ""),
        ("J18-stop-many", fields(stop=["a"] * 10**5), value, SAMPLED, ""),
        ("J18-bias-301", fields(logit_bias={str(n): 1 for n in range(301)}), value, SAMPLED, ""),
        ("J18-bias-million", fields(logit_bias={str(n): 1 for n in range(10**6)}), refused("array_too_long", *VALUE, within_s=3), SAMPLED, "alone"),
        ("J18-bad-words-129", fields(bad_words=["a"] * 129), value, SAMPLED, ""),
        ("J18-stop-ids-129", fields(stop_token_ids=[1] * 129), value, SAMPLED, ""),
        ("J18-allowed-ids", fields(allowed_token_ids=[1] * 20_000), value, SAMPLED, ""),
        ("J18-tools-129", fields(tools=[{"type": "function", "function": {"name": "x"}}] * 129), refused("array_too_long", "unsupported_value"), SAMPLED, ""),
        ("J15-prompts-0", fields(prompt=[]), refused("invalid_value", "array_too_short", "below_min_value"), ("completions", "completions_stream"), ""),
        ("J15-prompts-65", fields(prompt=["a"] * 65), long, ("completions", "completions_stream"), ""),
        ("J15-prompts-64", fields(prompt=["a"] * 64, max_tokens=1), either("unsupported_value", "array_too_long"), ("completions",), ""),
        ("J15-prompts-mixed", fields(prompt=["a", [5, 6]]), either("invalid_type", "invalid_value"), ("completions", "completions_stream"), ""),
        ("J15-prompts-nested", fields(prompt=[[["a"]]]), refused("invalid_type", "invalid_value"), ("completions",), ""),
        ("J15-ids-negative", fields(prompt=[-1]), refused(*VALUE), ("completions", "completions_stream"), ""),
        ("J15-ids-width", fields(prompt=[5, 704]), refused(*VALUE, "invalid_prompt"), ("completions", "completions_stream"), ""),
        ("J15-ids-2e63", fields(prompt=[2**63]), refused(*VALUE, "invalid_type", JSON), ("completions", "completions_stream"), ""),
        ("J15-ids-empty-list", fields(prompt=[[]]), refused(*VALUE, "invalid_prompt"), ("completions",), ""),
        ("J15-ids-too-long", fields(prompt=[5] * 5000), refused("context_length_exceeded"), ("completions", "completions_stream"), ""),
        ("J15-ids-million", fields(prompt=[5] * 2_000_000), refused("array_too_long", "context_length_exceeded", within_s=2), ("completions",), ""),
        ("J15-detokenize-million", fields(tokens=[5] * 2_000_000), refused("array_too_long", within_s=2), ("detokenize",), ""),
        ("J15-detokenize-negative", fields(tokens=[-1]), refused(*VALUE), ("detokenize",), ""),
        ("J15-detokenize-width", fields(tokens=[10**6]), refused(*VALUE, "invalid_prompt"), ("detokenize",), ""),
        ("J15-detokenize-2e63", fields(tokens=[2**63]), refused(*VALUE, "invalid_type", JSON), ("detokenize",), ""),
        ("J15-detokenize-empty", fields(tokens=[]), answered(), ("detokenize",), ""),
    ]  # fmt: skip
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
        case(f"J20-{name}", lambda _, m=message: Messages([m]), refused(*codes, param=param), routes=CHATS)  # type: ignore[misc]
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


INTEGER_FIELDS = (
    "max_tokens",
    "n",
    "top_k",
    "min_tokens",
    "seed",
    "top_logprobs",
    "max_completion_tokens",
    "logprobs",
    "prompt_logprobs",
)
HUGE: dict[str, str] = {
    "2e31-1": str(2**31 - 1), "2e31": str(2**31), "2e32": str(2**32), "2e53+1": str(2**53 + 1), "2e63-1": str(2**63 - 1),
    "2e63": str(2**63), "2e64": str(2**64), "5000-digits": "9" * 5000, "-2e63-1": str(-(2**63) - 1), "1e400": "1e400", "2.5": "2.5",
}  # fmt: skip
LENGTHS = ("max_tokens", "max_completion_tokens")
ENDS_AT_ONCE = {"logit_bias": {"677": 100}}  # the end of a turn
# Large values these fields may have: they mean "all" or are one of 2**64 seeds; nothing is cut or wrapped.
LARGE_IS_FINE = {
    ("top_k", "2e31-1"),
    ("seed", "2e31-1"),
    ("seed", "2e31"),
    ("seed", "2e32"),
    ("seed", "2e53+1"),
    ("seed", "2e63-1"),
}


def integers() -> list[Case]:
    """J21: numbers beyond what machines count with."""
    cases = []
    for field in INTEGER_FIELDS:
        chat_only = field in ("top_logprobs", "max_completion_tokens")
        routes: tuple[Route, ...] = ("chat", "chat_stream") if chat_only else ("chat", "completions")
        for name, number in HUGE.items():
            quick = "quick" if field == "max_tokens" and name in ("2e64", "5000-digits") else ""
            expect = (
                answered()
                if (field, name) in LARGE_IS_FINE
                else refused(*VALUE, "invalid_type", JSON, "context_length_exceeded")
            )
            if field in LENGTHS and name in ("2e31-1",):
                expect = either(*VALUE, "context_length_exceeded")
            for route in routes:
                body = good_body(route) | ENDS_AT_ONCE
                if field in LENGTHS:
                    body.pop("max_tokens")
                data = json.dumps(body)[:-1] + f', "{field}": {number}}}'
                cases.append(case(f"J21-{field}-{name}-{route}", _raw(data), expect, routes=(route,), flags=quick))
    return cases


def booleans() -> list[Case]:
    """J23: true is no number. J29, J30: streaming options and fields that are not ours."""
    typed = refused("invalid_type", "invalid_value")
    numbers = ("n", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty",
               "repetition_penalty", "min_tokens", "prompt_logprobs", "timeout")  # fmt: skip
    cases = [
        case(f"J23-{name}-{value}", lambda _, n=name, v=value: Fields({n: v}), typed, routes=("chat", "completions"))  # type: ignore[misc]
        for name in numbers
        for value in (True, False, "1", [], {})
    ]
    rows: Iterable[tuple[str, dict[str, Any], Expect]] = (
        ("J29-stream-yes", {"stream": "yes"}, typed),
        ("J29-stream-1", {"stream": 1}, typed),
        ("J29-options-5", {"stream_options": 5, "stream": True}, typed),
        ("J29-options-alone", {"stream_options": {"include_usage": True}, "stream": False}, refused("invalid_value", "unsupported_combination", "invalid_type", "unsupported_value")),
        ("J30-audio", {"audio": {"voice": "x"}}, refused("unsupported_value", param="audio")),
        ("J30-modalities", {"modalities": ["audio"]}, refused("unsupported_value", param="modalities")),
        ("J30-modalities-text", {"modalities": ["text"]}, either("unsupported_value")),
        ("J30-unknown", {"zzz": 1}, either("unknown_parameter")),
        ("J30-unknown-long", {"z" * 10_000: 1}, either("unknown_parameter")),
        ("J30-unknown-control", {"z\r\nX-Evil: 1": 1}, either("unknown_parameter")),
        ("J30-proto", {"__proto__": {"a": 1}, "constructor": 1, "__class__": "x"}, either("unknown_parameter")),
    )  # fmt: skip
    cases += [
        case(id, lambda _, f=fields: Fields(f), expect, routes=("chat", "completions"))  # type: ignore[misc]
        for id, fields, expect in rows
    ]
    return cases


def models() -> list[Case]:
    """J24: names of models."""
    bad = refused("model_not_found", "invalid_value", "invalid_type", status=(400, 404), param="model")
    missing = refused("missing_required_parameter", "invalid_value", param="model")
    names = {"empty": "", "unknown": "gpt-4", "long": "a" * 10_240, "path": "../../etc", "lines": "a\r\nb", "case": "FOVEA-TINY",
             "adapter": "fovea-tiny:../../x", "address": "http://x", "slash": "fovea-tiny/x"}  # fmt: skip
    cases = [
        case(f"J24-{name}", lambda _, v=value: Fields({"model": v}), bad, routes=ALL)  # type: ignore[misc]
        for name, value in names.items()
    ]
    for route in ("chat", "completions"):
        body = {key: value for key, value in good_body(route).items() if key != "model"}  # type: ignore[arg-type]
        cases.append(case(f"J24-missing-{route}", _raw(json.dumps(body)), missing, routes=(route,)))  # type: ignore[arg-type]
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
    too_long = refused("context_length_exceeded", "string_too_long", within_s=1.0)
    countable = either("string_too_long", "context_length_exceeded", within_s=5.0)
    fine = answered()
    cases = []
    for id, value in very_long.items():
        for route in ("chat", "chat_stream", "completions", "tokenize_chat", "tokenize_text"):
            expect = countable if route.startswith("tokenize") else too_long
            cases.append(case(f"{id}-{route}", _said(route, value), expect, routes=(route,), flags="alone memory"))  # type: ignore[arg-type]
    for id, value in unusual.items():
        for route in (*CHATS, "completions", "tokenize_text"):
            cases.append(case(f"{id}-{route}", _said(route, value), fine, routes=(route,)))  # type: ignore[arg-type]
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
    )
    good = image("data:image/png;base64,iVBORw0KGgo=")
    user = {"role": "user", "content": "a"}
    rows: dict[str, list[Any]] = {
        "J32-tool-without-id": [user, {"role": "tool", "content": "x"}],
        "J32-arguments": [user, {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}]}],
        "J32-empty-assistant": [user, {"role": "assistant"}],
        "J32-calls-text": [user, {"role": "assistant", "content": "x", "tool_calls": "all"}],
        "J32-function-role": [user, {"role": "function", "name": "f", "content": "x"}],
        "J33-system": [{"role": "system", "content": [good]}, user],
        "J33-assistant": [user, {"role": "assistant", "content": [good]}],
        "J33-tool": [user, {"role": "tool", "content": [good]}],
    }  # fmt: skip
    codes = (*codes, "invalid_image")
    return [case(id, lambda _, m=messages: Messages(m), either(*codes), routes=CHATS) for id, messages in rows.items()]  # type: ignore[misc]


CASES: tuple[Case, ...] = (
    *no_json(), *broken(), *cuts(), *surrogates(), *depths(), *lengths(), *shapes(), *integers(), *booleans(), *models(),
    *texts(), *roles(),
)  # fmt: skip
