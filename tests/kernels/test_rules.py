"""Attention by a rule and with open spans, against loops written from transformers' mask functions."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fovea import kernels as ops
from fovea.kernels import reference
from fovea.kernels.batch import PLAIN, AttentionRule
from tests.kernels.test_reference import Paged

Spans = tuple[tuple[int, int], ...]


def sees(rule: AttentionRule, spans: Spans, query: int, key: int) -> bool:
    """masking_utils: sliding_window_overlay, blockwise_overlay; gemma3 and paligemma for how they are joined."""
    causal = key <= query
    block = any(first <= query < end and first <= key < end for first, end in spans)
    near = rule.window is None or key > query - rule.window
    return (causal and near) or block if rule.spans_exceed_window else near and (causal or block)


def expected(case: Paged, rule: AttentionRule, spans: list[Spans]) -> Tensor:
    rows, group = [], case.q.shape[1] // case.keys[0].shape[1]
    queries = iter(case.q.double())
    for (start, end), own, keys, values in zip(case.spans, spans, case.keys, case.values, strict=True):
        for place in range(start, end):
            query = next(queries)
            seen = [key for key in range(len(keys)) if sees(rule, own, place, key)]
            heads = []
            for head in range(case.q.shape[1]):
                k, v = keys[seen, head // group].double(), values[seen, head // group].double()
                scores = k @ query[head] * (rule.scale or 1 / math.sqrt(k.shape[-1]))
                if rule.softcap is not None:
                    scores = rule.softcap * (scores / rule.softcap).tanh()
                heads.append(scores.softmax(0) @ v)
            rows.append(torch.stack(heads))
    return torch.stack(rows)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    decode=st.lists(st.integers(1, 30), max_size=3),
    prefill=st.lists(st.tuples(st.integers(0, 12), st.integers(2, 14)), max_size=2),
    rule=st.builds(
        AttentionRule,
        scale=st.sampled_from([None, 0.1]),
        window=st.sampled_from([None, 1, 3, 8]),
        softcap=st.sampled_from([None, 1.5]),
        spans_exceed_window=st.booleans(),
    ),
    open_length=st.integers(0, 9),
    group=st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    block_size=st.sampled_from([1, 4, 16]),
    seed=st.integers(0, 1000),
)
def test_attention_by_a_rule_is_what_transformers_masks_say(
    decode: list[int],
    prefill: list[tuple[int, int]],
    rule: AttentionRule,
    open_length: int,
    group: tuple[int, int],
    block_size: int,
    seed: int,
) -> None:
    """Each sequence's new tokens end with an open span, which may begin among the old ones."""
    places = [(length - 1, length) for length in decode] + [(start, start + count) for start, count in prefill]
    if not places:
        return
    case = Paged(places, heads=group[0], kv_heads=group[1], head_dim=8, block_size=block_size, seed=seed)
    spans: list[Spans] = [((max(0, end - open_length), end),) if open_length else () for _, end in places]
    batch = dataclasses.replace(case.batch, open_spans=spans if open_length else None)
    got = ops.paged_attention(case.q, case.k_cache, case.v_cache, batch, rule)
    torch.testing.assert_close(got.double(), expected(case, rule, spans), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rule", [AttentionRule(window=3), AttentionRule(softcap=2.0, window=5)])
def test_two_open_spans_do_not_see_each_other(rule: AttentionRule) -> None:
    case = Paged([(0, 12)], heads=2, kv_heads=2, head_dim=8, block_size=4)
    spans: list[Spans] = [((1, 4), (4, 9))]
    got = ops.paged_attention(
        case.q, case.k_cache, case.v_cache, dataclasses.replace(case.batch, open_spans=spans), rule
    )
    torch.testing.assert_close(got.double(), expected(case, rule, spans), atol=1e-5, rtol=1e-4)


def test_long_prompts_are_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "RULED_QUERIES", 5)
    case, rule = Paged([(3, 20)], heads=4, kv_heads=2, head_dim=8, block_size=4), AttentionRule(window=6, softcap=1.0)
    spans: list[Spans] = [((1, 8), (9, 18))]
    batch = dataclasses.replace(case.batch, open_spans=spans)
    got = ops.paged_attention(case.q, case.k_cache, case.v_cache, batch, rule)
    torch.testing.assert_close(got.double(), expected(case, rule, spans), atol=1e-5, rtol=1e-4)


def test_an_equal_rule_is_plain() -> None:
    case = Paged([(4, 5), (2, 9)], heads=2, kv_heads=2, head_dim=8, block_size=4)
    plain = ops.paged_attention(case.q, case.k_cache, case.v_cache, case.batch)
    ruled = ops.paged_attention(case.q, case.k_cache, case.v_cache, case.batch, AttentionRule())
    assert AttentionRule() == PLAIN
    torch.testing.assert_close(plain, ruled)
