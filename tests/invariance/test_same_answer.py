"""A request's answer depends on the request alone: not on neighbours, chunks, caches, preemption or block sizes."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fovea.core.params import SamplingParams
from fovea.llm import LLM
from tests.oracle.checkpoints import CASES, Case
from tests.parity.support import (
    EVERY_FAMILY,
    FAMILIES,
    GREEDY,
    MIB,
    VARIANTS,
    Checkpoints,
    Engines,
    all_tokens,
    answer,
    ask,
    ask_all,
    check_idle,
    load,
    question,
    run_together,
    tokens,
)

# KV bytes of one token of each tiny model in float32.
TOKEN_BYTES = {
    "llava": 2 * 3 * 64 * 4,
    "qwen2_vl": 2 * 3 * 32 * 4,
    "qwen2_5_vl": 2 * 3 * 32 * 4,
    "qwen3_vl": 2 * 3 * 32 * 4,
    "phi3_v": 2 * 3 * 192 * 4,
}
# PaliGemma's prompts see all of themselves: each runs in one step.
IN_CHUNKS = [variant for variant in EVERY_FAMILY if variant != "paligemma"]
SAMPLED = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=16, seed=11, ignore_eos=True)


@cache
def prompt_of(case: Case) -> dict[str, object]:
    return question(case)


def want(checkpoints: Checkpoints, variant: str, cases: Sequence[Case]) -> list[list[int]]:
    return [answer(checkpoints.folder(variant), case).greedy for case in cases]


def got(engines: Engines, variant: str, cases: Sequence[Case], **options: Any) -> list[list[int]]:
    llm = engines.get(variant, **options)
    return [tokens(output) for output in ask_all(llm, [prompt_of(case) for case in cases])]


def foresee_nothing(llm: LLM) -> None:
    """Start whatever fits now, so that there are preemptions."""
    scheduler = llm.engine.scheduler
    scheduler.budgets = dataclasses.replace(scheduler.budgets, ahead_tokens=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_neighbours_and_their_order_change_nothing(checkpoints: Checkpoints, engines: Engines, variant: str) -> None:
    cases = list(CASES[VARIANTS[variant][0]])
    for batch in (cases[::-1], cases[1:] + cases[:1], [cases[0], cases[0], cases[2]], cases * 3):
        assert got(engines, variant, batch, enable_prefix_caching=False) == want(checkpoints, variant, batch)


@pytest.mark.parametrize("max_num_batched_tokens", [16, 17, 64])
@pytest.mark.parametrize("variant", IN_CHUNKS)
def test_chunks_change_nothing(
    checkpoints: Checkpoints, engines: Engines, variant: str, max_num_batched_tokens: int
) -> None:
    cases = [case for case in CASES[variant] if max_num_batched_tokens == 64 or case.name != "several"]
    options = {"max_num_batched_tokens": max_num_batched_tokens}
    assert got(engines, variant, cases, **options) == want(checkpoints, variant, cases)


@pytest.mark.parametrize("variant", IN_CHUNKS)
def test_the_smallest_chunks_cut_several_pictures_and_change_nothing(
    checkpoints: Checkpoints, engines: Engines, variant: str
) -> None:
    cases = [CASES[variant][1]] if variant != "phi3_v" else [CASES[variant][0]]
    assert got(engines, variant, cases, max_num_batched_tokens=16) == want(checkpoints, variant, cases)


@pytest.mark.parametrize("max_num_batched_tokens", [67, 80])
@pytest.mark.parametrize("variant", ["paligemma", "paligemma-2"])
def test_a_step_for_one_prompt_that_sees_itself_changes_nothing(
    checkpoints: Checkpoints, engines: Engines, variant: str, max_num_batched_tokens: int
) -> None:
    cases = list(CASES["paligemma"]) * 2
    options = {"max_num_batched_tokens": max_num_batched_tokens, "max_num_batched_patches": 16}
    for _ in range(2):
        assert got(engines, variant, cases, **options) == want(checkpoints, variant, cases)


@pytest.mark.parametrize("variant", ["gemma2", "gemma3", "gemma3_text", "paligemma", "paligemma-2"])
def test_windows_and_open_spans_survive_preemption(checkpoints: Checkpoints, engines: Engines, variant: str) -> None:
    cases = [CASES[VARIANTS[variant][0]][i] for i in (0, 2, 0, 2, 2, 1, 0, 2)]
    longest = max(len(answer(checkpoints.folder(variant), case).token_ids) for case in cases) + 24
    bytes_ = (longest + 40) * 2 * 3 * 32 * 4
    for caching in (False, True):
        llm = engines.get(variant, kv_cache_memory_bytes=bytes_, block_size=4, enable_prefix_caching=caching)
        foresee_nothing(llm)
        outputs = run_together(llm, [prompt_of(case) for case in cases], [GREEDY] * len(cases))
        assert llm.engine.scheduler.stats.num_preemptions > 0
        assert [tokens(output) for output in outputs] == want(checkpoints, variant, cases)


@pytest.mark.parametrize("block_size", [1, 4, 64])
@pytest.mark.parametrize("variant", FAMILIES)
def test_block_sizes_change_nothing(checkpoints: Checkpoints, engines: Engines, variant: str, block_size: int) -> None:
    cases = list(CASES[variant])
    for _ in range(2):  # cold, then from the cache
        assert got(engines, variant, cases, block_size=block_size) == want(checkpoints, variant, cases)


@pytest.mark.parametrize("variant", FAMILIES)
def test_one_sequence_at_a_time_changes_nothing(checkpoints: Checkpoints, engines: Engines, variant: str) -> None:
    cases = list(CASES[variant])
    assert got(engines, variant, cases, max_num_seqs=1) == want(checkpoints, variant, cases)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_warm_prefix_cache_changes_nothing(checkpoints: Checkpoints, engines: Engines, variant: str) -> None:
    llm = engines.get(variant)
    for case in CASES[VARIANTS[variant][0]]:
        cold, warm = ask(llm, prompt_of(case)), ask(llm, prompt_of(case))
        assert cold.num_cached_tokens == 0
        # Whole blocks, and at least one token is left to compute.
        assert warm.num_cached_tokens == (len(warm.prompt_token_ids) - 1) // 16 * 16
        expected = answer(checkpoints.folder(variant), case).greedy
        assert tokens(cold) == expected
        assert tokens(warm) == expected
        assert all(report.cache_hit for report in warm.media)
        llm.reset_prefix_cache()


@pytest.mark.parametrize("variant", EVERY_FAMILY)
def test_a_warm_encoder_cache_changes_nothing(checkpoints: Checkpoints, engines: Engines, variant: str) -> None:
    """Without prefix caching, so that the pictures' rows are read again."""
    llm = engines.get(variant, enable_prefix_caching=False)
    for case in CASES[variant][:2]:
        encoded = llm.engine.stats.num_pictures_encoded
        cold, warm = ask(llm, prompt_of(case)), ask(llm, prompt_of(case))
        assert llm.engine.stats.num_pictures_encoded == encoded + len(case.sizes)
        assert [report.cache_hit for report in cold.media] == [False] * len(case.sizes)
        assert [report.cache_hit for report in warm.media] == [True] * len(case.sizes)
        assert warm.num_cached_tokens == 0
        assert tokens(cold) == tokens(warm) == answer(checkpoints.folder(variant), case).greedy


