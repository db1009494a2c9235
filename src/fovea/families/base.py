"""What a model family says about itself: how pictures become tokens, which modules run, where weights go.

One file for each family subclasses `Family`. Everything here is integers, strings and arithmetic; neither torch nor
pixels appear, so the front of a server can plan a request without an engine.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from fovea.core.errors import (
    EmbeddingsError,
    InvalidOptionError,
    MediaError,
    ModelError,
    UnsupportedModelError,
    nearest,
)
from fovea.core.types import ImagePlan, MediaSpan, PixelBudget
from fovea.families.config_reader import Section, read_json
from fovea.families.spec import ModelPath, ModelSpec, WeightMap
from fovea.families.video import SAMPLING_KEYS, VideoRule, read_sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
LOW_DETAIL_PIXELS = 512 * 512  # what OpenAI's API shows a model of a picture with detail "low"


class Mark(NamedTuple):
    """A row of embeddings whose token in the prompt is this special one and not the placeholder."""

    token: str


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The small JSON files of a model folder."""

    folder: Path
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    video: Mapping[str, Any] = field(default_factory=dict)  # of the video processor, where it has a file of its own

    @classmethod
    def read(cls, folder: Path) -> ModelFiles:
        return cls(
            folder=folder,
            config=read_json(folder, "config.json", required=True),
            generation=read_json(folder, "generation_config.json"),
            preprocessor=_nested(read_json(folder, "processor_config.json"), "image_processor")
            or read_json(folder, "preprocessor_config.json"),
            video=_nested(read_json(folder, "processor_config.json"), "video_processor")
            or read_json(folder, "video_preprocessor_config.json"),
        )


