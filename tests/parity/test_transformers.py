"""Fovea answers as transformers does (Phi: as transformers' Phi-3 and CLIP do): ids, logits and tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fovea.core.errors import PlaceholderError
from fovea.core.params import SamplingParams
from fovea.families.registry import load_family
from fovea.llm import LLM
from tests.oracle.checkpoints import CASES, Case
from tests.oracle.reference import load as oracle
from tests.oracle.reference import reference
from tests.parity.support import (
    EVERY_CASE,
    EVERY_FAMILY,
    FAMILIES,
    GREEDY,
    GRIDDED,
    QWEN,
    VARIANTS,
    Checkpoints,
    Engines,
    answer,
    ask,
    ask_all,
    assert_logits_agree,
    case_name,
    frames,
    load,
    num_decided,
    prompt_logits,
    question,
    tokens,
)

SEE = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.mark.parametrize(("variant", "case"), EVERY_CASE, ids=case_name)
def test_prompt_ids_are_the_reference_ids(checkpoints: Checkpoints, engines: Engines, variant: str, case: Case) -> None:
    output = ask(engines.get(variant), question(case), SamplingParams(temperature=0.0, max_tokens=1))
    assert list(output.prompt_token_ids) == answer(checkpoints.folder(variant), case).token_ids
    assert output.prompt == case.prompt


@pytest.mark.parametrize(("variant", "case"), EVERY_CASE, ids=case_name)
def test_logits_agree_at_every_prompt_position(
    checkpoints: Checkpoints, engines: Engines, variant: str, case: Case
) -> None:
    want = answer(checkpoints.folder(variant), case).logits
    assert_logits_agree(variant, prompt_logits(engines.get(variant), question(case)), want)


@pytest.mark.parametrize(("variant", "case"), EVERY_CASE, ids=case_name)
def test_greedy_tokens_are_the_reference_tokens(
    checkpoints: Checkpoints, engines: Engines, variant: str, case: Case
) -> None:
    output = ask(engines.get(variant), question(case))
    assert tokens(output) == answer(checkpoints.folder(variant), case).greedy
    assert output.outputs[0].finish_reason == "length"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_of_all_cases_answers_each_as_the_reference(
    checkpoints: Checkpoints, engines: Engines, variant: str
) -> None:
    cases = CASES[VARIANTS[variant][0]] * 2
    outputs = ask_all(engines.get(variant), [question(case) for case in cases])
    assert [tokens(output) for output in outputs] == [
        answer(checkpoints.folder(variant), case).greedy for case in cases
    ]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    "variant",
    [
        *(*EVERY_FAMILY, "llava-grouped", "qwen2_5_vl-nested"),
        *("llama-llama3", "llama-biased", "mistral", "phi3", "phi3-partial", "qwen2-untied", "qwen3", "qwen3-biased"),
        *("qwen3_vl_moe", "qwen3_moe", "glm4v_moe", "glm4"),
    ],
)
def test_other_weights_agree_too(checkpoints: Checkpoints, engines: Engines, variant: str, seed: int) -> None:
    llm = engines.get(variant, seed=seed)
    for case in CASES[VARIANTS[variant][0]]:
        want = answer(checkpoints.folder(variant, seed), case)
        assert_logits_agree(variant, prompt_logits(llm, question(case)), want.logits)
        llm.reset_prefix_cache()
        decided = num_decided(want.margins)
        assert tokens(ask(llm, question(case)))[:decided] == want.greedy[:decided]
        assert decided >= 8, "the checkpoint says too little"


@pytest.mark.parametrize("variant", [*GRIDDED, "qwen3_vl_moe", "glm4v_moe"])
def test_a_folder_that_transformers_saved_answers_as_the_published_one(
    checkpoints: Checkpoints, tmp_path: Path, variant: str
) -> None:
    for part in oracle(checkpoints.folder(variant)):
        part.save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists(), "it is inside processor_config.json"
    (tmp_path / "generation_config.json").unlink()
    with load(tmp_path) as llm:
        published = load_family(checkpoints.folder(variant))
        assert llm.family.spec == dataclasses.replace(published.spec, dtype="float32")
        assert llm.family.stop_tokens() <= published.stop_tokens()
        assert llm.family.stop_tokens()
        for case in CASES[variant]:
            assert tokens(ask(llm, question(case))) == answer(checkpoints.folder(variant), case).greedy


@pytest.mark.parametrize("count", [4, 6])
@pytest.mark.parametrize("variant", QWEN)
def test_video_frames_given_as_images_agree(
    checkpoints: Checkpoints, engines: Engines, variant: str, count: int
) -> None:
    prompt = f"<|im_start|>user\n{SEE * count}What is shown?<|im_end|>\n<|im_start|>assistant\n"
    images = frames(count, 70, 100)
    want = reference(checkpoints.folder(variant), prompt, images)
    output = ask(engines.get(variant), {"prompt": prompt, "multi_modal_data": {"image": images}})
    assert list(output.prompt_token_ids) == want.token_ids
    decided = num_decided(want.margins)
    assert decided >= 8
    assert tokens(output)[:decided] == want.greedy[:decided]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("variant", [*QWEN, "qwen2_5_vl-nested"])
def test_prompts_that_no_checkpoint_was_chosen_for_agree(
    checkpoints: Checkpoints, engines: Engines, variant: str, seed: int
) -> None:
    """Drawn at random: up to four pictures of any size, anywhere in the text; alone, then together, cold and warm."""
    rng, llm = np.random.Generator(np.random.PCG64(seed)), engines.get(variant)
    cases = [_drawn(rng, f"{seed}-{number}") for number in range(4)]
    wants = [reference(checkpoints.folder(variant), c.prompt, c.images(), max_new_tokens=16) for c in cases]
    for case, want in zip(cases, wants, strict=True):
        llm.reset_prefix_cache()
        assert_logits_agree(variant, prompt_logits(llm, question(case)), want.logits)
    for _ in range(2):
        outputs = ask_all(llm, [question(case) for case in cases])
        for output, want in zip(outputs, wants, strict=True):
            decided = num_decided(want.margins)
            assert list(output.prompt_token_ids) == want.token_ids
            assert tokens(output)[:decided] == want.greedy[:decided]


def _drawn(rng: np.random.Generator, name: str) -> Case:
    words = ["What", " is", " shown", " in", " the", " river", "?", " 7", "\n"]
    parts = [*rng.choice(words, rng.integers(1, 30)), *[SEE] * rng.integers(0, 5)]
    sizes = [(int(w), int(h), int(s)) for w, h, s in rng.integers(4, 420, (parts.count(SEE), 3))]
    body = "".join(rng.permutation(parts))
    return Case(name, f"<|im_start|>user\n{body}<|im_end|>\n<|im_start|>assistant\n", tuple(sizes))


@pytest.mark.parametrize("size", [(28, 28), (300, 31), (31, 300), (57, 56), (56, 57), (700, 500)])
@pytest.mark.parametrize("variant", EVERY_FAMILY)
def test_pictures_of_odd_sizes_give_the_reference_logits(
    checkpoints: Checkpoints, engines: Engines, variant: str, size: tuple[int, int]
) -> None:
    if (variant, size) == ("mistral3", (28, 28)):
        pytest.skip("transformers fails on a picture of one row")
    case = Case("odd", CASES[variant][0].prompt, ((*size, 9),))
    want = reference(checkpoints.folder(variant), case.prompt, case.images(), max_new_tokens=1)
    assert_logits_agree(variant, prompt_logits(engines.get(variant), question(case)), want.logits)


@pytest.mark.parametrize("variant", EVERY_FAMILY)
def test_token_ids_in_place_of_text_give_the_same_answer(
    checkpoints: Checkpoints, engines: Engines, variant: str
) -> None:
    """One placeholder id for each picture, as a caller with a tokenizer of its own would send it, or all of them."""
    llm = engines.get(variant)
    for case in CASES[variant]:
        want = answer(checkpoints.folder(variant), case)
        for ids in (_one_placeholder_each(llm, want.token_ids, case), want.token_ids):
            prompt: dict[str, object] = {"prompt_token_ids": ids}
            if case.sizes:
                prompt["multi_modal_data"] = {"image": case.images()}
            output = ask(llm, prompt)
            assert list(output.prompt_token_ids) == want.token_ids
            assert tokens(output) == want.greedy
            assert output.prompt is None


@pytest.mark.parametrize("variant", EVERY_FAMILY)
def test_expanded_ids_have_to_be_those_of_the_pictures(
    checkpoints: Checkpoints, engines: Engines, variant: str
) -> None:
    case, llm = CASES[variant][1], engines.get(variant)
    ids = answer(checkpoints.folder(variant), case).token_ids
    placeholder = llm.get_tokenizer().token_id(llm.family.placeholder)
    first = ids.index(placeholder or -1)
    for wrong in ([*ids[:first], *ids[first + 1 :]], [*ids, placeholder], [*ids[:first], placeholder, *ids[first:]]):
        prompt = {"prompt_token_ids": wrong, "multi_modal_data": {"image": case.images()}}
        with pytest.raises(PlaceholderError):
            ask(llm, prompt)


def test_a_flat_list_of_ids_is_one_prompt(checkpoints: Checkpoints, engines: Engines) -> None:
    want = answer(checkpoints.folder("llava"), CASES["llava"][2])
    assert tokens(ask(engines.get("llava"), want.token_ids)) == want.greedy
    outputs = ask_all(engines.get("llava"), [want.token_ids, want.token_ids])
    assert [tokens(output) for output in outputs] == [want.greedy, want.greedy]


@pytest.mark.parametrize("variant", EVERY_FAMILY)
def test_media_reports_tell_sizes_and_tokens(checkpoints: Checkpoints, engines: Engines, variant: str) -> None:
    case = CASES[variant][1]
    output = ask(engines.get(variant), question(case))
    assert [(r.original_width_px, r.original_height_px) for r in output.media] == [size[:2] for size in case.sizes]
    tokenizer, family = engines.get(variant).get_tokenizer(), engines.get(variant).family
    if variant in (
        "idefics3",
        "smolvlm",
    ):  # 4 rows a view, two names between views, a newline for each line and one more
        fields = [(4, 1), (1, 4), (4, 4)]
        assert [r.num_tokens for r in output.media] == [
            6 * (lines * columns + 1) - 2 + lines + 1 for lines, columns in fields
        ]
        return
    if variant == "aya_vision":  # tiles are named in words between their rows
        ids, token = list(output.prompt_token_ids), tokenizer.token_id(family.placeholder)
        ends = [i for i, t in enumerate(ids) if t == tokenizer.token_id("<|END_OF_IMG|>")]
        starts = [i for i, t in enumerate(ids) if t == tokenizer.token_id("<|START_OF_IMG|>")]
        firsts = [ids.index(token, start) for start in starts]
        assert [r.num_tokens for r in output.media] == [e - f for f, e in zip(firsts, ends, strict=True)]
        return
    around = {
        "internvl": ("<img>", "</img>"),
        "mistral3": ("[IMG_END]",),
        "qwen3_vl": ("<|vision_start|>", "<|vision_end|>"),  # inside a video only
    }.get(variant, ())
    inside = [tokenizer.token_id(text) for text in (family.placeholder, *family.layout_tokens) if text not in around]
    assert sum(r.num_tokens for r in output.media) == sum(output.prompt_token_ids.count(token) for token in inside)
    assert not any(r.cache_hit for r in output.media)


@pytest.mark.parametrize("variant", FAMILIES)
def test_prompt_logprobs_are_the_reference_logits(checkpoints: Checkpoints, engines: Engines, variant: str) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=4, prompt_logprobs=3, logprobs=5, ignore_eos=True)
    for case in CASES[variant]:
        want = answer(checkpoints.folder(variant), case)
        output = ask(engines.get(variant), question(case), params)
        scores = _log_softmax(want.logits)
        assert output.prompt_logprobs is not None
        assert output.prompt_logprobs[0] is None
        assert len(output.prompt_logprobs) == len(want.token_ids)
        for place, entry in enumerate(output.prompt_logprobs[1:]):
            assert entry is not None
            assert want.token_ids[place + 1] in entry
            assert 3 <= len(entry) <= 4
            for token, value in entry.items():
                assert value.logprob == pytest.approx(scores[place, token], abs=1e-3)
        first = (output.outputs[0].logprobs or [])[0]
        assert len(first) == 5
        for token, value in first.items():
            assert value.logprob == pytest.approx(scores[-1, token], abs=1e-3)
        assert first[want.greedy[0]].rank == 1


def test_the_greedy_logprobs_add_up(engines: Engines) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=6, logprobs=0, ignore_eos=True)
    (completion,) = ask(engines.get("llava"), question(CASES["llava"][0]), params).outputs
    assert completion.logprobs is not None
    chosen = [entry[token].logprob for entry, token in zip(completion.logprobs, completion.token_ids, strict=True)]
    assert completion.cumulative_logprob == pytest.approx(sum(chosen))


def test_without_logprobs_none_are_given(engines: Engines) -> None:
    output = ask(engines.get("llava"), question(CASES["llava"][0]), GREEDY)
    assert output.prompt_logprobs is None
    assert output.outputs[0].logprobs is None
    assert output.outputs[0].cumulative_logprob is None


def _one_placeholder_each(llm: LLM, token_ids: list[int], case: Case) -> list[int]:
    """The expanded ids with each run of placeholders as one; the cases never put two pictures side by side bare.

    Where text stands around or between a picture's rows, the prompt's own ids.
    """
    tokenizer, family = llm.get_tokenizer(), llm.family
    placeholder = tokenizer.token_id(family.placeholder)
    if family.layout_tokens:
        text = case.prompt.replace(family.text_placeholder or family.placeholder, family.placeholder)
        return list(tokenizer.encode(text))
    ids = [t for i, t in enumerate(token_ids) if t != placeholder or i == 0 or token_ids[i - 1] != placeholder]
    assert ids.count(placeholder) == len(case.sizes)
    return ids


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))