@pytest.mark.parametrize("variant", FAMILIES)
def test_preemption_changes_nothing(checkpoints: Checkpoints, engines: Engines, variant: str) -> None:
    """Memory for the longest request and little more: others are thrown out halfway and computed again."""
    cases = [CASES[variant][i] for i in ((0, 2, 2, 2, 0, 2) if variant == "phi3_v" else (0, 2, 0, 2, 2, 1, 0, 2))]
    longest = max(len(answer(checkpoints.folder(variant), case).token_ids) for case in cases) + 24
    llm = engines.get(
        variant, kv_cache_memory_bytes=(longest + 40) * TOKEN_BYTES[variant], block_size=4, enable_prefix_caching=False
    )
    foresee_nothing(llm)
    before = llm.engine.scheduler.stats.num_preemptions
    outputs = run_together(llm, [prompt_of(case) for case in cases], [GREEDY] * len(cases))
    assert llm.engine.scheduler.stats.num_preemptions > before
    assert sum(output.metrics.num_preemptions for output in outputs if output.metrics) > 0
    assert [tokens(output) for output in outputs] == want(checkpoints, variant, cases)


@pytest.mark.parametrize("variant", ["llava", "qwen2_vl"])
def test_preemption_of_sampled_requests_changes_nothing(engines: Engines, variant: str) -> None:
    """A preempted request goes on with its own random numbers; its tokens are not drawn anew."""
    prompts = [prompt_of(CASES[variant][i]) for i in (0, 2, 0, 2, 2, 0)]
    params = [dataclasses.replace(SAMPLED, seed=i, n=1 + i % 2) for i in range(len(prompts))]
    roomy = all_tokens(ask_all(engines.get(variant), prompts, params))
    llm = engines.get(variant, kv_cache_memory_bytes=100 * TOKEN_BYTES[variant], block_size=4, max_model_len=80)
    foresee_nothing(llm)
    before = llm.engine.scheduler.stats.num_preemptions
    assert all_tokens(run_together(llm, prompts, params)) == roomy
    assert llm.engine.scheduler.stats.num_preemptions > before


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("variant", FAMILIES)
def test_each_of_several_greedy_completions_is_the_answer(
    checkpoints: Checkpoints, engines: Engines, variant: str, caching: bool
) -> None:
    llm = engines.get(variant, enable_prefix_caching=caching)
    for case in CASES[variant]:
        output = ask(llm, prompt_of(case), dataclasses.replace(GREEDY, n=3))
        expected = answer(checkpoints.folder(variant), case).greedy
        assert [list(completion.token_ids) for completion in output.outputs] == [expected] * 3
        assert [completion.index for completion in output.outputs] == [0, 1, 2]


