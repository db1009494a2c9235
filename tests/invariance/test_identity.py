"""One identity: caches share what is the same and nothing else. Each test would fail if a part left the key."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fovea.core.params import SamplingParams
from fovea.core.types import RequestOutput
from fovea.llm import LLM
from tests.oracle.checkpoints import CASES, Case, picture
from tests.oracle.reference import image_features, reference
from tests.parity.support import FAMILIES, GREEDY, QWEN, Checkpoints, Engines, answer, ask, question, tokens

# Without prefix caching, so that the encoder cache alone is judged; with it, so that KV blocks are.
CACHES = pytest.mark.parametrize("caching", [True, False], ids=["prefix cache", "encoder cache"])


def with_picture(family: str, image: object, **more: object) -> dict[str, object]:
    return {"prompt": CASES[family][0].prompt, "multi_modal_data": {"image": image}, **more}


def counters(llm: LLM) -> tuple[int, int]:
    cache = llm.engine.scheduler.encoder_cache
    return cache.num_hits, cache.num_misses


def span_start(llm: LLM, output: RequestOutput) -> int:
    """Where the first picture begins."""
    return output.prompt_token_ids.index(llm.get_tokenizer().token_id(llm.family.placeholder) or -1)


def assert_not_shared(llm: LLM, first: object, second: object) -> tuple[RequestOutput, RequestOutput]:
    """Nothing of the picture of `first` is used for `second`."""
    one = ask(llm, first)
    hits, misses = counters(llm)
    two = ask(llm, second)
    assert counters(llm) == (hits, misses + len(two.media))
    assert not any(report.cache_hit for report in two.media)
    assert two.num_cached_tokens <= span_start(llm, two)
    return one, two


def assert_shared(llm: LLM, first: object, second: object) -> None:
    one = ask(llm, first)
    _, misses = counters(llm)
    two = ask(llm, second)
    assert counters(llm)[1] == misses
    assert all(report.cache_hit for report in two.media)
    assert (two.num_cached_tokens > span_start(llm, two)) == llm.config.enable_prefix_caching
    assert tokens(one) == tokens(two)


@CACHES
@pytest.mark.parametrize("family", FAMILIES)
def test_another_picture_of_the_same_size_is_not_shared(
    checkpoints: Checkpoints, engines: Engines, family: str, caching: bool
) -> None:
    llm = engines.get(family, enable_prefix_caching=caching)
    cases = [Case("", CASES[family][0].prompt, ((100, 70, seed),)) for seed in (1, 2)]
    outputs = assert_not_shared(llm, question(cases[0]), question(cases[1]))
    for output, case in zip(outputs, cases, strict=True):
        want = reference(checkpoints.folder(family), case.prompt, case.images(), max_new_tokens=12)
        assert tokens(output)[: len(want.greedy)] == want.greedy


@CACHES
@pytest.mark.parametrize("family", FAMILIES)
def test_one_changed_pixel_is_another_picture(engines: Engines, family: str, caching: bool) -> None:
    llm = engines.get(family, enable_prefix_caching=caching)
    pixels = np.array(picture(100, 70, 1))
    changed = pixels.copy()
    changed[-1, -1, -1] ^= 1
    assert_not_shared(llm, with_picture(family, pixels), with_picture(family, changed))


@CACHES
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_bytes_in_another_shape_are_not_shared(engines: Engines, family: str, caching: bool) -> None:
    llm = engines.get(family, enable_prefix_caching=caching)
    pixels = np.array(picture(112, 56, 1))
    turned = pixels.reshape(112, 56, 3)
    assert pixels.tobytes() == turned.tobytes()
    one, two = assert_not_shared(llm, with_picture(family, pixels), with_picture(family, turned))
    assert tokens(one) != tokens(two)


@CACHES
@pytest.mark.parametrize("family", FAMILIES)
def test_another_cache_salt_is_not_shared(engines: Engines, family: str, caching: bool) -> None:
    llm = engines.get(family, enable_prefix_caching=caching)
    image = picture(100, 70, 1)
    prompts = [with_picture(family, image, cache_salt=salt) for salt in ("tenant a", "tenant b")]
    one, two = assert_not_shared(llm, *prompts)
    assert two.num_cached_tokens == 0, "not even the text before the picture"
    assert tokens(one) == tokens(two)
    assert_not_shared(llm, prompts[0], with_picture(family, image, cache_salt="tenant c"))
    assert_shared(llm, with_picture(family, image, cache_salt="d"), with_picture(family, image, cache_salt="d"))


def test_texts_are_not_shared_between_salts(engines: Engines) -> None:
    llm, text = engines.get("llava"), CASES["llava"][2].prompt * 3
    ask(llm, {"prompt": text, "cache_salt": "a"})
    assert ask(llm, {"prompt": text, "cache_salt": "b"}).num_cached_tokens == 0
    assert ask(llm, text).num_cached_tokens == 0
    assert ask(llm, {"prompt": text, "cache_salt": "a"}).num_cached_tokens > 0


@CACHES
@pytest.mark.parametrize(
    ("family", "kwargs"), [("qwen2_vl", {"max_pixels": 20 * 784}), ("phi3_v", {"num_crops": 1})], ids=lambda v: str(v)
)
def test_other_processor_options_are_not_shared(
    engines: Engines, family: str, kwargs: dict[str, int], caching: bool
) -> None:
    llm = engines.get(family, enable_prefix_caching=caching)
    image = picture(300, 200, 1)
    one, two = assert_not_shared(
        llm, with_picture(family, image), with_picture(family, image, mm_processor_kwargs=kwargs)
    )
    assert two.media[0].num_tokens < one.media[0].num_tokens


@CACHES
def test_options_that_change_nothing_are_shared(engines: Engines, caching: bool) -> None:
    """The key holds what is done with the picture, not how it was asked for."""
    llm, image = engines.get("qwen2_vl", enable_prefix_caching=caching), picture(100, 70, 1)
    with_options = with_picture("qwen2_vl", image, mm_processor_kwargs={"max_pixels": 40 * 784})
    assert_shared(llm, with_picture("qwen2_vl", image), with_options)


@CACHES
@pytest.mark.parametrize("family", FAMILIES)
def test_another_client_id_is_not_shared(engines: Engines, family: str, caching: bool) -> None:
    llm, image = engines.get(family, enable_prefix_caching=caching), picture(100, 70, 1)
    one, two = assert_not_shared(
        llm,
        with_picture(family, image, multi_modal_uuids={"image": ["a"]}),
        with_picture(family, image, multi_modal_uuids={"image": ["b"]}),
    )
    assert tokens(one) == tokens(two)


@CACHES
@pytest.mark.parametrize("family", FAMILIES)
def test_a_client_id_is_never_trusted_alone(engines: Engines, family: str, caching: bool) -> None:
    """The attack: the id of somebody else's picture with a picture of one's own, and the other way round."""
    llm = engines.get(family, enable_prefix_caching=caching)
    prompts = [with_picture(family, picture(100, 70, seed), multi_modal_uuids={"image": ["same"]}) for seed in (1, 2)]
    one, two = assert_not_shared(llm, *prompts)
    assert tokens(one) != tokens(two)


@CACHES
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_picture_is_shared(engines: Engines, family: str, caching: bool) -> None:
    llm = engines.get(family, enable_prefix_caching=caching)
    assert_shared(llm, with_picture(family, picture(100, 70, 1)), with_picture(family, picture(100, 70, 1)))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


FORMS: dict[str, Callable[[Image.Image], object]] = {
    "png": _png,
    "array": np.asarray,
    "tensor": lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1),
    "rgba": lambda image: image.convert("RGBA"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_pixels_are_shared_in_whatever_form_they_come(engines: Engines, form: str) -> None:
    image = picture(100, 70, 1)
    assert_shared(engines.get("llava"), with_picture("llava", image), with_picture("llava", FORMS[form](image)))


def test_a_data_url_in_chat_shares_with_a_picture_in_generate(engines: Engines) -> None:
    llm, image = engines.get("qwen2_vl"), picture(100, 70, 1)
    ask(llm, with_picture("qwen2_vl", image))
    url = f"data:image/png;base64,{base64.b64encode(_png(image)).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Else?"}]
    (output,) = llm.chat([{"role": "user", "content": content}], GREEDY, use_tqdm=False)
    assert [report.cache_hit for report in output.media] == [True]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_is_encoded_once_for_different_questions(engines: Engines, family: str) -> None:
    llm, image = engines.get(family, enable_prefix_caching=False), picture(100, 70, 1)
    before = llm.engine.stats.num_pictures_encoded
    prompts = [{**with_picture(family, image), "prompt": f"{CASES[family][0].prompt} {i}"} for i in range(4)]
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert llm.engine.stats.num_pictures_encoded == before + 1
    assert [output.media[0].cache_hit for output in outputs] == [False, True, True, True]


def test_a_picture_twice_in_one_prompt_is_encoded_once(checkpoints: Checkpoints, engines: Engines) -> None:
    llm = engines.get("llava")
    case = Case("twice", "USER: <image>\n<image>\nHow do they differ? ASSISTANT:", ((90, 60, 1), (90, 60, 1)))
    before = llm.engine.stats.num_pictures_encoded
    output = ask(llm, question(case))
    assert llm.engine.stats.num_pictures_encoded == before + 1
    assert tokens(output) == answer(checkpoints.folder("llava"), case).greedy


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_picture_elsewhere_in_the_prompt_shares_rows_but_no_blocks(
    checkpoints: Checkpoints, engines: Engines, family: str
) -> None:
    """Keys depend on the position: one more word in front and no block of the picture may be reused."""
    llm = engines.get(family)
    cases = []
    for word in ("river", "river river"):
        body = CASES[family][0].prompt
        start = body.index("<image>" if family == "llava" else "<|vision" if family in QWEN else "<|image_1|>")
        cases.append(Case(word, f"{body[:start]}{word} {body[start:]}", ((100, 70, 1),)))
    ask(llm, question(cases[0]))
    second = ask(llm, question(cases[1]))
    assert second.media[0].cache_hit
    assert second.num_cached_tokens <= span_start(llm, second)
    want = reference(checkpoints.folder(family), cases[1].prompt, cases[1].images(), max_new_tokens=12)
    assert tokens(second)[: len(want.greedy)] == want.greedy


def test_a_picture_cut_by_a_block_at_another_place_is_not_mistaken(checkpoints: Checkpoints, engines: Engines) -> None:
    """Two pictures side by side against one twice as often: ids are equal, offsets in the pictures differ."""
    llm = engines.get("llava", block_size=4)
    for sizes in (((90, 60, 1), (90, 60, 2)), ((90, 60, 2), (90, 60, 1)), ((90, 60, 1), (90, 60, 1))):
        case = Case("pair", "USER: <image><image>\nWhat? ASSISTANT:", sizes)
        assert tokens(ask(llm, question(case))) == answer(checkpoints.folder("llava"), case).greedy


@CACHES
def test_embeddings_that_differ_in_one_value_are_not_shared(
    checkpoints: Checkpoints, engines: Engines, caching: bool
) -> None:
    llm = engines.get("llava", enable_prefix_caching=caching)
    (rows,) = image_features(checkpoints.folder("llava"), [picture(100, 70, 1)])
    changed = rows.copy()
    changed[3, 5] += 8.0
    one, two = (ask(llm, with_picture("llava", value)) for value in (rows, changed))
    assert two.num_cached_tokens <= span_start(llm, two)
    assert tokens(one) != tokens(two)
    assert tokens(ask(llm, with_picture("llava", rows))) == tokens(one)


def test_the_grid_of_embeddings_is_part_of_their_identity(checkpoints: Checkpoints, engines: Engines) -> None:
    """The same rows as 2 x 4 or 4 x 2 cells have other positions."""
    llm = engines.get("qwen2_vl")
    (rows,) = image_features(checkpoints.folder("qwen2_vl"), [picture(112, 56, 1)])
    params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=0)
    prompts = [
        with_picture("qwen2_vl", {"image_embeds": rows, "image_grid_thw": [[1, height, width]]})
        for height, width in ((4, 8), (8, 4), (4, 8))
    ]
    outputs = [ask(llm, prompt, params) for prompt in prompts]
    assert outputs[1].num_cached_tokens <= span_start(llm, outputs[1]) < outputs[2].num_cached_tokens
    wide, tall, again = (output.outputs[0].cumulative_logprob or 0.0 for output in outputs)
    assert abs(wide - tall) > 1e-3 > abs(wide - again)


def _phi_text(words: int) -> Case:
    return Case(str(words), f"<|user|>\nTell me{' river' * words}<|end|>\n<|assistant|>\n")


def test_blocks_are_not_shared_across_rotary_regimes(checkpoints: Checkpoints, engines: Engines) -> None:
    """Below and above the switch the same tokens have other keys. Within a regime they are shared."""
    llm, folder = engines.get("phi3_v-switch-32", block_size=4), checkpoints.folder("phi3_v-switch-32")
    short = [_phi_text(words) for words in (8, 10)]
    long = [_phi_text(words) for words in (40, 44)]
    for first, second in ((short[0], long[0]), (long[0], short[0])):
        llm.reset_prefix_cache()
        ask(llm, question(first), dataclasses.replace(GREEDY, max_tokens=1))
        output = ask(llm, question(second))
        assert output.num_cached_tokens == 0
        assert tokens(output)[:8] == answer(folder, second).greedy[:8]
    for first, second in (short, long):
        llm.reset_prefix_cache()
        ask(llm, question(first), dataclasses.replace(GREEDY, max_tokens=1))
        output = ask(llm, question(second))
        assert output.num_cached_tokens >= 8
        assert tokens(output)[:8] == answer(folder, second).greedy[:8]


def test_an_answer_that_crossed_leaves_blocks_of_its_last_regime_only(
    checkpoints: Checkpoints, engines: Engines
) -> None:
    llm, folder = engines.get("phi3_v-switch-32", block_size=4), checkpoints.folder("phi3_v-switch-32")
    case = CASES["phi3_v"][2]
    want = answer(folder, case).greedy
    for _ in range(3):
        assert tokens(ask(llm, question(case))) == want


def test_a_reset_forgets_everything(engines: Engines) -> None:
    llm, prompt = engines.get("llava"), question(CASES["llava"][0])
    ask(llm, prompt)
    llm.reset_prefix_cache()
    output = ask(llm, prompt)
    assert output.num_cached_tokens == 0
    assert [report.cache_hit for report in output.media] == [False]


def test_without_prefix_caching_nothing_is_cached(engines: Engines) -> None:
    llm, prompt = engines.get("llava", enable_prefix_caching=False), question(CASES["llava"][2])
    assert [ask(llm, prompt).num_cached_tokens for _ in range(3)] == [0, 0, 0]
    assert llm.engine.scheduler.pool.num_cached == 0


def test_pictures_that_no_longer_fit_are_encoded_again(checkpoints: Checkpoints, engines: Engines) -> None:
    """Room for one picture: the least recently used one goes."""
    llm = engines.get("llava", enable_prefix_caching=False, encoder_cache_bytes=0, max_num_batched_patches=16)
    capacity = llm.engine.scheduler.encoder_cache.capacity_bytes
    assert capacity == 16 * 64 * 4
    hits: list[bool] = []
    for seed in (1, 2, 2, 1, 1):
        case = Case("", CASES["llava"][0].prompt, ((90, 60, seed),))
        output = ask(llm, question(case))
        assert tokens(output) == answer(checkpoints.folder("llava"), case).greedy
        hits.append(output.media[0].cache_hit)
    assert hits == [False, False, True, False, True]


def test_answers_of_generated_tokens_are_reused_by_a_following_turn(engines: Engines) -> None:
    """Blocks hold the answer too: the next turn of the conversation begins with them."""
    llm = engines.get("llava", block_size=4)
    first = ask(llm, question(CASES["llava"][2]))
    ids = [*first.prompt_token_ids, *tokens(first)]
    second = ask(llm, {"prompt_token_ids": [*ids, 300, 301]})
    # The last token of the answer was sampled but never computed.
    assert second.num_cached_tokens == (len(ids) - 1) // 4 * 4


def _reports(output: RequestOutput) -> list[Any]:
    return [report.cache_hit for report in output.media]


def test_a_hit_is_told_for_each_picture(engines: Engines) -> None:
    llm = engines.get("llava", enable_prefix_caching=False)
    ask(llm, with_picture("llava", picture(90, 60, 1)))
    prompt = "USER: <image>\n<image>\nHow do they differ? ASSISTANT:"
    images: list[NDArray[np.uint8] | Image.Image] = [picture(90, 60, 2), picture(90, 60, 1)]
    assert _reports(ask(llm, {"prompt": prompt, "multi_modal_data": {"image": images}})) == [False, True]
