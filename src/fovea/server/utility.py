"""The routes beside answers: models, tokens, version, health, metrics."""

from __future__ import annotations

from urllib.parse import unquote

from msgspec import UNSET, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from fovea import __version__
from fovea.core.errors import BodyError, UnavailableError
from fovea.core.params import SamplingParams
from fovea.families.spec import ModelPath
from fovea.server.answers import MediaTokens, media_tokens
from fovea.server.ask import Ask, ServiceLike
from fovea.server.asks import (
    check_text,
    check_unsupported,
    generation_flags,
    plain_messages,
)
from fovea.server.calls import Call, MetricsLike, json_response, model_not_found, read_call
from fovea.server.protocol import DetokenizeBody, TokenizeBody, decode_kwargs
from fovea.server.stream import while_connected

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
RETRY_AFTER_S = 2  # until a model is loaded, or another replica has taken over


class ModelFacts(Struct):
    modalities: list[str]
    max_images: int
    max_image_pixels: int
    path: ModelPath
    max_videos: int


class ModelCard(Struct, kw_only=True):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "fovea"
    root: str
    parent: None = None
    max_model_len: int
    fovea: ModelFacts


class ModelList(Struct):
    data: list[ModelCard]
    object: str = "list"


class Tokens(Struct):
    count: int
    max_model_len: int
    tokens: tuple[int, ...]
    image_tokens: int
    media: list[MediaTokens]
    video_tokens: int | UnsetType = UNSET


class Text(Struct):
    prompt: str


class Version(Struct):
    version: str


class Health(Struct):
    status: str


class UtilityRoutes:
    def __init__(self, service: ServiceLike, metrics: MetricsLike) -> None:
        self._service = service
        self._metrics = metrics

    async def models(self, request: Request) -> Response:
        self._check_loaded()
        return json_response(ModelList([self._card(name) for name in self._service.model_names]))

    async def model(self, request: Request) -> Response:
        self._check_loaded()
        name = unquote(request.path_params["model"])  # the edge leaves paths as sent, and SDKs send org%2Fname
        if name not in self._service.model_names:
            raise model_not_found(name, self._service)
        return json_response(self._card(name))

    async def tokenize(self, request: Request) -> Response:
        body, call = await read_call(request, self._service, TokenizeBody)
        check_unsupported(body)
        ask = self._tokenize_ask(body, call)
        counted = await while_connected(request.receive, self._service.count(ask))
        videos = [report.num_tokens for report in counted.reports if report.num_frames]
        tokens = Tokens(
            count=len(counted.token_ids),
            max_model_len=self._service.max_model_len,
            tokens=counted.token_ids,
            image_tokens=sum(span.length for span in counted.spans) - sum(videos)
            if counted.spans
            else sum(report.num_tokens for report in counted.reports),
            media=[media_tokens(report) for report in counted.reports],
            video_tokens=sum(videos) if videos else UNSET,
        )
        return json_response(tokens, call.headers)

    async def detokenize(self, request: Request) -> Response:
        body, call = await read_call(request, self._service, DetokenizeBody)
        text = await while_connected(request.receive, self._service.detokenize(body.tokens))
        return json_response(Text(text), call.headers)

    async def version(self, request: Request) -> Response:
        return json_response(Version(__version__))

    async def live(self, request: Request) -> Response:
        if not self._service.is_live:
            raise unavailable("dead")
        return json_response(Health("ok"))

    async def ready(self, request: Request) -> Response:
        if self._service.status != "ready":
            raise unavailable(self._service.status)
        return json_response(Health("ready"))

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.render(), headers={"content-type": METRICS_TYPE})

    def _check_loaded(self) -> None:
        """The list of models is asked by what wants to know whether the model can answer."""
        if self._service.status in ("loading", "dead"):
            raise unavailable(self._service.status)

    def _card(self, name: str) -> ModelCard:
        config = self._service.config
        max_images, max_videos = self._service.max_images, self._service.max_videos
        return ModelCard(
            id=name,
            created=self._service.created,
            root=self._service.model_names[0],
            max_model_len=self._service.max_model_len,
            fovea=ModelFacts(
                modalities=["text", *["image"] * bool(max_images), *["video"] * bool(max_videos)],
                max_images=max_images,
                max_image_pixels=config.max_image_pixels,
                path=self._service.model_path,
                max_videos=max_videos,
            ),
        )

    def _tokenize_ask(self, body: TokenizeBody, call: Call) -> Ask:
        if (body.messages is None) == (body.prompt is None):
            code = "missing_required_parameter" if body.prompt is None else "unsupported_combination"
            raise BodyError("Send either messages or prompt.", code=code, param="messages")
        config = self._service.config
        check_text(len(body.prompt or ""), config, "prompt")
        add, resume = generation_flags(body.add_generation_prompt, body.continue_final_message)
        return Ask(
            request_id=call.request_id,
            params=SamplingParams(),
            messages=None if body.messages is None else plain_messages(body.messages, config),
            prompt=body.prompt,
            salt=body.cache_salt or "",
            tenant=call.tenant,
            processor_kwargs=decode_kwargs(body.mm_processor_kwargs, "mm_processor_kwargs"),
            template_kwargs=decode_kwargs(body.chat_template_kwargs, "chat_template_kwargs"),
            add_generation_prompt=add,
            continue_final_message=resume,
            add_special_tokens=body.add_special_tokens is not False,
            num_body_bytes=call.num_body_bytes,
        )


def unavailable(status: str) -> UnavailableError:
    code, message = {
        "loading": ("loading", "The model is still being loaded."),
        "draining": ("draining", "The server is shutting down and takes no more requests."),
    }.get(status, ("engine_dead", "The engine does not run."))
    return UnavailableError(message, code=code, retry_after_s=RETRY_AFTER_S)
