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
    """Base of all errors. `code` is stable and machine-readable; `status` is the HTTP status a server answers with."""

    code = "internal_error"
    status = 500


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
    code = "invalid_sampling_params"


class PromptError(RequestError):
    code = "invalid_prompt"


class PromptTooLongError(PromptError):
    code = "prompt_too_long"


class PlaceholderError(PromptError):
    code = "placeholder_mismatch"


class MediaError(RequestError):
    code = "invalid_media"


class MediaSourceError(MediaError):
    code = "media_source_refused"


class MediaLimitError(MediaError):
    code = "media_limit_exceeded"


class MediaDecodeError(MediaError):
    code = "media_undecodable"


class EmbeddingsError(MediaError):
    code = "invalid_embeddings"


class RequestFailedError(RequestError):
    code = "request_failed"
    status = 500


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
