"""The playground as a person uses it, in words: add pictures, ask, read."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fovea.cli.pictures import Ask, bundled_asks, pictures_folder

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Locator, Page, Request, Route

PICTURES = pictures_folder()
SHAPES = PICTURES / "shapes.png"
ENDED = '.turn:last-child:is([data-state="done"], [data-state="failed"], [data-state="stopped"])'
FAILED_LOAD = re.compile(r"Failed to load resource: the server responded with a status of (\d+)")

MAKE_TRANSFER = """files => {
  const transfer = new DataTransfer();
  for (const {name, type, data} of files) {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, {type}));
  }
  return transfer;
}"""


class Opener(Protocol):
    def __call__(self, url: str = ..., *, visit: bool = ..., **options: Any) -> Playground: ...


class Playground:
    """`expected_statuses`: HTTP errors that the test is about; the browser logs each of them."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.expected_statuses: set[int] = set()
        self._console: list[str] = []
        self._requests: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self._console.append(f"uncaught: {error}"))
        page.on("request", lambda request: self._requests.append(request.url))

    def visit(self) -> None:
        self.page.goto(f"{self.url}/")
        self.page.wait_for_selector('#status[data-state="ready"]')
        self.page.locator("#model option").first.wait_for(state="attached")

    def check(self) -> None:
        """Nothing in the console but HTTP errors that were meant, and no request that leaves the origin."""
        assert [text for text in self._console if not self._is_expected(text)] == []
        assert [url for url in self._requests if not url.startswith((f"{self.url}/", f"blob:{self.url}/"))] == []

    def take_console(self) -> list[str]:
        """What the console has so far; it is then not held against the page."""
        taken, self._console = self._console, []
        return taken

    def new_chat(self) -> None:
        self.page.click("#new")

    def add_files(self, *paths: Path) -> None:
        before = self.tray.count()
        self.page.set_input_files("#file-input", list(paths))
        self.tray.nth(before + len(paths) - 1).wait_for()

    def drop(self, *paths: Path) -> None:
        files = [{"name": p.name, "type": "image/png", "data": encoded(p)} for p in paths]
        transfer = self.page.evaluate_handle(MAKE_TRANSFER, files)
        self.page.dispatch_event("body", "dragover", {"dataTransfer": transfer})
        self.page.dispatch_event("body", "drop", {"dataTransfer": transfer})

    def add_address(self, address: str) -> None:
        self.page.click("#add-url")
        self.page.fill("#url", address)
        self.page.press("#url", "Enter")

    def ask(self, question: str) -> str:
        """The answer's text, once it has ended in whatever way."""
        number = self.turns.count()
        self.page.fill("#text", question)
        self.page.press("#text", "Enter")
        self.turns.nth(number).wait_for()
        return self.wait_for_end()

    def wait_for_end(self) -> str:
        self.page.wait_for_selector(ENDED, timeout=60_000)
        return str(self.last.locator(".answer > .text").inner_text())

    def clipboard(self, name: str) -> str:
        """What the button of this name in the last turn copies."""
        self.last.get_by_role("button", name=name, exact=True).click()
        self.page.locator("#toast.shown").wait_for()
        return str(self.page.evaluate("navigator.clipboard.readText()"))

    @property
    def turns(self) -> Locator:
        return self.page.locator(".turn")

    @property
    def last(self) -> Locator:
        return self.page.locator(".turn:last-child")

    @property
    def tray(self) -> Locator:
        return self.page.locator(".tray .card")

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self._console.append(message.text)

    def _is_expected(self, text: str) -> bool:
        found = FAILED_LOAD.search(text)
        return found is not None and int(found[1]) in self.expected_statuses


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def ask_of(*names: str) -> Ask:
    """The first bundled question about these pictures."""
    return next(ask for ask in bundled_asks() if ask.names == names)


def chats(playground: Playground) -> list[dict[str, Any]]:
    """The bodies of the chat requests from now on."""
    bodies: list[dict[str, Any]] = []

    def keep(request: Request) -> None:
        if request.url.endswith("/v1/chat/completions"):
            bodies.append(json.loads(request.post_data or ""))

    playground.page.on("request", keep)
    return bodies


def change_chats(playground: Playground, values: Mapping[str, Any]) -> None:
    """Every chat request goes to the server with these values in its body."""

    def send(route: Route) -> None:
        route.continue_(post_data=json.dumps({**json.loads(route.request.post_data or ""), **values}))

    playground.page.route("**/v1/chat/completions", send)


def answer_chats(playground: Playground, text: str, *, end: str = "data: [DONE]\n\n") -> None:
    """Every chat request is answered with this text, as a model would that is not ours."""
    chunks = [{"choices": [{"index": 0, "delta": {"content": text[at : at + 7]}}]} for at in range(0, len(text), 7)]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end
    playground.page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body)
    )
