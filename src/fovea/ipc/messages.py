"""What processes of one server say to each other: typed, encoded as msgpack, never pickled.

Arrays travel as raw bytes; pixels and embeddings as places in a blob (media_wire). `to_wire` and `from_wire` are the
only code that knows both sides.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np

from fovea.core import errors
from fovea.core.errors import FoveaError, RequestFailedError
from fovea.core.params import SamplingParams
from fovea.core.types import (
    EngineRequest,
    EngineTimings,
    FinishReason,
    Logprob,
    MediaSpan,
    TokenLogprobs,
    TokenOutput,
)
from fovea.families.spec import ModelPath
from fovea.ipc.media_wire import MediaWire, media_from_wire, media_to_wire

LogprobsWire = dict[int, tuple[float, int]]


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, omit_defaults=True):
    """Base of all messages; the tag is the class's name."""


class RequestWire(msgspec.Struct, frozen=True, array_like=True):
    """An EngineRequest. `token_ids` and `positions` are int32, little-endian."""

    request_id: str
    token_ids: bytes
    params: dict[str, Any]
    stop_token_ids: list[int]
    spans: list[tuple[int, int]]
    media: list[MediaWire]
    positions: bytes | None
    num_position_rows: int
    position_delta: int
    bad_words: list[list[int]]
    salt: bytes
    open_spans: list[tuple[int, int]]


class ErrorWire(msgspec.Struct, frozen=True, array_like=True):
    kind: str
    message: str
    code: str
    param: str | None = None


class TokenWire(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """A TokenOutput."""

    request_id: str
    index: int
    token_id: int | None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    logprobs: LogprobsWire | None = None
    prompt_logprobs: list[LogprobsWire | None] | None = None
    num_cached_tokens: int = 0
    media_hits: tuple[bool, ...] = ()
    timings: tuple[float, float, float, float, float, int] | None = None
    error: ErrorWire | None = None


# To the engine.


class Setup(Message, frozen=True):
    """First message to a worker: its options, and faults to inject in tests."""

    options: dict[str, Any]
    faults: dict[str, Any] = {}
    show_progress: bool = False
    log_as_json: bool = False
    log_level: str = "info"


class Add(Message, frozen=True):
    """Run a request; its pixels are in the frame's blob."""

    request: msgspec.Raw


class Abort(Message, frozen=True):
    request_id: str


class Stop(Message, frozen=True):
    """End one completion: its stop string was seen."""

    request_id: str
    index: int


class ResetCaches(Message, frozen=True):
    pass


# From the engine.


class EngineReady(Message, frozen=True):
    """`heartbeat` is in the frame's blob: one u64 that grows with every turn of the loop."""

    max_model_len: int
    device: str
    dtype: str
    memory_plan: str
    takes_pictures: bool = True
    path: ModelPath = "fused"
    takes_videos: bool = False


class Failed(Message, frozen=True):
    """A worker can't start."""

    error: ErrorWire


class Tokens(Message, frozen=True):
    tokens: list[TokenWire]


class Stats(Message, frozen=True):
    values: dict[str, float]


# To and from those who prepare.


class Fork(Message, frozen=True):
    """Make a worker that serves the socket in the frame's blob."""


class Forked(Message, frozen=True):
    """`pid` is 0 if the system gave no process."""

    pid: int


class PrepareReady(Message, frozen=True):
    pass


class FetchedWire(msgspec.Struct, frozen=True, array_like=True):
    url: str
    offset: int
    num_bytes: int
    seconds: float


class Task(Message, frozen=True):
    """Prepare a request, or with `count` just work out its tokens. What was fetched is in the frame's blob."""

    request_id: str
    arrived: float
    max_model_len: int
    params: dict[str, Any]
    messages: list[dict[str, Any]] | None = None
    prompt: str | list[int] | None = None
    salt: str = ""
    processor_kwargs: dict[str, Any] = {}
    template_kwargs: dict[str, Any] = {}
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = True
    fetched: list[FetchedWire] = []
    count: bool = False
    resize_on_device: bool = False
    pixel_cap: int = 0  # see Family.with_pixel_cap; 0: none


class Done(Message, frozen=True):
    """A prepared request. `request` is handed on to the engine as it is, with the frame's blob."""

    request: msgspec.Raw
    text: str | None
    reports: list[dict[str, Any]]
    prompt_s: float
    media_s: float


class Counts(Message, frozen=True):
    token_ids: bytes
    spans: list[tuple[int, int]]
    reports: list[dict[str, Any]]


class Refused(Message, frozen=True):
    error: ErrorWire


ToEngine = Setup | Add | Abort | Stop | ResetCaches
FromEngine = EngineReady | Failed | Tokens | Stats
ToZygote = Setup | Fork
FromZygote = PrepareReady | Failed | Forked
FromPrepare = Done | Counts | Refused

LEAVING = b""  # from a worker, before its last answer
TAKEN = b"t"  # from a worker that has read a task: from here on its end may be the task's doing

_encoder = msgspec.msgpack.Encoder()
_request_decoder = msgspec.msgpack.Decoder(RequestWire)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def error_to_wire(error: FoveaError) -> ErrorWire:
    return ErrorWire(type(error).__name__, str(error), error.code, error.param)


def error_from_wire(wire: ErrorWire) -> FoveaError:
    """The error again, as the class of core.errors it was; a class that is none of them is our own fault."""
    kind = getattr(errors, wire.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, FoveaError)) or kind is errors.BatchError:
        kind = RequestFailedError
    return kind(wire.message, code=wire.code, param=wire.param)


