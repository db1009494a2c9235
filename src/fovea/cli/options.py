"""Command-line options made from the dataclasses in core: names, defaults, types and help texts live there alone.

Here they become flags; `sources` reads the same options from variables and files too, `page` documents them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from fovea.cli.values import parse_list, parse_mapping, parse_number, parse_switch, parse_whole
from fovea.core.config import GIB, MIB, EngineConfig, option_default
from fovea.core.errors import ConfigError, nearest
from fovea.core.params import SamplingParams
from fovea.core.server_config import ServerConfig

_FLAG = re.compile(r"--?[A-Za-z][\w-]*(=.*)?", re.DOTALL)

# Variables that mean the same as an option's own, which goes first.
ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "media_fetch_timeout_s": ("FOVEA_IMAGE_FETCH_TIMEOUT", "VLLM_IMAGE_FETCH_TIMEOUT"),
        "api_key": ("VLLM_API_KEY",),
    }
)

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

# The options of a server by what they are about; every field of ServerConfig is in one group.
SERVER_GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "model": (
            *(
                "model",
                "tokenizer",
                "revision",
                "download_dir",
                "trust_remote_code",
                "load_format",
                "model_impl",
                "task",
            ),
            *("served_model_name", "chat_template", "max_model_len", "seed"),
        ),
        "memory and speed": (
            *("dtype", "quantization", "device", "enforce_eager", "gpu_memory_utilization"),
            *("kv_cache_dtype", "kv_cache_memory_bytes"),
            "max_num_seqs",
            *("max_num_batched_tokens", "max_num_batched_patches", "block_size", "enable_prefix_caching"),
            *(
                "encoder_cache_bytes",
                "cpu_threads",
                "cpu_kernels",
                "media_threads",
                "resize_on_device",
                "overlap_scheduling",
                "prepare_workers",
            ),
        ),
        "pictures": (
            *("limit_mm_per_prompt", "mm_processor_kwargs", "max_image_bytes", "max_image_pixels", "max_image_aspect"),
            *("max_video_bytes", "max_video_seconds", "max_video_frames", "max_video_pixels"),
            *("media_fetch_timeout_s", "allowed_media_domains", "allowed_media_networks", "allowed_local_media_path"),
            *("cpu_max_pixels", "enable_mm_embeds"),
        ),
        "server": ("host", "port", "playground", "log_format", "log_level"),
        "limits": (
            *("max_body_bytes", "max_request_media_bytes", "max_request_pixels", "max_text_chars", "max_n"),
            *("max_num_queued_reqs", "max_num_queued_tokens", "max_queued_media_bytes", "request_timeout_s"),
            *("stall_timeout_s", "header_timeout_s", "body_timeout_s", "keep_alive_s"),
            *("prepare_timeout_s", "prepare_memory_bytes"),
        ),
        "safety and access": ("api_key", "api_key_file", "isolate_api_keys", "allowed_origins", "allowed_hosts"),
        "operation": ("drain_timeout", "watchdog_s", "max_engine_deaths"),
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
    optional: bool = False  # None is a value, and means that Fovea chooses

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "FOVEA_" + self.name.upper()

    @property
    def metavar(self) -> str:
        if self.choices:
            return "{" + ",".join(self.choices) + "}"
        return {int: "N", float: "X", str: "TEXT", tuple: "TEXT,..."}.get(self.kind, "KEY=VALUE")

    def read(self, text: str) -> Any:
        """The value that was typed. Raises ArgumentTypeError."""
        if self.kind in (int, bool) and self.optional and text == "auto":
            return None
        return _READERS[self.kind](text)


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
    return [option for option in _options_of(EngineConfig, defaults or {}) if option.name not in leave_out]


def server_options() -> list[Option]:
    """The options of a server, those of its engine included, in the order of the dataclass."""
    return _options_of(ServerConfig, {})


def _options_of(config: type[EngineConfig], defaults: Mapping[str, Any]) -> list[Option]:
    hints = get_type_hints(config)
    options = []
    for option in fields(config):
        kind, choices = _kind(hints[option.name])
        default = defaults.get(option.name, option_default(option))
        optional = NoneType in get_args(hints[option.name])
        options.append(Option(option.name, kind, default, option.metadata["help"], choices, optional=optional))
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
                type=option.read,
                choices=option.choices or None,
                default=argparse.SUPPRESS,
                metavar=option.metavar,
                help=text,
            )


def given(namespace: argparse.Namespace, options: Sequence[Option]) -> dict[str, Any]:
    """What the user gave of these options, by name."""
    return {option.name: getattr(namespace, option.name) for option in options if hasattr(namespace, option.name)}


def _kind(hint: Any) -> tuple[Any, tuple[str, ...]]:
    """bool, int, float, str, tuple or Mapping, and the choices if there are."""
    if get_origin(hint) in (Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is Literal:
        return str, get_args(hint)
    origin = get_origin(hint) or hint
    return (Mapping if issubclass(origin, Mapping) else origin), ()


def _dashed(word: str) -> str:
    """--max_model_len=8 as --max-model-len=8."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _default_note(option: Option) -> str:
    return "" if option.default in (None, "", ()) else f" [{shown(option)}]"


def shown(option: Option) -> Any:
    if option.kind is bool:
        return "on" if option.default else "off"
    for letter, unit in (("G", GIB), ("M", MIB)):
        if option.kind is int and option.default >= unit and option.default % unit == 0:
            return f"{option.default // unit}{letter}"
    return option.default


_READERS: Mapping[Any, Any] = MappingProxyType(
    {
        bool: parse_switch,
        int: parse_whole,
        float: parse_number,
        str: str,
        tuple: parse_list,
        Mapping: parse_mapping,
    }
)
