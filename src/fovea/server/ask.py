"""What a route asks, and who answers: the interface between HTTP and the rest."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from fovea.core.params import SamplingParams
from fovea.core.server_config import ServerConfig
from fovea.core.types import Delta, RequestOutput
from fovea.families.spec import ModelPath
from fovea.pipeline.preparer import Counted
from fovea.server.admission import Reading

ServiceStatus = Literal["loading", "ready", "draining", "dead"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One prompt to answer: either `messages` or a `prompt` (text or token ids).

    `tenant` separates caches beside `salt`; `timeout_s` shortens the server's own; `num_body_bytes` is what the request
    took to send.
    """

    request_id: str
    params: SamplingParams
    messages: list[dict[str, Any]] | None = None
    prompt: str | tuple[int, ...] | None = None
    salt: str = ""
    tenant: str = ""
    processor_kwargs: Mapping[str, Any] = field(default_factory=dict)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = True
    timeout_s: float | None = None
    num_body_bytes: int = 0


class ServiceLike(Protocol):
    """Everything raises FoveaError; see the subclasses for the HTTP status."""

    @property
    def config(self) -> ServerConfig: ...
    @property
    def model_names(self) -> tuple[str, ...]: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def model_path(self) -> ModelPath: ...
    @property
    def max_images(self) -> int:
        """Most pictures of one request: what is set, or none with a model of text alone."""
        ...

    @property
    def max_videos(self) -> int:
        """The same for videos."""
        ...

    @property
    def created(self) -> int:
        """Unix time at which the model was loaded."""
        ...

    @property
    def status(self) -> ServiceStatus: ...
    @property
    def is_live(self) -> bool:
        """The engine makes steps when there is work; while it loads for the first time, it counts as live."""
        ...

    def reading(self) -> Reading:
        """Around reading a body: refused if the server is full already, and its bytes are counted as they come."""
        ...

    async def answer(self, ask: Ask) -> RequestOutput:
        """The finished answer. Cancelling the caller ends the request."""
        ...

    def stream(self, ask: Ask) -> AsyncGenerator[Delta | RequestOutput, None]:
        """What is new, as it comes, then the finished answer. Closing the generator ends the request."""
        ...

    async def count(self, ask: Ask) -> Counted:
        """The prompt as tokens; nothing is decoded or run."""
        ...

    async def detokenize(self, token_ids: Sequence[int]) -> str: ...
