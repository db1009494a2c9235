"""The tree of errors: stable codes, sensible statuses, and hints that help."""

from __future__ import annotations

import inspect

import pytest

from fovea.core import errors
from fovea.core.errors import (
    BatchError,
    DeadlineError,
    FoveaError,
    PromptError,
    RequestError,
    RouteError,
    UnavailableError,
    nearest,
)
from fovea.core.types import RequestOutput

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, FoveaError)]


def test_every_code_belongs_to_one_class() -> None:
    codes = [cls.code for cls in CLASSES]
    assert len(set(codes)) == len(codes), "two errors have one code"
    assert all(code.replace("_", "").isalpha() and code.islower() for code in codes)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_an_http_status_and_is_documented_in_the_tree(cls: type[FoveaError]) -> None:
    assert cls.status in (400, 401, 403, 404, 405, 408, 413, 415, 500, 503, 504)
    assert cls.__name__ in (errors.__doc__ or "")


def test_what_a_caller_did_is_400_and_what_we_did_is_500() -> None:
    server_side = {cls for cls in CLASSES if issubclass(cls, (RouteError, UnavailableError, DeadlineError))}
    assert {cls.status for cls in CLASSES if issubclass(cls, RequestError) and cls not in server_side} == {400, 500}
    assert [cls.__name__ for cls in CLASSES if issubclass(cls, RequestError) and cls.status == 500] == [
        "RequestFailedError"
    ]


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Each class stands one step deeper than its parent, somewhere below it."""
    lines = [line for line in (errors.__doc__ or "").splitlines() if "Error" in line and line.startswith("    ")]
    depth = {}
    for line in lines:
        name = next(word for word in line.replace("+--", " ").replace("|", " ").split() if word.endswith("Error"))
        depth[name] = line.index(name)
    for cls in CLASSES:
        if cls is not FoveaError:
            parent = cls.__mro__[1]
            assert depth[cls.__name__] == depth[parent.__name__] + 4


def test_a_batch_error_names_the_first_failure_and_keeps_all() -> None:
    good = RequestOutput("1", None, (), [], True)
    failures = {2: PromptError("The third is bad."), 1: PromptError("The second is bad.")}
    error = BatchError([good, None, None], failures)
    assert "2 of 3 requests failed; the first is number 1: The second is bad." in str(error)
    assert 'on_error="return"' in str(error)
    assert error.outputs == [good, None, None]
    assert error.errors == failures


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_token", " Did you mean 'max_tokens'?"),
        ("maxtokens", " Did you mean 'max_tokens'?"),
        ("zebra", ""),
        ("", ""),
    ],
)
def test_the_nearest_name_is_offered_if_there_is_one(name: str, hint: str) -> None:
    assert nearest(name, ["max_tokens", "min_tokens", "seed"]) == hint
