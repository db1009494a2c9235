"""Phi-3.5-vision's two sets of rotary factors: which holds depends on the whole length, as in the published code."""

from __future__ import annotations

import pytest

from tests.oracle.checkpoints import CASES, Case
from tests.parity.support import (
    Checkpoints,
    Engines,
    answer,
    ask,
    ask_all,
    assert_logits_agree,
    num_decided,
    prompt_logits,
    question,
    tokens,
)

SWITCH = 4096
VARIANT = "phi3_v"


def long_case(name: str, num_tokens: int, checkpoints: Checkpoints, engines: Engines) -> Case:
    """A text of exactly so many tokens: each " river" is one."""
    tokenizer = engines.get(VARIANT).get_tokenizer()
    rest = len(tokenizer.encode("<|user|>\nTell me<|end|>\n<|assistant|>\n"))
    case = Case(name, f"<|user|>\nTell me{' river' * (num_tokens - rest)}<|end|>\n<|assistant|>\n")
    assert len(tokenizer.encode(case.prompt)) == num_tokens
    return case


@pytest.mark.parametrize("num_tokens", [SWITCH - 10, SWITCH, SWITCH + 1])
def test_around_4096_tokens_the_answer_is_the_reference(
    checkpoints: Checkpoints, engines: Engines, num_tokens: int
) -> None:
    """Just below, the answer crosses the limit; at the limit its first token is still of the short factors."""
    llm = engines.get(VARIANT)
    case = long_case(f"{num_tokens} tokens", num_tokens, checkpoints, engines)
    want = answer(checkpoints.folder(VARIANT), case)
    changes = llm.engine.scheduler.stats.num_regime_changes
    got = ask(llm, question(case))
    assert list(got.prompt_token_ids) == want.token_ids
    decided = num_decided(want.margins)
    assert decided > 12, "the oracle decides beyond the crossing"
    assert tokens(got)[:decided] == want.greedy[:decided]
    assert llm.engine.scheduler.stats.num_regime_changes - changes == (num_tokens <= SWITCH)


def test_logits_of_a_prompt_above_4096_tokens_agree(checkpoints: Checkpoints, engines: Engines) -> None:
    case = long_case("4097 tokens", SWITCH + 1, checkpoints, engines)
    want = answer(checkpoints.folder(VARIANT), case)
    assert_logits_agree(VARIANT, prompt_logits(engines.get(VARIANT), question(case)), want.logits)


def test_several_requests_cross_the_limit_in_one_batch(checkpoints: Checkpoints, engines: Engines) -> None:
    """Each crosses at its own step beside others that have, will or never do."""
    llm = engines.get("phi3_v-switch-32")
    texts = ["Tell me", "Tell me a story", "Tell me a story about the river", "What is it", "How do the river and the"]
    cases = [Case(text, f"<|user|>\n{text}<|end|>\n<|assistant|>\n") for text in texts]
    folder = checkpoints.folder("phi3_v-switch-32")
    want = [answer(folder, case) for case in cases]
    assert len({len(w.token_ids) for w in want}) > 3
    for got, expected in zip(ask_all(llm, [question(case) for case in cases]), want, strict=True):
        decided = num_decided(expected.margins)
        assert tokens(got)[:decided] == expected.greedy[:decided]
        assert decided > 20


def test_a_crossing_request_with_pictures_encodes_them_once(checkpoints: Checkpoints, engines: Engines) -> None:
    """The prefix is computed anew, the tower is not run again."""
    llm = engines.get("phi3_v-switch-32")
    before = llm.engine.stats.num_pictures_encoded
    case = CASES["phi3_v"][0]
    assert tokens(ask(llm, question(case))) == answer(checkpoints.folder("phi3_v-switch-32"), case).greedy
    assert llm.engine.stats.num_pictures_encoded == before + 1
