"""What a case of the corpus is: data that says what is sent, on which routes, and how the server must answer.

A case is made anew for every request (`make`), so that addresses of test servers and counters of hits are its own.
`routes.py` puts a payload into the body of a route, `runner.py` sends and judges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.corpus.scene import Scene

Route = Literal[
    "chat", "chat_stream", "completions", "completions_stream", "tokenize_chat", "tokenize_text", "detokenize"
]
Profile = Literal["plain", "open", "small", "tight", "brief"]

# Routes by what they take.
PICTURES: tuple[Route, ...] = ("chat", "chat_stream", "tokenize_chat")
DECODED: tuple[Route, ...] = ("chat", "chat_stream")  # /tokenize reads sizes only, it decodes nothing
SAMPLED: tuple[Route, ...] = ("chat", "chat_stream", "completions", "completions_stream")
PROMPTS: tuple[Route, ...] = ("completions", "completions_stream", "tokenize_text")
ALL: tuple[Route, ...] = (*PICTURES, *PROMPTS, "detokenize")


@dataclass(frozen=True, slots=True)
class Parts:
    """The content of one user message."""

    parts: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Messages:
    messages: Any


@dataclass(frozen=True, slots=True)
class Fields:
    """Fields laid over a good body of the route."""

    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes of a body, whatever the route; `{...}` texts of TEMPLATES are not touched."""

    data: bytes
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)


@dataclass(frozen=True, slots=True)
class Wire:
    """Bytes for a bare connection. `half_close`: nothing more will come; `leave`: the client hangs up after it."""

    data: bytes
    ending: Literal["wait", "half_close", "leave"] = "wait"


Payload = Parts | Messages | Fields | Body | Wire
Make = Callable[[Scene], Payload]


@dataclass(frozen=True, slots=True)
class Expect:
    """How an answer is judged.

    statuses: permitted ones. codes: permitted error codes of a refusal, () for none in particular.
    param: the place the error must name, "" if any will do; "messages.0" also accepts what lies below it.
    says: texts the message must hold. within_s: bound on the time of a refusal (a slow machine gets four times that
    and a second). same_as: a request whose answer this one must equal, with the same pictures for the model. hits: how
    many requests must have reached the case's own addresses, None for any number.
    """

    statuses: tuple[int, ...]
    codes: tuple[str, ...] = ()
    param: str = ""
    says: tuple[str, ...] = ()
    within_s: float = 0.25
    same_as: Make | None = None
    hits: int | None = None
    closes: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """flags: "quick" runs in `make test`; "alone" stays out of the mixed run; "memory" samples the server's memory."""

    id: str
    group: str
    make: Make
    routes: tuple[Route, ...]
    expect: Expect
    flags: frozenset[str] = field(default_factory=frozenset)
    profile: Profile = "plain"

    def __str__(self) -> str:
        return self.id

    @property
    def is_quick(self) -> bool:
        return "quick" in self.flags


def always(payload: Payload) -> Make:
    """For a case that is the same every time."""
    return lambda _: payload


def refused(
    *codes: str,
    status: int | tuple[int, ...] = 400,
    param: str = "",
    says: str | tuple[str, ...] = (),
    within_s: float = 0.25,
    hits: int | None = None,
    closes: bool = False,
) -> Expect:
    return Expect(
        (status,) if isinstance(status, int) else status,
        codes,
        param,
        (says,) if isinstance(says, str) else says,
        within_s,
        hits=hits,
        closes=closes,
    )


def answered(*, same_as: Make | None = None, within_s: float = 30.0, hits: int | None = None) -> Expect:
    return Expect((200,), within_s=within_s, same_as=same_as, hits=hits)


def either(*codes: str, within_s: float = 30.0) -> Expect:
    """Answered, or refused with one of `codes`: both are right."""
    return Expect((200, 400), codes, within_s=within_s)


def case(
    id: str,
    make: Make,
    expect: Expect,
    *,
    routes: tuple[Route, ...],
    flags: str = "",
    profile: Profile = "plain",
) -> Case:
    """`flags` are words with blanks between; the group is the first letter of the id."""
    return Case(id, id[0], make, routes, expect, frozenset(flags.split()), profile)
