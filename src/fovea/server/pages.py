"""The pages for people: the playground and the API page, read once at start, served from memory.

A fixed list of paths: what is not found at start is not there, and no path of a request is ever looked up on disk. The
policy lets pages load from this server only, and run no script that stands inside them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

HERE = Path(__file__).parent
TYPES: Mapping[str, str] = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
}
FILE_NAME = re.compile(rf"[A-Za-z0-9_-]+\.({'|'.join(TYPES)})")
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
Handler = Callable[[Request], Awaitable[Response]]


def load_pages() -> dict[str, Handler]:
    """Every page's file by its path."""
    pages = {f"/playground/{path.name}": page(path) for path in _files(HERE / "playground")}
    if "/playground/index.html" in pages:
        pages["/"] = pages.pop("/playground/index.html")
    for path in _files(HERE / "static"):
        pages["/docs" if path.name == "docs.html" else f"/docs/{path.name}"] = page(path)
    return pages


def page(path: Path) -> Handler:
    return file_handler(path.read_bytes(), TYPES[path.suffix[1:]])


def file_handler(content: bytes, media_type: str) -> Handler:
    """Serves `content`; browsers keep it and ask each time whether it is still the same."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {
        "content-type": media_type,
        "etag": tag,
        "cache-control": "no-cache",
        "content-security-policy": POLICY,
        "referrer-policy": "no-referrer",
    }

    async def serve(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    return serve


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.*") if FILE_NAME.fullmatch(path.name))
