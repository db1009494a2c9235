"""The corpus without a server: cases are what they say, and whoever judges them notices each fault."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fovea.core.errors import MediaError
from fovea.core.server_config import ServerConfig
from fovea.media import MediaLimits, load_picture
from tests.corpus import files, scene, test_mixed
from tests.corpus.case import Wire, answered, refused
from tests.corpus.client import Reply, parse
from tests.corpus.everything import CASES, counts
from tests.corpus.judge import answer_of, complaints, media_of
from tests.corpus.routes import PATHS, Request, build, image, text
from tests.corpus.watch import canary

LIMITS = MediaLimits.from_config(ServerConfig())
LEAST = {"U": 500, "I": 350, "D": 80, "J": 700, "P": 500, "T": 250, "E": 350, "V": 40, "S": 100, "L": 80, "H": 120}
# The rows to have first, and those that stand for groups that are refused as a whole.
FIRST_ROWS = (
    "U01",
    "U06",
    "U12",
    "U21",
    "U25",
    "U33",
    "U40",
    "I01",
    "I02",
    "I08",
    "I10",
    "I13",
    "I16",
    "I17",
    "I23",
    "I31",
    "I33",
    "I34",
    "I36",
    "V01",
    "V06",
    "D04",
    "D10",
    "J06",
    "J08",
    "J11",
    "J16",
    "J21",
    "P02",
    "P12",
    "P24",
    "P45",
    "T01",
    "T07",
    "T14",
    "E01",
    "E09",
    "S05",
    "S10",
    "H09",
    "H22",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[scene.World]:
    with scene.world(tmp_path_factory.mktemp("corpus")) as made:
        yield made


def test_every_id_is_there_once_and_groups_have_their_size() -> None:
    twice = [name for name, count in Counter(case.id for case in CASES).items() if count > 1]
    assert not twice
    assert {group: count for group, count in counts().items() if count < LEAST[group]} == {}


@pytest.mark.parametrize("row", FIRST_ROWS)
def test_the_first_rows_are_in_the_quick_selection(row: str) -> None:
    assert any(case.is_quick and case.id.startswith(row) for case in CASES)


@pytest.mark.parametrize("group", sorted(LEAST))
def test_cases_become_requests_on_each_of_their_routes(world: scene.World, group: str) -> None:
    for case in CASES:
        if case.group != group or "alone" in case.flags or "D10-over-body" in case.id:
            continue
        payload = case.make(world.scene())
        if isinstance(payload, Wire):
            assert payload.data
            continue
        for route in case.routes:
            assert build(route, payload).path == PATHS[route]


def test_the_mixed_run_has_good_requests_in_between_and_is_the_same_every_time() -> None:
    jobs = test_mixed.jobs_of("plain")
    assert sum(isinstance(job, int) for job in jobs) > 500
    assert jobs == test_mixed.jobs_of("plain")


@pytest.mark.parametrize("name", sorted({**files.odd_pairs(), **files.transparent_pairs()}))
def test_an_odd_picture_and_its_plain_twin_are_equal_pixel_by_pixel(name: str) -> None:
    odd, plain = {**files.odd_pairs(), **files.transparent_pairs()}[name]
    assert odd != plain
    assert load_picture(odd, LIMITS).digest == load_picture(plain, LIMITS).digest


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_turned_pictures_differ_from_each_other_and_equal_their_twin(kind: str) -> None:
    digests = [load_picture(files.oriented(kind, n), LIMITS).digest for n in range(1, 9)]
    assert len(set(digests)) == 8
    assert digests == [load_picture(files.upright_png(kind, n), LIMITS).digest for n in range(1, 9)]


@pytest.mark.parametrize("name", sorted({**files.other_formats(), **files.no_pictures()}))
def test_files_that_must_be_refused_are_refused(name: str) -> None:
    with pytest.raises(MediaError):
        load_picture({**files.other_formats(), **files.no_pictures()}[name], LIMITS)


def test_hostile_files_are_small_on_the_wire() -> None:
    made = [
        files.flat_png(13_000, 13_000),
        files.flat_webp(),
        files.text_bomb(),
        files.gif_comments(),
        files.header_png(2**31 - 1, 9),
    ]
    assert max(map(len, made)) < 600_000


def test_the_upstream_counts_hits_by_scene(world: scene.World) -> None:
    first, second = world.scene(), world.scene()
    assert first.url("good") != second.url("good")
    assert first.num_hits() == second.num_hits() == world.num_forbidden_hits == 0


# --- whoever judges --------------------------------------------------------------------------------------------------

GOOD_ERROR = {
    "message": "n is 9; permitted: 1 to 8.",
    "type": "invalid_request_error",
    "param": "n",
    "code": "above_max_value",
}
REQUEST = Request("/v1/chat/completions", b'{"n": 9, "stop": "/etc/passwd"}')
EXPECT = refused("above_max_value", param="n", says="8")


def reply(
    status: int = 400, error: object = GOOD_ERROR, elapsed_s: float = 0.01, headers: dict[str, str] | None = None
) -> Reply:
    body = json.dumps({"error": error}).encode()
    return Reply(status, {"x-request-id": "a"} if headers is None else headers, body, elapsed_s, True)


def test_a_good_refusal_has_no_complaints() -> None:
    assert complaints(reply(), EXPECT, REQUEST) == []


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (reply(500), "is a bug"),
        (reply(200), "expected 400"),
        (reply(error={**GOOD_ERROR, "code": "invalid_json"}), "code 'invalid_json'"),
        (reply(error={**GOOD_ERROR, "param": "m"}), "param 'm'"),
        (reply(error={**GOOD_ERROR, "param": None}), "param None"),
        (reply(error={**GOOD_ERROR, "message": "No."}), "does not say"),
        (reply(error={**GOOD_ERROR, "message": "8 8"}), "no sentence"),
        (reply(error={**GOOD_ERROR, "type": "server_error"}), "type"),
        (reply(error={"message": "8."}), "shape"),
        (reply(error="text"), "shape"),
        (reply(elapsed_s=9.0), "refused after"),
        (reply(headers={}), "X-Request-Id"),
        (reply(headers={"x-request-id": "a", "server": "uvicorn"}), "names itself"),
        (reply(error={**GOOD_ERROR, "message": "8 <BytesIO object at 0x7f12345678>."}), "leaks"),
        (reply(error={**GOOD_ERROR, "message": "8 in /usr/lib/python3."}), "leaks"),
        (reply(error={**GOOD_ERROR, "message": f"8 {scene.SECRET}."}), "leaks"),
        (reply(error={**GOOD_ERROR, "message": "8." * 3000}), "bytes"),
        (Reply(0, {}, b"", 0.1, False, True, b"nonsense"), "not HTTP"),
        (Reply(400, {"x-request-id": "a"}, reply().body, 0.1, True, False), "cut off"),
    ],
)
def test_each_fault_of_a_refusal_is_noticed(bad: Reply, says: str) -> None:
    assert any(says in complaint for complaint in complaints(bad, EXPECT, REQUEST)), complaints(bad, EXPECT, REQUEST)


def test_what_the_client_sent_may_be_repeated() -> None:
    assert complaints(reply(error={**GOOD_ERROR, "message": "8: no /etc/passwd."}), EXPECT, REQUEST) == []


def test_a_stream_must_end_properly() -> None:
    headers = {"x-request-id": "a", "content-type": "text/event-stream; charset=utf-8"}
    chunk = {"choices": [{"index": 0, "delta": {"content": "Hi"}}], "fovea": {"media": [{"cache_hit": True}]}}
    request = Request("/v1/chat/completions", b"", streams=True)
    whole = Reply(200, headers, f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode(), 0.1, True)
    assert complaints(whole, answered(), request) == []
    assert answer_of(whole) == ("Hi",)
    assert media_of(whole) == [{"cache_hit": True}]
    cut = Reply(200, headers, f"data: {json.dumps(chunk)}\n\n".encode(), 0.1, True)
    assert complaints(cut, answered(), request)


def test_answers_are_read_whatever_their_form() -> None:
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n"
    found = parse(head + b"2\r\nab\r\n0\r\n\r\n", 0, True)
    assert (found.status, found.headers["x-a"], found.body, found.complete) == (200, "b", b"ab", True)
    assert not parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", 0, True).complete
    assert parse(b"", 0, True).status == 0


def test_the_canary_shows_a_picture_and_keeps_a_secret() -> None:
    body = json.loads(canary(3).body)
    assert f"{scene.SECRET}-3" in body["messages"][0]["content"]
    assert body["messages"][1]["content"][0]["type"] == "image_url"
    assert [image("x"), text("y")][0]["image_url"] == {"url": "x"}


def test_the_readme_tells_about_every_group() -> None:
    readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    assert {group for group in LEAST if not re.search(rf"^\| {group} \|", readme, re.MULTILINE)} == set()
