"""The page around the answers: keyboard, phone, dark and light, hostile text, keys, errors of the server."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.support import SHAPES, Opener, Playground, answer_chats, ask_of
from tests.server_process import serve

if TYPE_CHECKING:
    from playwright.sync_api import Route

pytestmark = pytest.mark.browser

PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
KEY = "a-key-for-tests"
MAX_TABS = 60
LEAST_CONTRAST = 4.5  # WCAG AA for text

RICH = """# Title

A **bold** word, *another*, `code`, ~~gone~~, [a link](https://example.com/a).

1. one
   - inner
2. two

| shape | count |
|:--|--:|
| star | 1 |

> quoted

```python
print("a line of code that is much longer than a telephone is wide", 1234567890, 1234567890)
```
Averyveryverylongwordwithoutanyplacetobreakitthatiswiderthananytelephoneshouldhavetobewiderthanthat
"""
HOSTILE = """<script>window.pwned = 1</script>

<img src=x onerror="window.pwned = 2"><iframe src="https://evil.example/"></iframe><svg onload="window.pwned = 3">

[a](javascript:window.pwned=4) [b](data:text/html,<script>window.pwned=5</script>) ![c](https://evil.example/c.png)

[d]( JaVaScRiPt:window.pwned=6 ) <a href="javascript:window.pwned=7">e</a> ![f](javascript:window.pwned=8)

<style>body { display: none }</style> [g](https://good.example/" onmouseover="window.pwned=9)

```html" onclick="window.pwned=10
</code></pre><script>window.pwned = 11</script>
```
"""

# For every element with text of its own: the contrast of that text with what is behind it.
POOR_CONTRAST = """least => {
  const paint = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = colour;
    paint.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = paint.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] > 0.8) return colour;
    }
    return [255, 255, 255, 1];
  };
  const poor = [];
  for (const node of document.querySelectorAll("body *")) {
    const hasText = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!hasText || !node.checkVisibility({opacityProperty: true})) continue;
    if (node.closest(".offscreen, .skip, option, :disabled")) continue;
    const [a, b] = [light(rgba(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < least) poor.push([node.tagName, node.className, node.textContent.trim().slice(0, 30), contrast]);
  }
  return poor;
}"""

FOCUSED = """() => {
  const node = document.activeElement;
  const style = getComputedStyle(node);
  const hasOutline = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
  const composer = node.id === "text" ? getComputedStyle(node.closest(".composer")) : null;
  const others = getComputedStyle(document.querySelector(".field input")).borderTopColor;
  const label = node.labels?.[0]?.textContent.trim();
  return {
    id: node.id,
    tag: node.tagName,
    name: node.getAttribute("aria-label") || label || node.textContent.trim() || node.title,
    isSeen: hasOutline || (composer !== null && composer.borderTopColor !== others),
  };
}"""


def focused(playground: Playground) -> dict[str, Any]:
    return dict(playground.page.evaluate(FOCUSED))


def tab_to(playground: Playground, name: str, *, backwards: bool = False) -> None:
    """Presses Tab until the element of this name has the focus, looking at every stop on the way."""
    for _ in range(MAX_TABS):
        playground.page.keyboard.press("Shift+Tab" if backwards else "Tab")
        stop = focused(playground)
        if stop["tag"] == "BODY":
            continue
        assert stop["name"], f"nothing says what {stop} is"
        assert stop["isSeen"], f"nobody sees that {stop} has the focus"
        if stop["name"] == name:
            return
    raise AssertionError(f"Tab does not reach {name!r}")


def overflow(playground: Playground) -> int:
    """Pixels beyond a phone's width; a browser on a phone would show them by zooming out."""
    return int(playground.page.evaluate("document.documentElement.scrollWidth")) - int(PHONE["viewport"]["width"])


def background(playground: Playground) -> int:
    """How light the page is, 0 to 255."""
    colour = playground.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    return max(int(value) for value in re.findall(r"\d+", colour)[:3])


