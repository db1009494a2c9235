"""`fovea run`: one question, about pictures or not. Only the answer goes to stdout; everything else to stderr.

What can be refused is refused before the model is loaded: options, sampling values, files that are no pictures.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TextIO

from fovea.cli.options import Option, Parser, UsageError, add_options, engine_options, given, sampling_options
from fovea.cli.report import picture_line, timing_line
from fovea.cli.sources import add_config_flag, read_settings
from fovea.core.config import EMBEDDED_MODEL, EngineConfig
from fovea.core.errors import SamplingError
from fovea.core.log import show_logs
from fovea.core.params import SamplingParams

if TYPE_CHECKING:
    from fovea.core.types import RequestOutput
    from fovea.llm import LLM

EXAMPLES = (
    'fovea run --image photo.jpg "What is in this picture?"',
    'fovea run --image a.png --image b.png "Are they the same?"',
    'fovea run llava-hf/llava-1.5-7b-hf --image photo.jpg "What is the content of this image?"',
    'curl -s https://example.org/cat.jpg | fovea run --image - "What animal is this?" > answer.txt',
    'fovea run /models/Qwen2-VL-2B-Instruct --max-model-len 8k --temperature 0.7 "Tell me a story."',
)
DESCRIPTION = f"""\
Ask a model about pictures, or without pictures just ask. The answer streams to stdout, and nothing else does.

MODEL is a hub id, a local folder or a GGUF file; without it the embedded model {EMBEDDED_MODEL} answers.
QUESTION comes from stdin if it is left out or "-". A single word that is a hub id
(organisation/name), a model folder, a GGUF file or {EMBEDDED_MODEL} is taken as MODEL.