def request_to_wire(request: EngineRequest) -> tuple[RequestWire, list[memoryview | bytes]]:
    """The message, and the parts of the blob its pixels go into."""
    media, parts = media_to_wire(request.media)
    positions = request.positions
    wire = RequestWire(
        request_id=request.request_id,
        token_ids=_int32(request.token_ids),
        params=params_to_wire(request.params),
        stop_token_ids=sorted(request.stop_token_ids),
        spans=[(span.start, span.length) for span in request.spans],
        media=media,
        positions=None if positions is None else _int32(positions),
        num_position_rows=0 if positions is None else len(positions),
        position_delta=request.position_delta,
        bad_words=[list(word) for word in request.bad_words],
        salt=request.salt,
        open_spans=[(span.start, span.length) for span in request.open_spans],
    )
    return wire, parts


def request_from_wire(data: bytes | memoryview | msgspec.Raw, blob: memoryview | None) -> EngineRequest:
    """The request again; without a blob its media have neither pixels nor embeddings."""
    wire = _request_decoder.decode(data)
    positions = None
    if wire.positions is not None:
        positions = np.frombuffer(wire.positions, "<i4").astype(np.int32).reshape(wire.num_position_rows, -1)
    return EngineRequest(
        request_id=wire.request_id,
        token_ids=ids_from_wire(wire.token_ids),
        params=SamplingParams.from_mapping(wire.params),
        stop_token_ids=frozenset(wire.stop_token_ids),
        spans=tuple(MediaSpan(start, length) for start, length in wire.spans),
        media=tuple(media_from_wire(item, blob) for item in wire.media),
        positions=positions,
        position_delta=wire.position_delta,
        bad_words=tuple(tuple(word) for word in wire.bad_words),
        salt=wire.salt,
        open_spans=tuple(MediaSpan(start, length) for start, length in wire.open_spans),
    )


def params_to_wire(params: SamplingParams) -> dict[str, Any]:
    """Only what differs from the defaults."""
    values, defaults = asdict(params), asdict(SamplingParams())
    return {name: value for name, value in values.items() if value != defaults[name]}


def ids_from_wire(data: bytes) -> tuple[int, ...]:
    return tuple(np.frombuffer(data, "<i4").tolist())


def ids_to_wire(token_ids: tuple[int, ...]) -> bytes:
    return _int32(token_ids)


def token_to_wire(output: TokenOutput) -> TokenWire:
    timings = output.timings
    prompt = output.prompt_logprobs
    return TokenWire(
        request_id=output.request_id,
        index=output.index,
        token_id=output.token_id,
        finish_reason=output.finish_reason,
        stop_token_id=output.stop_token_id,
        logprobs=_logprobs_to_wire(output.logprobs),
        prompt_logprobs=None if prompt is None else [_logprobs_to_wire(entry) for entry in prompt],
        num_cached_tokens=output.num_cached_tokens,
        media_hits=output.media_hits,
        timings=None
        if timings is None
        else (
            timings.queue_s,
            timings.encode_s,
            timings.prefill_s,
            timings.first_token_s,
            timings.decode_s,
            timings.num_preemptions,
        ),
        error=None if output.error is None else error_to_wire(output.error),
    )


def token_from_wire(wire: TokenWire) -> TokenOutput:
    prompt = wire.prompt_logprobs
    return TokenOutput(
        request_id=wire.request_id,
        index=wire.index,
        token_id=wire.token_id,
        logprobs=_logprobs_from_wire(wire.logprobs),
        prompt_logprobs=None if prompt is None else [_logprobs_from_wire(entry) for entry in prompt],
        finish_reason=wire.finish_reason,
        stop_token_id=wire.stop_token_id,
        num_cached_tokens=wire.num_cached_tokens,
        media_hits=wire.media_hits,
        timings=None if wire.timings is None else EngineTimings(*wire.timings),
        error=None if wire.error is None else error_from_wire(wire.error),
    )


def _int32(values: Any) -> bytes:
    return np.ascontiguousarray(values, "<i4").tobytes()


def _logprobs_to_wire(entry: TokenLogprobs | None) -> LogprobsWire | None:
    return None if entry is None else {token_id: (value.logprob, value.rank) for token_id, value in entry.items()}


def _logprobs_from_wire(entry: LogprobsWire | None) -> TokenLogprobs | None:
    return None if entry is None else {token_id: Logprob(value, rank) for token_id, (value, rank) in entry.items()}
