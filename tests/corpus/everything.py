"""All cases in one place, and what is asked of them together."""

from __future__ import annotations

from collections import Counter

from tests.corpus import (
    data_urls,
    embeddings,
    http_abuse,
    images,
    json_shapes,
    json_syntax,
    limits,
    params,
    prompts,
    structured,
    urls,
    video,
)
from tests.corpus.case import Case

MODULES = (
    urls,
    images,
    data_urls,
    json_syntax,
    json_shapes,
    params,
    prompts,
    embeddings,
    video,
    structured,
    limits,
    http_abuse,
)
CASES: tuple[Case, ...] = tuple(case for module in MODULES for case in module.CASES)


def counts() -> Counter[str]:
    """Requests by group."""
    return Counter(case.group for case in CASES for _ in case.routes)
