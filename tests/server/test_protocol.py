"""Bodies: what is accepted, what is refused and with which words. Each case goes through the whole app."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from fovea.core.server_config import ServerConfig
from fovea.server.asks import ACCEPTED
from fovea.server.protocol import (
    MAX_NAMED_COLONS,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    TokenizeBody,
    Unsupported,
    ignored_fields,
    refused_fields,
)
from tests.server.fakes import MODEL, FakeService, chat_body, check_refused, post

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODIES = (ChatBody, CompletionBody, TokenizeBody, DetokenizeBody)


def text_body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "Hello", **fields}


def parts_body(*parts: Any, **fields: Any) -> dict[str, Any]:
    return chat_body(messages=[{"role": "user", "content": list(parts)}], **fields)


def unbounded(kind: inspect.Type, place: str, seen: set[type]) -> Iterator[str]:
    """Places below `kind` where a list, map, text, number or undecoded value has no bound."""
    extra: dict[str, Any] = {}
    refused = False
    if isinstance(kind, inspect.Metadata):
        extra = kind.extra or {}
        refused = "Not supported" in (kind.extra_json_schema or {}).get("description", "")
        kind = kind.type
    match kind:
        case inspect.StructType():
            if kind.cls in seen:
                return
            for one in kind.fields:
                yield from unbounded(one.type, f"{place}.{one.encode_name}", seen | {kind.cls})
        case inspect.UnionType():
            for one_of in kind.types:
                yield from unbounded(one_of, place, seen)
        case inspect.ListType():
            if kind.max_length is None:
                yield place
            yield from unbounded(kind.item_type, f"{place}[]", seen)
        case inspect.DictType():
            if kind.max_length is None:
                yield place
            yield from unbounded(kind.key_type, f"{place}{{key}}", seen)
            yield from unbounded(kind.value_type, f"{place}{{}}", seen)
        case inspect.StrType():
            if kind.max_length is None:
                yield place
        case inspect.IntType() | inspect.FloatType():
            if (kind.ge is None and kind.gt is None) or kind.le is None:
                yield place
        case inspect.RawType():
            if not refused and "max_bytes" not in extra:
                yield place
        case inspect.BoolType() | inspect.NoneType() | inspect.LiteralType():
            pass
        case _:
            yield f"{place}: {kind}"


@pytest.mark.parametrize("body", BODIES)
def test_every_list_map_text_and_number_of_a_body_has_a_bound(body: type[msgspec.Struct]) -> None:
    assert list(unbounded(inspect.type_info(body), body.__name__, set())) == []


def test_the_walker_finds_what_has_no_bound() -> None:
    class Loose(msgspec.Struct):
        names: list[str]
        facts: dict[str, Any]
        count: int
        raw: msgspec.Raw

    found = set(unbounded(inspect.type_info(Loose), "", set()))
    assert {".names", ".names[]", ".facts", ".facts{key}", ".count", ".raw"} <= found


ACCEPTED_FIELDS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1e-320},
    {"temperature": 2},
    {"temperature": None, "top_p": None, "n": None, "stop": None, "seed": None, "logit_bias": None, "stream": None},
    {"seed": -1},
    {"seed": -(2**63)},
    {"seed": 2**63 - 1},
    {"stop": ["a", "b", "c", "d"]},
    {"stop": "x" * 256},
    {"stop": []},
    {"logit_bias": {"0": 1, "17": -100}},
    {"logit_bias": {str(i): 0 for i in range(300)}},
    {"top_k": -1},
    {"top_k": 10**9},
    {"repetition_penalty": 1.1, "min_p": 0.1, "bad_words": ["x"], "allowed_token_ids": [1], "min_tokens": 2},
    {"ignore_eos": True, "skip_special_tokens": False, "include_stop_str_in_output": True, "add_special_tokens": False},
    {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
    {
        "tools": [],
        "tool_choice": "none",
        "functions": None,
        "response_format": {"type": "text"},
        "modalities": ["text"],
    },
    {"best_of": 2, "n": 2, "use_beam_search": False, "chat_template": None, "audio": None},
    {"user": "somebody", "timeout": 5, "cache_salt": "s" * 128},
]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("fields", ACCEPTED_FIELDS, ids=str)
def test_good_values_and_nulls_are_accepted(path: str, fields: dict[str, Any]) -> None:
    body = chat_body(**fields) if path == CHAT else text_body(**fields)
    answer = post(FakeService(), path, body)
    assert answer.status == 200, answer.body


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": -0.1}, "below_min_value", "temperature"),
    ({"temperature": 2.1}, "above_max_value", "temperature"),
    ({"temperature": "hot"}, "invalid_type", "temperature"),
    ({"temperature": True}, "invalid_type", "temperature"),
    ({"top_p": 0}, "below_min_value", "top_p"),
    ({"top_p": 1.1}, "above_max_value", "top_p"),
    ({"top_k": -2}, "below_min_value", "top_k"),
    ({"min_p": 1.1}, "above_max_value", "min_p"),
    ({"n": 0}, "below_min_value", "n"),
    ({"n": 9}, "above_max_value", "n"),
    ({"n": 2**31}, "above_max_value", "n"),
    ({"n": True}, "invalid_type", "n"),
    ({"seed": 2**63}, "above_max_value", "seed"),
    ({"seed": -(2**63) - 1}, "below_min_value", "seed"),
    ({"seed": 1.5}, "invalid_type", "seed"),
    ({"max_tokens": -1}, "below_min_value", "max_tokens"),
    ({"max_tokens": 0}, "below_min_value", "max_tokens"),
    ({"min_tokens": -1}, "below_min_value", "min_tokens"),
    ({"presence_penalty": 2.1}, "above_max_value", "presence_penalty"),
    ({"frequency_penalty": -2.1}, "below_min_value", "frequency_penalty"),
    ({"repetition_penalty": 0}, "below_min_value", "repetition_penalty"),
    ({"repetition_penalty": 1e9}, "above_max_value", "repetition_penalty"),
    ({"stop": ""}, "invalid_value", "stop"),
    ({"stop": "x" * 257}, "string_too_long", "stop"),
    ({"stop": ["x"] * 5}, "array_too_long", "stop"),
    ({"stop": [None]}, "invalid_type", "stop.0"),
    ({"stop_token_ids": [-1]}, "below_min_value", "stop_token_ids.0"),
    ({"bad_words": ["x"] * 129}, "array_too_long", "bad_words"),
    ({"allowed_token_ids": []}, "invalid_value", "allowed_token_ids"),
    ({"logit_bias": {str(i): 0 for i in range(301)}}, "array_too_long", "logit_bias"),
    ({"logit_bias": {"1": 101}}, "above_max_value", "logit_bias"),
    ({"logit_bias": {"1": "1"}}, "invalid_type", "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "invalid_value", "logit_bias"),
    ({"logit_bias": {"abc": 1}}, "invalid_value", "logit_bias"),
    ({"logit_bias": {" 5": 1}}, "invalid_value", "logit_bias"),
    ({"logit_bias": {"5\n": 1}}, "invalid_value", "logit_bias"),
    ({"logit_bias": {"2147483648": 1}}, "above_max_value", "logit_bias"),
    ({"logit_bias": {"9" * 20: 1}}, "above_max_value", "logit_bias"),
    ({"logit_bias": {"05": 1}}, "invalid_value", "logit_bias"),
    ({"logit_bias": {"\uff15": 1}}, "invalid_value", "logit_bias"),
    ({"stream": "yes"}, "invalid_type", "stream"),
    ({"stream_options": {}}, "unsupported_combination", "stream_options"),
    ({"stream_options": 5, "stream": True}, "invalid_type", "stream_options"),
    ({"skip_special_tokens": "true"}, "invalid_type", "skip_special_tokens"),
    ({"prompt_logprobs": 1, "stream": True}, "unsupported_combination", "stream"),
    ({"prompt_logprobs": 21}, "above_max_value", "prompt_logprobs"),
    ({"timeout": 0}, "below_min_value", "timeout"),
    ({"timeout": 1e9}, "above_max_value", "timeout"),
    ({"cache_salt": ""}, "invalid_value", "cache_salt"),
    ({"cache_salt": "x" * 129}, "string_too_long", "cache_salt"),
    ({"cache_salt": "a\nb"}, "invalid_value", "cache_salt"),
    ({"cache_salt": "a\n"}, "invalid_value", "cache_salt"),
    ({"user": "x" * 10_000}, "string_too_long", "user"),
    ({"fovea": {"medai": True}}, "unknown_parameter", "fovea.medai"),
    ({"fovea": {"media": 1}}, "invalid_type", "fovea.media"),
    ({"tools": [{"type": "function"}]}, "unsupported_value", "tools"),
    ({"tools": [0] * 200_000}, "unsupported_value", "tools"),
    ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
    ({"functions": [{}]}, "unsupported_value", "functions"),
    ({"response_format": {"type": "json_object"}}, "unsupported_value", "response_format"),
    ({"response_format": {"type": "xml"}}, "invalid_value", "response_format"),
    ({"response_format": []}, "invalid_value", "response_format"),
    ({"response_format": {"type": []}}, "invalid_value", "response_format"),
    ({"modalities": ["text", "audio"]}, "unsupported_value", "modalities"),
    ({"audio": {"voice": "x"}}, "unsupported_value", "audio"),
    ({"best_of": 3}, "unsupported_value", "best_of"),
    ({"suffix": "end"}, "unsupported_value", "suffix"),
    ({"use_beam_search": True}, "unsupported_value", "use_beam_search"),
    ({"prompt_embeds": "AA=="}, "unsupported_value", "prompt_embeds"),
    ({"structured_outputs": {"choice": ["a"]}}, "unsupported_value", "structured_outputs"),
    ({"guided_choice": ["a"]}, "unsupported_value", "guided_choice"),
    ({"truncate_prompt_tokens": 5}, "unsupported_value", "truncate_prompt_tokens"),
    ({"documents": [{}]}, "unsupported_value", "documents"),
    ({"chat_template": "{{ 'a'*10**9 }}"}, "chat_template_not_allowed", "chat_template"),
    ({"chat_template": ""}, "chat_template_not_allowed", "chat_template"),
    ({"model": ""}, "invalid_value", "model"),
    ({"model": None}, "invalid_type", "model"),
]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(("fields", "code", "param"), REFUSED, ids=lambda v: str(v)[:60])
def test_bad_values_are_refused_by_code_and_place(path: str, fields: dict[str, Any], code: str, param: str) -> None:
    service = FakeService()
    streams = [False] if {"stream", "stream_options"} & set(fields) else [False, True]
    for stream in streams:
        body = {"stream": stream, **fields}
        check_refused(post(service, path, chat_body(**body) if path == CHAT else text_body(**body)), code, param)
    assert service.asks == []


CHAT_REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"max_tokens": 5, "max_completion_tokens": 6}, "unsupported_combination", "max_tokens"),
    ({"top_logprobs": 2}, "unsupported_combination", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "above_max_value", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "below_min_value", "top_logprobs"),
    ({"logprobs": 1}, "invalid_type", "logprobs"),
    ({"echo": True}, "unsupported_value", "echo"),
    (
        {"add_generation_prompt": True, "continue_final_message": True},
        "unsupported_combination",
        "continue_final_message",
    ),
    ({"chat_template_kwargs": []}, "invalid_type", "chat_template_kwargs"),
    ({"chat_template_kwargs": {"a": "x" * 70_000}}, "string_too_long", "chat_template_kwargs"),
    ({"chat_template_kwargs": {"a": [2**64]}}, "invalid_value", "chat_template_kwargs"),
    ({"mm_processor_kwargs": {"max_pixels": 2**70}}, "invalid_value", "mm_processor_kwargs"),
    ({"mm_processor_kwargs": 5}, "invalid_type", "mm_processor_kwargs"),
    ({"mm_processor_kwargs": {str(i): 1 for i in range(65)}}, "invalid_type", "mm_processor_kwargs"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": [{"role": "user", "content": "x"}] * 1025}, "array_too_long", "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_value", "messages.0.role"),
    ({"messages": [{"content": "x"}]}, "missing_required_parameter", "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages.0.content"),
    ({"messages": [{"role": "user", "content": None}]}, "missing_required_parameter", "messages.0.content"),
    ({"messages": [{"role": "user", "content": 5}]}, "invalid_type", "messages.0.content"),
    ({"messages": [{"role": "user", "content": []}]}, "invalid_value", "messages.0.content"),
    ({"messages": [{"role": "user", "content": [[]]}]}, "invalid_type", "messages.0.content.0"),
]


@pytest.mark.parametrize(("fields", "code", "param"), CHAT_REFUSED, ids=lambda v: str(v)[:60])
def test_bad_chat_fields_are_refused(fields: dict[str, Any], code: str, param: str) -> None:
    check_refused(post(FakeService(), CHAT, chat_body(**fields)), code, param)


TEXT_PART = {"type": "text", "text": "x"}
URL = {"url": "https://example.com/a.png"}
PARTS_REFUSED: list[tuple[Any, str, str]] = [
    ({"type": "audio_url", "audio_url": URL}, "unsupported_value", "type"),
    ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "unsupported_value", "type"),
    ({"type": "file", "file": {}}, "unsupported_value", "type"),
    ({"type": "nonsense"}, "unsupported_value", "type"),
    ({"type": 5}, "invalid_type", "type"),
    ({"type": "text", "text": None}, "invalid_type", "text"),
    ({"type": "text"}, "missing_required_parameter", "text"),
    ({"type": "text", "text": "a", "txet": "b"}, "unknown_parameter", "txet"),
    ({"type": "image_url"}, "missing_required_parameter", "image_url"),
    ({"type": "image_url", "image_url": None}, "invalid_type", "image_url"),
    ({"type": "image_url", "image_url": 5}, "invalid_type", "image_url"),
    ({"type": "image_url", "image_url": ""}, "invalid_value", "image_url"),
    ({"type": "image_url", "image_url": {}}, "missing_required_parameter", "image_url.url"),
    ({"type": "image_url", "image_url": {**URL, "detail": "ultra"}}, "invalid_value", "image_url.detail"),
    ({"type": "image_url", "image_url": {**URL, "max_pixel": 5}}, "unknown_parameter", "image_url.max_pixel"),
    ({"type": "image_url", "image_url": {**URL, "max_pixels": 0}}, "below_min_value", "image_url.max_pixels"),
    ({"type": "image_url", "image_url": {**URL, "max_pixels": 10**12}}, "above_max_value", "image_url.max_pixels"),
    ({"type": "image_url", "image_url": URL, "detail": 5}, "invalid_type", "detail"),
    ({"type": "image_url", "image_url": URL, "uuid": "x" * 257}, "string_too_long", "uuid"),
    ({"type": "image_embeds", "image_embeds": "AA=="}, "embeddings_disabled", ""),
    ({"type": "image_embeds", "image_embeds": {"__type__": "pickle"}}, "embeddings_disabled", ""),
]


@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
@pytest.mark.parametrize(("part", "code", "place"), PARTS_REFUSED, ids=lambda v: str(v)[:60])
def test_bad_parts_are_refused_at_their_place_on_every_route(path: str, part: Any, code: str, place: str) -> None:
    answer = post(FakeService(), path, parts_body(TEXT_PART, part))
    check_refused(answer, code, f"messages.0.content.1.{place}".rstrip("."))


def test_a_part_that_is_not_offered_is_answered_with_those_that_are() -> None:
    answer = post(FakeService(), CHAT, parts_body({"type": "audio_url", "audio_url": URL}))
    known = ("text", "image_url", "input_image", "image_embeds", "video_url")
    assert all(name in answer.error["message"] for name in known)


@pytest.mark.parametrize(
    "options", [{}, {"num_frames": 8}, {"fps": 0.5, "max_pixels": 1000}, {"fps": 2, "uuid": "u", "min_pixels": 1}]
)
def test_video_parts_are_passed_on(options: dict[str, Any]) -> None:
    service = FakeService()
    part = {"type": "video_url", "video_url": URL, **options}
    assert post(service, CHAT, parts_body(part)).status == 200
    messages = service.asks[-1].messages
    assert messages is not None
    assert messages[0]["content"] == [part]


@pytest.mark.parametrize(
    ("options", "code", "place"),
    [
        ({"num_frames": 0}, "below_min_value", "num_frames"),
        ({"num_frames": 2**63}, "above_max_value", "num_frames"),
        ({"num_frames": 1.5}, "invalid_type", "num_frames"),
        ({"fps": 0}, "below_min_value", "fps"),
        ({"fps": 1e9}, "above_max_value", "fps"),
        ({"max_pixels": 0}, "below_min_value", "max_pixels"),
        ({"max_frames": 4}, "unknown_parameter", "max_frames"),
    ],
)
def test_bad_video_options_are_refused_at_their_place(options: dict[str, Any], code: str, place: str) -> None:
    answer = post(FakeService(), CHAT, parts_body({"type": "video_url", "video_url": URL, **options}))
    check_refused(answer, code, f"messages.0.content.0.{place}")


def test_too_many_parts_are_refused() -> None:
    check_refused(post(FakeService(), CHAT, parts_body(*[TEXT_PART] * 257)), "array_too_long", "messages.0.content")


def test_embeddings_are_passed_on_where_the_operator_allows_them() -> None:
    service = FakeService(config=ServerConfig(enable_mm_embeds=True))
    bare = {"type": "image_embeds", "image_embeds": "AA=="}
    for part in (bare, {**bare, "uuid": "u"}, {**bare, "image_grid_thw": [1, 4, 6], "uuid": "u"}):
        post(service, CHAT, parts_body(part))
        assert service.asks[-1].messages == [{"role": "user", "content": [part]}]
    post(service, CHAT, parts_body({**bare, "image_grid_thw": None}))
    assert service.asks[-1].messages == [{"role": "user", "content": [bare]}]


BAD_GRIDS: list[tuple[Any, str, str]] = [
    ([1, 4], "invalid_value", ""),
    ([1, 4, 6, 1], "array_too_long", ""),
    ([1, 0, 6], "below_min_value", ".1"),
    ([1, 100_001, 6], "above_max_value", ".1"),
    ([1, 2**80, 6], "above_max_value", ".1"),
    ([1, 4.0, 6], "invalid_type", ".1"),
    ([[1, 4, 6]], "invalid_type", ".0"),
    ("1,4,6", "invalid_type", ""),
    ({"image_embeds": "AA=="}, "invalid_type", ""),
]


@pytest.mark.parametrize(("grid", "code", "place"), BAD_GRIDS, ids=lambda v: str(v)[:20])
def test_a_grid_beside_embeddings_is_three_counts(grid: Any, code: str, place: str) -> None:
    service = FakeService(config=ServerConfig(enable_mm_embeds=True))
    part = {"type": "image_embeds", "image_embeds": "AA==", "image_grid_thw": grid}
    check_refused(post(service, CHAT, parts_body(part)), code, f"messages.0.content.0.image_grid_thw{place}")


@pytest.mark.parametrize("value", [5, None, "", ["AA=="], {"image_embeds": "AA==", "image_grid_thw": "AQ=="}])
def test_embeddings_that_are_no_text_are_refused(value: Any) -> None:
    service = FakeService(config=ServerConfig(enable_mm_embeds=True))
    answer = post(service, CHAT, parts_body({"type": "image_embeds", "image_embeds": value}))
    check_refused(answer, "invalid_embeddings", "messages.0.content.0.image_embeds")


@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize"])
def test_text_has_a_limit_of_the_operators(path: str) -> None:
    service = FakeService(config=ServerConfig(max_text_chars=10))
    for length, status in ((10, 200), (11, 400)):
        text = "x" * length
        body = text_body(prompt=text) if path == TEXT else chat_body(messages=[{"role": "user", "content": text}])
        answer = post(service, path, body)
        assert answer.status == status
    check_refused(answer, "string_too_long")
    assert "10" in answer.error["message"]


def test_a_missing_model_is_a_missing_parameter() -> None:
    check_refused(
        post(FakeService(), CHAT, {"messages": [{"role": "user", "content": "x"}]}),
        "missing_required_parameter",
        "model",
    )


@pytest.mark.parametrize(
    "name", ["gpt-4o", "Fovea-tiny", "x" * 10_000, "../../etc/passwd", "a\r\nb", "a\x00", "http://x"]
)
@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize"])
def test_a_model_is_found_by_its_exact_name_only(path: str, name: str) -> None:
    body = text_body(model=name) if path == TEXT else chat_body(model=name)
    answer = post(FakeService(), path, body)
    check_refused(answer, "model_not_found", "model", status=404)
    assert MODEL in answer.error["message"]
    assert "\r" not in answer.error["message"]


def test_top_level_fields_without_effect_are_named() -> None:
    answer = post(FakeService(), CHAT, chat_body(priority=5, store=True, temperature=1, **{"a b": 1}))
    assert answer.headers["x-fovea-ignored"] == "priority, store"
    assert "x-fovea-ignored" not in post(FakeService(), CHAT, chat_body(temperature=1)).headers


def test_naming_ignored_fields_costs_no_memory_for_a_body_made_of_them() -> None:
    body = b"{" + b",".join(b'"f%d":0' % i for i in range(MAX_NAMED_COLONS + 1)) + b"}"
    assert ignored_fields(body, ChatBody) == []
    assert len(ignored_fields(b"{" + b",".join(b'"f%d":0' % i for i in range(1000)) + b"}", ChatBody)) == 16


def test_every_accepted_value_is_of_a_field_that_is_refused_otherwise() -> None:
    assert set(ACCEPTED) <= set(refused_fields(ChatBody))
    assert set(Unsupported.__struct_fields__) <= set(refused_fields(CompletionBody))
