"""Phi-3.5-vision against what the model's own published code answered (golden data beside the checkout)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fovea.core.params import SamplingParams
from fovea.llm import LLM
from fovea.media.decode import decode
from fovea.media.source import PilSource
from fovea.media.transform import apply_plan
from tests.parity.support import MIB, SHARED, ask, check_idle, load, prompt_logits, tokens

GOLDEN = SHARED / "golden" / "phi3_v"
CASES: list[dict[str, Any]] = (
    json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))["cases"] if GOLDEN.is_dir() else []
)
pytestmark = [
    pytest.mark.golden,
    pytest.mark.skipif(not CASES, reason="the golden data are not beside the checkout"),
]
IDS = [case["name"] for case in CASES]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with load(GOLDEN / "tiny-phi3v-a", kv_cache_memory_bytes=64 * MIB) as engine:
        yield engine
        check_idle(engine)


def golden_prompt(case: dict[str, Any]) -> dict[str, object]:
    images = [_picture(GOLDEN / name) for name in case["images"]]
    assert case["num_crops"] == 4
    return {"prompt": case["prompt"], **({"multi_modal_data": {"image": images}} if images else {})}


def _picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_ids_tokens_and_logprobs_are_the_published_ones(llm: LLM, case: dict[str, Any]) -> None:
    llm.reset_prefix_cache()
    params = SamplingParams(temperature=0.0, max_tokens=case["max_new_tokens"], logprobs=5, ignore_eos=True)
    output = ask(llm, golden_prompt(case), params)
    image_id = llm.get_tokenizer().token_id("<|image|>")
    want = [image_id if token < 0 else token for token, count in case["prompt_ids_rle"] for _ in range(count)]
    assert list(output.prompt_token_ids) == want
    assert len(want) == case["prompt_len"]
    assert [report.num_tokens for report in output.media] == case["image_tokens"]
    assert tokens(output) == case["token_ids"]
    entries = output.outputs[0].logprobs or []
    chosen = [entry[token].logprob for entry, token in zip(entries, case["token_ids"], strict=True)]
    np.testing.assert_allclose(chosen, case["logprobs"], atol=1e-3, rtol=0)
    for entry, top in zip(entries, case["top"], strict=True):
        assert [token for token, _ in top][:1] == list(entry)[:1]
        for token, logprob in top:
            if token in entry:
                assert entry[token].logprob == pytest.approx(logprob, abs=1e-3)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_logits_of_the_last_prompt_positions_are_the_published_ones(llm: LLM, case: dict[str, Any]) -> None:
    llm.reset_prefix_cache()
    got = prompt_logits(llm, golden_prompt(case))[-8:]
    np.testing.assert_allclose(got, np.load(GOLDEN / case["logits"]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", [c for c in CASES if c["images"]], ids=[c["name"] for c in CASES if c["images"]])
def test_canvases_and_pixels_are_the_published_ones(llm: LLM, case: dict[str, Any]) -> None:
    encoder: Any = llm.engine.model.encoder
    slices = np.load(GOLDEN / case["pixel_values"]["slice"])
    for i, name in enumerate(case["images"]):
        picture = decode(PilSource(_picture(GOLDEN / name)))
        plan = llm.family.plan_image(picture.width_px, picture.height_px, {})
        assert [plan.canvas_height_px, plan.canvas_width_px] == case["pixel_values"]["image_sizes"][i]
        assert plan.num_tokens == case["image_tokens"][i]
        canvas = apply_plan(picture, plan)
        patches = encoder._views(torch.from_numpy(canvas)).unflatten(2, (3, 14, 14)).unflatten(1, (24, 24))
        views = patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3).numpy()[:3]
        np.testing.assert_allclose(views[:, :, 100:104, 60:124], slices[i][: len(views)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_batched_tokens", [64, 1000])
def test_chunked_and_batched_the_answers_stay_the_published_ones(num_batched_tokens: int) -> None:
    """All cases at once, chunks that cut pictures; memory for about two of the long ones."""
    with load(
        GOLDEN / "tiny-phi3v-a", kv_cache_memory_bytes=50 * MIB, max_num_batched_tokens=num_batched_tokens
    ) as llm:
        cases = [case for case in CASES if num_batched_tokens > 64 or case["prompt_len"] < 1000]
        params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
        outputs = llm.generate([golden_prompt(case) for case in cases], params, use_tqdm=False)
        assert [tokens(output) for output in outputs] == [case["token_ids"] for case in cases]
        check_idle(llm)
