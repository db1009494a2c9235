"""The one table of routes, and the app made from it. What is not in the table is a 404 in OpenAI's shape."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.routing import Route

from fovea.core.server_config import ServerConfig
from fovea.server import examples
from fovea.server.answers import ChatCompletion, TextCompletion
from fovea.server.ask import ServiceLike
from fovea.server.calls import MetricsLike
from fovea.server.chat import ChatRoute
from fovea.server.completions import CompletionsRoute
from fovea.server.errors import exception_handlers
from fovea.server.openapi import Endpoint, document
from fovea.server.pages import file_handler, load_pages
from fovea.server.protocol import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from fovea.server.utility import (
    Health,
    ModelCard,
    ModelList,
    Text,
    Tokens,
    UtilityRoutes,
    Version,
)


def build_app(service: ServiceLike, config: ServerConfig, metrics: MetricsLike) -> Starlette:
    table = endpoints(service, metrics)
    routes = [Route(one.path, one.handler, methods=[one.method]) for one in table]
    described = file_handler(document(table, config), "application/json")
    routes.append(Route("/openapi.json", described, methods=["GET"]))
    if config.playground:
        routes += [Route(path, handler, methods=["GET"]) for path, handler in load_pages().items()]
    app = Starlette(routes=routes, exception_handlers=exception_handlers())
    app.router.redirect_slashes = False
    return app


def endpoints(service: ServiceLike, metrics: MetricsLike) -> list[Endpoint]:
    utility = UtilityRoutes(service, metrics)
    return [
        Endpoint(
            "POST",
            "/v1/chat/completions",
            ChatRoute(service, metrics).post,
            "Answer a conversation that may have pictures in it.",
            body=ChatBody,
            answer=ChatCompletion,
            example=examples.CHAT,
        ),
        Endpoint(
            "POST",
            "/v1/completions",
            CompletionsRoute(service, metrics).post,
            "Go on with a text, or with token ids.",
            body=CompletionBody,
            answer=TextCompletion,
            example=examples.COMPLETION,
        ),
        Endpoint("GET", "/v1/models", utility.models, "The models served.", answer=ModelList),
        Endpoint("GET", "/v1/models/{model:path}", utility.model, "One model.", answer=ModelCard),
        Endpoint(
            "POST",
            "/tokenize",
            utility.tokenize,
            "The tokens of a prompt or of messages, pictures included.",
            body=TokenizeBody,
            answer=Tokens,
            example=examples.TOKENIZE,
        ),
        Endpoint(
            "POST",
            "/detokenize",
            utility.detokenize,
            "The text of token ids.",
            body=DetokenizeBody,
            answer=Text,
            example=examples.DETOKENIZE,
        ),
        Endpoint("GET", "/version", utility.version, "The server's version.", answer=Version),
        Endpoint("GET", "/metrics", utility.metrics, "Figures for Prometheus."),
        *(
            Endpoint("GET", path, utility.live, "Whether the server works.", answer=Health, needs_key=False)
            for path in ("/health", "/health/live")
        ),
        *(
            Endpoint("GET", path, utility.ready, "Whether it takes requests.", answer=Health, needs_key=False)
            for path in ("/ready", "/health/ready")
        ),
    ]
