"""Bodies as other clients and load generators send them, replayed; each file in `bodies` is one client.

What comes back must be what such a client reads: OpenAI's objects by the openai package's own types, usage where it was
asked for, the right answer. `{picture}` stands for a bundled picture as a data URL.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.clients.support import ASK, KEY, data_url
from tests.server_process import ServerProcess

BODIES = Path(__file__).parent / "bodies"
Entry = dict[str, Any]


def recorded() -> list[Any]:
    found = []
    for path in sorted(BODIES.glob("*.json")):
        for i, entry in enumerate(json.loads(path.read_text(encoding="utf-8"))["requests"]):
            name = f"{path.stem}-{i}-{entry['method']}-{entry['path'].rpartition('/')[2]}"
            found.append(pytest.param(entry, id=name))
    return found


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120) as client:
        yield client


@pytest.mark.parametrize("entry", recorded())
def test_recorded_requests_are_answered_as_their_clients_expect(entry: Entry, client: httpx2.Client) -> None:
    expect, body = entry["expect"], entry.get("body")
    text = None if body is None else json.dumps(body).replace("{picture}", data_url(ASK.pictures[0]))
    headers = {**({"Content-Type": "application/json"} if body else {}), **entry.get("headers", {})}
    response = client.request(entry["method"], entry["path"], content=text, headers=headers)
    assert response.status_code == expect["status"], response.text
    assert expect.get("contains", "") in response.text
    if expect["status"] != 200:
        assert response.json()["error"]["param"] == expect["param"]
    elif body and body.get("stream"):
        check_stream(response, expect, is_chat="messages" in body)
    elif body:
        answer = ChatCompletion.model_validate_json(response.content)
        assert expect.get("text", answer.choices[0].message.content) == answer.choices[0].message.content
        assert answer.usage is not None


def check_stream(response: httpx2.Response, expect: Entry, *, is_chat: bool) -> None:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    values = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    # The type of plain completions demands a finish_reason of every chunk, which OpenAI's own answers do not have.
    chunks: list[Any] = [
        ChatCompletionChunk.model_validate(v) if is_chat else Completion.construct(**v) for v in values
    ]
    texts = [(c.delta.content or "") if is_chat else c.text for chunk in chunks for c in chunk.choices]
    assert expect.get("text", "".join(texts)) == "".join(texts)
    assert [c.finish_reason for chunk in chunks for c in chunk.choices][-1] in ("stop", "length")
    with_usage = [i for i, chunk in enumerate(chunks) if chunk.usage is not None]
    if expect.get("usage") == "at least last":
        with_usage = with_usage[-1:]
    assert with_usage == ([len(chunks) - 1] if "usage" in expect else [])
    if "completion_tokens" in expect:
        assert chunks[-1].usage.completion_tokens == expect["completion_tokens"]


def test_no_client_is_forgotten() -> None:
    assert {path.stem for path in BODIES.glob("*.json")} >= {"langchain", "litellm", "vercel", "vllm_bench", "guidellm"}
