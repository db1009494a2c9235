"""Where a model's files are: a local folder, the embedded model, or the hub's cache."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from fovea.core.config import EMBEDDED_MODEL, EngineConfig
from fovea.core.errors import ModelNotFoundError, nearest

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]


def find_model(name: str, config: EngineConfig) -> Path:
    """A folder with the model's files, downloading from the hub where `name` is a hub id.

    Raises ModelNotFoundError saying where was looked.
    """
    if name == EMBEDDED_MODEL:
        return embedded_model()
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if HUB_ID.fullmatch(name):
        return _download(name, config)
    near = nearest(name, [EMBEDDED_MODEL])
    raise ModelNotFoundError(f"{name!r} is neither a folder nor a hub id (organisation/name).{near}")


def embedded_model() -> Path:
    return Path(str(resources.files("fovea"))) / "assets" / EMBEDDED_MODEL


def _download(name: str, config: EngineConfig) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [p for p in HUB_FILES if config.load_format != "dummy" or p != "*.safetensors"]
    try:
        return Path(
            snapshot_download(name, revision=config.revision, cache_dir=config.download_dir, allow_patterns=patterns)
        )
    except Exception as error:  # whatever the hub client or the network raises
        raise ModelNotFoundError(
            f"{name!r} is no local folder, and the hub could not be reached or has no such model. Check the name and "
            "the connection (and HF_TOKEN for a gated model), or pass the path of a downloaded folder."
        ) from error
