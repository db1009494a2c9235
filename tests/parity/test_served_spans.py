"""Pictures with text around and between their rows come through a server's processes as they do without one."""

from __future__ import annotations

import base64
import io

import httpx2
import pytest

from fovea.core.params import SamplingParams
from tests.oracle.checkpoints import picture
from tests.parity.support import SPANS, Checkpoints, Engines
from tests.server_process import serve

QUESTION = "How do they differ?"
PARAMS = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)


@pytest.mark.parametrize("variant", SPANS)
def test_a_server_answers_as_generate_does(checkpoints: Checkpoints, engines: Engines, variant: str) -> None:
    parts = [_part(150, 100, 1), _part(60, 130, 2), {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": parts}]
    (want,) = engines.get(variant).chat(messages, PARAMS, use_tqdm=False)
    body = {"model": variant, "messages": messages, "temperature": 0, "max_tokens": 16, "ignore_eos": True}
    folder = checkpoints.folder(variant)
    flags = ("--served-model-name", variant, "--device", "cpu", "--dtype", "float32", "--kv-cache-memory-bytes", "16M")
    with serve(str(folder), *flags) as server:
        for _ in range(2):  # the second one has its pictures and its prompt in the caches
            reply = httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
            assert reply.status_code == 200, reply.text
            answer = reply.json()
            assert answer["choices"][0]["message"]["content"] == want.outputs[0].text
            assert answer["usage"]["prompt_tokens"] == len(want.prompt_token_ids)


def _part(width: int, height: int, seed: int) -> dict[str, object]:
    file = io.BytesIO()
    picture(width, height, seed).save(file, format="PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}
