"""The nouns that travel between packages. Each is made in exactly one place and never changed afterwards.

noun            made by                 read by
Picture         media/decode            pipeline
ImagePlan       families/*              media/transform, models/pixels, prompt/build, engine
MediaItem       pipeline                engine
MediaSpan       prompt/build            engine
EngineRequest   pipeline                engine
TokenOutput     engine/loop             pipeline
Delta           pipeline                the user of a stream
RequestOutput   pipeline                the user
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from fovea.core.errors import FoveaError
    from fovea.core.params import SamplingParams

ROW = -1  # in MediaItem.ids: no token of text, but a row of the picture

FinishReason = Literal["stop", "length", "abort", "error"]
Detail = Literal["auto", "low", "high"]
Resample = Literal["bicubic", "bilinear", "lanczos"]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels, or margins when used as padding."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """What happens to a picture of a known size, worked out from integers alone, before any pixel is touched.

    The steps in order: border (margins of one colour), transpose, first resize, resize, crop, pad, transpose back.
    `canvas_*_px` is the size that results, `grid` the (time, height, width) of the patch grid the tower sees,
    `num_patches` what it costs the tower, `num_tokens` how many rows of embeddings come of it: what it costs the
    prompt, unless tokens of text stand between them.

    `view` is the plan of a second canvas of the same picture, no wider than the first: it stands below the first at its
    left edge, and beside it is black. `canvas_*_px` does not count it; `num_patches` and `num_tokens` do.
    `view_of_canvas`: it is made of the first canvas instead of the picture.

    `frames` set means a video of so many frames, and the steps are those of each; behind them stand copies of the last
    one until there are `slots`. `grid`, `num_patches` and `num_tokens` are those of the whole video, and `step_s` is
    the seconds from one step of the grid's time to the next.
    """

    resize_width_px: int
    resize_height_px: int
    resample: Resample
    canvas_width_px: int
    canvas_height_px: int
    grid: tuple[int, int, int]
    num_patches: int
    num_tokens: int
    transpose: bool = False
    crop: Box | None = None
    pad: Box | None = None
    pad_value: int = 255
    view: ImagePlan | None = None
    frames: int = 0
    slots: int = 0
    step_s: float = 0.0
    border: Box | None = None
    border_value: tuple[int, int, int] = (0, 0, 0)
    first_resize_px: tuple[int, int] | None = None  # (width, height)
    view_of_canvas: bool = False


@dataclass(frozen=True, slots=True)
class PixelBudget:
    """How much of one picture a client wants to be seen; see Family.budgeted for what a model makes of it.

    `detail` is a wish (OpenAI's name for it); `max_pixels` and `min_pixels` are promises, kept or refused.
    """

    detail: Detail = "auto"
    max_pixels: int | None = None
    min_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which frames of a video a client wants: so many, evenly spaced, or so many a second; at most one of the two."""

    num_frames: int | None = None
    fps: float | None = None


@dataclass(frozen=True, slots=True)
class Clip:
    """What is known of a video before it is decoded.

    `times_s` has the second at which each frame is shown, and `fps` is frames for each second on average; both are
    empty or None where nobody knows. `num_frames` counts those that may be used, `is_sampled` that somebody chose them.
    """

    width_px: int
    height_px: int
    num_frames: int
    num_bytes: int
    fps: float | None = None
    times_s: tuple[float, ...] = ()
    is_sampled: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """An upright RGB picture. `digest` identifies its pixels and size (SHA-256)."""

    pixels: NDArray[np.uint8]  # [height, width, 3]
    digest: bytes

    @property
    def width_px(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height_px(self) -> int:
        return int(self.pixels.shape[0])


@dataclass(frozen=True, slots=True)
class MediaItem:
    """One picture, or one video, as the engine takes it: pixels for the tower, or embeddings that skip it.

    Pixels are a finished `canvas`, or the upright picture (`pixels`) with the `plan` that the device carries out; the
    canvas is the same to the bit. Where transformers runs the model, one item stands for all pictures of a request, and
    `arrays` are what the model's own processor made of the whole prompt.

    `key` is the identity used by every cache: it covers the pixels and everything that changes what the tower makes of
    them, and the tenant's salt.

    `ids`: the tokens of the picture's span if text stands between its rows (see Family.image_layout), with ROW where a
    row stands; None: rows alone.
    """

    key: bytes
    num_tokens: int
    num_patches: int
    grid: tuple[int, int, int]
    canvas: NDArray[np.uint8] | None = None  # [height, width, 3]; of a video [frames, height, width, 3]
    embeds: NDArray[np.float32] | None = None  # [rows, hidden]: of the span's tokens that are not text
    pixels: NDArray[np.uint8] | None = None  # [height, width, 3]
    plan: ImagePlan | None = None
    arrays: Mapping[str, NDArray[Any]] | None = None
    ids: tuple[int, ...] | None = None  # [num_tokens]


@dataclass(frozen=True, slots=True)
class MediaSpan:
    """The positions of one picture's tokens in the prompt, from its first row to its last: [start, start + length)."""

    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A request in integers and pixels. `spans[i]` is where `media[i]` goes. Inside one of `open_spans` all tokens see
    each other, later ones too; they are in order and don't overlap."""

    request_id: str
    token_ids: tuple[int, ...]
    params: SamplingParams
    stop_token_ids: frozenset[int]
    spans: tuple[MediaSpan, ...] = ()
    media: tuple[MediaItem, ...] = ()
    positions: NDArray[np.int32] | None = None  # [rows, prompt tokens]; None: 0, 1, 2, ...
    position_delta: int = 0  # position of token i after the prompt = i + delta
    bad_words: tuple[tuple[int, ...], ...] = ()
    salt: bytes = b""
    open_spans: tuple[MediaSpan, ...] = ()


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probability of one token at one position; `rank` 1 is the likeliest."""

    logprob: float
    rank: int
    decoded_token: str = ""


TokenLogprobs = dict[int, Logprob]


@dataclass(frozen=True, slots=True)
class EngineTimings:
    """Seconds a request spent in the engine; see RequestMetrics."""

    queue_s: float
    encode_s: float
    prefill_s: float
    first_token_s: float
    decode_s: float
    num_preemptions: int


@dataclass(slots=True)
class TokenOutput:
    """One new token of completion `index` of a request, or its end. (Not frozen: that would make it three times as
    slow to make, and there is one for every token.)"""

    request_id: str
    index: int
    token_id: int | None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    media_hits: tuple[bool, ...] = ()
    timings: EngineTimings | None = None
    error: FoveaError | None = None


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One answer. Fields as in vLLM."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new of completion `index` since the last one; the texts joined are the completion's text.

    `logprobs` has an entry for each of `token_ids` if they were asked for. The last one has a `finish_reason`.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True)
class MediaReport:
    """What was done with one picture or video. Sizes are 0 for embeddings handed in by the caller.

    `token_rows` by `token_columns` of its tokens lie evenly over the picture as used (`width_px` by `height_px`); a
    model may have tokens beside those. `num_frames` of a video were shown, at `times_s` where that is known, and its
    token grid is that of one step of time. `num_bytes` is what was handed in or fetched. Times are seconds; pictures of
    one request are decoded in parallel, so they do not add up to its `media_s`.
    """

    original_width_px: int
    original_height_px: int
    width_px: int
    height_px: int
    num_tokens: int
    token_rows: int = 0
    token_columns: int = 0
    num_bytes: int = 0
    fetch_s: float = 0.0
    decode_s: float = 0.0
    resize_s: float = 0.0
    cache_hit: bool = False
    num_frames: int = 0
    times_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Where the time of a request went, in seconds; see `docs/architecture.md` for the stages.

    `prompt_s` is rendering the chat template and tokenising; `media_s` reading, decoding and resizing pictures;
    `queue_s` waiting for the engine; `encode_s` and `prefill_s` the steps it shared for its pictures and its prompt;
    `ttft_s` from arrival to the first token; `decode_s` from the first token to the last.
    """

    prompt_s: float
    media_s: float
    queue_s: float
    encode_s: float
    prefill_s: float
    decode_s: float
    ttft_s: float
    total_s: float
    num_preemptions: int


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The answer to one prompt. Fields as in vLLM, plus `media`, `metrics` and `error`."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0
    media: tuple[MediaReport, ...] = ()
    metrics: RequestMetrics | None = None
    error: FoveaError | None = field(default=None)
