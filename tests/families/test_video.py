"""Which frames are shown, and what a video of a size costs."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fovea.core.errors import InvalidOptionError, MediaError, MediaLimitError
from fovea.core.types import Clip, MediaSpan, PixelBudget, Sampling
from fovea.families.base import Family
from fovea.families.registry import load_family
from fovea.families.video import VideoRule, choose_frames, read_sampling
from tests.parity.support import Checkpoints

QWEN = VideoRule(2, fps=2.0, min_frames=4)
PLAIN = VideoRule(num_frames=8)


def clip(frames: int, fps: float | None = 10.0, *, is_sampled: bool = False) -> Clip:
    times = () if fps is None else tuple(n / fps for n in range(frames))
    return Clip(64, 48, frames, 1, fps, times, is_sampled)


@pytest.mark.parametrize(
    ("video", "wish", "rule", "want"),
    [
        (clip(100), Sampling(), PLAIN, [0, 12, 25, 37, 50, 62, 75, 87]),
        (clip(5), Sampling(), PLAIN, [0, 1, 2, 3, 4]),
        (clip(100), Sampling(), QWEN, list(range(0, 100, 5))),
        (clip(10), Sampling(), QWEN, [0, 2, 5, 7]),
        (clip(3), Sampling(), QWEN, [0, 1]),
        (clip(1), Sampling(), QWEN, [0]),
        (clip(40, is_sampled=True), Sampling(), QWEN, list(range(40))),
        (clip(40, is_sampled=True), Sampling(fps=1.0), QWEN, [0, 10, 20, 30]),
        (clip(40), Sampling(num_frames=3), QWEN, [0, 10, 20, 30]),
        (clip(40), Sampling(num_frames=5), QWEN, [0, 10, 20, 30]),
        (clip(40), Sampling(num_frames=1), QWEN, [0, 20]),
        (clip(3), Sampling(num_frames=100), PLAIN, [0, 1, 2]),
        (clip(100), Sampling(fps=0.5), PLAIN, [0, 20, 40, 60, 80]),
        (clip(100, None), Sampling(), QWEN, [n * 100 // 32 for n in range(32)]),
    ],
)
def test_frames_are_spread_as_the_published_processors_spread_them(
    video: Clip, wish: Sampling, rule: VideoRule, want: list[int]
) -> None:
    chosen = choose_frames(video, wish, rule, 128)
    assert list(chosen.indices) == want
    assert chosen.fps == pytest.approx(24.0 if video.fps is None else len(want) / video.num_frames * video.fps)
    assert list(chosen.times_s) == [video.times_s[i] for i in want] if video.times_s else chosen.times_s == ()


def test_the_default_is_cut_to_the_limit_and_a_wish_is_refused() -> None:
    assert len(choose_frames(clip(1000), Sampling(), QWEN, 16).indices) == 16
    for wish, video in (
        (Sampling(num_frames=17), clip(1000)),
        (Sampling(fps=10.0), clip(1000)),
        (Sampling(), clip(17, is_sampled=True)),
    ):
        with pytest.raises(MediaLimitError, match="max_video_frames") as caught:
            choose_frames(video, wish, PLAIN, 16)
        assert caught.value.code == "video_too_long"


def test_a_rate_needs_the_videos_own() -> None:
    with pytest.raises(MediaError, match="metadata"):
        choose_frames(clip(10, None), Sampling(fps=1.0), PLAIN, 16)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"num_frames": 0}, "below_min_value"),
        ({"num_frames": -1}, "below_min_value"),
        ({"num_frames": 1.5}, "invalid_type"),
        ({"num_frames": True}, "invalid_type"),
        ({"num_frames": 2**63}, "above_max_value"),
        ({"fps": 0}, "below_min_value"),
        ({"fps": -2.0}, "below_min_value"),
        ({"fps": 1e9}, "above_max_value"),
        ({"fps": math.nan}, "below_min_value"),
        ({"fps": math.inf}, "above_max_value"),
        ({"fps": "2"}, "invalid_type"),
        ({"fps": 1, "num_frames": 2}, "unsupported_combination"),
    ],
)
def test_wishes_that_cannot_be_kept(values: dict[str, Any], code: str) -> None:
    with pytest.raises(MediaError) as caught:
        read_sampling(values, "here")
    assert caught.value.code == code
    assert (caught.value.param or "").startswith("here.")


@pytest.fixture(params=["qwen2_vl", "qwen2_5_vl"])
def qwen(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> Family:
    return load_family(checkpoints.folder(request.param))


def test_two_frames_are_one_step_of_time(qwen: Family) -> None:
    still = qwen.plan_video(1, 84, 84, 2.0, {})
    for frames in range(1, 10):
        plan = qwen.plan_video(frames, 84, 84, 2.0, {})
        steps = -(-frames // 2)
        assert (plan.frames, plan.slots, plan.grid[0]) == (frames, 2 * steps, steps)
        assert (plan.num_tokens, plan.num_patches) == (steps * still.num_tokens, steps * still.num_patches)
        assert plan.step_s == 1.0


def test_a_frames_pixels_have_a_budget_and_a_range_of_their_own(qwen: Family) -> None:
    wide = qwen.plan_video(2, 4000, 3000, 2.0, {})
    assert wide.canvas_width_px * wide.canvas_height_px <= 64 * 28 * 28
    low = qwen.plan_video_within(2, 4000, 3000, 2.0, {}, PixelBudget("auto", 28 * 28 * 4))
    assert low.num_tokens <= 4
    with pytest.raises(MediaError, match="max_pixels"):
        qwen.plan_video_within(2, 40, 30, 2.0, {}, PixelBudget("auto", 10**9))


def test_sampling_is_an_option_of_families_with_videos(checkpoints: Checkpoints, qwen: Family) -> None:
    assert qwen.check_options({"fps": 1.5, "max_pixels": 12544})["fps"] == 1.5
    for wrong in ({"fps": 0}, {"num_frames": 1.5}, {"fps": 1, "num_frames": 2}):
        with pytest.raises(InvalidOptionError):
            qwen.check_options(wrong)
    with pytest.raises(InvalidOptionError, match="fps"):
        load_family(checkpoints.folder("llava")).check_options({"fps": 1})


def test_time_moves_the_positions_of_qwen2_5_and_counts_steps_in_qwen2(checkpoints: Checkpoints) -> None:
    spans, grids = [MediaSpan(2, 3)], [(3, 2, 2)]
    for name, times in (("qwen2_vl", [2, 3, 4]), ("qwen2_5_vl", [2, 5, 9])):
        family = load_family(checkpoints.folder(name))
        rows, delta = family.positions(7, spans, grids, [1.75 if name == "qwen2_5_vl" else 1.0])
        assert rows is not None
        assert rows[0, 2:5].tolist() == times
        assert rows[1, 2:5].tolist() == [2, 2, 2]
        assert rows[:, 5].tolist() == [times[-1] + 1] * 3
        assert delta == times[-1] + 3 - 7
