"""Messages to prompt text, by the model's own Jinja template.

`ChatTemplate` renders what transformers' `apply_chat_template(tokenize=False)` renders. `render_pieces` also says which
stretches of the text the client wrote, so that special tokens typed there can be kept plain text.

Templates come with model folders and are treated as hostile; requests never bring one. They run in Jinja's immutable
sandbox with these additions: every loop turn, call, filter and operator pays into a budget of work (characters made)
and looks at a deadline; what would multiply text is paid for before it is done; whole numbers passed to methods are
small. What remains: one built-in operation runs to its end (comparing or sorting large values, say), so this bounds
time to seconds and memory to some hundred MiB; it does not make them small. There is no process to kill.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from fovea.core.errors import InvalidOptionError, ModelError, PromptError

ContentFormat = Literal["string", "openai"]
Message = Mapping[str, Any]

MAX_TEMPLATE_CHARS = 1024**2
MAX_OUTPUT_CHARS = 4 * 1024**2
MAX_WORK_CHARS = 256 * 1024**2
MAX_ARGUMENT = 1024**2
MAX_POWER_BITS = 4096
MAX_DEPTH = 32
MAX_VARIABLES_CHARS = 64 * 1024
RENDER_TIMEOUT_S = 2.0

_RESERVED = re.compile(
    "messages|tools|documents|conversation|add_generation_prompt|continue_final_message|chat_template|tokenize|"
    "return_dict|return_tensors|padding|truncation|max_length|self|raise_exception|strftime_now|namespace|dict|range|"
    "cycler|joiner|loop|caller|varargs|kwargs|_.*|.*_token"
)
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
# A field width of five digits, or one taken from an argument.
_WIDE = re.compile(r"[%:][^\s%{}]*\d{5}|\{[^{}]+\{|%[^a-zA-Z%\s]*\*")
_REASONING = ("reasoning_content", "thinking", "reasoning")
# Methods and filters whose result can be much longer than what goes in.
_MULTIPLIERS = re.compile(
    "replace|join|format|format_map|translate|ljust|rjust|center|zfill|expandtabs|indent|wordwrap|string|tojson|pprint|"
    "to_bytes|urlize|xmlattr"
)


class Piece(NamedTuple):
    """A stretch of a prompt; `trusted` is False where its text comes from the request."""

    text: str
    trusted: bool


class ChatTemplate:
    """A compiled chat template, or the lack of one (then every `render` raises PromptError).

    tokens: special token strings by name (bos_token, ...), as variables for the template.
    special_tokens: every string that must not come from a request as a special token.
    """

    def __init__(
        self,
        source: str | None,
        *,
        tokens: Mapping[str, str] | None = None,
        special_tokens: Collection[str] = (),
        timeout_s: float = RENDER_TIMEOUT_S,
    ) -> None:
        self.source = source
        self._tokens = dict(tokens or {})
        self._timeout_s = timeout_s
        self._spelled = _any_of(special_tokens)
        self._special = _any_of(map(_squeeze, special_tokens))
        self._environment = _Environment()
        self._template: jinja2.Template | None = None
        self.content_format: ContentFormat = "string"
        if source is not None:
            tree = self._environment.read(source)
            self.content_format = detect_content_format(tree)
            self._template = self._environment.build(tree)

    @classmethod
    def load(
        cls,
        folder: Path,
        override: str | None = None,
        *,
        tokens: Mapping[str, str] | None = None,
        special_tokens: Collection[str] = (),
    ) -> ChatTemplate:
        """The template given by the option chat_template (`override`, a path or text), else the folder's."""
        source = _from_folder(folder) if override is None else _from_option(override)
        try:
            return cls(source, tokens=tokens, special_tokens=special_tokens)
        except ModelError as error:
            if override is not None:
                raise InvalidOptionError(f"chat_template: {error}") from error
            raise ModelError(f"{folder}: {error} Give another with the option chat_template.") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text.

        continue_final_message: leave the last message open for the model to go on with.
        variables: further names the template may read; names of our own are refused.
        """
        chat = _plain_messages(messages)
        self._check_call(chat, add_generation_prompt, continue_final_message)
        return self._render(chat, add_generation_prompt, continue_final_message, self._check_variables(variables))

    def render_pieces(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[Piece]:
        """The text of `render` in pieces that say who wrote them.

        Texts are rendered once more between marks nobody can guess. A text whose marks do not come out whole (the
        template cuts, tests or drops it) is not marked; such texts, and all other strings of the request, must not
        spell a special token, with blanks left out and read across their borders; otherwise PromptError.
        """
        chat = _plain_messages(messages)
        self._check_call(chat, add_generation_prompt, continue_final_message)
        extra = self._check_variables(variables)
        plain = self._render(chat, add_generation_prompt, continue_final_message, extra)
        marks = _Marks(_texts(chat), self._spelled)
        marked = marks.usable()
        while marked:
            text = self._render(marks.apply(chat, marked), add_generation_prompt, continue_final_message, extra)
            pieces, whole = marks.split(text, marked)
            if whole == marked and "".join(piece.text for piece in pieces) == plain:
                break
            marked = whole if whole < marked else frozenset()
        else:
            pieces = [Piece(plain, True)] if plain else []
        self._refuse_special([*_other_strings(chat, marked), *_strings(extra)])
        return pieces

    def _check_call(self, chat: list[dict[str, Any]], add_generation_prompt: bool, continue_final: bool) -> None:
        if self._template is None:
            raise PromptError(
                "This model has no chat template, so messages cannot be turned into a prompt. Give one with the option "
                "chat_template (a path or the Jinja text; the model's card or its instruct variant usually has it), or "
                "send a prompt instead of messages."
            )
        if not chat:
            raise PromptError("The list of messages is empty; send at least one.")
        if continue_final and add_generation_prompt:
            raise PromptError("continue_final_message needs add_generation_prompt=False; the two exclude each other.")

    def _check_variables(self, variables: Mapping[str, Any] | None) -> dict[str, Any]:
        plain = _plain_data(dict(variables or {}), MAX_DEPTH)
        for name in plain:
            if not name.isidentifier() or name in self._tokens or _RESERVED.fullmatch(name):
                raise PromptError(f"The chat template variable {name[:64]!r} is reserved; choose another name.")
        size = sum(map(len, _strings(plain)))
        if size > MAX_VARIABLES_CHARS:
            raise PromptError(f"The chat template variables have {size} characters; limit {MAX_VARIABLES_CHARS}.")
        return dict(plain)

    def _render(
        self, chat: list[dict[str, Any]], add_generation_prompt: bool, continue_final: bool, extra: dict[str, Any]
    ) -> str:
        if not continue_final:
            return self._run(chat, add_generation_prompt, extra)
        tag = f"\ue000{secrets.token_hex(8)}\ue001 "
        text = self._run(_with_tag(chat, tag), add_generation_prompt, extra)
        place = text.rfind(tag.strip())
        if place < 0:
            raise PromptError("The chat template leaves out the final message, so it cannot be continued.")
        # The blank after the tag is gone where the template trims texts; then the blanks before it go too.
        return text[:place] if text[place:].startswith(tag) else text[:place].rstrip()

    def _run(self, chat: list[dict[str, Any]], add_generation_prompt: bool, extra: dict[str, Any]) -> str:
        assert self._template is not None, "checked by _check_call"
        values = {**self._tokens, **extra, "messages": chat, "tools": None, "documents": None}
        values["add_generation_prompt"] = add_generation_prompt
        chunks: list[str] = []
        size = 0
        with self._environment.budget(self._timeout_s):
            try:
                for chunk in self._template.generate(values):
                    size += len(chunk)
                    if size > MAX_OUTPUT_CHARS:
                        raise PromptError(f"The chat template made over {MAX_OUTPUT_CHARS} characters (the limit).")
                    chunks.append(chunk)
            except PromptError:
                raise
            except _RefusedByTemplate as error:
                raise PromptError(f"The model's chat template refuses these messages: {error.reason!r}") from None
            except Exception as error:
                # Protects the request from whatever a template does; its text is not ours to repeat.
                kind = type(error).__name__
                raise PromptError(
                    f"The chat template failed ({kind}). Check the messages' roles and content."
                ) from error
        return "".join(chunks)

    def _refuse_special(self, strings: Sequence[str]) -> None:
        found = self._special.search("".join(map(_squeeze, strings)))
        if found:
            raise PromptError(
                f"The request spells the special token {found.group()!r} where the chat template rearranges its text, "
                "so it cannot be kept apart from the template's own. Remove it."
            )


class _RefusedByTemplate(jinja2.TemplateError):
    """The template called raise_exception."""

    def __init__(self, message: object) -> None:
        self.reason = str(message)[:200]
        super().__init__(self.reason)


# --- messages ---------------------------------------------------------------------------------------------------------


def _plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A copy made of plain JSON types, without keys that are None, as transformers makes it."""
    chat = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise PromptError(f"Message {number} must be a mapping with role and content.")
        plain = {key: value for key, value in _plain_data(message, MAX_DEPTH).items() if value is not None}
        role = plain.get("role")
        if not isinstance(role, str) or not _ROLE.fullmatch(role):
            raise PromptError(f"Message {number} needs a role made of letters, such as user or assistant.")
        reasoning = next((plain[name] for name in _REASONING if name in plain), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        chat.append(plain)
    return chat


def _plain_data(value: Any, depth: int) -> Any:
    """Rebuilt from exact JSON types, so that a template never meets a method we do not know."""
    if depth == 0:
        raise PromptError(f"Messages and template variables may be nested at most {MAX_DEPTH} deep.")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {str(key): _plain_data(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_data(item, depth - 1) for item in value]
    return f"<{type(value).__name__}>"


_Place = tuple[int, int | None]  # message, part (None: the content is the text)


def _texts(chat: list[dict[str, Any]]) -> dict[_Place, str]:
    """Every text of the content of every message, by place."""
    texts: dict[_Place, str] = {}
    for number, message in enumerate(chat):
        content = message.get("content")
        if isinstance(content, str):
            texts[number, None] = content
        for index, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                texts[number, index] = part["text"]
    return texts


def _replace_texts(chat: list[dict[str, Any]], texts: Mapping[_Place, str]) -> list[dict[str, Any]]:
    """A copy of `chat` with the texts at some places exchanged."""
    changed = []
    for number, message in enumerate(chat):
        content = message.get("content")
        if isinstance(content, list):
            parts = [{**p, "text": texts[number, i]} if (number, i) in texts else p for i, p in enumerate(content)]
            message = {**message, "content": parts}
        elif (number, None) in texts:
            message = {**message, "content": texts[number, None]}
        changed.append(message)
    return changed


def _with_tag(chat: list[dict[str, Any]], tag: str) -> list[dict[str, Any]]:
    last = [place for place in _texts(chat) if place[0] == len(chat) - 1]
    if not last:
        raise PromptError("continue_final_message: the final message has no text to continue.")
    return _replace_texts(chat, {last[-1]: _texts(chat)[last[-1]] + tag})


def _other_strings(chat: list[dict[str, Any]], marked: Collection[_Place]) -> list[str]:
    """All strings of the messages except the marked texts."""
    return _strings(_replace_texts(chat, dict.fromkeys(marked, "")))


def _strings(value: Any) -> list[str]:
    """All strings inside plain data, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (key, *_strings(item))]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return []


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _any_of(strings: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(set(strings) - {""}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


class _Marks:
    """Marks around texts, and inside every special token a text spells, so that no part of a text with a whole special
    token comes out without a mark. A mark is private-use characters and a random number for each request."""

    def __init__(self, texts: Mapping[_Place, str], special: re.Pattern[str]) -> None:
        self._texts = texts
        self._places = list(texts)
        self._special = special
        self._nonce = secrets.token_hex(8)
        self._pattern = re.compile(f"\ue000{self._nonce}([obc])([0-9]+)\ue001")

    def usable(self) -> frozenset[_Place]:
        return frozenset(place for place, text in self._texts.items() if text.strip())

    def apply(self, chat: list[dict[str, Any]], marked: Collection[_Place]) -> list[dict[str, Any]]:
        """Mark texts. Blanks around a text stay outside, for templates that trim."""
        changed = {}
        for number, place in enumerate(self._places):
            if place in marked:
                text = self._texts[place]
                start, end = len(text) - len(text.lstrip()), len(text.rstrip())
                opening, breaking, closing = (f"\ue000{self._nonce}{kind}{number}\ue001" for kind in "obc")
                core = _break(self._special, text[start:end], breaking)
                changed[place] = text[:start] + opening + core + closing + text[end:]
        return _replace_texts(chat, changed)

    def split(self, text: str, marked: Collection[_Place]) -> tuple[list[Piece], frozenset[_Place]]:
        """Pieces of a rendered text, and the places whose marks came out whole around their unchanged text."""
        fields = self._pattern.split(text)  # text, kind, number, text, kind, number, ..., text
        pieces = _Pieces()
        pieces.add(fields[0], trusted=True)
        whole: dict[int, bool] = {}
        opened: int | None = None
        core = ""
        for kind, digits, following in zip(fields[1::3], fields[2::3], fields[3::3], strict=True):
            number = int(digits)
            good = opened == (None if kind == "o" else number)
            if kind == "c":
                good = good and core == self._texts[self._places[number]].strip()
                opened, core = None, ""
            else:
                opened, core = number, core + following
            whole[number] = whole.get(number, True) and good
            pieces.add(following, trusted=kind == "c")
        if opened is not None:
            whole[opened] = False
        return pieces.items, frozenset(self._places[n] for n, good in whole.items() if good) & frozenset(marked)


def _break(pattern: re.Pattern[str], text: str, mark: str) -> str:
    """Put `mark` after the first character of every match."""
    return pattern.sub(lambda found: found.group()[:1] + mark + found.group()[1:], text)


class _Pieces:
    """A list of pieces in which neighbours of equal trust are one."""

    def __init__(self) -> None:
        self.items: list[Piece] = []

    def add(self, text: str, *, trusted: bool) -> None:
        if text and self.items and self.items[-1].trusted == trusted:
            self.items[-1] = Piece(self.items[-1].text + text, trusted)
        elif text:
            self.items.append(Piece(text, trusted))


# --- the sandbox ------------------------------------------------------------------------------------------------------


class _Budget:
    """Work left to one rendering."""

    def __init__(self, timeout_s: float) -> None:
        self._left = MAX_WORK_CHARS
        self._deadline = time.monotonic() + timeout_s
        self._timeout_s = timeout_s

    def pay(self, chars: int) -> None:
        self._left -= chars
        if self._left < 0:
            raise PromptError(f"The chat template makes more than {MAX_WORK_CHARS} characters on the way (the limit).")
        if time.monotonic() > self._deadline:
            raise PromptError(f"The chat template took longer than {self._timeout_s:g} s (the limit).")


class _Generation(Extension):
    """The `{% generation %}` block of transformers: it marks the assistant's text and prints it unchanged."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _Environment(ImmutableSandboxedEnvironment):
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
            raise PromptError(
                f"The chat template prints a list of more than {MAX_OUTPUT_CHARS} characters (the limit)."
            )
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
            raise PromptError(f"The chat template makes a number of more than {MAX_POWER_BITS} bits (the limit).")
    return 1


def _call_size(name: str, subject: Any, args: tuple[Any, ...]) -> int:
    """An upper bound of the characters a method or filter makes, before it makes them."""
    for value in args:
        if isinstance(value, int) and abs(value) > MAX_ARGUMENT:
            raise PromptError(f"The chat template passes the number {value} to {name[:32]}; limit {MAX_ARGUMENT}.")
    if not _MULTIPLIERS.fullmatch(name):
        return 1
    if name == "replace" and isinstance(subject, str) and len(args) > 1 and all(isinstance(a, str) for a in args[:2]):
        return len(subject) + subject.count(args[0]) * len(args[1])
    if name in ("format", "format_map") and isinstance(subject, str):
        if _WIDE.search(subject):
            raise PromptError("The chat template has a format string with a wide or computed field.")
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
    raise _RefusedByTemplate(message)


def _strftime_now(format: str) -> str:
    if len(format) > 100 or _WIDE.search(format):
        raise PromptError("The chat template asks for the date in a format that is too long.")
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


# --- where templates come from ----------------------------------------------------------------------------------------


def _from_option(value: str) -> str:
    path = Path(value)
    try:
        if path.is_file():
            return _read(path)
    except (OSError, ValueError):
        pass  # a template given as text is no valid path
    if "{" in value:
        return value
    raise InvalidOptionError(
        f"chat_template is {value[:200]!r}: neither an existing file nor Jinja text (which would contain a brace)."
    )


def _from_folder(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return _read(folder / "chat_template.jinja")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            source = _default_of(_read_json(folder / name).get("chat_template"))
            if source is not None:
                return source
    return None


def _default_of(value: Any) -> str | None:
    """The template itself, or the one named "default" of several."""
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, Mapping)}
    if isinstance(value, Mapping):
        value = value.get("default")
    return value if isinstance(value, str) else None


def _read(path: Path) -> str:
    if path.stat().st_size > 16 * MAX_TEMPLATE_CHARS:
        raise ModelError(f"{path} is too large for a chat template.")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read as UTF-8 text.") from error


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON.") from error
    return content if isinstance(content, Mapping) else MappingProxyType({})


# --- string or list content -------------------------------------------------------------------------------------------


def detect_content_format(tree: nodes.Template) -> ContentFormat:
    """ "openai" if the template goes over the parts of a message's content, "string" if it prints the content whole."""
    messages = _closure(tree, {"messages"}, lambda node, names: _is_part_of(node, names, ()))
    loops = [loop for loop in tree.find_all(nodes.For) if _is_part_of(_unfiltered(loop.iter), messages, ())]
    message = {loop.target.name for loop in loops if isinstance(loop.target, nodes.Name)}
    message |= _closure(tree, message, lambda node, names: _is_part_of(node, names, messages)) - messages

    def is_content(node: nodes.Node, names: Collection[str]) -> bool:
        if isinstance(node, nodes.Name):
            return node.name in names
        if isinstance(node, nodes.Getattr) and node.attr == "content":
            return _is_part_of(node.node, message, messages)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content":
            return _is_part_of(node.node, message, messages)
        return False

    contents = _closure(tree, set(), is_content)
    over_parts = any(is_content(_unfiltered(loop.iter), contents) for loop in tree.find_all(nodes.For))
    return "openai" if over_parts else "string"


def _closure(tree: nodes.Template, names: set[str], matches: Callable[[nodes.Node, Collection[str]], bool]) -> set[str]:
    """`names` plus every variable and macro parameter that is given a value which `matches`."""
    names = set(names)
    macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
    while True:
        found = {
            target.name
            for target, value in [*_assignments(tree), *_arguments(tree, macros)]
            if isinstance(target, nodes.Name) and matches(value, names)
        }
        if found <= names:
            return names
        names |= found


def _assignments(tree: nodes.Template) -> list[tuple[nodes.Node, nodes.Node]]:
    return [(assign.target, assign.node) for assign in tree.find_all(nodes.Assign)]


def _arguments(tree: nodes.Template, macros: Mapping[str, nodes.Macro]) -> list[tuple[nodes.Node, nodes.Node]]:
    pairs: list[tuple[nodes.Node, nodes.Node]] = []
    for call in tree.find_all(nodes.Call):
        function = call.node
        macro = macros.get(function.name) if isinstance(function, nodes.Name) else None
        if macro is not None:
            pairs += zip(macro.args, call.args, strict=False)
            by_name = {parameter.name: parameter for parameter in macro.args}
            pairs += [(by_name[keyword.key], keyword.value) for keyword in call.kwargs if keyword.key in by_name]
    return pairs


def _is_part_of(node: nodes.Node, names: Collection[str], lists: Collection[str]) -> bool:
    """Whether `node` is one of `names`, or an item or slice of one of them or of one of `lists`."""
    if isinstance(node, nodes.Name):
        return node.name in names
    if isinstance(node, nodes.Getitem) and isinstance(node.node, nodes.Name):
        sliced = isinstance(node.arg, nodes.Slice)
        return (sliced and node.node.name in names) or (not sliced and node.node.name in lists)
    return False


def _unfiltered(node: nodes.Node) -> nodes.Node:
    while isinstance(node, nodes.Filter) and node.node is not None:
        node = node.node
    return node
