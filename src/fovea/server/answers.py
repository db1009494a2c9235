"""What clients get: OpenAI's objects with vLLM's and our own additions, made from a RequestOutput.

Fields of OpenAI's objects are always there, null if need be; additions only where they were asked for or apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from fovea.core.errors import RequestFailedError
from fovea.core.types import Logprob, MediaReport, RequestOutput, TokenLogprobs

LEAST_LOGPROB = -9999.0  # stands for minus infinity, which JSON cannot say, as at OpenAI


class PromptTokensDetails(Struct):
    cached_tokens: int
    image_tokens: int
    video_tokens: int | UnsetType = UNSET  # where there are videos


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class MediaTokens(Struct, kw_only=True):
    """One picture or video: sizes are [width, height] in pixels, the token grid is [rows, columns].

    Of a video `frames` were shown, at `times_s` where that is known, and the grid is that of one step of its time.
    """

    original: tuple[int, int]
    used: tuple[int, int]
    tokens: int
    token_grid: tuple[int, int]
    bytes: int
    frames: int | UnsetType = UNSET
    times_s: list[float] | UnsetType = UNSET


class MediaFacts(MediaTokens, kw_only=True):
    cache_hit: bool
    fetch_s: float
    decode_s: float
    resize_s: float


class Timings(Struct):
    prompt_s: float
    media_s: float
    queue_s: float
    encode_s: float
    prefill_s: float
    decode_s: float
    ttft_s: float
    total_s: float


class FoveaFacts(Struct):
    """What was done with the pictures of a request and where its time went."""

    media: list[MediaFacts]
    timings: Timings | None
    cached_tokens: int


class PromptLogprob(Struct):
    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(Struct):
    role: str
    content: str
    refusal: None = None


class ChatChoice(Struct, kw_only=True):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: int | str | None = None
    token_ids: tuple[int, ...] | UnsetType = UNSET


class ChatCompletion(Struct, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    system_fingerprint: None = None
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: tuple[int, ...] | UnsetType = UNSET
    fovea: FoveaFacts | UnsetType = UNSET


class CompletionLogprobs(Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: tuple[int, ...] | UnsetType = UNSET
    prompt_token_ids: tuple[int, ...] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class TextCompletion(Struct, kw_only=True):
    id: str
    object: str = "text_completion"
    created: int
    model: str
    system_fingerprint: None = None
    choices: list[TextChoice]
    usage: Usage
    fovea: FoveaFacts | UnsetType = UNSET


class ChunkDelta(Struct, omit_defaults=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(Struct, kw_only=True):
    index: int
    delta: ChunkDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None | UnsetType = UNSET
    token_ids: tuple[int, ...] | UnsetType = UNSET


class ChatCompletionChunk(Struct, kw_only=True):
    """One event of a stream. `choices` is empty in the last one, which carries usage or the `fovea` object."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: None = None
    choices: list[ChatChunkChoice]
    usage: Usage | None | UnsetType = UNSET
    prompt_token_ids: tuple[int, ...] | UnsetType = UNSET
    fovea: FoveaFacts | UnsetType = UNSET


