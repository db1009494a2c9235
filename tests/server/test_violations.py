"""Places and choices are looked up in the type; the parser's words are never passed on."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest

from fovea.server.violations import MAX_SHOWN_BODY_BYTES, allowed, steps, violation


class Inner(msgspec.Struct, rename={"kind": "type"}):
    kind: Literal["a", "b"]


class Outer(msgspec.Struct):
    one: Annotated[list[Inner], msgspec.Meta(max_length=4)] = []
    size: Literal[1, 2] | None = None


@pytest.mark.parametrize(
    ("place", "path"),
    [(".one[0].type", ["one", "0", "type"]), (".a[...].b", ["a"]), ("", []), (".a_b[10][2]", ["a_b", "10", "2"])],
)
def test_a_place_becomes_a_path(place: str, path: list[str]) -> None:
    assert steps(place) == path


def test_choices_are_those_of_the_type() -> None:
    assert allowed(Outer, ["one", "3", "type"]) == ['"a"', '"b"']
    assert allowed(Outer, ["size"]) == ["1", "2"]
    assert allowed(Outer, ["nothing", "there"]) == []


def test_a_message_of_unknown_form_becomes_a_fixed_sentence() -> None:
    error = violation("Something at /srv/x <object at 0x7f00> - at `$.one[0]`", b"{}", Outer)
    assert (error.code, error.param) == ("invalid_value", "one.0")
    assert str(error) == "one.0 does not have a permitted value."
    assert violation("Expected `strange` in a new way", b"{}", Outer).code == "invalid_type"


def test_what_was_sent_is_shown_from_small_bodies_only() -> None:
    small = b'{"size": 7}'
    large = small[:-1] + b" " * MAX_SHOWN_BODY_BYTES + b"}"
    text = "Invalid enum value 7 - at `$.size`"
    assert str(violation(text, small, Outer)).endswith("allowed: 1, 2; it is 7.")
    assert str(violation(text, large, Outer)).endswith("allowed: 1, 2.")


@pytest.mark.parametrize("field", ["x` - at `$.one", "`", " - at `$", "x" * 10_000, "\n\x1b"])
def test_a_field_name_that_looks_like_a_place_does_no_harm(field: str) -> None:
    error = violation(f"Object contains unknown field `{field}`", b"{}", Outer)
    assert error.code in ("unknown_parameter", "invalid_value")
    assert len(str(error)) < 500
    assert "\x1b" not in str(error)
