"""What the tests of faults have in common: victims, healthy neighbours, and how they are counted.

A victim carries a word whose token id a fault of the server waits for; neighbours are eight streams whose tokens are
known. Whatever happens to the victim, theirs must be the same.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import re
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fovea.core.config import EMBEDDED_MODEL, EngineConfig
from fovea.families.base import Family
from fovea.families.registry import load_family
from fovea.models.folder import find_model
from fovea.prompt.tokenizer import Tokenizer
from tests.server_process import ServerProcess, serve

MODEL = EMBEDDED_MODEL
ASSETS = Path(__file__).parents[2] / "src" / "fovea" / "assets" / "pictures"
NUM_TOKENS = 120  # of a neighbour's answer
JSON = {"Content-Type": "application/json"}
SLOW_MACHINE = 5.0  # for bounds below a second
KV_BYTES = 64 * 1024**2
QUESTIONS = (
    "Tell me a story.",
    "What do you see here?",
    "How many are there? Count them.",
    "Please describe the picture in one line.",
    "Hello, who are you?",
    "Which one is on the left?",
    "What is the weather like?",
    "Is it red or blue?",
)
# A word for each fault: one token each, in none of the questions.
WORDS: Mapping[str, str] = {
    "forward_error": "rectangle",
    "sampler_error": "universe",
    "memory_error": "triangle",
    "nan_row": "robot",
    "inf_row": "recipe",
    "leak": "water",
    "lose_abort": "sentence",
    "forward_sleep": "scratch",
    "forward_hang": "shapes",
    "kill": "smallest",
    "device_error": "topmost",
    "nan_all": "yellow",
    "prepare_segfault": "welcome",
    "prepare_hang": "talking",
    "prepare_exit": "tasks",
    "prepare_memory": "squares",
    "prepare_panic": "thanks",
    "prepare_error": "trained",
    "prepare_ids": "wrote",
}


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.load(find_model(MODEL, EngineConfig()))


def token_id(word: str) -> int:
    [found] = tokenizer().encode(f" {word}", add_special_tokens=False, parse_special=False)
    assert not any(found in tokenizer().encode(question, add_special_tokens=False) for question in QUESTIONS)
    return found


def faults(*names: str, **more: Any) -> dict[str, str]:
    """The environment of a server with these faults."""
    wanted = {name: WORDS[name] if name.startswith("prepare_") else token_id(WORDS[name]) for name in names}
    return {"FOVEA_FAULTS": json.dumps({**wanted, **more})}


def about(name: str) -> str:
    """A question that this fault waits for."""
    return f"Tell me about {WORDS[name]} please"


def picture(name: str = "shapes.png") -> str:
    return "data:image/png;base64," + base64.b64encode((ASSETS / name).read_bytes()).decode()


def new_picture(width_px: int, height_px: int, seed: int = 0) -> str:
    """A picture of its own for each size and seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@cache
def family() -> Family:
    return load_family(find_model(MODEL, EngineConfig()))


def canvas_size(url: str) -> list[int]:
    """Height and width of a picture as the model sees it."""
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        plan = family().plan_image(*image.size, family().check_options({}))
    return [plan.canvas_height_px, plan.canvas_width_px]


def kv_bytes(num_blocks: int, block_size: int = 16) -> int:
    return family().spec.decoder.kv_bytes_per_token(4) * block_size * num_blocks


@dataclass(slots=True)
class Answer:
    """What came back. `code`: of the error, as body or as event; status 0: the connection was cut."""

    status: int = 0
    code: str | None = None
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    cached_tokens: int = 0
    is_done: bool = False
    elapsed_s: float = 0.0
    retry_after: str | None = None
    ended_at: float = 0.0

    @property
    def is_good(self) -> bool:
        return self.status == 200 and self.code is None and self.finish_reason is not None


def body(text: str, *, url: str | None = None, stream: bool = False, **more: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if url is not None:
        parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
    made = {"model": MODEL, "messages": [{"role": "user", "content": parts}], "temperature": 0.0, "stream": stream}
    if stream:
        made["stream_options"] = {"include_usage": True}
    return {**made, "max_tokens": 16, "ignore_eos": True, "return_token_ids": True, **more}


def ask(
    port: int,
    text: str,
    *,
    url: str | None = None,
    stream: bool = False,
    on_token: Callable[[], None] = lambda: None,
    timeout_s: float = 60.0,
    **more: Any,
) -> Answer:
    return post(port, body(text, url=url, stream=stream, **more), on_token=on_token, timeout_s=timeout_s)


def post(
    port: int,
    wanted: Mapping[str, Any],
    *,
    path: str = "/v1/chat/completions",
    on_token: Callable[[], None] = lambda: None,
    timeout_s: float = 60.0,
) -> Answer:
    answer, started = Answer(), time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("POST", path, json.dumps(wanted), JSON)
        response = connection.getresponse()
        answer.status = response.status
        answer.retry_after = response.getheader("Retry-After")
        if wanted.get("stream") and response.status == 200:
            for line in response:
                _read_event(answer, line, on_token)
        else:
            _read_body(answer, json.loads(response.read()))
    except (OSError, http.client.HTTPException):
        answer.status = 0
    finally:
        connection.close()
    answer.ended_at = time.monotonic()
    answer.elapsed_s = answer.ended_at - started
    return answer


def _read_event(answer: Answer, line: bytes, on_token: Callable[[], None]) -> None:
    if not line.startswith(b"data: "):
        return
    if line.startswith(b"data: [DONE]"):
        answer.is_done = True
        return
    event = json.loads(line[6:])
    if "error" in event:
        answer.code = event["error"]["code"]
        return
    _read_usage(answer, event.get("usage"))
    for choice in event["choices"]:
        new = choice.get("token_ids") or []
        answer.token_ids += new
        answer.text += choice["delta"].get("content") or ""
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        if new:
            on_token()


def _read_body(answer: Answer, data: Mapping[str, Any]) -> None:
    if "error" in data:
        answer.code = data["error"]["code"]
        return
    [choice] = data["choices"]
    answer.token_ids = choice.get("token_ids") or []
    answer.text = choice["message"]["content"] if "message" in choice else choice["text"]
    answer.finish_reason = choice["finish_reason"]
    _read_usage(answer, data.get("usage"))


def _read_usage(answer: Answer, usage: Mapping[str, Any] | None) -> None:
    if usage:
        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)


