"""`fovea serve`: read the options from flags, variables and a file, refuse what cannot work, then start the server.

Everything that can be found wrong is found before weights are read. The server itself is `fovea.server.run`.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fovea import __version__
from fovea.cli.compat import add_ignored, ignored_flags
from fovea.cli.options import SERVER_GROUPS, Parser, UsageError, add_options, given, server_options
from fovea.cli.pictures import pictures_folder
from fovea.cli.sources import KEY_OPTIONS, add_config_flag, read_settings
from fovea.core.config import EMBEDDED_MODEL
from fovea.core.log import logger
from fovea.core.server_config import ServerConfig

EXAMPLES = (
    "fovea serve                                    # the embedded model at http://127.0.0.1:8000",
    "fovea serve Qwen/Qwen2-VL-2B-Instruct --max-model-len 8k --limit-mm-per-prompt image=4",
    "fovea serve llava-hf/llava-1.5-7b-hf --chat-template examples/template_llava.jinja",
    "FOVEA_API_KEY=... fovea serve --host 0.0.0.0   # other machines may ask; they need the key",
    "fovea serve --config serve.yaml --port 8001    # flags go before what the file says",
    "fovea serve --allowed-media-domains upload.wikimedia.org --allowed-local-media-path /data/pictures",
)
DESCRIPTION = f"""\
Serve a vision-language model to OpenAI clients, with a playground for people at /.

MODEL is a hub id, a local folder or a GGUF file; without it the embedded model {EMBEDDED_MODEL} is served.

Each option can also be set by a variable (FOVEA_MAX_MODEL_LEN=4096) or in the file given with --config
(max-model-len: 4096). A flag goes before a variable, a variable before the file, the file before the default.

Command lines are visible to everyone on a machine (ps): give keys by FOVEA_API_KEY or --api-key-file."""
NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})
BANNER = """
  {title}

  playground  {url}/
  API         {url}/v1   (described at {url}/docs)
  {access}

  Try it, from another terminal:

  {curl}

  Ctrl-C stops it.
"""


def main(argv: Sequence[str], environment: Mapping[str, str] = NO_ENVIRONMENT) -> int:
    config, notes = read_config(argv, environment)
    faults = read_faults(environment)
    from fovea.cli.preflight import check_start

    notes += check_start(config)
    from fovea.server.access_log import setup_logging
    from fovea.server.run import ServerFacts, run

    for_people = config.log_format == "human" or (config.log_format == "auto" and sys.stderr.isatty())

    def on_ready(facts: ServerFacts) -> None:
        if for_people:
            print(banner(config, facts.url, facts.model_name, facts.max_model_len), file=sys.stderr, flush=True)

    log = setup_logging(config)
    try:
        for note in notes:
            logger.warning(note)
        return run(config, on_ready=on_ready, faults=faults, show_progress=for_people)
    finally:
        log.stop()


def build_parser() -> Parser:
    parser = Parser("serve", words="[MODEL]", description=DESCRIPTION, examples=EXAMPLES)
    add_config_flag(parser)
    add_ignored(parser)
    options = {option.name: option for option in server_options()}
    for title, names in SERVER_GROUPS.items():
        add_options(parser, title, [options[name] for name in names])
    return parser


def read_config(argv: Sequence[str], environment: Mapping[str, str] = NO_ENVIRONMENT) -> tuple[ServerConfig, list[str]]:
    """The options of a server, and what should be said about how they were given. Raises ConfigError."""
    options = server_options()
    namespace, words = build_parser().parse(argv)
    flags = given(namespace, options)
    empty = next((name for name in KEY_OPTIONS if name in flags and not flags[name]), None)
    if empty:
        raise UsageError(f"--{empty.replace('_', '-')} is empty. Leave it out to run without a key, or give one.")
    settings = read_settings(namespace.config, environment, options)
    values = {**settings.values, **flags, **_model(flags, words)}
    notes = list(settings.warnings)
    ignored = [*ignored_flags(namespace), *settings.ignored]
    if ignored:
        notes.append(f"taken for compatibility, without effect here: {', '.join(ignored)}.")
    return ServerConfig(**values), notes


def _model(flags: Mapping[str, Any], words: Sequence[str]) -> dict[str, str]:
    if len(words) > 1:  # the words themselves may be keys, so they are not shown
        raise UsageError(f"{len(words)} words were given, MODEL is one. Lists take commas, as in --allowed-hosts a,b.")
    if words and flags.get("model", words[0]) != words[0]:
        raise UsageError(f"MODEL is given twice: {words[0]!r} and --model {flags['model']!r}.")
    return {"model": words[0]} if words else {}


def read_faults(environment: Mapping[str, str]) -> dict[str, Any]:
    """What the tests of faults ask for with FOVEA_FAULTS, a JSON object; otherwise nothing."""
    text = environment.get("FOVEA_FAULTS", "")
    try:
        faults = json.loads(text or "{}")
    except ValueError:
        faults = None
    if not isinstance(faults, dict):
        raise UsageError("FOVEA_FAULTS is no JSON object. It is for tests; unset it.")
    return faults


def banner(config: ServerConfig, url: str, model_name: str, max_model_len: int) -> str:
    """What a person sees when the server is ready. Keys are never shown."""
    if config.api_key or config.api_key_file:
        access = "access      with an API key; the playground asks for it as a password"
    else:
        access = "access      without a key"
    title = f"Fovea {__version__} serves {model_name}, up to {max_model_len:,} tokens for prompt and answer."
    url = url.rstrip("/")
    if not config.playground:
        lines = BANNER.replace("  playground  {url}/\n", "").replace("   (described at {url}/docs)", "")
    else:
        lines = BANNER
    return lines.format(title=title, url=url, access=access, curl=_curl(config, url, model_name))


def _curl(config: ServerConfig, url: str, model_name: str) -> str:
    """One command for a shell that asks about a bundled picture."""
    content = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,PICTURE"}},
        {"type": "text", "text": "What is in this picture?"},
    ]
    whole = {"model": model_name, "messages": [{"role": "user", "content": content}]}
    body = json.dumps(whole, separators=(",", ":")).replace("'", "'\\''")
    picture = shlex.quote(str(pictures_folder() / "shapes.png"))
    body = body.replace("PICTURE", f"'\"$(base64 < {picture} | tr -d '\\n')\"'")
    key = ' -H "Authorization: Bearer $FOVEA_API_KEY"' if config.api_key or config.api_key_file else ""
    return f"printf %s '{body}' | curl -s {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d @-"
