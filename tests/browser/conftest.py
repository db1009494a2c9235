"""A real server, a headless Chromium, and a page that is watched: errors in its console and requests to elsewhere fail
the test that made them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.support import Opener, Playground
from tests.server_process import serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if path is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def server_url(browser: Browser) -> Iterator[str]:  # the browser first: without one no server need start
    with serve() as server:
        yield server.url


@pytest.fixture
def open_page(browser: Browser, server_url: str) -> Iterator[Opener]:
    """Opens the playground, in a context of its own, with Playwright's options for contexts."""
    opened: list[Playground] = []

    def opener(url: str = server_url, *, visit: bool = True, **options: Any) -> Playground:
        options.setdefault("viewport", {"width": 1280, "height": 860})
        options.setdefault("permissions", ["clipboard-read", "clipboard-write"])
        context = browser.new_context(**options)
        context.set_default_timeout(30_000)
        playground = Playground(context.new_page(), url)
        opened.append(playground)
        if visit:
            playground.visit()
        return playground

    yield opener
    for playground in opened:
        playground.page.context.close()
    for playground in opened:
        playground.check()


@pytest.fixture
def playground(open_page: Opener) -> Playground:
    return open_page()
