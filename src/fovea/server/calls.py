"""What every route with a body does before and after its own part: read, judge the model's name, answer, record."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from msgspec import json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from fovea.core.errors import NotFoundError
from fovea.core.log import escaped
from fovea.core.types import RequestOutput
from fovea.server.access_log import note
from fovea.server.ask import ServiceLike
from fovea.server.body import read_body
from fovea.server.protocol import BodyT, decode_body, ignored_fields


class MetricsLike(Protocol):
    def render(self) -> bytes: ...
    def observe(self, output: RequestOutput) -> None: ...


@dataclass(frozen=True, slots=True)
class Call:
    """What a request is beside its body."""

    request_id: str
    tenant: str
    created: int
    num_body_bytes: int
    wants_media: bool
    headers: dict[str, str]  # of the answer


async def read_call(request: Request, service: ServiceLike, type: type[BodyT]) -> tuple[BodyT, Call]:
    """Read and decode the body of a request, and judge what needs no knowledge of the route."""
    config = service.config
    with service.reading() as reading:
        data = await read_body(request, config, reading)
        body = decode_body(data, type)
    check_model(getattr(body, "model", None), service)
    ignored = ignored_fields(data, type)
    state = request.scope.get("state", {})
    options = getattr(body, "fovea", None)
    call = Call(
        request_id=state.get("request_id") or uuid.uuid4().hex,
        tenant=state.get("tenant", "") if config.isolate_api_keys else "",
        created=int(time.time()),
        num_body_bytes=len(data),
        wants_media=bool(options and options.media) or request.headers.get("x-fovea-media", "") in ("1", "true"),
        headers={"x-fovea-ignored": ", ".join(ignored)} if ignored else {},
    )
    return body, call


def json_response(content: object, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.encode(content), 200, headers, media_type="application/json")


def check_model(model: str | None, service: ServiceLike) -> None:
    """Names match exactly. Raises NotFoundError naming those served."""
    if model is not None and model not in service.model_names:
        raise model_not_found(model, service)


def model_not_found(model: str, service: ServiceLike) -> NotFoundError:
    served = ", ".join(service.model_names)
    return NotFoundError(
        f"The model '{escaped(model)}' is not served here; served: {served}.", code="model_not_found", param="model"
    )


def record(scope: Scope, metrics: MetricsLike, outputs: Sequence[RequestOutput]) -> None:
    """Finished outputs, for metrics and this request's log line. No text of them is kept."""
    for output in outputs:
        metrics.observe(output)
    first = outputs[0]
    note(
        scope,
        prompt_tokens=sum(len(output.prompt_token_ids) for output in outputs),
        cached_tokens=sum(output.num_cached_tokens for output in outputs),
        output_tokens=sum(len(c.token_ids) for output in outputs for c in output.outputs),
        pictures=sum(len(output.media) for output in outputs),
        finish_reason=first.outputs[0].finish_reason,
        ttft_s=None if first.metrics is None else first.metrics.ttft_s,
        queue_s=None if first.metrics is None else first.metrics.queue_s,
        media_s=None if first.metrics is None else first.metrics.media_s,
    )
