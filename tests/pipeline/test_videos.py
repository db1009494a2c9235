"""Videos through the preparer and the engine: identity, limits, caches, companions."""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fovea.core.errors import FoveaError, MediaError, MediaLimitError
from fovea.core.params import SamplingParams
from fovea.core.types import MediaItem
from fovea.llm import LLM
from tests.media.clips import FRAMES, animation, grey_frames, mp4
from tests.oracle.videos import clip
from tests.parity.support import GREEDY, QWEN, Checkpoints, Engines, ask, ask_all, load, tokens
from tests.pipeline.support import prepare

WATCH, SEE = "<|vision_start|><|video_pad|><|vision_end|>", "<|vision_start|><|image_pad|><|vision_end|>"
CLIP = clip(6, 60, 90, 3)


def prompt(video: object, text: str = f"{WATCH}What happens?", **more: object) -> dict[str, Any]:
    return {
        "prompt": f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n",
        "multi_modal_data": {"video": video},
        **more,
    }


def item(llm: LLM, video: object, **more: Any) -> MediaItem:
    (made,) = prepare(llm, prompt(video, **more)).request.media
    return made


def test_the_key_covers_frames_sampling_times_plan_and_owner(engines: Engines) -> None:
    llm = engines.get("qwen2_5_vl")
    changed = [*CLIP[:-1], Image.eval(CLIP[-1], lambda level: 255 - level)]
    keys = [
        item(llm, CLIP).key,
        item(llm, CLIP[::-1]).key,
        item(llm, CLIP[:5]).key,
        item(llm, changed).key,
        item(llm, (CLIP, {"fps": 2})).key,
        item(llm, (CLIP, {"fps": 3})).key,
        item(llm, {"video": CLIP, "num_frames": 4}).key,
        item(llm, {"video": CLIP, "max_pixels": 28 * 28 * 6}).key,
        item(llm, CLIP, cache_salt="tenant").key,
        item(llm, CLIP, multi_modal_uuids={"video": "u"}).key,
        item(engines.get("qwen2_vl"), CLIP).key,
    ]
    assert len(set(keys)) == len(keys)
    assert item(llm, CLIP).key == item(llm, np.stack([np.asarray(frame) for frame in CLIP])).key == keys[0]


@pytest.mark.parametrize("make", [mp4, lambda: animation("GIF"), lambda: animation("WEBP")], ids=["mp4", "gif", "webp"])
def test_a_file_is_sampled_and_reported(engines: Engines, tmp_path: Path, make: Any) -> None:
    llm = engines.get("qwen2_5_vl")
    path = tmp_path / "clip"
    path.write_bytes(make())
    output = ask(llm, prompt(path), SamplingParams(temperature=0.0, max_tokens=2))
    (report,) = output.media
    assert (report.original_width_px, report.original_height_px, report.num_frames) == (64, 48, 6)
    assert report.times_s == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5], abs=2e-3)  # 2 frames of 4 a second
    assert report.num_tokens == 3 * report.token_rows * report.token_columns
    for options, count in (({"num_frames": 2}, 2), ({"fps": 4}, FRAMES), ({"num_frames": 500}, FRAMES)):
        if options.get("num_frames") == 500:
            continue
        (report,) = prepare(llm, prompt({"video": path.read_bytes(), **options})).reports
        assert report.num_frames == count
        (report,) = prepare(llm, prompt(path, mm_processor_kwargs=options)).reports
        assert report.num_frames == count


@pytest.mark.parametrize("variant", QWEN)
def test_answers_are_the_same_cold_warm_alone_batched_and_in_chunks(
    checkpoints: Checkpoints, engines: Engines, variant: str
) -> None:
    llm = engines.get(variant)
    asks = [
        prompt((CLIP, {"fps": 2})),
        prompt(clip(5, 120, 60, 4)),
        {
            **prompt([CLIP, clip(2, 40, 40, 5)], f"{SEE}a{WATCH}b{WATCH}c"),
            "multi_modal_data": {"image": CLIP[0], "video": [CLIP, clip(2, 40, 40, 5)]},
        },
        {"prompt": "<|im_start|>user\nTell me a story.<|im_end|>\n"},
    ]
    alone = [tokens(ask(llm, one)) for one in asks]
    warm = [ask(llm, one) for one in asks]
    assert [tokens(output) for output in warm] == alone
    assert all(report.cache_hit or output.num_cached_tokens for output in warm for report in output.media)
    llm.reset_prefix_cache()
    assert [tokens(output) for output in ask_all(llm, asks * 2)] == alone * 2
    small = engines.get(
        variant, max_num_batched_tokens=48, max_num_batched_patches=64, max_num_seqs=4, enable_prefix_caching=False
    )
    assert [tokens(output) for output in ask_all(small, asks)] == alone
    assert len({tuple(answer) for answer in alone}) == len(alone)