@pytest.mark.parametrize("variant", FAMILIES)
def test_a_seed_gives_the_same_tokens_beside_any_neighbours(engines: Engines, variant: str) -> None:
    llm = engines.get(variant)
    prompt, params = prompt_of(CASES[variant][0]), dataclasses.replace(SAMPLED, n=3)
    (alone,) = all_tokens([ask(llm, prompt, params)])
    assert len({tuple(completion) for completion in alone}) == 3, "completions are drawn independently"
    others = [dataclasses.replace(SAMPLED, seed=None, n=2), GREEDY, dataclasses.replace(SAMPLED, seed=12)]
    prompts = [prompt_of(CASES[variant][2]), prompt, prompt_of(CASES[variant][0]), prompt]
    together = ask_all(llm, prompts, [others[0], params, others[1], others[2]])
    assert all_tokens(together)[1] == alone
    assert all_tokens(together)[3][0] != alone[0]
    llm.reset_prefix_cache()
    assert all_tokens(ask_all(llm, [prompt, *prompts], [params, others[2], others[0], others[1], params]))[0] == alone


def test_completion_i_of_a_seed_is_the_same_for_every_n(engines: Engines) -> None:
    llm, prompt = engines.get("llava"), prompt_of(CASES["llava"][0])
    few, many = (all_tokens([ask(llm, prompt, dataclasses.replace(SAMPLED, n=n))])[0] for n in (1, 4))
    assert many[:1] == few


def test_requests_without_a_seed_repeat_from_engine_to_engine(checkpoints: Checkpoints) -> None:
    """The engine's own seed and the number of the request decide; another engine seed gives other tokens."""
    params = dataclasses.replace(SAMPLED, seed=None)
    prompts = [prompt_of(CASES["llava"][2])] * 2
    drawn = []
    for seed in (0, 0, 1):
        with load(checkpoints.folder("llava"), seed=seed) as llm:
            drawn.append(all_tokens(ask_all(llm, prompts, params)))
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert drawn[0][0] != drawn[0][1]


