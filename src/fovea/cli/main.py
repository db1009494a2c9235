"""The command `fovea`: finds the subcommand, and turns every ending into one line and an exit code.

A subcommand's module is imported when it is called, so that help and mistyped flags answer at once. This is also the
only place of the package that reads environment variables: FOVEA_DEBUG=1 shows tracebacks, and commands that take
options from variables (`sources` reads them) are handed a copy of all.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType

from fovea import __version__
from fovea.cli.options import UsageError
from fovea.core.errors import ConfigError, FoveaError, nearest

OK, FAILED, USAGE, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "serve": "an OpenAI-compatible server, with a playground for people",
        "run": "ask about pictures, or just ask; the answer streams to stdout",
        "demo": "the embedded model answers about the bundled pictures",
        "models": "which model families are supported",
        "doctor": "report the environment and test the installation",
    }
)

TAKE_VARIABLES = frozenset({"doctor", "run", "serve"})

HINTS: Mapping[str, str] = MappingProxyType(
    {
        "unsupported_model": '"fovea models" lists what is supported.',
        "bad_weights": "Is the download complete? Fetch the folder again.",
        "internal_error": "FOVEA_DEBUG=1 shows where it came from.",
    }
)

HELP = """\
usage: fovea COMMAND ...

Ask vision-language models about pictures, or serve them.

commands:
{commands}

options:
  -h, --help     show this help; "fovea COMMAND --help" shows a command's
  --version      print the version

examples:
  fovea demo
  fovea serve
  fovea run --image photo.jpg "What is in this picture?"
  fovea run Qwen/Qwen2-VL-2B-Instruct --image a.png --image b.png "How do they differ?"
  fovea doctor

exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are printed, never raised."""
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _discard_stdout()
        return BROKEN_PIPE
    except FoveaError as error:
        return _complain(error)
    except Exception as error:  # the last boundary: a user gets a line, a developer asks for the traceback
        return _complain_unexpected(error)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help(), end="")
        return OK if argv else USAGE
    if argv[0] in ("-V", "--version", "version"):
        print(f"fovea {__version__}")
        return OK
    if argv[0] not in COMMANDS:
        kind = "option" if argv[0].startswith("-") else "command"
        raise UsageError(f"unknown {kind} {argv[0]!r}.{nearest(argv[0], COMMANDS)} Commands: {', '.join(COMMANDS)}.")
    command = import_module(f"fovea.cli.{argv[0]}")
    if argv[0] in TAKE_VARIABLES:
        return int(command.main(argv[1:], _environment()))
    return int(command.main(argv[1:]))


def _help() -> str:
    return HELP.format(commands="\n".join(f"  {name:<14} {text}" for name, text in COMMANDS.items()))


def _complain(error: FoveaError) -> int:
    if _debugging():
        traceback.print_exception(error)
    _print_error(str(error), HINTS.get(error.code, ""))
    return USAGE if isinstance(error, ConfigError) else FAILED


def _complain_unexpected(error: Exception) -> int:
    if _debugging():
        traceback.print_exception(error)
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("fovea"):
        _print_error(
            f"the Python package {error.name!r} is not installed.", "pip install fovea-vlm installs all it needs."
        )
        return FAILED
    _print_error(
        f"unexpected {type(error).__name__}: {error}", "This should not happen. FOVEA_DEBUG=1 shows where it came from."
    )
    return FAILED


def _print_error(message: str, hint: str) -> None:
    line = " ".join(f"{message} {hint}".split())
    with contextlib.suppress(OSError):
        print(f"fovea: error: {line}", file=sys.stderr)


def _debugging() -> bool:
    return _environment().get("FOVEA_DEBUG", "0") not in ("", "0")


def _environment() -> dict[str, str]:
    return dict(os.environ)


def _discard_stdout() -> None:
    """The reader of our pipe has gone; without this, Python complains again when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
