"""Jinja for hostile templates: the immutable sandbox, with a budget of work and a deadline.

Every loop turn, call, filter and operator pays into a budget of characters made and looks at the deadline; what would
multiply text is paid for before it is done; whole numbers passed to methods are small. What remains: one built-in
operation runs to its end (comparing or sorting large values, say), so this bounds time to seconds and memory to some
hundred MiB; it does not make them small. There is no process to kill.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from fovea.core.errors import ModelError, PromptError

MAX_TEMPLATE_CHARS = 1024**2
MAX_OUTPUT_CHARS = 4 * 1024**2
MAX_WORK_CHARS = 256 * 1024**2
MAX_ARGUMENT = 1024**2
MAX_POWER_BITS = 4096
RENDER_TIMEOUT_S = 2.0
# A field width of five digits, or one taken from an argument.
_WIDE = re.compile(r"[%:][^\s%{}]*\d{5}|\{[^{}]+\{|%[^a-zA-Z%\s]*\*")
# Methods and filters whose result can be much longer than what goes in.
_MULTIPLIERS = re.compile(
    "replace|join|format|format_map|translate|ljust|rjust|center|zfill|expandtabs|indent|wordwrap|string|tojson|pprint|"
    "to_bytes|urlize|xmlattr"
)


class RefusedByTemplate(jinja2.TemplateError):
    """The template called raise_exception."""

    def __init__(self, message: object) -> None:
        self.reason = str(message)[:200]
        super().__init__(self.reason)


class _Budget:
    """Work left to one rendering."""

    def __init__(self, timeout_s: float) -> None:
        self._left = MAX_WORK_CHARS
        self._deadline = time.monotonic() + timeout_s
        self._timeout_s = timeout_s

    def pay(self, chars: int) -> None:
        self._left -= chars
        if self._left < 0:
            raise _over(f"The chat template makes more than {MAX_WORK_CHARS} characters on the way (the limit).")
        if time.monotonic() > self._deadline:
            raise _over(f"The chat template took longer than {self._timeout_s:g} s (the limit).")


def _over(message: str) -> PromptError:
    return PromptError(message, code="chat_template_error")


class _Generation(Extension):
    """The `{% generation %}` block of transformers: it marks the assistant's text and prints it unchanged."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with transformers' settings and a budget."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, finalize=self._finalize, extensions=[_Generation, loopcontrols]
        )
        self._local = threading.local()
        self.filters["tojson"] = _tojson
        for name, function in self.filters.items():
            self.filters[name] = self._guarded(name, function)
        del self.globals["lipsum"]
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        self.globals.update(dict=_TemplateDict(), namespace=_Namespace)

    def read(self, source: str) -> nodes.Template:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ModelError(f"The chat template has {len(source)} characters; limit {MAX_TEMPLATE_CHARS}.")
        try:
            return self.parse(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"The chat template has a syntax error in line {error.lineno}.") from error
        except RecursionError as error:
            raise ModelError("The chat template is nested too deeply.") from error

    def build(self, tree: nodes.Template) -> jinja2.Template:
        try:
            with self.budget(RENDER_TIMEOUT_S):
                return self.from_string(_Metered().visit(tree))
        except (jinja2.TemplateError, SyntaxError, RecursionError, PromptError) as error:
            raise ModelError(
                "The chat template does not compile (unknown filter or test, or nested too deeply)."
            ) from error

    @contextmanager
    def budget(self, timeout_s: float) -> Iterator[None]:
        self._local.budget = _Budget(timeout_s)
        try:
            yield
        finally:
            self._local.budget = None

    def pay(self, chars: int) -> str:
        budget: _Budget | None = getattr(self._local, "budget", None)
        if budget is not None:
            budget.pay(chars)
        return ""

    def join(self, *values: Any) -> str:
        """The operator `~`."""
        self.pay(_size(values))
        return "".join(map(str, values))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.pay(_binop_size(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: B902
        name = getattr(__obj, "__name__", "")
        args = _listed(name, args)
        __self.pay(_call_size(name, getattr(__obj, "__self__", None), (*args, *kwargs.values())))
        return __self._paid(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapper = super().wrap_str_format(value)
        if wrapper is None:
            return None

        @wraps(wrapper)
        def metered(*args: Any, **kwargs: Any) -> str:
            self.pay(_call_size("format", value.__self__, (*args, *kwargs.values())))
            return wrapper(*args, **kwargs)

        return metered

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        # Jinja hands some filters its context or environment first; it is not a value.
        skip = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            args = _listed(name, args)
            values = (*args[skip:], *kwargs.values())
            self.pay(_call_size(name, values[0] if values else None, values[1:]))
            return self._paid(function(*args, **kwargs))

        return metered

    def _finalize(self, value: Any) -> Any:
        """Pays for everything printed, including into a variable or a macro's result."""
        self.pay(_size(value))
        return value

    def _paid(self, value: Any) -> Any:
        self.pay(1 + (len(value) if isinstance(value, (str, bytes, list)) else 0))
        return value


class _Metered(NodeTransformer):
    """Puts a payment at the start of every loop turn and macro, and makes `~` a call."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._metered(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._metered(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        join = nodes.EnvironmentAttribute("join", lineno=node.lineno)
        return nodes.Call(join, node.nodes, [], None, None, lineno=node.lineno)

    def _metered(self, node: Any) -> nodes.Node:
        fixed = sum(len(data.data) for part in node.body for data in _constants(part))
        self.generic_visit(node)
        pay = nodes.EnvironmentAttribute("pay", lineno=node.lineno)
        call = nodes.Call(pay, [nodes.Const(fixed + 1)], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(call, lineno=node.lineno))
        return node  # type: ignore[no-any-return]


def _constants(node: nodes.Node) -> Iterator[nodes.TemplateData]:
    if isinstance(node, nodes.TemplateData):
        yield node
    yield from node.find_all(nodes.TemplateData)


def _listed(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments of a multiplier with iterators made lists, which can be measured."""
    if not _MULTIPLIERS.fullmatch(name):
        return args
    return tuple(list(value) if isinstance(value, Iterator) else value for value in args)


def _size(value: Any, left: int = MAX_OUTPUT_CHARS) -> int:
    """Roughly the characters of `str(value)`; refuses long lists early, because lists shared in lists can explode."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, int):
        return value.bit_length() // 3 + 1
    if not isinstance(value, (list, tuple, dict)):
        return 16
    total = 2
    for item in value:
        total += 2 + _size(item, left - total)
        if isinstance(value, dict):
            total += _size(value[item], left - total)
        if total > left:
            raise _over(f"The chat template prints a list of more than {MAX_OUTPUT_CHARS} characters (the limit).")
    return total


def _binop_size(operator: str, left: Any, right: Any) -> int:
    if operator == "%" and isinstance(left, str):
        return _call_size("format", left, (right,))
    sequences = [value for value in (left, right) if isinstance(value, (str, bytes, list, tuple))]
    if operator == "+" and sequences:
        return sum(map(len, sequences))
    if operator == "*" and sequences:
        times = next((value for value in (left, right) if isinstance(value, int)), 1)
        return max(len(sequences[0]) * times, 1)
    if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > MAX_POWER_BITS:
            raise _over(f"The chat template makes a number of more than {MAX_POWER_BITS} bits (the limit).")
    return 1


def _call_size(name: str, subject: Any, args: tuple[Any, ...]) -> int:
    """An upper bound of the characters a method or filter makes, before it makes them."""
    for value in args:
        if isinstance(value, int) and abs(value) > MAX_ARGUMENT:
            raise _over(f"The chat template passes the number {value} to {name[:32]}; limit {MAX_ARGUMENT}.")
    if not _MULTIPLIERS.fullmatch(name):
        return 1
    if name == "replace" and isinstance(subject, str) and len(args) > 1 and all(isinstance(a, str) for a in args[:2]):
        return len(subject) + subject.count(args[0]) * len(args[1])
    if name in ("format", "format_map") and isinstance(subject, str):
        if _WIDE.search(subject):
            raise _over("The chat template has a format string with a wide or computed field.")
        return len(subject) + (subject.count("{") + subject.count("%")) * _size(args)
    items = len(subject) if isinstance(subject, (list, tuple, dict, str)) else 1
    widest = max((value if isinstance(value, int) else _size(value) for value in args), default=1)
    return _size(subject) + (items + 1) * max(widest, 0)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own escapes HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise RefusedByTemplate(message)


def _strftime_now(format: str) -> str:
    if len(format) > 100 or _WIDE.search(format):
        raise _over("The chat template asks for the date in a format that is too long.")
    return datetime.now().strftime(format)


class _TemplateDict:
    """`dict` without attributes that lead to the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError("names in a namespace must not begin with an underscore")
