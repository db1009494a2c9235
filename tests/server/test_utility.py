"""Models, tokens, version, health and metrics."""

from __future__ import annotations

from typing import Any

import pytest

import fovea
from fovea.core.errors import PromptError
from fovea.core.server_config import ServerConfig
from tests.server.fakes import MODEL, REPORT, FakeService, chat_body, check_refused, get, post

HEALTH = ("/health", "/health/live")
READY = ("/ready", "/health/ready")


def test_models_are_listed_with_what_they_take() -> None:
    service = FakeService(config=ServerConfig(limit_mm_per_prompt={"image": 4}))
    listed = get(service, "/v1/models").json
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == [MODEL, "org/name"]
    assert listed["data"][0] == {
        "id": MODEL,
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "fovea",
        "root": MODEL,
        "parent": None,
        "max_model_len": 4096,
        "fovea": {
            "modalities": ["text", "image", "video"],
            "max_images": 4,
            "max_image_pixels": 64_000_000,
            "max_videos": 1,
            "path": "fused",
        },
    }


def test_a_server_without_pictures_says_so() -> None:
    service = FakeService(config=ServerConfig(limit_mm_per_prompt={"image": 0, "video": 0}))
    assert get(service, "/v1/models").json["data"][0]["fovea"]["modalities"] == ["text"]


@pytest.mark.parametrize("name", [MODEL, "org/name", "org%2Fname"])
def test_one_model_is_found_by_its_name_with_slashes(name: str) -> None:
    assert get(FakeService(), f"/v1/models/{name}").json["id"] == name.replace("%2F", "/")


@pytest.mark.parametrize("name", ["nope", "org", "org/name/", "../metrics", "%0d%0a"])
def test_an_unknown_model_is_not_found(name: str) -> None:
    check_refused(get(FakeService(), f"/v1/models/{name}"), "model_not_found", "model", status=404)


@pytest.mark.parametrize(("status", "code"), [("loading", "loading"), ("dead", "engine_dead")])
def test_models_are_not_listed_before_one_can_answer(status: Any, code: str) -> None:
    check_refused(get(FakeService(status=status), "/v1/models"), code, status=503)


@pytest.mark.parametrize("path", HEALTH)
def test_health_is_whether_the_server_works(path: str) -> None:
    assert get(FakeService(), path).json == {"status": "ok"}
    assert get(FakeService(status="draining"), path).status == 200
    answer = get(FakeService(is_live=False, status="dead"), path)
    check_refused(answer, "engine_dead", status=503)


@pytest.mark.parametrize("path", READY)
def test_ready_is_whether_it_takes_requests(path: str) -> None:
    assert get(FakeService(), path).status == 200
    codes: list[tuple[Any, str]] = [("loading", "loading"), ("draining", "draining"), ("dead", "engine_dead")]
    for status, code in codes:
        answer = get(FakeService(status=status), path)
        check_refused(answer, code, status=503)
        assert int(answer.headers["retry-after"]) >= 1


def test_metrics_are_text_for_get_and_head() -> None:
    for method in ("GET", "HEAD"):
        answer = get(FakeService(), "/metrics", method=method)
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert get(FakeService(), "/metrics").body == b"fovea:up 1\n"


def test_the_version_is_the_packages() -> None:
    assert get(FakeService(), "/version").json == {"version": fovea.__version__}


def test_a_prompt_is_tokenised() -> None:
    service = FakeService()
    answer = post(service, "/tokenize", {"prompt": "Hello"})
    assert answer.json == {"count": 4, "max_model_len": 4096, "tokens": [1, 2, 3, 4], "image_tokens": 0, "media": []}
    assert (service.asks[0].prompt, service.asks[0].messages) == ("Hello", None)


def test_messages_are_tokenised_with_their_pictures() -> None:
    service = FakeService(reports=(REPORT,))
    answer = post(service, "/tokenize", chat_body(add_generation_prompt=False, mm_processor_kwargs={"max_pixels": 9}))
    assert answer.json["image_tokens"] == 2
    assert answer.json["media"] == [
        {"original": [640, 480], "used": [644, 476], "tokens": 391, "token_grid": [17, 23], "bytes": 12345}
    ]
    assert service.asks[0].messages == [{"role": "user", "content": "Hello"}]
    assert service.asks[0].processor_kwargs == {"max_pixels": 9}
    assert service.asks[0].add_generation_prompt is False


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, "missing_required_parameter"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "unsupported_combination"),
        ({"prompt": "a", "chat_template": "x"}, "chat_template_not_allowed"),
        ({"prompt": "a", "tools": [{}]}, "unsupported_value"),
        ({"prompt": 5}, "invalid_type"),
    ],
)
def test_bad_tokenize_bodies_are_refused(fields: dict[str, Any], code: str) -> None:
    check_refused(post(FakeService(), "/tokenize", fields), code)


def test_errors_of_counting_pass_through() -> None:
    service = FakeService(before=PromptError("Empty.", code="invalid_value", param="prompt"))
    check_refused(post(service, "/tokenize", {"prompt": ""}), "invalid_value", "prompt")


def test_tokens_become_text() -> None:
    assert post(FakeService(), "/detokenize", {"model": MODEL, "tokens": [1, 2]}).json == {"prompt": "<1><2>"}
    check_refused(post(FakeService(), "/detokenize", {"tokens": [-1]}), "below_min_value", "tokens.0")
    check_refused(post(FakeService(), "/detokenize", {}), "missing_required_parameter", "tokens")
    check_refused(post(FakeService(), "/detokenize", {"model": "x", "tokens": []}), "model_not_found", status=404)
