"""The options of `fovea serve`: those of an engine and those of a server in front of it.

The defaults are for a server that strangers may reach: an order of magnitude lower than what an offline job may do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fovea.core.config import GIB, MIB, EngineConfig, option

DEFAULT_IMAGES, DEFAULT_VIDEOS = 16, 1


def secret(default: Any, help: str) -> Any:
    """An option whose value is not shown when the config is."""
    made = option(default, help)
    made.repr = False
    return made


@dataclass(frozen=True, kw_only=True)
class ServerConfig(EngineConfig):
    """Options of a server; raises InvalidOptionError as EngineConfig does. Names are vLLM's where it has one."""

    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 for every network.")
    port: int = option(8000, "Port to listen on; 0 takes a free one.", low=0, high=65535)
    served_model_name: tuple[str, ...] = option((), "Names the model answers to; default: the model's.")
    api_key: tuple[str, ...] = secret(
        (),
        "Keys that clients must present; none: no key is asked for. Others on the machine can see flags: prefer the "
        "variable FOVEA_API_KEY, or api_key_file.",
    )
    api_key_file: str = option("", "File with one key in each line, beside api_key.")
    isolate_api_keys: bool = option(False, "Share no cache entry between different API keys.")
    allowed_origins: tuple[str, ...] = option((), "Origins of web pages that browsers let call this server (CORS).")
    allowed_hosts: tuple[str, ...] = option(
        (), "Host names to answer to; default: any, but only this machine's own names while listening on loopback."
    )
    playground: bool = option(True, "Serve the playground at / and the API page at /docs.")

    max_body_bytes: int = option(32 * MIB, "Largest request body.", low=1024)
    max_request_media_bytes: int = option(64 * MIB, "Most encoded bytes of all pictures of a request.", low=1)
    max_request_pixels: int = option(64_000_000, "Most pixels of all pictures of a request, before decoding.", low=1)
    max_text_chars: int = option(4_000_000, "Most characters of text in a request.", low=1)
    max_n: int = option(8, "Most completions of one prompt.", low=1, high=64)
    enable_mm_embeds: bool = option(False, "Accept image_embeds parts (safetensors or npy, never pickle).")

    max_num_queued_reqs: int = option(256, "Most requests that wait beside the running ones; more get 503.", low=0)
    max_num_queued_tokens: int = option(1_000_000, "Most prompt tokens of waiting requests; more get 503.", low=1)
    max_queued_media_bytes: int = option(GIB, "Most bytes of bodies and pictures in work; more get 503.", low=1)
    request_timeout_s: float = option(300.0, "Most seconds for one request; clients may ask for less.", low=0.1)
    stall_timeout_s: float = option(30.0, "A client that takes nothing of its answer for so long is cut off.", low=0.1)
    header_timeout_s: float = option(10.0, "Most seconds until a request's headers are complete.", low=0.1)
    body_timeout_s: float = option(60.0, "Most seconds until a request's body is complete.", low=0.1)
    keep_alive_s: float = option(15.0, "Idle connections are closed after this.", low=0.1)
    drain_timeout: float = option(30.0, "Seconds that running requests may take after SIGTERM.", low=0.0)

    prepare_workers: int = option(0, "Processes that tokenise and decode; 0: one for each core, up to 8.", low=0)
    prepare_timeout_s: float = option(10.0, "Most seconds for preparing a request before it is stopped.", low=0.1)
    prepare_memory_bytes: int = option(GIB, "Most memory that preparing one request may take.", low=64 * MIB)
    watchdog_s: float = option(
        0.0, "Seconds without a step that mean a hung engine; 0: 20 on a GPU, 60 on a CPU.", low=0
    )
    max_engine_deaths: int = option(3, "The server gives up after so many engine deaths in five minutes.", low=1)

    log_format: Literal["auto", "human", "json"] = option("auto", "auto: human on a terminal, else json.")
    log_level: Literal["debug", "info", "warning", "error"] = option("info", "Least severe log lines to write.")

    # The engine's options; their defaults for strangers are others.
    limit_mm_per_prompt: Mapping[str, int] = option(
        None,
        f'Most media in one prompt, e.g. {{"image": 4}}; default {DEFAULT_IMAGES} images and {DEFAULT_VIDEOS} video.',
    )
    max_video_seconds: float = option(600.0, "Longest video in seconds.", low=0.01)
    max_video_frames: int = option(128, "Most frames of one video that are shown to the model.", low=1, high=65536)
    max_video_pixels: int = option(
        256_000_000, "Most pixels of the frames that are shown, all of one video, as they are stored.", low=1
    )

    def image_limit(self) -> int:
        return int(self.limit_mm_per_prompt.get("image", DEFAULT_IMAGES))

    def video_limit(self) -> int:
        return int(self.limit_mm_per_prompt.get("video", DEFAULT_VIDEOS))
