"""Every case alone: refused or answered as its row says, and afterwards the server is as it was before."""

from __future__ import annotations

import os

import pytest

from tests.corpus.case import Case
from tests.corpus.conftest import Servers
from tests.corpus.everything import CASES
from tests.corpus.runner import run

ROUNDS = int(os.environ.get("FOVEA_CORPUS_ROUNDS", "1"))


def _marked(case: Case) -> object:
    return pytest.param(case, id=case.id, marks=pytest.mark.corpus_quick if case.is_quick else pytest.mark.corpus)


@pytest.mark.parametrize("case", [_marked(case) for case in sorted(CASES, key=lambda case: case.profile)])
def test_a_case_is_answered_as_it_should_be_and_leaves_nothing_behind(case: Case, servers: Servers) -> None:
    watch = servers.get(case.profile)
    found = []
    for _ in range(ROUNDS):
        for route in case.routes:
            found += [f"{route}: {complaint}" for complaint in run(case, route, watch)]
        found += [f"afterwards: {complaint}" for complaint in watch.check()]
    assert not found, "\n".join(found)
