"""What clients send: OpenAI's bodies with vLLM's extensions, as structs whose every list, map and string has a bound.

Bounds that the operator sets (completions, text length) are judged where an Ask is made. Fields that OpenAI or vLLM has
and this server does not are kept undecoded in `Unsupported`, so that a value that asks for something is refused and one
that asks for nothing is not. Other unknown top-level fields are accepted and named in a response header; inside content
parts and the `fovea` object they are errors, so that a misspelt pixel cap is never silently dropped.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from msgspec import UNSET, DecodeError, Meta, Raw, Struct, UnsetType, json, msgpack

from fovea.core.config import MIB
from fovea.core.errors import BodyError, FoveaError
from fovea.families.video import MAX_ASKED_FPS, MAX_ASKED_FRAMES
from fovea.prompt.forms import MAX_GRID_SIDE
from fovea.server.body import decode

MAX_MESSAGES = 1024
MAX_PARTS = 256
MAX_PROMPTS = 64
MAX_TOKEN_IDS = 2**20
MAX_TOKEN_ID = 2**31 - 1
MAX_TEXT_CHARS = 64 * MIB
MAX_MODEL_CHARS = 64 * 1024  # longer than any name, so that a long one is "not found" like other wrong names
MAX_STOP_STRINGS = 4
MAX_STOP_CHARS = 256
MAX_LOGIT_BIAS = 300
MAX_KWARGS_BYTES = 64 * 1024
MAX_NAMED_COLONS = 100_000
MAX_NAMED_FIELDS = 16

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
Pixels = Annotated[int, Meta(ge=1, le=10**9)]
Frames = Annotated[int, Meta(ge=1, le=MAX_ASKED_FRAMES)]
Fps = Annotated[float, Meta(gt=0, le=MAX_ASKED_FPS)]
GridSide = Annotated[int, Meta(ge=1, le=MAX_GRID_SIDE)]
Short = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
Url = Annotated[str, Meta(min_length=1, max_length=256 * MIB, description="http(s), data: or file: address.")]
Name = Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_CHARS)]
Salt = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$(?!\n)")]
Stop = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
BadWord = Annotated[str, Meta(min_length=1, max_length=256)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
BiasKey = Annotated[str, Meta(max_length=20, extra_json_schema={"pattern": "^(0|[1-9][0-9]*)$"})]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Detail = Literal["auto", "low", "high"]
Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
Kwargs = Annotated[Raw, Meta(extra={"max_bytes": MAX_KWARGS_BYTES}, extra_json_schema={"type": "object"})]
Refused = Annotated[Raw, Meta(description="Not supported: a value that asks for something is an error.")]
TokenIds = Annotated[list[TokenId], Meta(max_length=MAX_TOKEN_IDS)]


class TextPart(Struct, tag_field="type", tag="text", forbid_unknown_fields=True, omit_defaults=True):
    text: Text


class InputTextPart(Struct, tag_field="type", tag="input_text", forbid_unknown_fields=True, omit_defaults=True):
    text: Text


class ImageUrl(Struct, forbid_unknown_fields=True, omit_defaults=True):
    url: Url
    detail: Detail | None = None
    max_pixels: Pixels | None = None
    min_pixels: Pixels | None = None


class ImageUrlPart(Struct, tag_field="type", tag="image_url", forbid_unknown_fields=True, omit_defaults=True):
    image_url: ImageUrl | Url
    uuid: Short | None = None
    detail: Detail | None = None
    max_pixels: Pixels | None = None
    min_pixels: Pixels | None = None


class InputImagePart(Struct, tag_field="type", tag="input_image", forbid_unknown_fields=True, omit_defaults=True):
    image_url: Url
    uuid: Short | None = None
    detail: Detail | None = None
    max_pixels: Pixels | None = None
    min_pixels: Pixels | None = None


class ImageEmbedsPart(Struct, tag_field="type", tag="image_embeds", forbid_unknown_fields=True, omit_defaults=True):
    """`image_embeds` is kept undecoded until it is known that the operator takes embeddings."""

    image_embeds: Annotated[Raw, Meta(extra={"max_bytes": 256 * MIB}, extra_json_schema={"type": "string"})]
    image_grid_thw: Annotated[list[GridSide], Meta(min_length=3, max_length=3)] | None = None
    uuid: Short | None = None


class VideoUrl(Struct, forbid_unknown_fields=True, omit_defaults=True):
    url: Url
    num_frames: Frames | None = None
    fps: Fps | None = None
    max_pixels: Pixels | None = None
    min_pixels: Pixels | None = None


class VideoUrlPart(Struct, tag_field="type", tag="video_url", forbid_unknown_fields=True, omit_defaults=True):
    """`num_frames` or `fps` say which frames are shown, `max_pixels` how large each of them may be."""

    video_url: VideoUrl | Url
    uuid: Short | None = None
    num_frames: Frames | None = None
    fps: Fps | None = None
    max_pixels: Pixels | None = None
    min_pixels: Pixels | None = None


Part: TypeAlias = TextPart | InputTextPart | ImageUrlPart | InputImagePart | ImageEmbedsPart | VideoUrlPart
SUPPORTED_PARTS = "text, input_text, image_url, input_image, image_embeds, video_url"


class FunctionCall(Struct, omit_defaults=True):
    name: Short
    arguments: Text = ""


class ToolCall(Struct, omit_defaults=True):
    function: FunctionCall
    id: Short | None = None
    type: Short | None = None


class Message(Struct, omit_defaults=True):
    role: Role
    content: Text | Annotated[list[Part], Meta(min_length=1, max_length=MAX_PARTS)] | None = None
    name: Short | None = None
    tool_call_id: Short | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=128)] | None = None


Messages = Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]


class StreamOptions(Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class FoveaOptions(Struct, forbid_unknown_fields=True):
    media: bool | None = None


class Unsupported(Struct, kw_only=True):
    """Fields that would change the answer if they were understood; see asks.ACCEPTED."""

    audio: Refused | UnsetType = UNSET
    best_of: Refused | UnsetType = UNSET
    chat_template: Refused | UnsetType = UNSET
    documents: Refused | UnsetType = UNSET
    function_call: Refused | UnsetType = UNSET
    functions: Refused | UnsetType = UNSET
    guided_choice: Refused | UnsetType = UNSET
    guided_grammar: Refused | UnsetType = UNSET
    guided_json: Refused | UnsetType = UNSET
    guided_regex: Refused | UnsetType = UNSET
    logits_processors: Refused | UnsetType = UNSET
    media_io_kwargs: Refused | UnsetType = UNSET
    modalities: Refused | UnsetType = UNSET
    prompt_embeds: Refused | UnsetType = UNSET
    response_format: Refused | UnsetType = UNSET
    structured_outputs: Refused | UnsetType = UNSET
    suffix: Refused | UnsetType = UNSET
    tools: Refused | UnsetType = UNSET
    tool_choice: Refused | UnsetType = UNSET
    truncate_prompt_tokens: Refused | UnsetType = UNSET
    use_beam_search: Refused | UnsetType = UNSET
    web_search_options: Refused | UnsetType = UNSET


class Sampling(Unsupported, kw_only=True):
    """What chat and completions have in common."""

    model: Name
    n: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=128)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    max_tokens: Count | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    logit_bias: Annotated[dict[BiasKey, Bias], Meta(max_length=MAX_LOGIT_BIAS)] | None = None
    bad_words: Annotated[list[BadWord], Meta(max_length=128)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=16384)] | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: Salt | None = None
    timeout: Annotated[float, Meta(gt=0, le=86400)] | None = None
    user: Annotated[str, Meta(max_length=512)] | None = None
    fovea: FoveaOptions | None = None


class ChatBody(Sampling, kw_only=True):
    """POST /v1/chat/completions"""

    messages: Messages
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Kwargs | UnsetType = UNSET
    mm_processor_kwargs: Kwargs | UnsetType = UNSET
    echo: Refused | UnsetType = UNSET


PromptItem: TypeAlias = Text | TokenId | TokenIds


class CompletionBody(Sampling, kw_only=True):
    """POST /v1/completions"""

    prompt: Text | Annotated[list[PromptItem], Meta(min_length=1, max_length=MAX_TOKEN_IDS)]
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None


class TokenizeBody(Unsupported, kw_only=True):
    """POST /tokenize: either `messages` or `prompt`."""

    model: Name | None = None
    messages: Messages | None = None
    prompt: Text | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: Kwargs | UnsetType = UNSET
    mm_processor_kwargs: Kwargs | UnsetType = UNSET
    cache_salt: Salt | None = None


class DetokenizeBody(Struct, kw_only=True):
    """POST /detokenize"""

    model: Name | None = None
    tokens: TokenIds


BodyT = TypeVar("BodyT", bound=Struct)
_Kwargs = Annotated[dict[Short, Any], Meta(max_length=64)]
_PART_TYPE = re.compile(r"messages\.\d+\.content\.\d+\.type")
_FIELD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def decode_body(data: bytes, type: type[BodyT]) -> BodyT:
    """The body as a struct. Raises BodyError, with the place and the code of what is wrong."""
    try:
        return decode(data, type)
    except FoveaError as error:
        if _is_part_type(error.param) and error.code == "invalid_value":
            raise BodyError(
                f"{error.param}: this server takes no content parts of this type; it takes {SUPPORTED_PARTS}.",
                code="unsupported_value",
                param=error.param,
            ) from None
        raise


def refused_fields(type: type[Struct]) -> tuple[str, ...]:
    """Names of the fields of a body that are refused if their value asks for something."""
    if not issubclass(type, Unsupported):
        return ()
    return (*Unsupported.__struct_fields__, *(["echo"] if type is ChatBody else []))


def ignored_fields(data: bytes, type: type[Struct]) -> list[str]:
    """Names of top-level fields that were accepted without effect, at most MAX_NAMED_FIELDS, for a response header.

    A courtesy: nothing is named in a body with so many colons that listing its names could cost much memory.
    """
    if data.count(b":") > MAX_NAMED_COLONS:
        return []
    known = set(type.__struct_fields__)
    try:
        names = json.decode(data, type=dict[str, Raw])
    except DecodeError:
        return []
    unknown = (name for name in names if name not in known and _FIELD_NAME.fullmatch(name))
    return sorted(unknown)[:MAX_NAMED_FIELDS]


def decode_kwargs(raw: Raw | UnsetType, name: str) -> dict[str, Any]:
    """The object in a field of type Kwargs. Raises BodyError if it is too large, no object, or holds a huge number."""
    data = b"null" if isinstance(raw, UnsetType) else bytes(raw)
    if len(data) > MAX_KWARGS_BYTES:
        raise BodyError(f"{name} is longer than {MAX_KWARGS_BYTES} bytes.", code="string_too_long", param=name)
    try:
        kwargs = json.decode(data, type=_Kwargs | None) or {}
        msgpack.encode(kwargs)  # as it goes on to other processes
    except DecodeError:
        raise BodyError(f"{name} must be an object with at most 64 entries.", code="invalid_type", param=name) from None
    except OverflowError:
        raise BodyError(f"{name} holds a number of more than 64 bits.", code="invalid_value", param=name) from None
    return kwargs


def _is_part_type(param: str | None) -> bool:
    return param is not None and _PART_TYPE.fullmatch(param) is not None
