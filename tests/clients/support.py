"""What the client tests share: the key, and questions about the bundled pictures whose right answers are known."""

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path
from typing import Any

from fovea.cli.pictures import Ask, bundled_asks

KEY = "sk-client-tests"
MODEL = "fovea-tiny"
NUM_RUNNING = 3
MAX_BODY_BYTES = 1024**2
FLAGS = (
    *("--max-num-seqs", str(NUM_RUNNING), "--max-num-queued-reqs", "0"),
    *("--max-body-bytes", str(MAX_BODY_BYTES), "--allowed-media-networks", "127.0.0.0/8"),
    *("--device", "cpu", "--kv-cache-memory-bytes", "256M"),
)

ASKS = bundled_asks()
ASK = ASKS[0]


def data_url(path: Path) -> str:
    kind = mimetypes.guess_type(path)[0]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def messages(ask: Ask, **image_url: Any) -> Any:
    parts = [{"type": "image_url", "image_url": {"url": data_url(path), **image_url}} for path in ask.pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": ask.question}]}]


def name_of(ask: Ask) -> str:
    return f"{'+'.join(ask.names)}: {ask.question}"
