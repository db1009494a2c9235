"""`fovea demo`: the embedded model answers about the bundled pictures. This is what `make demo` runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fovea.cli.options import Parser, UsageError
from fovea.cli.pictures import Ask, bundled_asks, pictures_folder
from fovea.cli.report import picture_line, timing_line
from fovea.core.config import EMBEDDED_MODEL
from fovea.core.errors import ModelNotFoundError
from fovea.core.params import SamplingParams

if TYPE_CHECKING:
    from fovea.llm import LLM

DESCRIPTION = (
    f"Ask {EMBEDDED_MODEL}, the model that comes with Fovea, about the bundled pictures. No network is needed."
)
EXAMPLES = ("fovea demo", "fovea demo --model /models/Qwen2-VL-2B-Instruct")
MAX_TOKENS = 64
NEXT = """\
Three things to try next:
  {fovea} run --image {picture} "What is in this picture?"     # or a picture of yours
  {fovea} run Qwen/Qwen2-VL-2B-Instruct --image {picture} "What is in this picture?"     # a large model
  {third}"""
EXAMPLE = Path("examples/offline_vision_language.py")


def main(argv: Sequence[str]) -> int:
    parser = Parser("demo", description=DESCRIPTION, examples=EXAMPLES)
    parser.add_argument("--model", default=EMBEDDED_MODEL, metavar="MODEL", help="Another model, by hub id or folder.")
    options, words = parser.parse(argv)
    if words:
        raise UsageError(f"fovea demo takes no words, {words[0]!r} was given.")
    asks = bundled_asks()
    if not asks:
        raise ModelNotFoundError(f"{pictures_folder()} holds no pictures: the installation is not complete.")
    from fovea.llm import LLM  # torch comes in here

    started = time.perf_counter()
    with LLM(options.model, use_tqdm=False, max_num_seqs=1) as llm:
        print(f"{options.model} loaded in {time.perf_counter() - started:.1f} s\n", flush=True)
        for ask in asks:
            _show(llm, ask)
    print(_next_steps(asks[0].pictures[0]))
    return 0


def _show(llm: LLM, ask: Ask) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    output = llm.chat(ask.messages(), params, use_tqdm=False)[0]
    for name, media in zip(ask.names, output.media, strict=True):
        print(picture_line(media, name))
    print(f"  question  {ask.question}")
    print(f"  answer    {output.outputs[0].text.strip()}")
    print(f"  cost      {timing_line(output)}\n", flush=True)


def _next_steps(picture: Path) -> str:
    """Commands as they can be pasted here, whether or not the environment is active."""
    interpreter = Path(sys.executable)
    fovea = interpreter.with_name("fovea")
    command = _short(fovea) if fovea.is_file() else f"{_short(interpreter)} -m fovea"
    third = f"{_short(interpreter)} {EXAMPLE}     # the same from Python" if EXAMPLE.is_file() else f"{command} doctor"
    return NEXT.format(fovea=command, picture=_short(picture), third=third)


def _short(path: Path) -> str:
    """Relative to the current folder if the path lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