class TextCompletionChunk(Struct, kw_only=True):
    """As ChatCompletionChunk."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    system_fingerprint: None = None
    choices: list[TextChoice]
    usage: Usage | None | UnsetType = UNSET
    prompt_token_ids: tuple[int, ...] | UnsetType = UNSET
    fovea: FoveaFacts | UnsetType = UNSET


def finished(output: RequestOutput) -> RequestOutput:
    """The output, if each of its completions came to an end of its own. Raises the error that ended it otherwise."""
    if output.error is not None:
        raise output.error
    for completion in output.outputs:
        check_end(completion.finish_reason)
    return output


def check_end(finish_reason: str | None) -> None:
    if finish_reason not in ("stop", "length"):
        raise RequestFailedError(
            "The answer ended before it was complete. Send the request again.", code="internal_error"
        )


def usage(outputs: Sequence[RequestOutput], *, num_hidden: int = 0) -> Usage:
    """`num_hidden`: tokens that were made although none was asked for, and are not shown."""
    prompt = sum(len(output.prompt_token_ids) for output in outputs)
    answer = sum(len(c.token_ids) for output in outputs for c in output.outputs) - num_hidden
    reports = [report for output in outputs for report in output.media]
    videos = [report.num_tokens for report in reports if report.num_frames]
    details = PromptTokensDetails(
        cached_tokens=sum(output.num_cached_tokens for output in outputs),
        image_tokens=sum(report.num_tokens for report in reports if not report.num_frames),
        video_tokens=sum(videos) if videos else UNSET,
    )
    return Usage(prompt, answer, prompt + answer, details)


def fovea_facts(output: RequestOutput) -> FoveaFacts:
    timings = None
    if output.metrics is not None:
        timings = Timings(*(round(getattr(output.metrics, name), 6) for name in Timings.__struct_fields__))
    return FoveaFacts([media_facts(report) for report in output.media], timings, output.num_cached_tokens)


def media_facts(report: MediaReport) -> MediaFacts:
    return MediaFacts(
        **_media_tokens(report),
        cache_hit=report.cache_hit,
        fetch_s=round(report.fetch_s, 6),
        decode_s=round(report.decode_s, 6),
        resize_s=round(report.resize_s, 6),
    )


def media_tokens(report: MediaReport) -> MediaTokens:
    return MediaTokens(**_media_tokens(report))


def _media_tokens(report: MediaReport) -> dict[str, Any]:
    return {
        "original": (report.original_width_px, report.original_height_px),
        "used": (report.width_px, report.height_px),
        "tokens": report.num_tokens,
        "token_grid": (report.token_rows, report.token_columns),
        "bytes": report.num_bytes,
        "frames": report.num_frames or UNSET,
        "times_s": [round(second, 3) for second in report.times_s] or UNSET,
    }


def chat_logprobs(token_ids: Sequence[int], entries: Sequence[TokenLogprobs], num_top: int) -> ChatLogprobs:
    content = []
    for token_id, entry in zip(token_ids, entries, strict=True):
        chosen = entry[token_id]
        top = [
            TopLogprob(one.decoded_token, plain(one), list(one.decoded_token.encode()))
            for one in by_rank(entry)
            if one.rank <= num_top
        ]
        content.append(
            TokenLogprob(chosen.decoded_token, plain(chosen), list(chosen.decoded_token.encode()), top[:num_top])
        )
    return ChatLogprobs(content)


def completion_logprobs(
    token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None], offset: int, first_token: str = ""
) -> CompletionLogprobs:
    """`offset`: characters before the first token; `first_token`: the text of a prompt's first, which has no entry."""
    result = CompletionLogprobs([], [], [], [])
    for token_id, entry in zip(token_ids, entries, strict=True):
        chosen = None if entry is None else entry[token_id]
        token = first_token if chosen is None else chosen.decoded_token
        result.tokens.append(token)
        result.token_logprobs.append(None if chosen is None else plain(chosen))
        result.top_logprobs.append(None if entry is None else top_by_text(entry))
        result.text_offset.append(offset)
        offset += len(token)
    return result


def top_by_text(entry: TokenLogprobs) -> dict[str, float]:
    """Where two tokens have the same text, the likelier one counts."""
    made: dict[str, float] = {}
    for one in by_rank(entry):
        made.setdefault(one.decoded_token, plain(one))
    return made


def prompt_logprobs(output: RequestOutput) -> PromptLogprobs | UnsetType:
    if output.prompt_logprobs is None:
        return UNSET
    return [None if entry is None else named(entry) for entry in output.prompt_logprobs]


def named(entry: TokenLogprobs) -> dict[str, PromptLogprob]:
    return {str(token): PromptLogprob(plain(one), one.rank, one.decoded_token) for token, one in entry.items()}


def by_rank(entry: TokenLogprobs) -> list[Logprob]:
    return sorted(entry.values(), key=lambda one: one.rank)


def plain(one: Logprob) -> float:
    return max(one.logprob, LEAST_LOGPROB)