def test_everything_can_be_done_with_the_keyboard(playground: Playground) -> None:
    page = playground.page
    assert focused(playground)["id"] == "text", "one can type at once"
    page.evaluate("document.activeElement.blur()")
    tab_to(playground, "To the message box")
    page.keyboard.press("Enter")
    assert focused(playground)["id"] == "text"
    page.keyboard.type("How many")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("shapes are there?")
    assert page.input_value("#text") == "How many\nshapes are there?"
    with page.expect_file_chooser() as chooser:  # before the tabs: the browser takes a while to hand choosers over
        tab_to(playground, "Picture")
        page.keyboard.press("Enter")
    chooser.value.set_files(SHAPES)
    playground.tray.locator(".tokens").wait_for()
    tab_to(playground, "To the message box", backwards=True)
    page.keyboard.press("Enter")
    page.fill("#text", "How many shapes are there?")
    page.keyboard.press("Enter")
    assert playground.wait_for_end() == "3"
    tab_to(playground, "Look at shapes.png and its tokens", backwards=True)
    page.keyboard.press("Enter")
    for key in ("ArrowRight", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert page.locator("#inspector .where").inner_text() == "Cell 13 of 88: row 2, column 2"
    page.keyboard.press("Escape")
    page.locator("#inspector").wait_for(state="hidden")
    assert focused(playground)["name"] == "Look at shapes.png and its tokens", "the focus is back where it was"
    assert playground.last.get_attribute("data-state") == "done", "Esc closed the picture and nothing else"
    tab_to(playground, "Copy as curl")
    page.keyboard.press("Enter")
    assert "curl" in page.evaluate("navigator.clipboard.readText()")
    tab_to(playground, "Settings", backwards=True)
    tab_to(playground, "New chat", backwards=True)
    page.keyboard.press("Enter")
    assert playground.turns.count() == 0
    assert focused(playground)["id"] == "text"


def test_enter_does_not_send_while_an_answer_is_running(playground: Playground) -> None:
    held: list[Route] = []
    playground.page.route("**/v1/chat/completions", lambda route: held.append(route))
    playground.page.fill("#text", "one")
    playground.page.press("#text", "Enter")
    playground.page.fill("#text", "two")
    playground.page.press("#text", "Enter")
    assert playground.turns.count() == 1
    assert playground.page.input_value("#text") == "two"
    held[0].continue_()
    playground.wait_for_end()


def test_a_phone_shows_everything_without_scrolling_sideways(open_page: Opener) -> None:
    playground = open_page(**PHONE)
    page = playground.page
    assert overflow(playground) == 0
    playground.add_files(*ask_of("two_a.png", "two_b.png").pictures, SHAPES)
    playground.tray.nth(2).locator(".tokens").wait_for()
    assert overflow(playground) == 0
    playground.ask("What is in this picture?")
    assert overflow(playground) == 0
    assert playground.last.locator(".waterfall").is_visible()
    page.locator(".card .open").first.click()
    box = page.locator("#inspector .frame").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    page.keyboard.press("Escape")
    answer_chats(playground, RICH)
    playground.ask("x" * 200)
    assert overflow(playground) == 0
    page.get_by_role("button", name="Settings", exact=True).click()
    assert focused(playground)["id"] == "settings-close"
    assert page.locator("#key").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#settings").is_visible()
    small = page.evaluate(
        "() => [...document.querySelectorAll('.top button, .bar button')].map((node) => node.getBoundingClientRect())"
        ".filter((box) => box.width && Math.min(box.width, box.height) < 40).length"
    )
    assert small == 0, "fingers need room"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_system_and_the_switch_is_remembered(open_page: Opener, scheme: str) -> None:
    playground = open_page(color_scheme=scheme)
    is_light = scheme == "light"
    assert (background(playground) > 200) is is_light
    assert (background(playground) < 60) is not is_light
    playground.page.get_by_role("button", name="Dark or light").click()
    assert (background(playground) > 200) is not is_light
    playground.page.reload()
    assert (background(playground) > 200) is not is_light


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(open_page: Opener, scheme: str) -> None:
    playground = open_page(color_scheme=scheme)
    playground.expected_statuses = {400}
    playground.add_files(SHAPES)
    playground.ask("What is in this picture?")
    playground.page.fill("input[name=max_tokens]", "-1")
    playground.ask("Refuse this.")
    answer_chats(playground, RICH)
    playground.ask("Rich?")
    playground.add_files(SHAPES)
    playground.tray.locator(".tokens").wait_for()
    assert playground.page.evaluate(POOR_CONTRAST, LEAST_CONTRAST) == []


def test_markdown_is_shown_as_markdown(playground: Playground) -> None:
    answer_chats(playground, RICH)
    playground.ask("Rich?")
    text = playground.last.locator(".answer > .text")
    for css in ("h3", "strong", "em", "p > code", "del", "ol > li > ul > li", "table th", "blockquote", "pre > code"):
        assert text.locator(css).count() >= 1, css
    link = text.locator("a")
    assert link.get_attribute("href") == "https://example.com/a"
    assert set(str(link.get_attribute("rel")).split()) >= {"noopener", "noreferrer"}
    text.get_by_role("button", name="Copy code").click()
    playground.page.locator("#toast.shown").wait_for()
    assert playground.page.evaluate("navigator.clipboard.readText()").startswith('print("a line')


def test_hostile_text_is_only_text(playground: Playground) -> None:
    """In an answer, in a question, in a file's name and in the server's own messages."""
    playground.expected_statuses = {400}
    page = playground.page
    page.on("dialog", lambda dialog: pytest.fail(f"a dialog: {dialog.message}"))
    page.set_input_files(
        "#file-input",
        {"name": "<img src=x onerror=window.pwned=12>.png", "mimeType": "image/png", "buffer": SHAPES.read_bytes()},
    )
    playground.tray.first.wait_for()
    answer_chats(playground, HOSTILE)
    text = playground.ask(HOSTILE)
    error = {"message": HOSTILE, "type": "<b>", "param": "<i>", "code": "<img src=x onerror=window.pwned=13>"}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=400, json={"error": error}))
    playground.ask("again")
    assert "<script>window.pwned = 1</script>" in text
    assert page.evaluate("window.pwned") is None
    made = "script, iframe, style, svg[onload], img:not([src^='blob:']), b, [onerror], [onclick], [onmouseover]"
    assert page.locator(f"#turns :is({made})").count() == 0
    targets = page.locator("#turns a").evaluate_all("links => links.map((link) => link.protocol)")
    assert targets
    assert set(targets) <= {"http:", "https:"}


