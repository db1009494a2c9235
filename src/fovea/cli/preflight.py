"""What `fovea serve` finds out before it loads anything: a taken port, a folder that is no model, a missing template.

Each check raises FoveaError with one sentence that names the option to change. Nothing here imports torch.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fovea.cli.options import UsageError
from fovea.core.errors import FoveaError, ModelError
from fovea.core.server_config import ServerConfig

SWITCHED_OFF = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
OPEN_TO_ALL = (
    "listening on {host} without an API key: everyone who can reach port {port} can use this server. "
    "Set FOVEA_API_KEY or --api-key-file, or listen on 127.0.0.1."
)
NO_TEMPLATE = (
    "{model} comes without a chat template, so chat messages cannot be turned into prompts. Use the instruct (or chat) "
    "variant of the model, or take the template from its model card and pass it with --chat-template FILE; "
    "examples/template_llava.jinja is one for LLaVA-1.5."
)


class StartError(FoveaError):
    """The server cannot start here, although it was asked for in the right way."""

    code = "cannot_start"


def check_start(config: ServerConfig) -> list[str]:
    """Refuse what cannot work; what works but should not go unnoticed comes back as sentences."""
    addresses = check_address(config)
    from fovea.server.auth import Keys

    keys = Keys.from_config(config)
    check_media_options(config)
    check_model(config)
    if len(keys) or all(ipaddress.ip_address(address).is_loopback for address in addresses):
        return []
    return [OPEN_TO_ALL.format(host=config.host, port=config.port)]


def check_address(config: ServerConfig) -> list[str]:
    """The addresses of `host`, after trying whether `port` can be listened on there."""
    try:
        found = socket.getaddrinfo(config.host or "?", config.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise StartError(f"--host {config.host!r} is no address or name of this machine.") from None
    tried = {str(entry[4][0]).partition("%")[0]: _try_to_bind(*entry) for entry in found}
    usable = [address for address, reason in tried.items() if not reason]
    # A name may also have an address of a kind that is switched off, such as ::1.
    reasons = [reason for reason in tried.values() if reason and not (usable and reason in SWITCHED_OFF)]
    if reasons:
        raise StartError(_why_not(config, reasons[0]))
    return usable


def _try_to_bind(family: int, kind: int, protocol: int, _: str, address: Any) -> int:
    """0, or the number of the error."""
    try:
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            trial.bind(address)
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0


def _why_not(config: ServerConfig, number: int) -> str:
    if number == errno.EADDRINUSE:
        return (
            f"port {config.port} on {config.host} is in use by another program. Stop that program, or choose another "
            "port with --port (0 takes a free one)."
        )
    if number == errno.EACCES:
        return f"port {config.port} may not be used by this user. Choose one from 1024 with --port."
    if number == errno.EADDRNOTAVAIL:
        return f"--host {config.host} is no address of this machine. 127.0.0.1 is local, 0.0.0.0 is every network."
    return f"port {config.port} on {config.host} cannot be listened on ({os.strerror(number)})."


def check_media_options(config: ServerConfig) -> None:
    from fovea.media.fetch import FetchPolicy

    FetchPolicy.from_config(config)
    folder = config.allowed_local_media_path
    if folder and not Path(folder).expanduser().is_dir():
        raise UsageError(f"--allowed-local-media-path {folder} is no folder.")


def check_model(config: ServerConfig) -> None:
    """Its small files: what it is, whether Fovea runs it, how it is spoken to. Weights are not fetched here."""
    from fovea.families.registry import load_family
    from fovea.models.folder import check_format, find_model
    from fovea.prompt.template import ChatTemplate

    folder = find_model(config.model, replace(config, load_format="dummy"))
    check_format(folder, config)
    load_family(folder, config.model_impl).check_options(config.mm_processor_kwargs)
    if config.load_format != "dummy" and _is_local(config) and not _any(folder, "*.safetensors"):
        raise ModelError(f"{folder} has no *.safetensors file: it holds no weights that Fovea reads.")
    if ChatTemplate.load(folder, config.chat_template).source is None:
        raise ModelError(NO_TEMPLATE.format(model=config.model))


def _is_local(config: ServerConfig) -> bool:
    return Path(config.model).expanduser().is_dir()


def _any(folder: Path, *patterns: str) -> Sequence[Path]:
    return [path for pattern in patterns for path in folder.glob(pattern)]
