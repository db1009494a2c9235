"""One server with the embedded model for all client tests, and a web server beside it that has the bundled pictures."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fovea.cli.pictures import pictures_folder
from tests.cli.support import EMBEDDED_IS_THERE
from tests.clients.support import FLAGS, KEY
from tests.server_process import ServerProcess, serve


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    if not EMBEDDED_IS_THERE:
        pytest.skip("the embedded model is not in this checkout")
    with serve(*FLAGS, env={"FOVEA_API_KEY": KEY}) as server:
        yield server


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        return None


@pytest.fixture(scope="session")
def pictures_url() -> Iterator[str]:
    """Where the bundled pictures can be fetched, on a loopback address that the server is told to permit."""
    handler = functools.partial(_Quiet, directory=str(pictures_folder()))
    web = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=web.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{web.server_address[1]}"
    web.shutdown()
    web.server_close()
    thread.join()
