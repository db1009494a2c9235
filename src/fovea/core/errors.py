"""Every error a user of Fovea can meet.

    FoveaError
    +-- ConfigError                 the way Fovea was asked to run
    |   +-- UnknownOptionError
    |   +-- InvalidOptionError
    +-- ModelError                  the model folder
    |   +-- ModelNotFoundError
    |   +-- UnsupportedModelError
    |   +-- WeightsError
    |   +-- CapacityError           it does not fit this machine
    +-- RequestError                one request; others go on
    |   +-- SamplingError
    |   +-- PromptError
    |   |   +-- PromptTooLongError
    |   |   +-- PlaceholderError
    |   +-- MediaError
    |   |   +-- MediaSourceError
    |   |   +-- MediaLimitError
    |   |   +-- MediaDecodeError
    |   |   +-- EmbeddingsError
    |   +-- RequestFailedError      our fault, confined to the request
    |   +-- RouteError              the HTTP side of a request
    |   |   +-- BodyError
    |   |   +-- UnauthorizedError
    |   |   +-- ForbiddenError
    |   |   +-- NotFoundError
    |   |   +-- MethodNotAllowedError
    |   |   +-- SlowClientError
    |   |   +-- ContentTooLargeError
    |   |   +-- UnsupportedTypeError
    |   +-- UnavailableError        not now: full, draining, loading or dead; carries retry_after_s
    |   +-- DeadlineError           it took longer than it may
    +-- BatchError                  some rows of a batch failed; carries the rest

Messages are made here or at the raise site from our own words: what happened, which limit, which value, what to do.
They never contain the text of a foreign exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fovea.core.types import RequestOutput


class FoveaError(Exception):
    """Base of all errors.

    `code` is stable and machine-readable, `status` the HTTP status a server answers with, `param` the place in the
    request that is at fault, such as "messages.0.content.1.image_url". A raise site may give a code and a place of its
    own.
    """

    code = "internal_error"
    status = 500
    param: str | None = None

    def __init__(self, message: str = "", *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if param is not None:
            self.param = param


class ConfigError(FoveaError):
    code = "invalid_config"
    status = 400


class UnknownOptionError(ConfigError):
    code = "unknown_option"


class InvalidOptionError(ConfigError):
    code = "invalid_option"


class ModelError(FoveaError):
    code = "model_error"


class ModelNotFoundError(ModelError):
    code = "model_not_found"


class UnsupportedModelError(ModelError):
    code = "unsupported_model"


class WeightsError(ModelError):
    code = "bad_weights"


class CapacityError(ModelError):
    code = "does_not_fit"


class RequestError(FoveaError):
    code = "invalid_request"
    status = 400


class SamplingError(RequestError):
    code = "invalid_value"


class PromptError(RequestError):
    code = "invalid_prompt"


class PromptTooLongError(PromptError):
    code = "context_length_exceeded"


class PlaceholderError(PromptError):
    code = "placeholder_mismatch"


class MediaError(RequestError):
    code = "invalid_media"


class MediaSourceError(MediaError):
    code = "media_url_not_allowed"


class MediaLimitError(MediaError):
    code = "media_too_large"


class MediaDecodeError(MediaError):
    code = "invalid_image"


class EmbeddingsError(MediaError):
    code = "invalid_embeddings"


class RequestFailedError(RequestError):
    code = "request_failed"
    status = 500


class RouteError(RequestError):
    """Base of what is wrong with a request before it is known what it asks."""

    code = "invalid_http_request"


class BodyError(RouteError):
    code = "invalid_json"


class UnauthorizedError(RouteError):
    code = "invalid_api_key"
    status = 401


class ForbiddenError(RouteError):
    code = "host_not_allowed"
    status = 403


class NotFoundError(RouteError):
    code = "not_found"
    status = 404


class MethodNotAllowedError(RouteError):
    code = "method_not_allowed"
    status = 405


class SlowClientError(RouteError):
    code = "request_timeout"
    status = 408


class ContentTooLargeError(RouteError):
    code = "content_too_large"
    status = 413


class UnsupportedTypeError(RouteError):
    code = "unsupported_media_type"
    status = 415


class UnavailableError(RequestError):
    """`code` is one of queue_full, draining, loading, engine_dead."""

    code = "queue_full"
    status = 503

    def __init__(
        self, message: str, *, code: str | None = None, param: str | None = None, retry_after_s: int = 1
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.retry_after_s = retry_after_s


class DeadlineError(RequestError):
    code = "deadline_exceeded"
    status = 504


class BatchError(FoveaError):
    """Some rows of a batch failed.

    `outputs` has one entry for each prompt in input order (None where it failed); `errors` maps the failed positions to
    their errors.
    """

    code = "batch_failed"
    status = 400

    def __init__(self, outputs: list[RequestOutput | None], errors: Mapping[int, FoveaError]) -> None:
        self.outputs = outputs
        self.errors = dict(errors)
        first = min(self.errors)
        super().__init__(
            f"{len(self.errors)} of {len(outputs)} requests failed; the first is number {first}: {self.errors[first]} "
            'The others are in .outputs. Pass on_error="return" to get failures as outputs instead.'
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name: " Did you mean 'x'?" or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
