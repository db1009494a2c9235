"""Where options come from besides flags: environment variables, then a file. The first that names an option wins.

`main` hands the environment over; nothing here reads it. Every value is checked on its own as ServerConfig would, so an
error says which variable or which key of which file is wrong. Texts of keys (api_key) appear in no error.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fovea.cli.compat import ignored_key
from fovea.cli.options import ALIASES, Option, UsageError, server_options
from fovea.core.errors import InvalidOptionError, nearest
from fovea.core.server_config import ServerConfig

CONFIG_VARIABLE = "FOVEA_CONFIG"
# Variables that are no options: of main, of the fault tests, of the snapshot tests, of the tests with a real file.
NOT_OPTIONS = ("FOVEA_DEBUG", "FOVEA_FAULTS", "FOVEA_WRITE_SNAPSHOTS", "FOVEA_GGUF_FILE", CONFIG_VARIABLE)
# Empty, these would leave a server open that was meant to be closed.
KEY_OPTIONS = ("api_key", "api_key_file")

# What Kubernetes adds to every container beside a service named fovea or fovea-something.
_KUBERNETES = re.compile(r"FOVEA_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
_KUBERNETES_PORT = re.compile(r"(tcp|udp|sctp)://.*")


@dataclass(frozen=True, slots=True)
class Settings:
    """Values by option name, and what a user should be told: `ignored` (words) and `warnings` (sentences)."""

    values: Mapping[str, Any]
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def add_config_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", default=None, metavar="FILE", help="YAML file with options by name; flags and variables go first."
    )


def read_settings(config_file: str | None, environment: Mapping[str, str], options: Sequence[Option]) -> Settings:
    """Those of `options` that the environment or the file sets. Raises UsageError.

    Options of a server that are not among `options` are known too, and left out.
    """
    wanted = {option.name for option in options}
    config_file = config_file or environment.get(CONFIG_VARIABLE)
    in_file, ignored = _from_file(Path(config_file).expanduser()) if config_file else ({}, [])
    in_environment, warnings = _from_environment(environment)
    merged = {**in_file, **in_environment}
    return Settings({n: v for n, v in merged.items() if n in wanted}, tuple(ignored), tuple(warnings))


def _from_environment(environment: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    values = {}
    known = set(NOT_OPTIONS)
    for option in server_options():
        variables = (option.variable, *ALIASES.get(option.name, ()))
        known |= set(variables)
        variable = next((v for v in variables if _is_set(option, environment.get(v))), None)
        if variable is not None:
            values[option.name] = _read_variable(option, variable, environment[variable])
    unknown = sorted(name for name in environment if name.startswith("FOVEA_") and name not in known)
    unknown = [name for name in unknown if not _KUBERNETES.fullmatch(name)]
    return values, [f"unknown variable {name}; it is ignored.{nearest(name, known)}" for name in unknown]


def _is_set(option: Option, text: str | None) -> bool:
    if text is None or (option.name == "port" and _KUBERNETES_PORT.fullmatch(text)):
        return False
    return bool(text) or option.kind is tuple or option.name in KEY_OPTIONS


def _read_variable(option: Option, variable: str, text: str) -> Any:
    if option.name in KEY_OPTIONS and not text.strip(" ,"):
        raise UsageError(f"{variable} is set but empty. Unset it to run without a key, or give one.")
    if variable == "VLLM_API_KEY":
        return (text.strip(),)  # one key there, whatever characters it has
    return _checked(option, _parsed(option, text, variable), variable)


def _from_file(path: Path) -> tuple[dict[str, Any], list[str]]:
    from fovea.cli.config_file import read_config_file  # PyYAML is wanted only here

    options = {option.name: option for option in server_options()}
    values: dict[str, Any] = {}
    ignored = []
    for key, value in read_config_file(path).items():
        name, where = key.replace("-", "_"), f"{path}, key {key[:60]!r}"
        if name in values:
            raise UsageError(f"{path} has {key!r} twice, with dashes and with underscores.")
        if name in options:
            values[name] = _read_key(options[name], value, where)
            continue
        taken = ignored_key(key, value)
        if taken is None:
            known = [option.replace("_", "-") if "-" in key else option for option in options]
            raise UsageError(f"{path} has the unknown key {key[:60]!r}.{nearest(key, known)}")
        ignored.append(taken)
    return values, ignored


def _read_key(option: Option, value: Any, where: str) -> Any:
    if option.name in KEY_OPTIONS and not value:
        raise UsageError(f"{where}: it is empty. Leave it out to run without a key, or give one.")
    if option.name == "api_key":
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(key, str) for key in listed):
            raise UsageError(f"{where}: it must be one text or a list of texts, in quotation marks.")
        return tuple(listed)
    if isinstance(value, str) and option.kind is not str:
        value = _parsed(option, value, where)
    return _checked(option, value, where)


def _parsed(option: Option, text: str, where: str) -> Any:
    try:
        return option.read(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{where}: {error}.") from None


def _checked(option: Option, value: Any, where: str) -> Any:
    try:
        return getattr(ServerConfig(**{option.name: value}), option.name)
    except InvalidOptionError as error:
        quote = ' Put it in quotation marks ("...").' if option.kind is str and not isinstance(value, str) else ""
        raise UsageError(f"{where}: {error}{quote}") from None
