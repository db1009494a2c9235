"""The servers the corpus runs against: as it is by default, with everything switched on, with small limits, and with
hardly any memory for caches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.corpus.case import Profile

KEY = "first-key-for-the-corpus"
OTHER_KEY = "second-key-for-the-corpus"


# The `tight` server: caches of a few entries. Figures of fovea-tiny in float32.
NUM_BLOCKS = 160
BLOCK_TOKENS = 16
TOKEN_BYTES = 6 * 2 * 2 * 64 * 4  # layers, keys and values, heads, width
NUM_CACHED_PICTURES = 10
PICTURE_TOKENS = 64  # 224 x 224 pixels
HIDDEN_BYTES = 256 * 4


@dataclass(frozen=True, slots=True)
class SmallLimits:
    max_image_bytes: int = 65_536
    max_image_pixels: int = 250_000
    max_image_aspect: int = 20
    max_request_pixels: int = 400_000
    max_request_media_bytes: int = 100_000
    max_body_bytes: int = 262_144
    max_text_chars: int = 2_000
    max_n: int = 2
    images: int = 3
    header_timeout_s: float = 1.0
    body_timeout_s: float = 2.0
    keep_alive_s: float = 1.0
    stall_timeout_s: float = 2.0

    def flags(self) -> list[str]:
        """Every field is an option of that name, but for `images`."""
        named = [(name, getattr(self, name)) for name in self.__dataclass_fields__ if name != "images"]
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in named]
        return [*flags, "--limit-mm-per-prompt", f"image={self.images}"]


SMALL = SmallLimits()


def flags(profile: Profile, folder: Path) -> list[str]:
    """`folder` is the world's; the media of the `open` server lie below it."""
    common = ["--log-format=json"]
    match profile:
        case "plain":
            return common
        case "open":
            media = ["--allowed-media-networks", "127.0.0.0/8", "--allowed-local-media-path", str(folder / "media")]
            return [*common, *media, "--media-fetch-timeout-s=1.5", "--enable-mm-embeds"]
        case "small":
            return [*common, *SMALL.flags(), "--api-key", KEY, "--api-key", OTHER_KEY, "--isolate-api-keys"]
        case "tight":
            blocks = NUM_BLOCKS * BLOCK_TOKENS * TOKEN_BYTES
            pictures = NUM_CACHED_PICTURES * PICTURE_TOKENS * HIDDEN_BYTES
            caches = [f"--kv-cache-memory-bytes={blocks}", f"--encoder-cache-bytes={pictures}", "--max-model-len=768"]
            return [*common, *caches, "--max-num-seqs=6"]
        case "brief":
            times = ["--header-timeout-s=1", "--body-timeout-s=1", "--keep-alive-s=1"]
            return [*common, *times, "--max-model-len=256"]


def environment(proxy_port: int, home: Path) -> Mapping[str, str]:
    """Proxies and passwords that the environment offers and nobody may use (U52)."""
    proxy = f"http://127.0.0.1:{proxy_port}"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    (home / ".netrc").write_text("machine 127.0.0.1 login corpus password zebra\n")
    (home / ".netrc").chmod(0o600)
    return {**dict.fromkeys(names, proxy), "NETRC": str(home / ".netrc"), "NO_PROXY": ""}


def headers(profile: Profile) -> tuple[tuple[str, str], ...]:
    return (("Authorization", f"Bearer {KEY}"),) if profile == "small" else ()