def test_a_busy_server_is_shown_with_its_words_and_asked_again(playground: Playground) -> None:
    playground.expected_statuses = {503}
    error = {"message": "256 requests wait.", "type": "overloaded_error", "param": None, "code": "queue_full"}
    page = playground.page
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=503, headers={"Retry-After": "4"}, json={"error": error}),
        times=1,
    )
    playground.add_files(SHAPES)
    playground.ask("How many shapes are there?")
    box = playground.last.get_by_role("alert")
    assert all(words in box.inner_text() for words in ("256 requests wait.", "queue_full", "503", "wait 4 s"))
    box.get_by_role("button", name="Try again").click()
    page.locator('.turn[data-state="done"]').wait_for()
    assert playground.wait_for_end() == "3"


def test_a_server_that_is_gone_is_said_to_be(playground: Playground) -> None:
    page = playground.page
    page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
    playground.ask("What?")
    assert "could not be reached" in playground.last.get_by_role("alert").inner_text()
    assert playground.take_console() == ["Failed to load resource: net::ERR_CONNECTION_REFUSED"]


def test_nothing_of_a_conversation_stays_in_the_browser(playground: Playground) -> None:
    playground.add_files(SHAPES)
    playground.ask("What is in this picture?")
    stored = playground.page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    assert "picture" not in stored
    assert "base64" not in stored
    playground.visit()
    assert playground.turns.count() == 0


def test_a_protected_server_can_be_used_with_a_key(open_page: Opener) -> None:
    with serve("--api-key", KEY) as server:
        by_password = open_page(server.url, http_credentials={"username": "me", "password": KEY})
        by_password.add_files(SHAPES)
        assert by_password.ask("How many shapes are there?") == "3"

        by_field = open_page(server.url, visit=False)
        _let_only_the_page_in(by_field)
        by_field.expected_statuses = {401}
        page = by_field.page
        page.goto(server.url)
        page.locator("#model-name", has_text="API key needed").wait_for()
        by_field.ask("Is there anybody?")
        box = by_field.last.get_by_role("alert")
        assert "invalid_api_key" in box.inner_text()
        box.get_by_role("button", name="Enter a key").click()
        assert focused(by_field)["id"] == "key"
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        page.locator("#model option").first.wait_for(state="attached")
        by_field.add_files(SHAPES)
        assert by_field.ask("How many shapes are there?") == "3"
        assert "$OPENAI_API_KEY" in by_field.clipboard("Copy as curl")
        assert KEY not in page.evaluate("navigator.clipboard.readText()")
        assert page.evaluate("[JSON.stringify({...localStorage}), document.cookie].join()").find(KEY) == -1
        assert page.evaluate("Object.values({...sessionStorage})") == [KEY]


def _let_only_the_page_in(playground: Playground) -> None:
    """Files of the page come with the key; what the page's scripts ask, as they ask it."""
    secret = "Basic " + base64.b64encode(f"me:{KEY}".encode()).decode()

    def send(route: Route) -> None:
        is_file = route.request.resource_type not in {"fetch", "xhr"}
        route.continue_(headers={**route.request.headers, "authorization": secret} if is_file else None)

    playground.page.route("**/*", send)


def test_several_models_can_be_chosen_from(open_page: Opener) -> None:
    playground = open_page(visit=False)
    cards = [{"id": name, "max_model_len": 4096, "fovea": {"max_images": 1}} for name in ("one", "two")]
    playground.page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": cards}))
    playground.visit()
    playground.page.select_option("#model", "two")
    sent: list[str] = []

    def answer(route: Route) -> None:
        sent.append(json.loads(route.request.post_data or "")["model"])
        route.fulfill(content_type="text/event-stream", body="data: [DONE]\n\n")

    playground.page.route("**/v1/chat/completions", answer)
    playground.expected_statuses = {404}  # /tokenize knows no such model
    playground.add_files(SHAPES)
    playground.page.set_input_files("#file-input", [SHAPES])
    playground.page.locator("#toast", has_text="at most 1 picture ").wait_for()
    assert playground.tray.count() == 1
    playground.ask("Which?")
    assert sent == ["two"]