def get(port: int, path: str, timeout_s: float = 10.0) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except OSError:
        return 0, ""
    finally:
        connection.close()


def metrics(port: int) -> dict[str, float]:
    """Values without their labels; those of several labels are summed."""
    found: dict[str, float] = {}
    for name, value in re.findall(r"^([a-z_:]+)(?:\{[^}]*\})? (\S+)$", get(port, "/metrics")[1], re.MULTILINE):
        found[name] = found.get(name, 0.0) + float(value)
    return found


def until(done: Callable[[], bool], timeout_s: float, what: str = "it") -> float:
    """Seconds until something is so. Fails when it takes longer than `timeout_s`."""
    started = time.monotonic()
    while not done():
        assert time.monotonic() - started < timeout_s, f"{what} is not so after {timeout_s:g} s"
        time.sleep(0.02)
    return time.monotonic() - started


class Neighbours:
    """Eight healthy streams, the first two with a picture."""

    def __init__(self, port: int, num_tokens: int = NUM_TOKENS) -> None:
        self._port = port
        self._num_tokens = num_tokens
        self.answers = [Answer() for _ in QUESTIONS]
        self._begun = [threading.Event() for _ in QUESTIONS]
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(len(QUESTIONS))]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()
        for event in self._begun:
            assert event.wait(30), "a neighbour did not begin"

    def join(self, timeout_s: float = 90.0) -> list[Answer]:
        for thread in self._threads:
            thread.join(timeout_s)
            assert not thread.is_alive(), "a neighbour hangs"
        return self.answers

    def _run(self, index: int) -> None:
        url = picture() if index < 2 else None
        self.answers[index] = ask(
            self._port,
            QUESTIONS[index],
            url=url,
            stream=True,
            max_tokens=self._num_tokens,
            on_token=self._begun[index].set,
        )
        self._begun[index].set()


@dataclass(slots=True)
class Site:
    """A server and what its neighbours should say."""

    server: ServerProcess
    expected: list[list[int]] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.server.port

    def ask(self, text: str, **more: Any) -> Answer:
        return ask(self.port, text, **more)

    def learn(self) -> None:
        neighbours = Neighbours(self.port)
        neighbours.start()
        answers = neighbours.join()
        assert all(answer.is_good for answer in answers), answers
        self.expected = [answer.token_ids for answer in answers]

    @contextlib.contextmanager
    def beside(self) -> Iterator[Neighbours]:
        """Neighbours run while the body does; afterwards their tokens are judged."""
        neighbours = Neighbours(self.port)
        neighbours.start()
        yield neighbours
        answers = neighbours.join()
        assert [answer.code for answer in answers] == [None] * len(answers)
        assert [answer.token_ids for answer in answers] == self.expected
        assert all(answer.is_done for answer in answers)

    def check_whole(self, *, within_s: float = 1.0 * SLOW_MACHINE) -> float:
        """All KV blocks are free, nobody is in the house; live and ready. Returns how long that took."""

        def is_whole() -> bool:
            now = metrics(self.port)
            free = now["fovea:kv_blocks_free"] == now["fovea:kv_blocks"]
            return free and not now["fovea:requests_in_house"] and not now["vllm:num_requests_running"]

        took_s = until(is_whole, within_s, "an idle server that owns nothing")
        assert get(self.port, "/health/live")[0] == get(self.port, "/health/ready")[0] == 200
        return took_s

    def count(self, name: str) -> float:
        return metrics(self.port).get(name, 0.0)


@contextlib.contextmanager
def site(*flags: str, env: Mapping[str, str] | None = None, learn: bool = True) -> Iterator[Site]:
    with serve("--kv-cache-memory-bytes", str(KV_BYTES), *flags, env=env) as server:
        made = Site(server)
        if learn:
            made.learn()
        yield made


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def rarely(names: Iterable[Any], often: Container[Any]) -> list[Any]:
    """Parameters of which `make test` takes those of `often`, and `make faults` all."""
    return [name if name in often else pytest.param(name, marks=pytest.mark.faults) for name in names]


def report(name: str, **seconds: float) -> None:
    """Measured times, for those who ask: FOVEA_FAULT_TIMES names a file."""
    path = os.environ.get("FOVEA_FAULT_TIMES")
    if path:
        with Path(path).open("a") as file:
            file.write(name + " " + " ".join(f"{key}={value:.3f}" for key, value in seconds.items()) + "\n")


def leave_after_tokens(where: Site, text: str, *, num_tokens: int = 3, **more: Any) -> None:
    """Ask for a stream and close the connection when so many tokens came."""
    connection = http.client.HTTPConnection("127.0.0.1", where.port, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body(text, stream=True, **more)), JSON)
    response = connection.getresponse()
    assert response.status == 200
    answer = Answer()
    while len(answer.token_ids) < num_tokens:
        _read_event(answer, response.readline(), lambda: None)
    response.close()
    connection.close()
