"""All cases at once, sixteen at a time, with good requests in between whose tokens must not change.

Bounds of time and memory are those of a case alone; here only what is answered counts, and what is left behind.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.corpus import processes
from tests.corpus.case import Case, Profile, Route
from tests.corpus.client import Reply
from tests.corpus.conftest import Servers
from tests.corpus.everything import CASES
from tests.corpus.judge import answer_of
from tests.corpus.runner import run
from tests.corpus.scene import SECRET
from tests.corpus.watch import Watch, canary

CONCURRENCY = 16
GOOD_SHARE = 4  # one good request for so many bad ones
ANY_TIME = 1000.0
NUM_CANARIES = 8
MAX_GROWTH_BYTES = 64 * 1024**2

Job = tuple[Case, Route] | int


def jobs_of(profile: Profile) -> list[Job]:
    bad: list[Job] = [(case, route) for case in CASES if _mixes(case, profile) for route in case.routes]
    good: list[Job] = [number % NUM_CANARIES for number in range(len(bad) // GOOD_SHARE)]
    jobs = bad + good
    random.Random(profile).shuffle(jobs)
    return jobs


def _mixes(case: Case, profile: Profile) -> bool:
    return case.profile == profile and "alone" not in case.flags


@pytest.mark.corpus
@pytest.mark.parametrize("profile", ["plain", "open", "small"])
def test_all_cases_together_change_nothing_for_good_requests(profile: Profile, servers: Servers) -> None:
    watch = servers.get(profile)
    wanted = [_answer(watch, number) for number in range(NUM_CANARIES)]

    def one(job: Job) -> list[str]:
        if isinstance(job, int):
            return _good(watch, job, wanted[job])
        case, route = job
        return [f"{case.id} {route}: {complaint}" for complaint in _bad(case, route, watch)]

    jobs, found, memory_bytes = jobs_of(profile), [], []
    for _ in range(2):
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            found += [complaint for complaints in pool.map(one, jobs) for complaint in complaints]
        found += [f"afterwards: {complaint}" for complaint in watch.check()]
        memory_bytes.append(processes.memory_bytes(watch.server.process.pid))
    if memory_bytes[1] > memory_bytes[0] + MAX_GROWTH_BYTES:
        found.append(f"the second time memory grew from {memory_bytes[0]:,} to {memory_bytes[1]:,} bytes")
    assert not found, f"{len(found)} complaints:\n" + "\n".join(complaint[:300] for complaint in sorted(found)[:60])


def _bad(case: Case, route: Route, watch: Watch) -> list[str]:
    try:
        return run(case, route, watch, slack=ANY_TIME)
    except OSError as error:
        return [f"no connection: {type(error).__name__}"]


def _good(watch: Watch, number: int, wanted: tuple[object, ...]) -> list[str]:
    reply, _ = watch.send(canary(number), timeout_s=300)
    if reply.status != 200:
        return [f"a good request gets {reply.status}: {reply.body[:200]!r}"]
    if answer_of(reply) != wanted:
        return [f"a good request answers {answer_of(reply)!r}, before {wanted!r}"]
    return list(_foreign(reply, number))


def _foreign(reply: Reply, number: int) -> list[str]:
    text = reply.body.decode("utf-8", "replace")
    others = [n for n in range(NUM_CANARIES) if n != number and f"{SECRET}-{n}" in text]
    return [f"the answer to {number} holds the secrets of {others}"] if others else []


def _answer(watch: Watch, number: int) -> tuple[object, ...]:
    reply, _ = watch.send(canary(number))
    assert reply.status == 200, reply.body[:300]
    return answer_of(reply)
