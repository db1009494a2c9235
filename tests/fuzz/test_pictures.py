"""Twenty thousand mutated pictures: each is read or refused with an error of ours, and nothing else happens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.corpus import files
from tests.corpus.case import Parts
from tests.corpus.conftest import Servers
from tests.corpus.routes import build, image, text
from tests.corpus.watch import Watch
from tests.fuzz.mutations import mutated, shown
from tests.fuzz.picture_fuzzer import Report, fuzz
from tests.fuzz.seeds import all_pictures, pictures
from tests.fuzz.table import print_table

NUM_MUTANTS = int(os.environ.get("FOVEA_FUZZ_PICTURES", "20000"))
NUM_OVER_HTTP = int(os.environ.get("FOVEA_FUZZ_PICTURES_HTTP", "2000"))
FIRST = int(os.environ.get("FOVEA_FUZZ_FIRST", "0"))
CONCURRENCY = 8


def test_seeds_are_twenty_of_each_format_and_mutants_are_the_same_every_time() -> None:
    assert {name: len(seeds) for name, seeds in pictures().items()} == dict.fromkeys(("PNG", "JPEG", "WEBP", "GIF"), 20)
    seeds = all_pictures()
    assert [mutated(seeds, n) for n in range(200)] == [mutated(seeds, n) for n in range(200)]
    assert len({mutated(seeds, n) for n in range(400)}) > 350


@pytest.mark.fuzz
def test_mutated_pictures_are_read_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    report = fuzz(FIRST, NUM_MUTANTS)
    print_table(capsys, f"{NUM_MUTANTS} mutated pictures", report.outcomes)
    assert sum(report.outcomes.values()) == NUM_MUTANTS
    assert report.outcomes["picture"] > NUM_MUTANTS // 20, "mutations this harsh test nothing behind the header"
    assert not report.failures, _shown(report)
    assert not report.crashes, _shown(report)


def _shown(report: Report) -> str:
    """Number, what happened, and the file, as base64."""
    seeds = all_pictures()
    worst = [*report.crashes.items(), *report.failures.items()][:10]
    return "\n".join(f"{number}: {what}\n    {shown(mutated(seeds, number))}" for number, what in worst)


@pytest.fixture
def watch(servers: Servers) -> Iterator[Watch]:
    found = servers.get("plain")
    yield found
    complaints = found.check()
    assert not complaints, "\n".join(complaints)


@pytest.mark.fuzz
def test_mutated_pictures_over_http_are_answered_or_refused(watch: Watch, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = all_pictures()

    def one(number: int) -> tuple[str, str]:
        data = mutated(seeds, number)
        request = build("chat", Parts([image(files.data_url(data)), text("Hi")]))
        reply, _ = watch.send(request, timeout_s=300)
        name = str(reply.error.get("code", reply.status)) if reply.status != 200 else "answered"
        good = reply.status == 200 or (reply.status == 400 and set(reply.error) == {"message", "type", "param", "code"})
        return name, "" if good else f"{number}: {reply.status} {reply.body[:200]!r}\n    {shown(data)}"

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        results = list(pool.map(one, range(FIRST, FIRST + NUM_OVER_HTTP)))
    print_table(capsys, f"{NUM_OVER_HTTP} mutated pictures over HTTP", [name for name, _ in results])
    wrong = [what for _, what in results if what]
    assert not wrong, "\n".join(wrong[:10])
