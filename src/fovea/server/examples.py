"""Bodies that the API page and the OpenAPI document show. A test sends each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODEL = "MODEL"  # stands for the model served
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAAKklEQVR42mM4IadBU8QwasGoBaMWjFowasGoBaMWjFowasGoBaMW"
    "DBULAIv5OD3Z237dAAAAAElFTkSuQmCC"
)

CHAT: Mapping[str, Any] = {
    "model": MODEL,
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": PICTURE, "detail": "auto"}},
                {"type": "text", "text": "What is in this picture?"},
            ],
        }
    ],
    "max_completion_tokens": 64,
}
COMPLETION: Mapping[str, Any] = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 16}
TOKENIZE: Mapping[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
DETOKENIZE: Mapping[str, Any] = {"model": MODEL, "tokens": [1, 2, 3]}
