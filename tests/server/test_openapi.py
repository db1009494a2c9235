"""The OpenAPI document tells what the server does."""

from __future__ import annotations

from typing import Any

import pytest

from fovea.core.server_config import ServerConfig
from fovea.server import examples
from fovea.server.openapi import CHUNKS, ERRORS
from fovea.server.protocol import ChatBody, refused_fields
from tests.server.fakes import MODEL, FakeService, get, post


def document(config: ServerConfig | None = None) -> Any:
    answer = get(FakeService(config=config or ServerConfig()), "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    return answer.json


def refs(value: Any) -> set[str]:
    if isinstance(value, dict):
        found = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return found.union(*(refs(one) for one in value.values())) if value else found
    return set().union(*(refs(one) for one in value)) if isinstance(value, list) else set()


def test_it_is_openapi_31_and_every_reference_leads_somewhere() -> None:
    described = document()
    assert described["openapi"].startswith("3.1")
    names = {ref.removeprefix("#/components/schemas/") for ref in refs(described)}
    assert names <= set(described["components"]["schemas"])
    ids = [operation["operationId"] for path in described["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))


def test_every_route_is_there_and_answers_as_described() -> None:
    described = document()
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            real = path.replace("{model}", MODEL)
            if method == "get":
                answer = get(FakeService(), real)
            else:
                answer = post(FakeService(), real, operation["requestBody"]["content"]["application/json"]["example"])
            assert answer.status == 200, (path, answer.body)
            media_type = answer.headers["content-type"].partition(";")[0]
            assert media_type in operation["responses"]["200"]["content"]


def test_examples_name_a_model_that_is_served() -> None:
    described = document(ServerConfig(served_model_name=("mine",)))
    operation = described["paths"]["/v1/chat/completions"]["post"]
    assert operation["requestBody"]["content"]["application/json"]["example"]["model"] == "mine"
    assert examples.MODEL not in str(described["paths"])


def test_every_field_of_a_body_is_explained_and_refused_ones_are_not_offered() -> None:
    described = document()
    for name in ("ChatBody", "CompletionBody", "TokenizeBody", "DetokenizeBody"):
        properties = described["components"]["schemas"][name]["properties"]
        assert all(field["description"] for field in properties.values())
    offered = set(described["components"]["schemas"]["ChatBody"]["properties"])
    assert not offered & set(refused_fields(ChatBody))
    assert all(f"`{name}`" in described["info"]["description"] for name in refused_fields(ChatBody))


def test_the_bound_of_n_is_the_operators() -> None:
    described = document(ServerConfig(max_n=3))
    assert described["components"]["schemas"]["ChatBody"]["properties"]["n"]["anyOf"][0]["maximum"] == 3


def test_errors_are_described_for_every_status() -> None:
    operation = document()["paths"]["/v1/chat/completions"]["post"]
    assert set(operation["responses"]) == {"200", *ERRORS}
    assert "Retry-After" in operation["responses"]["503"]["headers"]


@pytest.mark.parametrize(("config", "secured"), [(ServerConfig(), False), (ServerConfig(api_key=("k",)), True)])
def test_the_key_is_asked_for_where_there_is_one(config: ServerConfig, secured: bool) -> None:
    paths = document(config)["paths"]
    assert ("security" in paths["/v1/models"]["get"]) is secured
    assert all("security" not in paths[path]["get"] for path in ("/health", "/health/live", "/ready", "/health/ready"))


def test_streams_are_described_by_an_object_in_the_document() -> None:
    described = document()
    for path, chunk in CHUNKS.items():
        answer = described["paths"][path]["post"]["responses"]["200"]
        assert answer["content"]["text/event-stream"] == {}
        assert chunk.__name__ in answer["description"]
        assert chunk.__name__ in described["components"]["schemas"]
