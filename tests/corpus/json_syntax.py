"""J, first half: bodies that are not JSON, or hold what no field can: depth, surrogates, huge numbers."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.corpus.case import ALL, SAMPLED, Body, Case, Expect, Fields, Messages, Route, answered, case, either, refused
from tests.corpus.routes import good_body
from tests.corpus.scene import Scene

JSON = "invalid_json"
CHATS: tuple[Route, ...] = ("chat", "chat_stream", "tokenize_chat")
EACH: tuple[Route, ...] = ("chat", "completions", "tokenize_chat", "tokenize_text", "detokenize")
VALUE = ("invalid_value", "above_max_value", "below_min_value")
WRONG_JSON = refused(JSON)


def raw(data: bytes | str) -> Callable[[Scene], Body]:
    encoded = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return lambda _: Body(encoded)


def _on(
    routes: tuple[Route, ...], id: str, change: Callable[[str], bytes | str], expect: Expect, flags: str = ""
) -> list[Case]:
    """A case for each route: its good body as text, changed."""
    return [
        case(f"{id}-{route}", raw(change(json.dumps(good_body(route)))), expect, routes=(route,), flags=flags)
        for route in routes
    ]


def _with_field(name: str, value: str) -> Callable[[str], str]:
    """The body with one field more at its end, whose value is written as it is."""
    return lambda body: body[:-1] + f', "{name}": {value}}}'


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
    return [case(id, raw(data), loose if id.startswith("J04") else WRONG_JSON, routes=ALL) for id, data in rows.items()]


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
        cases += _on(SAMPLED, f"J06-{number}", _with_field("temperature", number), WRONG_JSON, "quick")
    nested = ', "logit_bias": {"5": NaN}}'
    cases += _on(("chat",), "J06-nested", lambda body: body[:-1] + nested, WRONG_JSON)
    return cases


def cuts() -> list[Case]:
    """J03: cut at every byte."""
    whole = json.dumps(
        {**good_body("chat"), "messages": [{"role": "user", "content": "é" * 10}]}, ensure_ascii=False
    ).encode()
    return [case(f"J03-{n}", raw(whole[:n]), WRONG_JSON, routes=("chat",)) for n in range(len(whole))]


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
            cases.append(case(f"J08-{name}-{route}", raw(body), bad, routes=(route,), flags=flags))
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
            cases += _on(
                EACH,
                f"J11-{depth}-{kind}",
                _with_field("x", inside),
                deep,
                "quick" if depth != 1_000 and kind == "lists" else "",
            )
    unclosed = raw('{"x": ' + "[" * 250_000)
    cases.append(case("J11-unclosed", unclosed, WRONG_JSON, routes=EACH))
    inside = "[" * 63 + "]" * 63  # with the body itself 64
    cases += _on(EACH, "J11-64", lambda body: body[:-1] + f', "x": {inside}}}', answered())
    brackets = json.dumps("[{" * 5000)
    cases += _on(EACH, "J11-in-a-string", lambda body: body[:-1] + f', "x": {brackets}}}', answered())
    quotes = json.dumps('\\"[' * 5000)
    cases += _on(EACH, "J11-escapes", lambda body: body[:-1] + f', "x": {quotes}}}', answered())
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
    "2e31-1": str(2**31 - 1),
    "2e31": str(2**31),
    "2e32": str(2**32),
    "2e53+1": str(2**53 + 1),
    "2e63-1": str(2**63 - 1),
    "2e63": str(2**63),
    "2e64": str(2**64),
    "5000-digits": "9" * 5000,
    "-2e63-1": str(-(2**63) - 1),
    "1e400": "1e400",
    "2.5": "2.5",
}
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
                cases.append(case(f"J21-{field}-{name}-{route}", raw(data), expect, routes=(route,), flags=quick))
    return cases


CASES: tuple[Case, ...] = (*no_json(), *broken(), *cuts(), *surrogates(), *depths(), *integers())
