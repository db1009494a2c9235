"""A person with pictures and questions at a real server: right answers, and the server's own numbers beside them."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fovea.cli.pictures import bundled_asks
from tests.browser.support import (
    PICTURES,
    SHAPES,
    Playground,
    answer_chats,
    ask_of,
    change_chats,
    chats,
    encoded,
)

if TYPE_CHECKING:
    from playwright.sync_api import Route

pytestmark = pytest.mark.browser

REFUSED_ADDRESS = "http://169.254.169.254/latest/meta-data"
LONG_ANSWER = {"ignore_eos": True, "max_tokens": 3500, "temperature": 1.0}
FREED_WITHIN_S = 5.0  # the answer itself would take several times as long
TRICKY = 'Say "it\'s" `date` $HOME $(id) \\n \\\\ {a} <b> é \U0001f600?'

# A ball that moves to the right for two seconds, recorded by the browser itself.
RECORD = """async () => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 320, height: 200});
  const pen = canvas.getContext("2d");
  const recorder = new MediaRecorder(canvas.captureStream(25), {mimeType: "video/webm;codecs=vp8"});
  const parts = [];
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.start();
  const began = performance.now();
  for (let time = 0; time < 2; time = (performance.now() - began) / 1000) {
    pen.fillStyle = "#223";
    pen.fillRect(0, 0, 320, 200);
    pen.fillStyle = "#e33";
    pen.fillRect(20 + time * 110, 70, 60, 60);
    await new Promise(requestAnimationFrame);
  }
  await new Promise((done) => { recorder.onstop = done; recorder.stop(); });
  const bytes = new Uint8Array(await new Blob(parts).arrayBuffer());
  return btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), ""));
}"""


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The server's answer to a plain client, an error's body too."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return dict(json.load(response))
    except urllib.error.HTTPError as error:
        return dict(json.load(error))


def with_picture(path: Path, text: str) -> list[dict[str, Any]]:
    url = f"data:image/png;base64,{encoded(path)}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def wait_for_running(url: str, wanted: int) -> int:
    """How many requests the engine runs, once there are as many as wanted or time is up."""
    deadline = time.monotonic() + FREED_WITHIN_S
    while True:
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
            text = response.read().decode()
        [running] = re.findall(r"^vllm:num_requests_running\S* ([\d.e+]+)$", text, re.MULTILINE)
        if int(float(running)) == wanted or time.monotonic() > deadline:
            return int(float(running))
        time.sleep(0.1)


def test_a_dropped_picture_is_answered_about_rightly(playground: Playground) -> None:
    ask = ask_of("shapes.png")
    playground.drop(*ask.pictures)
    playground.tray.first.wait_for()
    assert playground.ask(ask.question) == ask.answer


def test_every_bundled_question_is_answered_rightly(playground: Playground) -> None:
    """Two of them are about two pictures."""
    for ask in bundled_asks():
        playground.new_chat()
        playground.add_files(*ask.pictures)
        assert playground.ask(ask.question) == ask.answer, ask
        assert playground.last.locator(".question .card").count() == len(ask.pictures)


def test_a_pasted_picture_is_added(playground: Playground) -> None:
    playground.page.evaluate(
        """async (data) => {
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
          await navigator.clipboard.write([new ClipboardItem({"image/png": new Blob([bytes], {type: "image/png"})})]);
        }""",
        encoded(SHAPES),
    )
    playground.page.press("#text", "Control+V")
    playground.tray.first.wait_for()
    assert playground.ask("How many shapes are there?") == "3"


def test_a_picture_s_cost_is_told_before_it_is_sent(playground: Playground) -> None:
    counted = post(f"{playground.url}/tokenize", {"messages": with_picture(SHAPES, "How many?")})
    [media] = counted["media"]
    rows, columns = media["token_grid"]
    playground.add_files(SHAPES)
    playground.page.fill("#text", "How many?")
    playground.tray.locator(".tokens").wait_for()
    said = playground.tray.locator(".tokens").inner_text()
    assert said == f"will be {media['tokens']} tokens · {columns} × {rows} grid"
    playground.page.locator("#count", has_text=f"{counted['count']:,} of ").wait_for()
    assert playground.turns.count() == 0


def test_the_grid_over_a_picture_has_the_server_s_numbers(playground: Playground) -> None:
    body = {"model": "fovea-tiny", "messages": with_picture(SHAPES, "x"), "max_tokens": 1, "fovea": {"media": True}}
    [media] = post(f"{playground.url}/v1/chat/completions", body)["fovea"]["media"]
    playground.add_files(SHAPES)
    playground.ask("What is in this picture?")
    card = playground.last.locator(".question .card")
    (width, height), (used_width, used_height) = media["original"], media["used"]
    rows, columns = media["token_grid"]
    assert card.locator(".sizes").inner_text() == f"{width} × {height} → {used_width} × {used_height}"
    assert card.locator(".tokens").inner_text() == f"{media['tokens']} tokens · {columns} × {rows} grid"
    grid = card.locator("svg.grid")
    assert grid.is_visible()
    assert (grid.get_attribute("data-rows"), grid.get_attribute("data-columns")) == (str(rows), str(columns))
    seen, picture = grid.bounding_box(), card.locator("img").bounding_box()
    assert seen is not None
    assert seen == picture, "the grid lies over the picture"
    playground.page.uncheck("#grid-toggle")
    assert not grid.is_visible()


def test_the_waterfall_has_the_server_s_timings(playground: Playground) -> None:
    streams: list[str] = []

    def keep(route: Route) -> None:  # the browser itself does not keep the text of a stream that a page reads
        response = route.fetch()
        streams.append(response.text())
        route.fulfill(response=response)

    playground.page.route("**/v1/chat/completions", keep)
    playground.add_files(SHAPES)
    playground.ask("What is in this picture?")
    chunks = [json.loads(line[6:]) for line in streams[0].splitlines() if line.startswith("data: {")]
    timings = chunks[-1]["fovea"]["timings"]
    stages = playground.last.locator(".waterfall li[data-stage]")
    shown = {s.get_attribute("data-stage"): float(s.get_attribute("data-seconds") or "") for s in stages.all()}
    assert list(shown) == ["prompt", "unpack", "resize", "queue", "encode", "prefill", "decode"]
    for stage in ("prompt", "queue", "encode", "prefill", "decode"):
        assert shown[stage] == pytest.approx(timings[f"{stage}_s"])
        assert stages.locator(f"xpath=self::*[@data-stage='{stage}']").is_visible()
    assert 0 < shown["unpack"] + shown["resize"] <= timings["media_s"] + 1e-6
    usage = chunks[-1]["usage"]
    assert f"{usage['prompt_tokens']} tokens in, {usage['completion_tokens']} out" in playground.last.inner_text()
    boxes = [bar.bounding_box() for bar in stages.locator("i").all()]
    starts = [box["x"] for box in boxes if box]
    assert starts == sorted(starts), "stages start one after another"


def test_settings_and_detail_reach_the_server(playground: Playground) -> None:
    bodies = chats(playground)
    playground.page.fill("input[name=temperature]", "0.5")
    playground.page.fill("input[name=top_p]", "0.9")
    playground.page.fill("input[name=max_tokens]", "3")
    playground.page.fill("input[name=seed]", "7")
    playground.page.fill("#stop-strings", "zzz\nyyy")
    playground.page.fill("#system", "Be brief.")
    playground.add_files(SHAPES)
    playground.tray.locator("select").select_option("low")
    playground.ask("What is in this picture?")
    body = bodies[0]
    given = {name: body[name] for name in ("temperature", "top_p", "max_tokens", "seed", "stop")}
    assert given == {"temperature": 0.5, "top_p": 0.9, "max_tokens": 3, "seed": 7, "stop": ["zzz", "yyy"]}
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["messages"][1]["content"][0]["image_url"]["detail"] == "low"
    assert "3 out" in playground.last.inner_text()
    assert "cut off" in playground.last.inner_text()


def test_a_conversation_is_sent_whole_and_its_pictures_are_not_encoded_again(playground: Playground) -> None:
    bodies = chats(playground)
    playground.add_files(SHAPES)
    first = playground.ask("What is in this picture?")
    playground.ask("How many shapes are there?")
    roles = [message["role"] for message in bodies[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert bodies[1]["messages"][1]["content"] == first
    assert bodies[1]["messages"][0]["content"][0]["type"] == "image_url"
    assert "1 picture from the cache" in playground.last.inner_text()


def test_the_last_question_can_be_edited_and_answered_again(playground: Playground) -> None:
    bodies = chats(playground)
    playground.add_files(SHAPES)
    playground.ask("What is in this picture?")
    playground.last.get_by_role("button", name="Answer again").click()
    playground.page.locator('.turn[data-state="running"]').wait_for()
    playground.wait_for_end()
    assert bodies[1]["messages"] == bodies[0]["messages"]
    playground.page.press("#text", "ArrowUp")
    assert playground.page.input_value("#text") == "What is in this picture?"
    assert playground.tray.count() == 1
    playground.page.fill("#text", "What colour is the star?")
    playground.page.press("#text", "Enter")
    playground.page.locator(".question", has_text="colour").wait_for()
    assert playground.wait_for_end() == "Yellow"
    assert playground.turns.count() == 1
    assert len(bodies[2]["messages"]) == 1


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_an_answer_can_be_stopped_and_the_server_stops_too(playground: Playground, way: str) -> None:
    change_chats(playground, LONG_ANSWER)
    playground.page.fill("#text", "What is in this picture?")
    playground.page.press("#text", "Enter")
    playground.page.locator(".turn .answer > .text", has_text=re.compile(".{20}", re.DOTALL)).wait_for()
    assert wait_for_running(playground.url, 1) == 1
    if way == "button":
        playground.page.get_by_role("button", name="Stop the answer").click()
    else:
        playground.page.keyboard.press("Escape")
    assert len(playground.wait_for_end()) > 20
    assert playground.last.get_attribute("data-state") == "stopped"
    assert "Stopped after" in playground.last.inner_text()
    assert playground.page.get_by_role("button", name="Send", exact=True).is_visible()
    assert wait_for_running(playground.url, 0) == 0


def test_a_refused_address_shows_the_server_s_words(playground: Playground) -> None:
    playground.expected_statuses = {400}
    body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": REFUSED_ADDRESS}}]}]}
    error = post(f"{playground.url}/tokenize", body)["error"]
    playground.add_address(REFUSED_ADDRESS)
    playground.page.locator("#composer", has_text=error["message"]).wait_for()
    playground.ask("What is this?")
    box = playground.last.get_by_role("alert").inner_text()
    assert error["message"] in box
    assert error["code"] in box
    assert playground.last.get_attribute("data-state") == "failed"


def test_a_refused_file_is_marked_where_it_lies(playground: Playground, tmp_path: Path) -> None:
    playground.expected_statuses = {400}
    (tmp_path / "broken.png").write_bytes(b"not a picture at all")
    playground.add_files(SHAPES, tmp_path / "broken.png")
    bad = playground.page.locator(".card.bad")
    bad.wait_for()
    assert bad.locator(".name").inner_text() == "broken.png"
    assert bad.locator(".refused code").inner_text() == "unsupported_image_format"
    playground.page.get_by_role("button", name="Remove broken.png").click()
    assert playground.ask("How many shapes are there?") == "3"


def test_a_file_that_turns_out_broken_is_marked_in_the_conversation(playground: Playground, tmp_path: Path) -> None:
    """Its header is fine, so counting does not notice."""
    playground.expected_statuses = {400}
    (tmp_path / "cut.png").write_bytes(SHAPES.read_bytes()[:1500])
    playground.add_files(SHAPES, tmp_path / "cut.png")
    playground.ask("What is in this picture?")
    assert playground.last.get_attribute("data-state") == "failed"
    assert playground.last.locator(".card.bad .name").inner_text() == "cut.png"


def test_an_error_in_the_middle_keeps_what_came(playground: Playground) -> None:
    error = {"message": "The engine stopped.", "type": "internal_error", "param": None, "code": "request_failed"}
    answer_chats(playground, "A red", end=f"data: {json.dumps({'error': error})}\n\n")
    assert playground.ask("What?") == "A red"
    box = playground.last.get_by_role("alert").inner_text()
    assert "The engine stopped." in box
    assert "request_failed" in box


def test_a_connection_that_ends_early_is_an_error(playground: Playground) -> None:
    answer_chats(playground, "A red", end="")
    playground.ask("What?")
    assert "stream_cut" in playground.last.get_by_role("alert").inner_text()


def test_the_copied_command_gives_the_same_answer(playground: Playground) -> None:
    """Run in the folder of the pictures, by a plain shell."""
    ask = ask_of("two_a.png", "two_b.png")
    playground.add_files(*ask.pictures)
    playground.ask(ask.question)
    answer = playground.ask(TRICKY)
    command = playground.clipboard("Copy as curl")
    assert len(command) < 4000, "pictures are read from files"
    done = subprocess.run(["sh", "-c", command], cwd=PICTURES, capture_output=True, text=True, timeout=120, check=True)
    body = json.loads(done.stdout)
    assert body["choices"][0]["message"]["content"] == answer
    assert f"{body['usage']['prompt_tokens']} tokens in" in playground.last.inner_text()


def test_the_copied_program_gives_the_same_answer(playground: Playground) -> None:
    pytest.importorskip("openai")
    ask = ask_of("two_a.png", "two_b.png")
    playground.add_files(*ask.pictures)
    playground.ask(ask.question)
    answer = playground.ask(TRICKY)
    program = playground.clipboard("Copy as Python")
    assert len(program) < 4000
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PICTURES,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.decode() == f"{answer}\n"


def test_frames_of_a_video_become_pictures(playground: Playground, tmp_path: Path) -> None:
    clip = tmp_path / "clip.webm"
    clip.write_bytes(base64.b64decode(playground.page.evaluate(RECORD)))
    playground.page.set_input_files("#video-input", clip)
    playground.page.locator("input[name=frames]").fill("5")
    playground.page.get_by_role("button", name="Add frames").click()
    playground.tray.nth(4).wait_for()
    names = playground.page.locator(".tray .name").all_inner_texts()
    times = [float(re.fullmatch(r"clip-(\d+\.\d\d)s\.jpg", name)[1]) for name in names]  # type: ignore[index]
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 2.5
    assert playground.ask("Which way does the square move?") == "Right"


def test_a_picture_no_server_reads_is_drawn_by_the_browser(playground: Playground) -> None:
    """The sample is an SVG; what is sent is a PNG."""
    bodies = chats(playground)
    playground.page.click("#sample")
    playground.tray.first.wait_for()
    assert playground.ask("How many shapes are there?") == "3"
    assert bodies[0]["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
