"""The one place for options: field, default, help text and check. CLI flags and docs are made from here."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal, Self

from fovea.core.errors import InvalidOptionError, UnknownOptionError, nearest

EMBEDDED_MODEL = "fovea-tiny"
MIB = 1024**2
GIB = 1024**3

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]
LoadFormat = Literal["auto", "safetensors", "gguf", "dummy"]
Quantization = Literal["int8", "int4", "fp8"]
KvCacheDtype = Literal["auto", "fp8"]
ModelImpl = Literal["auto", "fused", "generic", "compatible"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "device": ("auto", "cpu", "cuda"),
    "load_format": ("auto", "safetensors", "gguf", "dummy"),
    "model_impl": ("auto", "fused", "generic", "compatible"),
    "kv_cache_dtype": ("auto", "fp8"),
    "quantization": ("int8", "int4", "fp8"),
    "task": ("generate",),
    "log_format": ("auto", "human", "json"),
    "log_level": ("debug", "info", "warning", "error"),
}


def option(default: Any, help: str, *, low: float | None = None, high: float | None = None) -> Any:
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Options of an engine. Names and, where it has one, defaults are vLLM's.

    Raises InvalidOptionError for a value out of range or of the wrong kind.
    """

    model: str = option(EMBEDDED_MODEL, "Hub id, local folder or GGUF file; the default is the embedded model.")
    tokenizer: str | None = option(None, "Folder or hub id of the tokenizer, if not the model's.")
    revision: str | None = option(None, "Branch, tag or commit of the hub model.")
    download_dir: str | None = option(None, "Where hub files are kept; default: the hub's own cache.")
    trust_remote_code: bool = option(
        False, "Accepted for compatibility. The supported models never need their remote code and it is never run."
    )
    load_format: LoadFormat = option(
        "auto", "auto: the file if the model is a GGUF file, else safetensors; dummy fills random weights."
    )
    model_impl: ModelImpl = option(
        "auto",
        "Who runs the model: fused (Fovea's own modules), generic (transformers' modules over Fovea's KV cache), "
        "compatible (transformers with its own caches); auto: the first of these that can.",
    )
    task: Literal["generate"] = option("generate", "Only generate.")

    dtype: Dtype = option(
        "auto", "Compute type. auto: the checkpoint's on a GPU; on a CPU float32 if that fits, else bfloat16."
    )
    quantization: Quantization | None = option(
        None,
        "Keep the decoder's linear layers in fewer bits, made while loading: int8 or int4 on a CPU, fp8 on a GPU.",
    )
    device: Device = option("auto", "cpu, cuda, or auto: cuda when there is one.")
    seed: int = option(0, "Seed for requests that bring none, and for dummy weights.", low=0)
    enforce_eager: bool = option(False, "Never use CUDA graphs.")

    overlap_scheduling: bool | None = option(
        None, "Plan and launch a step before the one before it is settled; default: on a GPU."
    )

    max_model_len: int | None = option(
        None, "Longest prompt plus answer in tokens; default: the model's own, or what fits in memory.", low=1
    )
    max_num_seqs: int = option(256, "Most sequences in one step.", low=1)
    max_num_batched_tokens: int = option(8192, "Most tokens in one step; longer prompts are split.", low=16)
    max_num_batched_patches: int = option(
        16384, "Most picture patches encoded in one step (a larger single picture is still encoded alone).", low=1
    )
    block_size: int = option(16, "Tokens in one KV block.", low=1, high=256)
    gpu_memory_utilization: float = option(0.92, "Share of GPU memory to plan with.", low=0.05, high=1.0)
    kv_cache_memory_bytes: int | None = option(None, "Bytes for the KV cache; overrides the share above.", low=1)
    kv_cache_dtype: KvCacheDtype = option(
        "auto", "auto: keys and values in the compute type; fp8: in float8 with a scale for each token and head."
    )
    enable_prefix_caching: bool = option(True, "Reuse KV blocks of equal prompt beginnings.")
    encoder_cache_bytes: int | None = option(
        None, "Bytes for picture embeddings kept for reuse; default: from the memory plan.", low=0
    )

    limit_mm_per_prompt: Mapping[str, int] = option(None, 'Most media in one prompt, e.g. {"image": 4}; default 999.')
    mm_processor_kwargs: Mapping[str, Any] = option(
        None, 'Image processor options, e.g. {"max_pixels": 401408} or {"num_crops": 16}.'
    )
    cpu_max_pixels: int = option(
        1_003_520,
        "On a CPU, the most pixels a picture is shown with by models that take pictures of any size, unless "
        "mm_processor_kwargs has max_pixels; 0: as many as the model takes.",
        low=0,
    )
    allowed_local_media_path: str = option("", "Folder below which file:// pictures may be read; empty: none.")
    allowed_media_domains: tuple[str, ...] | None = option(
        None, "Hosts that http and https pictures may be fetched from, matched exactly; default: any; empty: none."
    )
    allowed_media_networks: tuple[str, ...] = option(
        (), "Networks such as 10.1.0.0/16 whose addresses and ports may be fetched from although they are not public."
    )
    media_fetch_timeout_s: float = option(
        5.0, "Most seconds for fetching one picture, from the name to the last byte.", low=0.01, high=600
    )
    chat_template: str | None = option(None, "Jinja template, as text or as a path, instead of the model's.")
    max_image_bytes: int = option(32 * MIB, "Largest encoded picture.", low=1)
    max_image_pixels: int = option(64_000_000, "Largest picture in pixels, checked before decoding.", low=1)
    max_image_aspect: float = option(200.0, "Most elongated picture: long side over short side.", low=1.0)
    max_video_bytes: int = option(64 * MIB, "Largest encoded video.", low=1)
    max_video_seconds: float = option(3600.0, "Longest video in seconds.", low=0.01)
    max_video_frames: int = option(768, "Most frames of one video that are shown to the model.", low=1, high=65536)
    max_video_pixels: int = option(
        2_000_000_000, "Most pixels of the frames that are shown, all of one video, as they are stored.", low=1
    )
    cpu_threads: int = option(
        0,
        "Threads that compute on a CPU; 0: torch's own number (OMP_NUM_THREADS), but no more than the cores this "
        "process may use, and one for a model of up to 30 million parameters if max_num_seqs is 1.",
        low=0,
    )
    cpu_kernels: bool = option(
        True, "On a CPU: kernels in C, which the system's compiler makes once; off or without one: plain torch."
    )
    media_threads: int = option(
        0, "Threads that decode and resize pictures; 0: one for each core this process may use, at most 8.", low=0
    )
    resize_on_device: bool | None = option(
        None, "Resize pictures where the model runs, with the same result to the bit; default: on a GPU."
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            object.__setattr__(self, option.name, _own_copy(option, getattr(self, option.name)))
            _check(option, getattr(self, option.name))
        self._check_limits()
        _check_networks(self.allowed_media_networks)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Build from keywords; an unknown name is an error that offers the nearest."""
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                raise UnknownOptionError(f"Unknown option {name!r}.{nearest(name, known)}")
        return cls(**options)

    def image_limit(self) -> int:
        return int(self.limit_mm_per_prompt.get("image", 999))

    def video_limit(self) -> int:
        return int(self.limit_mm_per_prompt.get("video", 999))

    def resizes_on(self, device: str) -> bool:
        """Whether an engine on this device ("cpu", "cuda:0") resizes pictures itself."""
        return device.startswith("cuda") if self.resize_on_device is None else self.resize_on_device

    def pixel_cap(self, device: str) -> int:
        """The most pixels of a picture on this device ("cpu", "cuda:0") where nobody says otherwise; 0: no cap."""
        return self.cpu_max_pixels if device == "cpu" else 0

    def _check_limits(self) -> None:
        for kind, limit in self.limit_mm_per_prompt.items():
            if kind not in ("image", "video", "audio"):
                raise InvalidOptionError(f"limit_mm_per_prompt has {kind!r}; known: image, video, audio.")
            if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
                raise InvalidOptionError(f"limit_mm_per_prompt[{kind!r}] is {limit!r}; permitted: 0 or more.")
        if self.block_size & (self.block_size - 1):
            raise InvalidOptionError(f"block_size is {self.block_size}; permitted: a power of two from 1 to 256.")


def _own_copy(option: Field[Any], value: Any) -> Any:
    """Lists and mappings are copied, so that nobody changes them later; other values, wrong ones too, stay."""
    kind = str(option.type)
    if kind.startswith("tuple") and isinstance(value, list):
        return tuple(value)
    if kind.startswith("Mapping") and (value is None or isinstance(value, Mapping)):
        return dict(value or {})
    return value


def _check(option: Field[Any], value: Any) -> None:
    name, kind = option.name, str(option.type)
    if value is None and "None" in kind:
        return
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            choices = ", ".join(_CHOICES[name])
            raise InvalidOptionError(f"{name} is {value!r}; permitted: {choices}.{nearest(str(value), _CHOICES[name])}")
        return
    if kind.startswith("bool"):
        expected, good = "True or False", isinstance(value, bool)
    elif kind.startswith("int"):
        expected, good = "a whole number", isinstance(value, int) and not isinstance(value, bool)
    elif kind.startswith("float"):
        expected, good = "a number", isinstance(value, (int, float)) and not isinstance(value, bool)
    elif kind.startswith("str"):
        expected, good = "text", isinstance(value, str)
    elif kind.startswith("tuple"):
        expected, good = "a list of texts", isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    else:
        expected, good = "a mapping", isinstance(value, Mapping)
    if not good:
        raise InvalidOptionError(f"{name} must be {expected}, not {value!r}.")
    _check_range(option, value)


def _check_range(option: Field[Any], value: Any) -> None:
    low, high = option.metadata["low"], option.metadata["high"]
    if (low is not None and not value >= low) or (high is not None and not value <= high):  # NaN fails both
        span = f"{low:g} or more" if high is None else f"{low:g} to {high:g}"
        raise InvalidOptionError(f"{option.name} is {value}; permitted: {span}.")


def _check_networks(networks: tuple[str, ...]) -> None:
    for network in networks:
        try:
            ipaddress.ip_network(network)
        except ValueError:
            raise InvalidOptionError(
                f"allowed_media_networks has {network[:60]!r}; permitted: an IP address or a network such as "
                "10.1.0.0/16, whose bits behind the prefix are zero."
            ) from None


def option_default(option: Field[Any]) -> Any:
    """The default of a field of EngineConfig, for help texts and docs."""
    return None if option.default is MISSING else option.default