def _nested(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Where transformers 5 saves what had a file of its own, which then goes before that file."""
    value = values.get(key)
    return value if isinstance(value, dict) else {}


class Family(ABC):
    """One model family, configured from one model folder. Immutable after construction."""

    architectures: ClassVar[tuple[str, ...]]
    version: ClassVar[int] = 1  # raise when pixels or layout change: it is part of every cache key
    placeholder: str  # the token that stands for a picture in token ids
    video_placeholder: ClassVar[str | None] = None  # the same for a video; None: the family takes none
    video_rule: VideoRule = VideoRule()
    video_frame: ClassVar[tuple[str, str] | None] = None  # tokens around it in a text that its layout has itself
    adds_bos: ClassVar[bool] = True  # whether the tokenizer's own BOS goes in front of a text
    text_placeholder: ClassVar[str | None] = None  # what stands for one in text, where that is no token
    layout_tokens: ClassVar[tuple[str, ...]] = ()  # special tokens in `image_layout`, which a tokenizer must have
    image_tag: ClassVar[re.Pattern[str] | None] = None  # numbered tags in the text, where these are no tokens
    processor_options: ClassVar[frozenset[str]] = frozenset()

    spec: ModelSpec
    path: ModelPath = "fused"

    def __init__(self, files: ModelFiles) -> None:
        self.files = files
        self.config = Section(files.config, "config.json")
        self.preprocessor = Section(files.preprocessor, "preprocessor_config.json")
        self.spec = self.read_spec()

    @property
    def name(self) -> str:
        return self.architectures[0]

    @classmethod
    def describes(cls, config: Mapping[str, Any]) -> bool:
        """Whether a config with one of `architectures` is this family's: several may share one."""
        return True

    @abstractmethod
    def read_spec(self) -> ModelSpec:
        """Read the config. Raises ModelError for what is missing, UnsupportedModelError for what is unknown."""

    @abstractmethod
    def plan_image(self, width_px: int, height_px: int, options: Mapping[str, Any]) -> ImagePlan:
        """What happens to an upright picture of this size. Raises MediaLimitError if the model cannot see it."""

    @abstractmethod
    def largest_picture(self, options: Mapping[str, Any]) -> int:
        """The most patches a picture can have under these options."""

    @abstractmethod
    def token_grid(self, plan: ImagePlan) -> tuple[int, int]:
        """(rows, columns) of a picture's tokens that lie evenly over its canvas; a model may have others beside."""

    @abstractmethod
    def most_pixels(self, options: Mapping[str, Any]) -> int:
        """The most pixels that a picture's canvas can be asked to have under these options."""

    @abstractmethod
    def budgeted(self, options: Mapping[str, Any], budget: PixelBudget | None) -> dict[str, Any]:
        """The options for one picture: a budget only lowers what `options` permit.

        detail "low" is LOW_DETAIL_PIXELS, or whatever is nearest of what the model can do; "auto" and "high" are what
        `options` say. Raises MediaError, naming the range, for max_pixels and min_pixels that cannot be kept.
        """

    def plan_within(
        self, width_px: int, height_px: int, options: Mapping[str, Any], budget: PixelBudget | None
    ) -> ImagePlan:
        """`plan_image` for a picture with a budget: its canvas has at most `budget.max_pixels`."""
        return self.plan_image(width_px, height_px, self.budgeted(options, budget))

    def with_pixel_cap(self, most: int, options: Mapping[str, Any]) -> Family:
        """This family with `most` pixels as its own most for a picture, or as near as it gets.

        Itself if `options` say how large pictures are, if it shows none that are larger, or if its pictures cost what
        tiles of a fixed size do.
        """
        return self

    def for_pictures(self, options: Mapping[str, Any], count: int) -> dict[str, Any]:
        """The options for each of `count` pictures of one prompt."""
        return dict(options)

    def check_media(self, count: int, videos: int = 0) -> None:
        """Raises MediaError if a model of text alone is shown a picture, or one of pictures alone a video.

        `count`: pictures and videos.
        """
        if count and not self.spec.takes_pictures:
            raise self.no_pictures()
        if videos and self.video_placeholder is None:
            raise self.no_videos()

    def no_videos(self) -> MediaError:
        return MediaError(
            f"{self.name} takes no videos. Give the frames you mean as several images, or use a model that does.",
            code="unsupported_value",
        )

    def plan_video(
        self, num_frames: int, width_px: int, height_px: int, fps: float, options: Mapping[str, Any]
    ) -> ImagePlan:
        """What happens to a video of so many frames of this size, `fps` of which stand for a second."""
        raise self.no_videos()

    def plan_video_within(
        self,
        num_frames: int,
        width_px: int,
        height_px: int,
        fps: float,
        options: Mapping[str, Any],
        budget: PixelBudget | None,
    ) -> ImagePlan:
        """`plan_video` with a budget, which is one of each frame. Raises MediaError if it cannot be kept."""
        if budget is not None:
            raise MediaError(f"{self.name} takes no pixel budget for videos. Leave it out.", code="unsupported_value")
        return self.plan_video(num_frames, width_px, height_px, fps, options)

    def no_pictures(self) -> MediaError:
        return MediaError(
            f"{self.name} is a model of text alone and takes no pictures. Leave them out or use a model that sees.",
            code="unsupported_value",
        )

    @abstractmethod
    def weight_map(self) -> WeightMap:
        """Every tensor of a published checkpoint and where it goes."""

    def triple(self, key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        """A value for each colour from the preprocessor config."""
        values = self.preprocessor.floats(key) if key in self.preprocessor else default
        if len(values) != 3 or (key == "image_std" and 0.0 in values):
            raise UnsupportedModelError(f"preprocessor_config.json: {key!r} must hold three numbers; image_std not 0.")
        return (values[0], values[1], values[2])

    def dtype(self, default: str) -> str:
        """The checkpoint's element type by name; newer configs say "dtype", older ones "torch_dtype"."""
        return str(self.files.config.get("dtype") or self.files.config.get("torch_dtype") or default)

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Processor options as validated integers. Raises InvalidOptionError for unknown names or bad values."""
        permitted = self.processor_options
        if self.video_placeholder is not None:
            permitted = permitted.union(SAMPLING_KEYS)
            self._check_sampling(options)
        for name, value in options.items():
            if name in SAMPLING_KEYS and name in permitted:
                continue
            if name not in permitted:
                known = ", ".join(sorted(permitted)) or "none"
                hint = nearest(str(name), permitted)
                raise InvalidOptionError(f"mm_processor_kwargs has {name!r}; {self.name} takes: {known}.{hint}")
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidOptionError(
                    f"mm_processor_kwargs[{name!r}] is {value!r}; permitted: a whole number from 1."
                )
        return dict(options)

    def _check_sampling(self, options: Mapping[str, Any]) -> None:
        try:
            read_sampling(options, "mm_processor_kwargs")
        except MediaError as error:
            raise InvalidOptionError(f"mm_processor_kwargs: {error}") from None

    def _promised(self, budget: PixelBudget, least: int, most: int) -> int:
        """The most pixels that may be used: what the client asks for, or else `most`."""
        if budget.max_pixels is None:
            return most
        if not least <= budget.max_pixels <= most:
            raise MediaError(
                f"max_pixels is {budget.max_pixels}; permitted here: {least} to {most}.",
                code="below_min_value" if budget.max_pixels < least else "above_max_value",
            )
        return budget.max_pixels

    def _wished(self, budget: PixelBudget, least: int, most: int) -> int:
        """The same with `detail`, which may not be met to the pixel."""
        return max(least, min(most, LOW_DETAIL_PIXELS)) if budget.detail == "low" else most

    def _refuse_least(self, budget: PixelBudget) -> None:
        if budget.min_pixels is not None:
            raise MediaError(f"{self.name} takes no min_pixels. Leave it out.", code="unsupported_value")

    def image_text(self, number: int) -> str:
        """What stands for picture `number` (from 1) in the text of a chat message."""
        return self.placeholder

    def video_text(self, number: int) -> str:
        """What stands for video `number` (from 1) in the text of a chat message."""
        assert self.video_placeholder is not None, "asked of families with videos only"
        return self.video_placeholder

    def image_layout(self, grid: tuple[int, int, int], num_rows: int) -> Sequence[int | str | Mark] | None:
        """What a picture with this grid becomes in the prompt: numbers of rows of embeddings, and text between them.

        None: `num_rows` rows and nothing else. Numbers and marks add up to `num_rows`. Each text (neighbours are
        joined) is tokenised for itself with its special tokens, so it begins and ends with one, or stands between two
        rows. What comes before the first row and after the last is no part of the picture's span.
        """
        return None

    def video_layout(
        self, grid: tuple[int, int, int], num_rows: int, times_s: Sequence[float]
    ) -> Sequence[int | str | Mark] | None:
        """The same for a video, whose sampled frames stand at these seconds (none: nobody knows)."""
        return None

    def markup(self, texts: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
        """What the model's own processor adds to a prompt's text before it is tokenised: parts, and whether each is
        trusted. Only trusted ones may be changed."""
        return list(texts)

    def embeds_grid(self, num_rows: int, grid: tuple[int, int, int] | None) -> tuple[int, int, int]:
        """The grid of a picture handed in as `num_rows` embeddings. Raises EmbeddingsError if they cannot be right."""
        if grid is not None:
            raise EmbeddingsError(f"{self.name} takes no image_grid_thw beside its embeddings.")
        return (1, num_rows, 1)

    def positions(
        self,
        num_tokens: int,
        spans: Sequence[MediaSpan],
        grids: Sequence[tuple[int, int, int]],
        steps_s: Sequence[float] = (),
    ) -> tuple[NDArray[np.int32] | None, int]:
        """Rotary positions of the prompt [rows, num_tokens] (None: 0, 1, 2, ...) and the shift of what follows it.

        `steps_s`: ImagePlan.step_s of each; none where there are no videos.
        """
        return None, 0

    def open_spans(self, num_tokens: int, spans: Sequence[MediaSpan]) -> tuple[MediaSpan, ...]:
        """Ranges of the prompt inside which all tokens see each other (EngineRequest)."""
        return ()

    def stop_tokens(self) -> frozenset[int]:
        """Ids that end an answer."""
        ids: set[int] = set()
        for source in (self.files.generation, self.files.config, _nested(self.files.config, "text_config")):
            value = source.get("eos_token_id") or []
            listed = value if isinstance(value, list) else [value]
            if any(isinstance(token, bool) or not isinstance(token, int) for token in listed):
                raise ModelError("'eos_token_id' must be a token id or a list of them.")
            ids.update(listed)
            if ids:
                break
        return frozenset(ids)

    def stop_strings(self) -> tuple[str, ...]:
        """Special tokens, by text, that end an answer besides `stop_tokens`."""
        return ()
