"""Sends a case over one of its routes and judges the answer; `watch.py` judges the server afterwards."""

from __future__ import annotations

from tests.corpus import processes
from tests.corpus.case import Case, Route, Wire
from tests.corpus.client import Reply, talk
from tests.corpus.judge import SLOW_MACHINE, answer_of, complaints, media_of
from tests.corpus.routes import Request, build
from tests.corpus.watch import Watch

MEMORY_BYTES = 64 * 1024**2
MEMORY_OF_BODY = 4  # received, decoded, and kept once more while that happens


def run(case: Case, route: Route, watch: Watch, *, slack: float = SLOW_MACHINE) -> list[str]:
    """Complaints about one request of a case."""
    scene = watch.world.scene()
    payload = case.make(scene)
    if isinstance(payload, Wire):
        leave = 0 if payload.ending == "leave" else None
        reply = talk(
            watch.server.port, payload.data, half_close=payload.ending == "half_close", leave_after_bytes=leave
        )
        return complaints(reply, case.expect, None, slack=slack)
    request = build(route, payload)
    is_measured = "memory" in case.flags and slack == SLOW_MACHINE and processes.CAN_SEE
    reply, found = _measured(request, watch) if is_measured else (watch.send(request)[0], [])
    found += complaints(reply, case.expect, request, slack=slack)
    hits = scene.num_hits()
    if case.expect.hits is not None and hits != case.expect.hits:
        found.append(f"{hits} requests reached its addresses, expected {case.expect.hits}")
    if not found and case.expect.same_as is not None and reply.status == 200:
        found += _same(reply, build(route, case.expect.same_as(watch.world.scene())), watch)
    return found


def _measured(request: Request, watch: Watch) -> tuple[Reply, list[str]]:
    """The answer, and a complaint if the server took too much memory for it."""
    before = processes.memory_bytes(watch.server.process.pid)
    with processes.Peak(watch.server.process.pid) as peak:
        reply, _ = watch.send(request)
    grown = peak.peak_bytes - before
    if grown <= MEMORY_BYTES + MEMORY_OF_BODY * len(request.body):
        return reply, []
    return reply, [f"memory grew by {grown / 2**20:.0f} MiB for {len(request.body) / 2**20:.1f} MiB of body"]


def _same(reply: Reply, reference: Request, watch: Watch) -> list[str]:
    """The same answer as the reference, and the same picture in the model's eyes: the second one seen is cached."""
    other, _ = watch.send(reference)
    if other.status != 200:
        return [f"the reference gets {other.status}: {other.body[:300]!r}"]
    found = []
    if answer_of(reply) != answer_of(other):
        found.append(f"answers {answer_of(reply)!r}, the reference {answer_of(other)!r}")
    pictures = [picture for picture in media_of(other) if picture["original"] != [0, 0]]  # embeddings need no encoder
    if pictures and not all(picture["cache_hit"] for picture in pictures):
        found.append(f"the reference is another picture: {media_of(reply)} and {pictures}")
    return found