@pytest.mark.parametrize("variant", ["llava", "qwen2_vl", "phi3_v-switch-32"])
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6))
def test_no_combination_of_options_and_neighbours_changes_an_answer(
    checkpoints: Checkpoints, variant: str, seed: int
) -> None:
    """Random engines, random batches, twice over the same engine so that every cache is cold once and warm once."""
    rng, family = random.Random(seed), VARIANTS[variant][0]
    pool = [case for case in CASES[family] if not (family == "phi3_v" and case.name == "several")]
    cases = [rng.choice(pool) for _ in range(rng.randint(2, 7))]
    longest = max(len(answer(checkpoints.folder(variant), case).token_ids) for case in cases) + 25
    block_size = rng.choice([1, 2, 8, 16, 32])
    spare = rng.choice([block_size, 60, 400])
    embedding_bytes = {"llava": 16 * 64, "qwen2_vl": 64 * 64, "phi3_v": 781 * 192}[family] * 4
    with load(
        checkpoints.folder(variant),
        block_size=block_size,
        max_model_len=longest,
        kv_cache_memory_bytes=(longest + spare) * TOKEN_BYTES[family],
        max_num_batched_tokens=rng.choice([64, 200, 8192] if family == "phi3_v" else [16, 23, 64, 8192]),
        max_num_seqs=rng.choice([1, 2, 3, 256]),
        max_num_batched_patches=rng.choice([1, 40, 3000, 16384]),
        enable_prefix_caching=rng.random() < 0.7,
        encoder_cache_bytes=rng.choice([0, embedding_bytes, 2 * embedding_bytes, MIB]),
    ) as llm:
        for _ in range(2):
            outputs = ask_all(llm, [prompt_of(case) for case in cases])
            assert [tokens(output) for output in outputs] == want(checkpoints, variant, cases), llm.config
            check_idle(llm)


@pytest.mark.parametrize("variant", FAMILIES)
def test_prompt_logprobs_do_not_depend_on_chunks_and_neighbours(engines: Engines, variant: str) -> None:
    params = dataclasses.replace(GREEDY, max_tokens=3, prompt_logprobs=2)
    case = CASES[variant][0]
    whole = ask(engines.get(variant), prompt_of(case), params).prompt_logprobs
    llm = engines.get(variant, max_num_batched_tokens=17)
    for prompts in ([prompt_of(case)], [prompt_of(CASES[variant][2]), prompt_of(case)]):
        cut = ask_all(llm, prompts, params)[-1].prompt_logprobs
        assert whole is not None
        assert cut is not None
        assert len(cut) == len(whole)
        for one, other in zip(whole[1:], cut[1:], strict=True):
            assert one is not None
            assert other is not None
            assert list(one) == list(other)
            assert [v.logprob for v in one.values()] == pytest.approx([v.logprob for v in other.values()], abs=1e-3)


def test_prompt_logprobs_survive_preemption_halfway_through_the_prompt(engines: Engines) -> None:
    """An older answer grows until the younger prompt, half computed, must give its blocks back."""
    params = [dataclasses.replace(GREEDY, max_tokens=60), dataclasses.replace(GREEDY, max_tokens=2, prompt_logprobs=0)]
    prompts: list[object] = ["river", "sea" + " river" * 60]
    (want,) = [ask(engines.get("llava"), prompts[1], params[1]).prompt_logprobs]
    llm = engines.get(
        "llava",
        block_size=1,
        max_model_len=66,
        max_num_batched_tokens=16,
        kv_cache_memory_bytes=66 * TOKEN_BYTES["llava"],
    )
    foresee_nothing(llm)
    before = llm.engine.scheduler.stats.num_preemptions
    got = run_together(llm, prompts, params)[1].prompt_logprobs
    assert llm.engine.scheduler.stats.num_preemptions > before
    assert want is not None
    assert got is not None
    assert [list(entry) for entry in got[1:] if entry] == [list(entry) for entry in want[1:] if entry]
    assert len(got) == len(want)
