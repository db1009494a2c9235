"""Which frames of a video a model sees: even spacing, as transformers' video processors choose them.

    num_frames   so many, rounded to whole temporal patches (halves to even), never more than there are
    fps          frames * fps / the video's own, at least `min_frames`, rounded down to whole temporal patches
    neither      frames that somebody chose are all taken; of a file, the family's own rule, cut to the option's limit

Frame i of n is number floor(i * frames / n), or, where a family's rule is `to_the_end`, the nearest to
i * (frames - 1) / (n - 1) (halves to even); such a family does not round to temporal patches. A rule of `middles` takes
the middle of each n-th part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fovea.core.errors import MediaError, MediaLimitError
from fovea.core.types import Clip, Sampling

SAMPLING_KEYS = ("num_frames", "fps")
MAX_ASKED_FRAMES = 2**31 - 1
MAX_ASKED_FPS = 240.0
UNKNOWN_FPS = 24.0  # what transformers takes the frames of an array for


@dataclass(frozen=True, slots=True)
class VideoRule:
    """A family's own sampling of a file: `fps` frames a second, or else `num_frames` in all."""

    temporal_patch: int = 1
    fps: float | None = None
    num_frames: int = 32
    min_frames: int = 1
    to_the_end: bool = False
    middles: bool = False

    @property
    def whole(self) -> int:
        """The number of frames is a multiple of this."""
        return 1 if self.to_the_end else self.temporal_patch


@dataclass(frozen=True, slots=True)
class Chosen:
    """Numbers of the frames, ascending; the second of each, if known; and how many of them stand for a second."""

    indices: tuple[int, ...]
    times_s: tuple[float, ...]
    fps: float


def choose_frames(clip: Clip, wish: Sampling, rule: VideoRule, most: int) -> Chosen:
    """Raises MediaLimitError if more than `most` (option max_video_frames) are asked for or were given."""
    total, patch = clip.num_frames, rule.whole
    if wish.num_frames is not None:
        count = _checked(max(patch, round(wish.num_frames / patch) * patch), most)
    elif wish.fps is not None:
        if clip.fps is None:
            raise MediaError(
                "fps needs a video whose own frames per second are known: give metadata, or ask for num_frames.",
                code="unsupported_combination",
            )
        count = _checked(_by_rate(clip, wish.fps, rule, total), most)
    elif clip.is_sampled:
        count = _checked(total, most)
    elif rule.fps is not None and clip.fps is not None:
        count = _by_rate(clip, rule.fps, rule, min(total, most))
    else:
        count = min(rule.num_frames, most)
    count = max(1, min(count, total))
    indices = _spread(total, count, rule)
    times = tuple(clip.times_s[index] for index in indices) if clip.times_s else ()
    fps = UNKNOWN_FPS if clip.fps is None else count / total * clip.fps
    return Chosen(indices, times, fps)


def read_sampling(values: Mapping[str, Any], place: str) -> Sampling:
    """The keys of SAMPLING_KEYS among `values`. Raises MediaError for what cannot be kept."""
    num_frames, fps = values.get("num_frames"), values.get("fps")
    if num_frames is not None and fps is not None:
        raise _wrong("num_frames and fps exclude each other.", "unsupported_combination", place, "fps")
    if num_frames is not None:
        if isinstance(num_frames, bool) or not isinstance(num_frames, int):
            raise _wrong("num_frames must be a whole number from 1.", "invalid_type", place, "num_frames")
        if num_frames < 1:
            raise _wrong("num_frames must be 1 or more.", "below_min_value", place, "num_frames")
        if num_frames > MAX_ASKED_FRAMES:
            raise _wrong(f"num_frames must be at most {MAX_ASKED_FRAMES}.", "above_max_value", place, "num_frames")
    if fps is not None:
        if isinstance(fps, bool) or not isinstance(fps, (int, float)):
            raise _wrong("fps must be a number above 0.", "invalid_type", place, "fps")
        if not fps > 0:
            raise _wrong("fps must be above 0.", "below_min_value", place, "fps")
        if fps > MAX_ASKED_FPS:
            raise _wrong(f"fps must be at most {MAX_ASKED_FPS:g}.", "above_max_value", place, "fps")
    return Sampling(num_frames, None if fps is None else float(fps))


def _by_rate(clip: Clip, fps: float, rule: VideoRule, most: int) -> int:
    assert clip.fps is not None, "asked for only where it is known"
    patch = rule.whole
    count = min(max(clip.num_frames / clip.fps * fps, rule.min_frames), most // patch * patch, clip.num_frames)
    return max(patch, int(count + 1e-6) // patch * patch)


def _spread(total: int, count: int, rule: VideoRule) -> tuple[int, ...]:
    if rule.to_the_end and count > 1:
        return tuple(round(number * (total - 1) / (count - 1)) for number in range(count))
    if rule.middles:
        return tuple((2 * number + 1) * total // (2 * count) for number in range(count))
    return tuple(number * total // count for number in range(count))


def _checked(count: int, most: int) -> int:
    if count > most:
        raise MediaLimitError(
            f"The video would be {count:,} frames; the option max_video_frames permits {most:,}. Ask for fewer "
            "(num_frames or fps), or raise the option.",
            code="video_too_long",
        )
    return count


def _wrong(message: str, code: str, place: str, key: str) -> MediaError:
    return MediaError(message, code=code, param=f"{place}.{key}" if place else key)
