"""The pictures and videos of one request: opened and judged from their headers, all of them, then decoded.

Contract: `open` decodes nothing and refuses whatever is over a limit, of one picture or of all together; `make` decodes
what `open` let through, and resizes it unless that is left to the device. Errors say which picture they are about.
Nothing is kept between requests.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fovea.core.config import MIB, EngineConfig
from fovea.core.errors import EmbeddingsError, MediaError, MediaSourceError
from fovea.core.turns import outside_turn, taking_turns
from fovea.core.types import ImagePlan, MediaItem, MediaReport, Picture
from fovea.families.base import Family
from fovea.media.decode import decode
from fovea.media.digest import array_digest, media_key
from fovea.media.fetch import FetchPolicy
from fovea.media.load import Fetched, open_source
from fovea.media.probe import MediaLimits, Probe, check_num_bytes, check_request, probe
from fovea.media.source import (
    BytesSource,
    ImageSource,
    MemorySource,
    PilSource,
    UrlSource,
    parse_image,
    parse_url,
    parse_video_url,
)
from fovea.media.transform import apply_plan
from fovea.media.video import FramesSource, VideoLimits, VideoSource, parse_video
from fovea.pipeline.decode_threads import DecodeThreads
from fovea.pipeline.videos import MadeVideo, OpenedVideo, make_video, open_video, report_video
from fovea.prompt.forms import MediaInput

# A picture goes to the device as it is unless it, or what it is resized to before a crop, is much larger than its
# canvas: every byte travels and waits with its request.
LEFT_ALWAYS_BYTES, LEFT_NEVER_BYTES = 4 * MIB, 60 * MIB
LEFT_TIMES_CANVAS = 4
RGB_BYTES = 3


@dataclass(frozen=True, slots=True)
class Opened:
    """A picture whose size is known and planned for, not decoded yet; or embeddings, which have no source."""

    media: MediaInput
    source: MemorySource | None
    probe: Probe | None
    plan: ImagePlan | None
    num_tokens: int
    grid: tuple[int, int, int]
    num_bytes: int
    fetch_s: float = 0.0
    video: OpenedVideo | None = None
    ids: tuple[int, ...] | None = None  # see MediaItem

    @property
    def times_s(self) -> tuple[float, ...] | None:
        """Seconds of a video's frames, () where nobody knows them; None for a picture."""
        return None if self.video is None else self.video.chosen.times_s

    @property
    def num_pixels(self) -> int:
        """Of a picture; the option max_video_pixels is for those of a video."""
        return 0 if self.probe is None else self.probe.width_px * self.probe.height_px


