"""What the tests of the pipeline have in common: preparing without an engine."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

from fovea.core.config import EngineConfig
from fovea.core.params import SamplingParams
from fovea.core.server_config import ServerConfig
from fovea.families.registry import load_family
from fovea.llm import LLM
from fovea.media.load import Fetched
from fovea.pipeline.preparer import Prepared, Preparer
from fovea.prompt.chat import build_chat
from fovea.prompt.forms import PromptForm, parse_prompt
from tests.oracle.checkpoints import picture
from tests.parity.support import Checkpoints

MAX_MODEL_LEN = 4096


def prepare(llm: LLM, prompt: object, **params: Any) -> Prepared:
    return llm._preparer.prepare(parse_prompt(prompt), SamplingParams(**params), "r", time.perf_counter())


def preparer(
    checkpoints: Checkpoints,
    family: str,
    *,
    num_threads: int = 1,
    num_helpers: int = 1,
    server: bool = False,
    max_model_len: int = MAX_MODEL_LEN,
    **options: Any,
) -> Preparer:
    """Without an engine, as a server's worker has it."""
    folder = checkpoints.folder(family)
    config = (ServerConfig if server else EngineConfig)(model=str(folder), **options)
    threads: dict[str, Any] = {"num_threads": num_threads, "num_helpers": num_helpers}
    return Preparer(config, load_family(folder), folder, folder, max_model_len, **threads)


def run(made: Preparer, form: PromptForm, fetched: dict[str, Fetched] | None = None) -> Prepared:
    return made.prepare(form, SamplingParams(), "r", time.perf_counter(), fetched=fetched)


def png(width: int, height: int, seed: int = 0) -> bytes:
    file = io.BytesIO()
    picture(width, height, seed).save(file, format="PNG")
    return file.getvalue()


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def part(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}, **more}


def chat(made: Preparer, *parts: dict[str, Any], **options: Any) -> PromptForm:
    return build_chat([{"role": "user", "content": list(parts)}], made.template, made.family, **options)
