"""Models that transformers runs answer as transformers does, under Fovea's scheduler, sampler and limits."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Generator
from typing import Any, cast

import pytest
from PIL import Image

from fovea.core.errors import MediaSourceError, PlaceholderError, PromptError, PromptTooLongError, SamplingError
from fovea.core.params import SamplingParams
from fovea.prompt.forms import PromptForm
from fovea.prompt.pieces import Piece
from tests.oracle.checkpoints import CASES
from tests.parity.support import GREEDY, VARIANTS, Checkpoints, Engines, answer, ask, ask_all, question, tokens

MODELS = ("llava", "qwen2_vl", "qwen2_5_vl")
COMPATIBLE: dict[str, Any] = {"model_impl": "compatible", "enable_prefix_caching": True}


@pytest.mark.parametrize("variant", MODELS)
def test_the_compatible_path_gives_what_transformers_gives(
    engines: Engines, checkpoints: Checkpoints, variant: str
) -> None:
    llm = engines.get(variant, **COMPATIBLE)
    cases = CASES[VARIANTS[variant][0]]
    wanted = [answer(checkpoints.folder(variant), case) for case in cases]
    for _ in range(2):  # cold and again
        together = ask_all(llm, [question(case) for case in cases])
        assert [list(output.prompt_token_ids) for output in together] == [want.token_ids for want in wanted]
        assert [tokens(output) for output in together] == [want.greedy for want in wanted]
    alone = [tokens(ask(llm, question(case))) for case in cases]
    assert alone == [want.greedy for want in wanted]


def test_what_transformers_runs_is_sampled_stopped_and_scored_by_fovea(engines: Engines) -> None:
    fused, bridged = engines.get("qwen2_vl"), engines.get("qwen2_vl", **COMPATIBLE)
    case = question(CASES["qwen2_vl"][0])
    params = SamplingParams(n=3, temperature=1.0, top_k=50, seed=7, max_tokens=12, ignore_eos=True, logprobs=2)
    ours, theirs = ask(fused, case, params), ask(bridged, case, params)
    assert [c.token_ids for c in ours.outputs] == [c.token_ids for c in theirs.outputs]
    for one, other in zip(ours.outputs, theirs.outputs, strict=True):
        assert one.cumulative_logprob == pytest.approx(other.cumulative_logprob, abs=1e-3)
    stopping = tokens(ask(bridged, case))[3]
    stopped = ask(bridged, case, dataclasses.replace(GREEDY, stop_token_ids=[stopping]))
    assert stopped.outputs[0].finish_reason == "stop"
    assert len(tokens(stopped)) <= 4


def test_a_preempted_sequence_goes_on_as_if_nothing_had_been(engines: Engines, checkpoints: Checkpoints) -> None:
    cases = CASES["llava"]
    tight = engines.get("llava", **COMPATIBLE, max_model_len=128, kv_cache_memory_bytes=9 * 16 * 1536, max_num_seqs=8)
    scheduler = tight.engine.scheduler
    scheduler.budgets = dataclasses.replace(scheduler.budgets, ahead_tokens=0)
    prompts = [question(case) for case in (*cases, *cases)]
    got = [tokens(output) for output in ask_all(tight, prompts)]
    assert got == 2 * [answer(checkpoints.folder("llava"), case).greedy for case in cases]
    assert scheduler.stats.num_preemptions > 0


def test_text_between_the_same_pictures_is_no_part_of_them(engines: Engines) -> None:
    """On the generic path one item stands for all pictures of a prompt and holds the rows of the text between."""
    llm = engines.get("llava", model_impl="generic")
    images = [Image.effect_noise((60, 40), 60 + i).convert("RGB") for i in range(2)]
    prompts = [
        {"prompt": f"USER: <image>{between}<image> what? ASSISTANT:", "multi_modal_data": {"image": images}}
        for between in (" red ", " sea ", " a much longer story ")
    ]
    cold = []
    for prompt in prompts:
        llm.reset_prefix_cache()
        cold.append(tokens(ask(llm, prompt)))
    assert len({tuple(answer) for answer in cold}) == 3
    assert [tokens(ask(llm, prompt)) for prompt in prompts] == cold
    assert [tokens(output) for output in ask_all(llm, prompts)] == cold


def test_no_thread_is_left_when_answers_end(engines: Engines) -> None:
    llm = engines.get("llava", **COMPATIBLE)
    stream = cast("Generator[object]", llm.generate_iter([question(CASES["llava"][0])] * 3))
    next(stream)
    stream.close()
    deadline = time.monotonic() + 20
    while (names := [t.name for t in threading.enumerate()]).count("fovea-generate") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "fovea-generate" not in names


def test_a_typed_special_token_is_refused(engines: Engines) -> None:
    """The processor reads the whole text and would take it for a picture's place."""
    llm = engines.get("llava", **COMPATIBLE)
    form = PromptForm((Piece("USER: ", True), Piece("what is <image>", False), Piece(" ASSISTANT:", True)))
    with pytest.raises(PromptError, match="special token '<image>'"):
        llm._preparer.prepare(form, GREEDY, "typed", time.perf_counter())


def test_what_the_path_cannot_do_is_refused_by_name(engines: Engines) -> None:
    llm = engines.get("llava", **COMPATIBLE)
    case = question(CASES["llava"][0])
    with pytest.raises(SamplingError, match="prompt_logprobs"):
        ask(llm, case, SamplingParams(prompt_logprobs=1))
    with pytest.raises(PlaceholderError, match="as text"):
        ask(llm, {"prompt_token_ids": [1, 2], "multi_modal_data": case["multi_modal_data"]})
    with pytest.raises(PromptError, match="one place for each picture"):
        ask(llm, {"prompt": "no place", "multi_modal_data": case["multi_modal_data"]})
    with pytest.raises(MediaSourceError):
        ask(llm, {"prompt": "<image>", "multi_modal_data": {"image": "no picture"}})


def test_pictures_of_too_many_tokens_are_refused_by_their_sizes(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = engines.get("qwen2_vl", **COMPATIBLE, max_model_len=32)
    monkeypatch.setattr(llm._preparer._pictures, "make", lambda *args, **more: pytest.fail("a picture was decoded"))
    case = CASES["qwen2_vl"][0]
    large = [image.resize((600, 600)) for image in case.images()]
    with pytest.raises(PromptTooLongError, match="max_model_len is 32"):
        ask(llm, {"prompt": case.prompt, "multi_modal_data": {"image": large}})


def test_pictures_above_their_budget_are_made_smaller(engines: Engines) -> None:
    llm = engines.get("qwen2_vl", **COMPATIBLE)
    case = CASES["qwen2_vl"][0]
    [large] = case.images()[:1]
    family = llm._preparer.family
    plan = family.plan_within(large.width, large.height, {}, None)
    assert (plan.canvas_width_px, plan.canvas_height_px) == large.size