def test_a_long_video_is_encoded_a_few_steps_at_once(engines: Engines) -> None:
    llm = engines.get("qwen2_vl")
    model = llm.engine.model
    whole = tokens(ask(llm, prompt(CLIP)))
    llm.reset_prefix_cache()
    calls = []
    model.encoder.register_forward_pre_hook(lambda module, args: calls.append(len(args[0][0])))
    planned, model.patches_at_once = model.patches_at_once, 1
    llm.engine.forget_past()
    try:
        assert tokens(ask(llm, prompt([*CLIP[:-1], CLIP[0]]))) != []
        assert calls == [2, 2, 2]
        calls.clear()
        llm.reset_prefix_cache()
        assert tokens(ask(llm, prompt(CLIP))) == whole
    finally:
        model.patches_at_once = planned


def test_limits_are_named_before_anything_is_decoded(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = mp4()
    monkeypatch.setattr("fovea.pipeline.videos.decode_video", lambda *_: pytest.fail("frames were decoded"))
    folder = checkpoints.folder("qwen2_vl")
    for options, wish, match in (
        ({"max_video_bytes": 100}, {}, "max_video_bytes"),
        ({"max_video_seconds": 1.0}, {}, "max_video_seconds"),
        ({"max_video_frames": 4}, {"num_frames": 6}, "max_video_frames"),
        ({"max_video_pixels": 10_000}, {}, "max_video_pixels"),
        ({"max_image_pixels": 1000}, {}, "max_image_pixels"),
        ({"limit_mm_per_prompt": {"video": 0}}, {}, "limit_mm_per_prompt"),
    ):
        with load(folder, **options) as llm, pytest.raises(MediaLimitError, match=match):
            prepare(llm, prompt({"video": data, **wish}))


def test_a_family_without_videos_refuses_them(engines: Engines) -> None:
    for variant in ("llava", "phi3_v"):
        with pytest.raises(MediaError, match="takes no videos") as caught:
            ask(engines.get(variant), prompt(CLIP, "What?"))
        assert caught.value.code == "unsupported_value"
    with pytest.raises(MediaError, match="text alone"):
        ask(engines.get("llama"), prompt(CLIP, "What?"))


def test_chat_takes_videos(engines: Engines, tmp_path: Path) -> None:
    llm = engines.get("qwen2_vl", allowed_local_media_path=str(tmp_path))
    data = animation("GIF")
    (tmp_path / "a.gif").write_bytes(data)
    url = "data:image/gif;base64," + base64.b64encode(data).decode()
    answers = []
    for part in (
        {"type": "video_url", "video_url": {"url": url}, "num_frames": 4},
        {"type": "video_url", "video_url": {"url": (tmp_path / "a.gif").as_uri(), "num_frames": 4}},
        {"type": "video", "video": data, "num_frames": 4},
        {"type": "video", "video": [grey_frames()[n] for n in (0, 3, 6, 9)]},
    ):
        (output,) = llm.chat(
            [{"role": "user", "content": [part, "What happens?"]}],
            dataclasses.replace(GREEDY, max_tokens=8),
            use_tqdm=False,
        )
        assert output.media[0].num_frames == 4
        answers.append((output.prompt_token_ids, tokens(output)))
    assert answers[0] == answers[1] == answers[2] == answers[3]
    with pytest.raises(FoveaError, match="allowed_local_media_path"):
        llm.chat([{"role": "user", "content": [{"video_url": "file:///etc/hosts"}]}], use_tqdm=False)


def test_what_a_user_types_is_no_video(engines: Engines) -> None:
    llm = engines.get("qwen2_vl")
    (output,) = llm.chat([{"role": "user", "content": WATCH}], GREEDY, use_tqdm=False)
    assert llm.get_tokenizer().token_id("<|video_pad|>") not in output.prompt_token_ids
