"""A client that sends a picture's embeddings to a running server gets the answer that the picture gets."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Callable
from typing import Any

import httpx2
import msgspec
import numpy as np
import pytest
from PIL import Image

from fovea.cli.pictures import bundled_asks
from fovea.models.folder import embedded_model
from tests.cli.support import needs_embedded
from tests.clients.support import MODEL, data_url
from tests.oracle.reference import Floats, image_features, pixels
from tests.server_process import serve

FLAGS = ("--enable-mm-embeds", "--device", "cpu", "--kv-cache-memory-bytes", "64M")


def npy(rows: Floats) -> bytes:
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()


def safetensors(rows: Floats) -> bytes:
    entry = {"dtype": "F32", "shape": rows.shape, "data_offsets": (0, rows.nbytes)}
    header = msgspec.json.encode({"rows": entry})
    return struct.pack("<Q", len(header)) + header + rows.tobytes()


@needs_embedded
@pytest.mark.parametrize("write", [npy, safetensors])
def test_embeddings_sent_to_a_server_answer_as_their_picture_does(write: Callable[[Floats], bytes]) -> None:
    ask = next(ask for ask in bundled_asks() if len(ask.pictures) == 1)
    images = [Image.open(ask.pictures[0]).convert("RGB")]
    (rows,) = image_features(embedded_model(), images)
    (grid,) = pixels(embedded_model(), images)["image_grid_thw"].tolist()
    sent = {"type": "image_embeds", "image_embeds": base64.b64encode(write(rows)).decode(), "image_grid_thw": grid}
    shown = {"type": "image_url", "image_url": {"url": data_url(ask.pictures[0])}}
    words = {"type": "text", "text": ask.question}
    with serve(*FLAGS) as server:
        url = f"{server.url}/v1/chat/completions"

        def answer(*parts: Any) -> Any:
            body = {"model": MODEL, "messages": [{"role": "user", "content": parts}], "temperature": 0}
            reply = httpx2.post(url, json=body, timeout=60)
            assert reply.status_code == 200, reply.text
            return reply.json()

        want, got = answer(shown, words), answer(sent, words)
        other = answer({**sent, "image_embeds": base64.b64encode(write(rows[::-1] * 0)).decode()}, words)
    assert got["choices"][0]["message"] == want["choices"][0]["message"]
    assert got["usage"]["prompt_tokens"] == want["usage"]["prompt_tokens"]
    assert other["choices"][0]["message"] != want["choices"][0]["message"], "the answer comes from the embeddings"