@dataclass(slots=True)
class _Job:
    """One source of a request, which may stand in several places: decoded once, resized once for each plan."""

    number: int
    media: MediaInput
    source: MemorySource
    plans: dict[ImagePlan, None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Resized:
    """A canvas, or the picture as it is if its plan is left to the device."""

    canvas: NDArray[np.uint8] | None = None
    pixels: NDArray[np.uint8] | None = None
    seconds: float = 0.0


@dataclass(slots=True)
class _Done:
    digest: bytes
    resized: dict[ImagePlan, _Resized]
    decode_s: float


class SharedDecodes:
    """For requests that show the same picture: each of `shared` (identities of objects) is decoded once.

    Whoever makes one keeps those objects, and does not change them, as long as it is used.
    """

    def __init__(self, shared: Collection[int]) -> None:
        self._lock = threading.Lock()
        self._decoded: dict[int, Future[Picture] | None] = dict.fromkeys(shared)

    def decode(self, source: MemorySource, helpers: Executor | None = None) -> Picture:
        identity = id(source.image if isinstance(source, PilSource) else getattr(source, "array", source))
        if identity not in self._decoded:
            return decode(source, helpers)
        with self._lock:
            known = self._decoded[identity]
            future = self._decoded[identity] = known or Future()
        if known is None:
            try:
                future.set_result(decode(source, helpers))
            except BaseException as error:
                future.set_exception(error)
        with nullcontext() if future.done() else outside_turn():
            return future.result()


class Pictures:
    """Safe in threads."""

    def __init__(self, config: EngineConfig, family: Family, threads: DecodeThreads) -> None:
        self._family = family
        self._limits = MediaLimits.from_config(config)
        self._video_limits = VideoLimits.from_config(config)
        self._fetch_policy = FetchPolicy.from_config(config)
        self._local_folder = config.allowed_local_media_path
        self._threads = threads

    def of_family(self, family: Family) -> Pictures:
        """The same for another, in the same threads."""
        other = copy.copy(self)
        other._family = family
        return other

    def open(
        self, media: Sequence[MediaInput], options: Mapping[str, Any], fetched: Mapping[str, Fetched] | None
    ) -> list[Opened]:
        """`fetched`: what web addresses gave; if it is given, nothing is dialled here."""
        known: dict[tuple[str, bool], MemorySource] = {}
        opened: list[Opened] = []
        options = self._family.for_pictures(options, sum(one.video is None for one in media))
        num_bytes = num_pixels = 0
        for number, one in enumerate(media, 1):
            with _named(one, number, len(media)):
                picture = self._open(one, options, known, fetched)
                num_bytes += picture.num_bytes
                num_pixels += picture.num_pixels
                check_request(num_bytes, num_pixels, self._limits)
            opened.append(picture)
        return opened

    def make(
        self, opened: Sequence[Opened], salt: str, *, resize_on_device: bool, shared: SharedDecodes | None = None
    ) -> list[tuple[MediaItem, MediaReport]]:
        """Decode and resize. A key covers pixels, plan, family and its version, the client's id and the salt.

        resize_on_device: leave the plans of pictures that are not too large for it to the engine's device.
        shared: what other requests show too.
        """
        jobs: dict[int, _Job] = {}
        for number, picture in enumerate(opened, 1):
            if picture.source is not None and picture.plan is not None:
                job = jobs.setdefault(id(picture.source), _Job(number, picture.media, picture.source))
                job.plans[picture.plan] = None
        videos = {
            number: self._make_video(one, number, len(opened)) for number, one in enumerate(opened, 1) if one.video
        }
        done = dict(zip(jobs, self._run(list(jobs.values()), len(opened), resize_on_device, shared), strict=True))
        return [
            self._made_video(one, videos[number], salt) if one.video else self._made(one, done, salt)
            for number, one in enumerate(opened, 1)
        ]

    def report(self, opened: Opened, decode_s: float = 0.0, resize_s: float = 0.0) -> MediaReport:
        """`cache_hit` is filled in when the engine tells."""
        if opened.video is not None:
            cells = self._family.token_grid(opened.video.plan)
            return report_video(opened.video, opened.num_tokens, cells, opened.fetch_s, decode_s)
        if opened.plan is None or opened.probe is None:
            return MediaReport(0, 0, 0, 0, opened.num_tokens, num_bytes=opened.num_bytes)
        rows, columns = self._family.token_grid(opened.plan)
        return MediaReport(
            original_width_px=opened.probe.width_px,
            original_height_px=opened.probe.height_px,
            width_px=opened.plan.canvas_width_px,
            height_px=opened.plan.canvas_height_px,
            num_tokens=opened.num_tokens,
            token_rows=rows,
            token_columns=columns,
            num_bytes=opened.num_bytes,
            fetch_s=opened.fetch_s,
            decode_s=decode_s,
            resize_s=resize_s,
        )

    def _open(
        self,
        media: MediaInput,
        options: Mapping[str, Any],
        known: dict[tuple[str, bool], MemorySource],
        fetched: Mapping[str, Fetched] | None,
    ) -> Opened:
        if media.kind == "embeds":
            return self._open_embeds(media)
        if media.video is not None:
            return self._open_video(media, options, known, fetched)
        source, fetch_s = self._source(media, known, fetched)
        size = probe(source, self._limits)
        plan = self._family.plan_within(size.width_px, size.height_px, options, media.budget)
        return Opened(media, source, size, plan, plan.num_tokens, plan.grid, size.num_bytes, fetch_s)

    def _open_video(
        self,
        media: MediaInput,
        options: Mapping[str, Any],
        known: dict[tuple[str, bool], MemorySource],
        fetched: Mapping[str, Fetched] | None,
    ) -> Opened:
        source: VideoSource | ImageSource
        if media.kind == "url":
            source, fetch_s = self._at_address(media.value, known, fetched, is_video=True)
        else:
            source, fetch_s = parse_video(media.value), 0.0
            if not isinstance(source, FramesSource):
                source = open_source(source, self._video_limits.picture)
        assert isinstance(source, (FramesSource, BytesSource)), "all that a video can be once it is in memory"
        with outside_turn():
            video = open_video(source, media, self._family, options, self._video_limits)
        plan, num_bytes = video.plan, video.clip.num_bytes
        return Opened(media, None, None, plan, plan.num_tokens, plan.grid, num_bytes, fetch_s, video)

    def _source(
        self,
        media: MediaInput,
        known: dict[tuple[str, bool], MemorySource],
        fetched: Mapping[str, Fetched] | None,
    ) -> tuple[MemorySource, float]:
        if media.kind == "picture":
            return open_source(parse_image(media.value), self._limits), 0.0
        return self._at_address(media.value, known, fetched)

    def _at_address(
        self,
        url: str,
        known: dict[tuple[str, bool], MemorySource],
        fetched: Mapping[str, Fetched] | None,
        *,
        is_video: bool = False,
    ) -> tuple[MemorySource, float]:
        """`known`: what the addresses of this request gave already; each is fetched and read once for its kind."""
        if (url, is_video) in known:
            return known[url, is_video], 0.0
        parse, limits = (parse_video_url, self._video_limits.picture) if is_video else (parse_url, self._limits)
        source = parse(url, allowed_local_media_path=self._local_folder, max_bytes=limits.max_bytes)
        if not isinstance(source, UrlSource):
            opened, fetch_s = open_source(source, limits), 0.0
        elif fetched is None:
            started = time.perf_counter()
            with outside_turn():
                opened = open_source(source, limits, replace(self._fetch_policy, max_bytes=limits.max_bytes))
            fetch_s = time.perf_counter() - started
        else:
            opened, fetch_s = _given(source, fetched, limits)
        known[url, is_video] = opened
        return opened, fetch_s

    def _make_video(self, opened: Opened, number: int, total: int) -> MadeVideo:
        assert opened.video is not None, "asked of videos only"
        with outside_turn(), _named(opened.media, number, total):
            return make_video(opened.video, self._video_limits)

    def _made_video(self, opened: Opened, made: MadeVideo, salt: str) -> tuple[MediaItem, MediaReport]:
        """The key covers the frames as the tower sees them, their times, the plan, family and owner."""
        assert opened.plan is not None, "a video has a plan"
        key = media_key(
            made.digest, self._family.name, self._family.version, opened.media.uuid, salt, "video", repr(opened.plan)
        )
        plan = opened.plan
        item = MediaItem(key, opened.num_tokens, plan.num_patches, plan.grid, canvas=made.canvas, ids=opened.ids)
        return item, self.report(opened, made.decode_s)

    def _open_embeds(self, media: MediaInput) -> Opened:
        rows, width = media.value.shape
        spec = self._family.spec
        if width != spec.row_width:
            hidden, levels = spec.decoder.hidden_size, spec.projector.deepstack
            wanted = (
                f"; with its {levels} deepstack levels beside each row that makes {spec.row_width}" if levels else ""
            )
            raise EmbeddingsError(
                f"The image embeddings are {width} wide; the model's hidden size is {hidden}{wanted}."
            )
        grid = self._family.embeds_grid(rows, media.grid)
        if not np.isfinite(media.value).all():
            raise EmbeddingsError("The image embeddings hold NaN or infinite values.")
        return Opened(media, None, None, None, rows, grid, media.value.nbytes)

    def _made(self, opened: Opened, done: dict[int, _Done], salt: str) -> tuple[MediaItem, MediaReport]:
        owner = (self._family.name, self._family.version, opened.media.uuid, salt)
        if opened.plan is None or opened.source is None:
            key = media_key(array_digest(opened.media.value), *owner, repr(opened.grid))
            item = MediaItem(key, opened.num_tokens, 0, opened.grid, embeds=opened.media.value, ids=opened.ids)
            return item, self.report(opened)
        result = done[id(opened.source)]
        key = media_key(result.digest, *owner, repr(opened.plan))
        resized = result.resized[opened.plan]
        item = MediaItem(
            key,
            opened.num_tokens,
            opened.plan.num_patches,
            opened.grid,
            canvas=resized.canvas,
            pixels=resized.pixels,
            plan=None if resized.pixels is None else opened.plan,
            ids=opened.ids,
        )
        report = self.report(opened, result.decode_s, resized.seconds)
        # Whoever comes first paid for it.
        result.decode_s, result.resized[opened.plan] = 0.0, replace(resized, seconds=0.0)
        return item, report

    def _run(self, jobs: list[_Job], total: int, resize_on_device: bool, shared: SharedDecodes | None) -> list[_Done]:
        work = partial(_decode, total=total, resize_on_device=resize_on_device, shared=shared, threads=self._threads)
        if self._threads.num_threads == 1 or len(jobs) < 2:
            return [work(job) for job in jobs]
        in_turn = taking_turns(work)
        with outside_turn():
            return list(self._threads.pool().map(in_turn, jobs))


def fits_device(plan: ImagePlan, width_px: int, height_px: int) -> bool:
    """Whether a picture of this size may go to the device as it is."""
    if plan.border is not None or plan.first_resize_px is not None or plan.resample == "lanczos":
        return False  # the device has no such steps
    picture_size = (width_px, height_px)
    if plan.transpose:
        width_px, height_px = height_px, width_px
    new_width_px, new_height_px = plan.resize_width_px, plan.resize_height_px
    between = max(new_width_px * height_px, width_px * new_height_px)  # the passes come in either order
    largest = RGB_BYTES * max(width_px * height_px, between, new_width_px * new_height_px)
    canvas = RGB_BYTES * plan.canvas_width_px * plan.canvas_height_px
    if largest > min(LEFT_NEVER_BYTES, max(LEFT_ALWAYS_BYTES, LEFT_TIMES_CANVAS * canvas)):
        return False
    return plan.view is None or fits_device(plan.view, *picture_size)


def _decode(
    job: _Job, total: int, resize_on_device: bool, shared: SharedDecodes | None, threads: DecodeThreads
) -> _Done:
    with _named(job.media, job.number, total):
        started = time.perf_counter()
        with threads.working() as helpers:
            picture = decode(job.source, helpers) if shared is None else shared.decode(job.source, helpers)
        decode_s = time.perf_counter() - started
        resized = {}
        for plan in job.plans:
            if resize_on_device and fits_device(plan, picture.width_px, picture.height_px):
                resized[plan] = _Resized(pixels=picture.pixels)
                continue
            started = time.perf_counter()
            with outside_turn():
                canvas = apply_plan(picture, plan)
            resized[plan] = _Resized(canvas, seconds=time.perf_counter() - started)
    return _Done(picture.digest, resized, decode_s)


def _given(source: UrlSource, fetched: Mapping[str, Fetched], limits: MediaLimits) -> tuple[MemorySource, float]:
    found = fetched.get(source.url)
    if found is None:
        raise MediaSourceError("The picture's address was not fetched.", code="media_fetch_failed")
    check_num_bytes(len(found.data), limits)
    return BytesSource(found.data), found.seconds


@contextmanager
def _named(media: MediaInput, number: int, total: int) -> Iterator[None]:
    """Which picture it is, if there is more than one or a place to name."""
    try:
        yield
    except MediaError as error:
        if total == 1 and not media.param:
            raise
        param = error.param or media.param or None
        raise type(error)(f"{media.noun} {number}: {error}", code=error.code, param=param) from None
