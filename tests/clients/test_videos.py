"""Videos through a running server and the unmodified openai package: data URLs, web addresses, options, usage."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.clients.support import KEY, MODEL
from tests.media.clips import animation, mp4
from tests.server_process import ServerProcess

GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_completion_tokens": 8}
FILES = {"/clip.gif": animation("GIF"), "/cut.gif": animation("GIF")[:200]}


@pytest.fixture
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


class _Files(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # the name that http.server calls
        data = FILES[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        return None


@pytest.fixture(scope="module")
def files_url() -> Iterator[str]:
    web = ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    thread = threading.Thread(target=web.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{web.server_address[1]}"
    web.shutdown()
    web.server_close()
    thread.join()


def messages(url: str, **options: Any) -> Any:
    part = {"type": "video_url", "video_url": {"url": url}, **options}
    return [{"role": "user", "content": [part, {"type": "text", "text": "What happens?"}]}]


def data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_a_video_is_answered_and_told(client: OpenAI, files_url: str) -> None:
    texts = []
    for url in (data_url(FILES["/clip.gif"], "image/gif"), f"{files_url}/clip.gif"):
        answer = client.chat.completions.create(
            messages=messages(url, num_frames=4), extra_body={"fovea": {"media": True}}, **GREEDY
        )
        texts.append(answer.choices[0].message.content)
        facts = answer.model_dump()["fovea"]["media"][0]
        details = answer.model_dump()["usage"]["prompt_tokens_details"]
        assert facts["frames"] == 4
        assert facts["times_s"] == [0.0, 0.75, 1.5, 2.25]
        assert details["video_tokens"] == facts["tokens"] == 2 * facts["token_grid"][0] * facts["token_grid"][1]
        assert details["image_tokens"] == 0
    assert texts[0] == texts[1]


def test_an_mp4_is_decoded_in_a_worker(client: OpenAI) -> None:
    url = data_url(mp4(), "video/mp4")
    answer = client.chat.completions.create(
        messages=messages(url, fps=2, max_pixels=40_000), extra_body={"fovea": {"media": True}}, **GREEDY
    )
    facts = answer.model_dump()["fovea"]["media"][0]
    assert (facts["original"], facts["frames"]) == ([64, 48], 6)
    assert facts["used"][0] * facts["used"][1] <= 40_000
    chunks = list(
        client.chat.completions.create(messages=messages(url, fps=2, max_pixels=40_000), stream=True, **GREEDY)
    )
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == answer.choices[0].message.content


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"num_frames": 0}, "below_min_value"),
        ({"fps": 1e9}, "above_max_value"),
        ({"num_frames": 2, "fps": 2}, "unsupported_combination"),
        ({"max_frames": 5}, "unknown_parameter"),
    ],
)
def test_options_are_judged(client: OpenAI, options: dict[str, Any], code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            messages=messages(data_url(FILES["/clip.gif"], "image/gif"), **options), **GREEDY
        )
    assert caught.value.code == code


def test_a_broken_video_is_the_requests_own_error(client: OpenAI, files_url: str) -> None:
    for url in (f"{files_url}/cut.gif", data_url(b"\0\0\0\x18ftypisom" + bytes(40), "video/mp4")):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(messages=messages(url), **GREEDY)
        assert caught.value.code in ("invalid_video", "unsupported_value")
        assert caught.value.param == "messages.0.content.0.video_url"


def test_the_model_card_tells_videos(client: OpenAI) -> None:
    card = client.models.list().data[0].model_dump()["fovea"]
    assert "video" in card["modalities"]
    assert card["max_videos"] == 1