Options of the engine can also be set by a variable (FOVEA_MAX_MODEL_LEN=4096) or in the file given with
--config. A flag goes before a variable, a variable before the file, the file before the default."""


# Where one question at a terminal wants something else than a batch: pages for one sequence, a longer sure answer.
ENGINE_DEFAULTS: Mapping[str, Any] = MappingProxyType({"max_num_seqs": 1})
SAMPLING_DEFAULTS: Mapping[str, Any] = MappingProxyType({"max_tokens": 256, "temperature": 0.0})
NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as named on the command line, and what a chat part holds for it."""

    name: str
    part: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that was asked for, read and checked."""

    config: Mapping[str, Any]
    params: SamplingParams
    pictures: tuple[Picture, ...]
    question: str
    quiet: bool
    warnings: tuple[str, ...] = ()


def main(argv: Sequence[str], environment: Mapping[str, str] = NO_ENVIRONMENT) -> int:
    request = read_request(argv, environment=environment)
    if request.quiet:
        show_logs(logging.ERROR)
    else:
        for warning in request.warnings:
            _tell(warning)
    from fovea.llm import LLM  # torch comes in here

    with LLM(use_tqdm=not request.quiet and sys.stderr.isatty(), **request.config) as llm:
        content = [picture.part for picture in request.pictures] + [{"type": "text", "text": request.question}]
        _stream(llm, [{"role": "user", "content": content}], request)
    return 0


def build_parser() -> Parser:
    parser = Parser("run", words="[MODEL] [QUESTION]", description=DESCRIPTION, examples=EXAMPLES)
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="PATH",
        help='A picture, before the question; give it once for each picture. "-" reads one from stdin, a data: URL '
        "works too.",
    )
    parser.add_argument("--model", default=None, metavar="MODEL", help="The model, instead of as the first word.")
    add_config_flag(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="Nothing but the answer, and errors.")
    add_options(parser, "the answer", _sampling())
    add_options(parser, "the engine", _engine())
    return parser


def read_request(
    argv: Sequence[str], stdin: TextIO | None = None, *, environment: Mapping[str, str] = NO_ENVIRONMENT
) -> Request:
    """Read and check the command line, the question and the headers of the pictures.

    Raises ConfigError for wrong use and RequestError for a picture or sampling value that cannot be taken.
    """
    stdin = sys.stdin if stdin is None else stdin
    options, words = build_parser().parse(argv)
    model, question = split_words(words, options.model)
    settings = read_settings(options.config, environment, engine_options(leave_out=("task",)))
    config = {**ENGINE_DEFAULTS, **settings.values, **given(options, _engine()), **({"model": model} if model else {})}
    checked = EngineConfig.from_options(config)
    params = _read_params(options)
    question = _read_question(question, options, stdin)
    pictures = _read_pictures(options, checked, stdin)
    return Request(config, params, pictures, question, options.quiet, settings.warnings)


def split_words(words: Sequence[str], model: str | None) -> tuple[str | None, str | None]:
    """Model and question among the words of the command line; None for what is not there."""
    if len(words) > 2 or (model and len(words) > 1):
        raise UsageError(f"{len(words)} words were given: {_quoted(words)}. Put the question in quotation marks.")
    if len(words) == 2:
        return words[0], words[1]
    if words and model is None and _is_model(words[0]):
        return words[0], None
    return model, words[0] if words else None


def _read_params(options: argparse.Namespace) -> SamplingParams:
    try:
        return SamplingParams.from_mapping({**SAMPLING_DEFAULTS, **given(options, _sampling())})
    except SamplingError as error:
        raise UsageError(str(error)) from None


def _is_model(word: str) -> bool:
    from fovea.models.folder import GGUF_SUFFIX, HUB_ID

    path = Path(word)
    is_local = (path / "config.json").is_file() or (path.suffix == GGUF_SUFFIX and path.is_file())
    return word == EMBEDDED_MODEL or bool(HUB_ID.fullmatch(word)) or is_local


def _read_pictures(options: argparse.Namespace, config: EngineConfig, stdin: TextIO) -> tuple[Picture, ...]:
    from fovea.media.fetch import FetchPolicy
    from fovea.media.load import open_source, probe_size
    from fovea.media.probe import MediaLimits
    from fovea.media.source import UrlSource, parse_url

    if options.image.count("-") > 1:
        raise UsageError("--image - was given twice; stdin holds one picture.")
    limits = MediaLimits.from_config(config)
    pictures = []
    for name in options.image:
        if name.startswith(("data:", "http:", "https:", "file:")):
            root = config.allowed_local_media_path
            source = parse_url(name, allowed_local_media_path=root, max_bytes=config.max_image_bytes)
            opened = open_source(source, limits, FetchPolicy.from_config(config))
            probe_size(opened, limits)
            part: dict[str, Any] = {"type": "image_url", "image_url": {"url": name}}
            if isinstance(source, UrlSource):  # fetched here, before a model is loaded, and not again
                part = {"type": "image", "image": opened}
            pictures.append(Picture(name.partition(",")[0].partition("?")[0][:40], part))
            continue
        value = stdin.buffer.read(config.max_image_bytes + 1) if name == "-" else Path(name).expanduser()
        probe_size(value, limits)
        pictures.append(Picture("stdin" if name == "-" else name, {"type": "image", "image": value}))
    return tuple(pictures)


def _read_question(question: str | None, options: argparse.Namespace, stdin: TextIO) -> str:
    if question in (None, "-"):
        if "-" in options.image:
            raise UsageError(
                'stdin holds the picture, so the question must be on the command line: fovea run --image - "..."'
            )
        if stdin.isatty():
            raise UsageError('there is no question. Give one, as in fovea run --image photo.jpg "What is this?"')
        question = stdin.read()
    if not question or not question.strip():
        raise UsageError("the question is empty.")
    return question.strip()


def _stream(llm: LLM, messages: list[dict[str, Any]], request: Request) -> None:
    printed, output = 0, None
    for output in llm.stream_chat(messages, request.params):
        text = output.outputs[0].text
        if printed == 0 and text and not request.quiet:
            _tell_pictures(output, request)
        print(text[printed:], end="", flush=True)
        printed = len(text)
    print(flush=True)
    if output is not None and not request.quiet:
        _tell_end(output)


def _tell_pictures(output: RequestOutput, request: Request) -> None:
    for media, picture in zip(output.media, request.pictures, strict=True):
        _tell(picture_line(media, picture.name))


def _tell_end(output: RequestOutput) -> None:
    _tell(timing_line(output))
    completion = output.outputs[0]
    if completion.finish_reason == "length":
        _tell(f"The answer was cut after {len(completion.token_ids)} tokens; --max-tokens allows more.")


def _tell(line: str) -> None:
    print(f"fovea   {line}", file=sys.stderr, flush=True)


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(repr(word) for word in words[:4])


def _engine() -> list[Option]:
    return engine_options(ENGINE_DEFAULTS, leave_out=("model", "task"))


def _sampling() -> list[Option]:
    return sampling_options(SAMPLING_DEFAULTS)
