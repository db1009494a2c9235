"""Pictures of the web in conversations, from end to end on a tiny checkpoint."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from fovea.core.errors import InvalidOptionError, MediaLimitError, MediaSourceError, PromptTooLongError
from fovea.core.params import SamplingParams
from fovea.llm import LLM
from tests.media.corpus import encode
from tests.media.web import LOOPBACK, Server, answer, says
from tests.oracle.checkpoints import picture
from tests.parity.support import Checkpoints, Engines, load, tokens

SHORT = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
IMAGES = [picture(90, 60, seed) for seed in (1, 2)]
FILES = [encode(image, "PNG") for image in IMAGES]


def ask(*parts: object) -> list[dict[str, Any]]:
    return [{"role": "user", "content": ["What is shown?", *parts]}]


def web(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def serves_files() -> Server:
    def script(connection: Any, request: bytes) -> None:
        name = request.split(b" ")[1]
        known = {b"/0.png": FILES[0], b"/1.png": FILES[1]}
        connection.sendall(answer(known[name]) if name in known else answer(b"", status="404 Not Found"))

    return Server(script)


@pytest.fixture
def llm(engines: Engines) -> LLM:
    return engines.get("llava", allowed_media_networks=LOOPBACK, limit_mm_per_prompt={"image": 3}, max_model_len=2500)


def test_a_picture_of_the_web_gives_the_answer_of_the_picture_itself(llm: LLM) -> None:
    pil = [{"type": "image_pil", "image_pil": image} for image in IMAGES]
    data = web("data:image/png;base64," + base64.b64encode(FILES[0]).decode())
    (want,) = llm.chat(ask(*pil), SHORT, use_tqdm=False)
    llm.reset_prefix_cache()
    with serves_files() as server:
        urls = [web(server.url(f"/{number}.png")) for number in (0, 1)]
        outputs = llm.chat([ask(*urls), ask(data, urls[1]), ask(urls[1], urls[0])], SHORT, use_tqdm=False)
    assert tokens(outputs[0]) == tokens(outputs[1]) == tokens(want)
    assert tokens(outputs[2]) != tokens(want)
    assert outputs[0].media[0].original_width_px == 90


def test_one_bad_address_fails_alone(llm: LLM) -> None:
    with serves_files() as server, Server(says(answer(b"<html>"))) as other:
        good = ask(web(server.url("/0.png")))
        bad = [server.url("/missing.png"), other.url(), "http://10.0.0.1/", "http://user:secret@127.0.0.1/"]
        (want,) = llm.chat(good, SHORT, use_tqdm=False)
        conversations = [good, *(ask(web(url)) for url in bad), good]
        outputs = llm.chat(conversations, SHORT, use_tqdm=False, on_error="return")
    errors = [output.error for output in outputs]
    assert errors[0] is errors[-1] is None
    assert all(errors[1:-1])
    assert "status 404" in str(errors[1])
    assert not [error for error in errors if "secret" in str(error)]
    assert tokens(outputs[0]) == tokens(outputs[-1]) == tokens(want)


def test_an_address_that_stands_several_times_is_fetched_once(llm: LLM) -> None:
    with serves_files() as server:
        parts = [web(server.url(f"/{number}.png")) for number in (0, 1, 0)]
        (output,) = llm.chat(ask(*parts), SHORT, use_tqdm=False)
        assert len(output.media) == 3
        assert server.num_connections == 2


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        (["/0.png"] * 4, MediaLimitError),
        (["/0.png", "river " * 3000], PromptTooLongError),
        (["/0.png", "river " * 400_000], PromptTooLongError),
    ],
)
def test_nothing_is_fetched_before_count_and_length_are_judged(llm: LLM, parts: list[str], error: type) -> None:
    with serves_files() as server:
        content = [web(server.url(part)) if part.startswith("/") else part for part in parts]
        with pytest.raises(error):
            llm.chat(ask(*content), SHORT, use_tqdm=False)
        assert server.num_connections == 0


def test_this_machine_is_not_asked_by_default(engines: Engines) -> None:
    with serves_files() as server:
        with pytest.raises(MediaSourceError, match="allowed_media_networks"):
            engines.get("llava").chat(ask(web(server.url("/0.png"))), SHORT, use_tqdm=False)
        assert server.num_connections == 0


def test_bad_host_names_in_the_option_stop_the_start(checkpoints: Checkpoints) -> None:
    with pytest.raises(InvalidOptionError, match=r"allowed_media_domains has '\*\.a\.test'"):
        load(checkpoints.folder("llava"), allowed_media_domains=["*.a.test"])
