"""S: constrained output. Fovea offers none: every kind of asking for it is refused, never silently ignored, and no
schema or expression is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.corpus.case import SAMPLED, Case, Fields, case, refused
from tests.corpus.scene import Scene

UNSUPPORTED = refused("unsupported_value", within_s=0.1)


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def _json(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


REGEXES = {
    "S05-plus": "(a+)+b",
    "S05-star": "(a|a)*c",
    "S05-star-star": "(a*)*$",
    "S07-counts": "(.{0,1000}){1000}",
    "S10-broken": "[",
    "S10-named": "(?P<",
    "S11-look-ahead": "(?=a)a",
    "S11-back": r"(a)\1",
}
SCHEMAS: dict[str, Any] = {
    "S01-10": _nested(10),
    "S02-self": {"$ref": "#"},
    "S08-min-length": {"type": "string", "minLength": 10**9},
    "S08-min-over-max": {"type": "array", "minItems": 5, "maxItems": 1},
    "S14-http": {"$ref": "http://127.0.0.1:1/schema.json"},
    "S14-file": {"$ref": "file:///etc/passwd"},
    "S20-properties": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(501)}},
    "S20-enum": {"enum": [str(n) for n in range(1001)]},
    "S20-large": {"description": "x" * 65_537},
    "S23-names": {"type": "object", "properties": {'"': {}, "\0": {}, "__proto__": {}}},
    "S12-no-schema": 5,
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"pattern": "["}}}}}
OTHERS: dict[str, dict[str, Any]] = {
    "S04-grammar": {"guided_grammar": "root ::= root root"},
    "S13-json-object": {"response_format": {"type": "json_object"}},
    "S13-choice": {"guided_choice": ["a", "b"]},
    "S13-structured-regex": {"structured_outputs": {"regex": "(a+)+b"}},
    "S13-structured-choice": {"structured_outputs": {"choice": ["a"]}},
    "S13-guided-json": {"guided_json": {"type": "object"}},
    "S13-structural-tag": {"response_format": {"type": "structural_tag", "structures": [], "triggers": []}},
    "S10-tools": {"tools": [TOOL]},
    "S19-both": {"guided_regex": "a", **_json({"type": "object"})},
    "S19-tool-required": {"guided_grammar": "root ::= x", "tools": [TOOL], "tool_choice": "required"},
}


def _make(fields: dict[str, Any]) -> Callable[[Scene], Fields]:
    return lambda _: Fields(fields)


CASES: tuple[Case, ...] = (
    *(
        case(
            id,
            _make({"guided_regex": value}),
            UNSUPPORTED,
            routes=SAMPLED,
            flags="quick" if id in ("S05-plus", "S10-broken") else "",
        )
        for id, value in REGEXES.items()
    ),
    *(case(id, _make(_json(schema)), UNSUPPORTED, routes=SAMPLED) for id, schema in SCHEMAS.items()),
    *(case(id, _make(fields), UNSUPPORTED, routes=SAMPLED) for id, fields in OTHERS.items()),
    case(
        "S13-unknown-format",
        _make({"response_format": {"type": "grammar", "grammar": "root ::= x"}}),
        refused("unsupported_value", "invalid_value", within_s=0.1),
        routes=SAMPLED,
    ),
    case(
        "S01-33", _make(_json(_nested(40))), refused("unsupported_value", "invalid_json", within_s=0.1), routes=SAMPLED
    ),
)
