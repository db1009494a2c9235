"""Command-line options made from the dataclasses in core: names, defaults, types and help texts live there alone.

    python -m fovea.cli.options > docs/options.md

writes the same options as a page.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from fovea.core.config import EngineConfig, option_default
from fovea.core.errors import ConfigError, nearest
from fovea.core.params import SamplingParams

# vLLM's: small letters are decimal, capitals binary. 32k is 32,000 and 32K is 32,768.
_UNITS = MappingProxyType({"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30})
_FLAG = re.compile(r"--?[A-Za-z][\w-]*(=.*)?", re.DOTALL)
_WHOLE = re.compile(r"([+-]?\d+(?:\.\d+)?)([kmgKMG]?)")

# The sampling options of the command line, in this order. Their types and names come from SamplingParams.
SAMPLING_HELP: Mapping[str, str] = MappingProxyType(
    {
        "max_tokens": "Longest answer in tokens.",
        "temperature": "0 takes the likeliest token every time; 1 draws from the model's own distribution.",
        "top_p": "Draw only from the likeliest tokens that together have this probability.",
        "top_k": "Draw only from this many likeliest tokens; 0: all.",
        "min_p": "Draw only from tokens at least this likely, relative to the likeliest.",
        "stop": "Text that ends the answer; it may be given several times.",
        "ignore_eos": "Go on after the model's own end.",
        "presence_penalty": "-2 to 2: make tokens that were used less likely.",
        "frequency_penalty": "-2 to 2: the same, by how often they were used.",
        "repetition_penalty": "Above 1: make tokens of prompt and answer less likely.",
    }
)


class UsageError(ConfigError):
    """The command line cannot be understood."""

    code = "usage"


@dataclass(frozen=True, slots=True)
class Option:
    """One option: `name` as in the dataclass, `flag` as typed."""

    name: str
    kind: Any  # bool, int, float, str, tuple (of texts) or Mapping
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    repeated: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def metavar(self) -> str:
        if self.choices:
            return "{" + ",".join(self.choices) + "}"
        return {int: "N", float: "X", str: "TEXT", tuple: "TEXT,..."}.get(self.kind, "KEY=VALUE")


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError, offers the nearest name, and takes options between positionals."""

    def __init__(self, command: str, *, words: str = "", description: str, examples: Sequence[str]) -> None:
        super().__init__(
            prog=f"fovea {command}",
            usage=" ".join(f"fovea {command} {words} [options]".split()),
            description=description,
            epilog="examples:\n" + "\n".join(f"  {line}" for line in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.add_argument("-h", "--help", action="help", help="Show this help.")

    def error(self, message: str) -> NoReturn:
        stop = "" if message.endswith((".", "?")) else "."
        raise UsageError(f'{message}{stop} See "{self.prog} --help".')

    def parse(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Options, and the words that are none. What follows `--` is words."""
        flags, words = list(argv), []
        if "--" in flags:
            cut = flags.index("--")
            flags, words = flags[:cut], flags[cut + 1 :]
        options, rest = self.parse_known_args([_dashed(flag) for flag in flags])
        unknown = next((word for word in rest if _FLAG.fullmatch(word)), None)
        if unknown is not None:
            name = unknown.partition("=")[0]
            self.error(f"unknown option {name}.{nearest(name, self.flags())}")
        return options, rest + words

    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]


def engine_options(defaults: Mapping[str, Any] | None = None, *, leave_out: Sequence[str] = ()) -> list[Option]:
    """The options of an engine, in the order of the dataclass; `defaults` overrides its defaults."""
    hints = get_type_hints(EngineConfig)
    options = []
    for option in fields(EngineConfig):
        if option.name not in leave_out:
            kind, choices = _kind(hints[option.name])
            default = (defaults or {}).get(option.name, option_default(option))
            options.append(Option(option.name, kind, default, option.metadata["help"], choices))
    return options


def sampling_options(defaults: Mapping[str, Any]) -> list[Option]:
    """The sampling options; `defaults` overrides those of SamplingParams."""
    hints = get_type_hints(SamplingParams)
    own = {f.name: f.default for f in fields(SamplingParams)} | dict(defaults)
    options = []
    for name, text in SAMPLING_HELP.items():
        repeated = name == "stop"
        kind, _ = (str, ()) if repeated else _kind(hints[name])
        options.append(Option(name, kind, own[name], text, repeated=repeated))
    return options


def add_options(parser: argparse.ArgumentParser, title: str, options: Sequence[Option]) -> None:
    """Give `parser` a group of options. Those the user leaves out do not appear in the namespace."""
    group = parser.add_argument_group(title)
    for option in options:
        text = option.help.replace("%", "%%") + _default_note(option)
        if option.kind is bool:
            group.add_argument(option.flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        elif option.repeated:
            group.add_argument(
                option.flag, action="append", default=argparse.SUPPRESS, metavar=option.metavar, help=text
            )
        else:
            group.add_argument(
                option.flag,
                action="extend" if option.kind is tuple else "store",
                type=_READERS[option.kind],
                choices=option.choices or None,
                default=argparse.SUPPRESS,
                metavar=option.metavar,
                help=text,
            )


def given(namespace: argparse.Namespace, options: Sequence[Option]) -> dict[str, Any]:
    """What the user gave of these options, by name."""
    return {option.name: getattr(namespace, option.name) for option in options if hasattr(namespace, option.name)}


def parse_whole(text: str) -> int:
    """A whole number, with k, m, g for thousands and K, M, G for 1024s."""
    match = _WHOLE.fullmatch(text)
    value = float(match[1]) * _UNITS[match[2]] if match else 0.5
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number (32k and 32K are understood)")
    return int(value)


def parse_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def parse_mapping(text: str) -> dict[str, Any]:
    """key=value pairs with commas between, or a JSON object."""
    if text.lstrip().startswith("{"):
        try:
            value = json.loads(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON") from None
        return dict(value)
    pairs = [pair.partition("=") for pair in text.split(",")]
    if any(not key.strip() or not equals for key, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f'{text!r} is neither key=value nor a JSON object like {{"image": 2}}')
    return {key.strip(): _parse_value(value.strip()) for key, _, value in pairs}


def parse_list(text: str) -> list[str]:
    """Texts with commas between; nothing at all is an empty list."""
    return [item.strip() for item in text.split(",")] if text.strip() else []


def options_page() -> str:
    """docs/options.md: every option of LLM and of the command line."""
    lines = [
        "# Options",
        "",
        "Made by `python -m fovea.cli.options` from `src/fovea/core/config.py`; a test checks that the two agree.",
        "",
        "Each option is a keyword of `LLM(...)` and, except `task`, a flag of `fovea run`: `max_model_len=4096` is "
        "`--max-model-len 4096` (underscores work too). Flags for whole numbers also take `32k` (32,000) and `32K` "
        "(32,768), flags for mappings `image=2` or JSON, flags for lists `a,b`, switches have a `--no-` form. An "
        "unknown name is an error that offers the nearest.",
        "",
        "| option | type | default | meaning |",
        "|--|--|--|--|",
    ]
    for option in engine_options():
        default = "" if option.default is None else f"`{option.default!r}`"
        lines.append(f"| `{option.name}` | {_type_name(option)} | {default} | {_cell(option.help)} |")
    return "\n".join(lines) + "\n"


def _kind(hint: Any) -> tuple[Any, tuple[str, ...]]:
    """bool, int, float, str, tuple or Mapping, and the choices if there are."""
    if get_origin(hint) in (Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is Literal:
        return str, get_args(hint)
    origin = get_origin(hint) or hint
    return (Mapping if issubclass(origin, Mapping) else origin), ()


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _dashed(word: str) -> str:
    """--max_model_len=8 as --max-model-len=8."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _default_note(option: Option) -> str:
    if option.default is None or option.default in ("", ()):
        return ""
    shown = {True: "on", False: "off"}[option.default] if option.kind is bool else option.default
    return f" [{shown}]"


def _type_name(option: Option) -> str:
    if option.choices:
        return ", ".join(f"`{choice}`" for choice in option.choices)
    names = {bool: "switch", int: "whole number", float: "number", str: "text", tuple: "list"}
    return names.get(option.kind, "mapping")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_READERS: Mapping[Any, Any] = MappingProxyType(
    {int: parse_whole, float: parse_number, str: str, tuple: parse_list, Mapping: parse_mapping}
)

if __name__ == "__main__":
    print(options_page(), end="")
