"""Where a model's files are: a local folder, a GGUF file, the embedded model, or the hub's cache."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from fovea.core.config import EMBEDDED_MODEL, EngineConfig
from fovea.core.errors import InvalidOptionError, ModelNotFoundError, nearest
from fovea.families.gguf_file import gguf_package, has_magic, is_gguf

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
GGUF_SUFFIX = ".gguf"
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]


def find_model(name: str, config: EngineConfig) -> Path:
    """A folder with the model's files, downloading from the hub where `name` is a hub id; or a GGUF file, which the
    rest of Fovea reads as if it were such a folder.

    Raises ModelNotFoundError saying where was looked.
    """
    if name == EMBEDDED_MODEL:
        return embedded_model()
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if name and path.is_file():
        if not has_magic(path):
            raise ModelNotFoundError(f"{name!r} is a file, but no GGUF file; name the model's folder.")
        return path
    if path.suffix == GGUF_SUFFIX:
        raise ModelNotFoundError(f"There is no GGUF file {name!r}. Those on the hub must be downloaded first.")
    if HUB_ID.fullmatch(name):
        return _download(name, config)
    near = nearest(name, [EMBEDDED_MODEL])
    raise ModelNotFoundError(f"{name!r} is neither a folder, a GGUF file nor a hub id (organisation/name).{near}")


def check_format(folder: Path, config: EngineConfig) -> None:
    """Raises InvalidOptionError if the model is not in the format that was asked for."""
    if config.load_format == "gguf" and not is_gguf(folder):
        raise InvalidOptionError(f'load_format is "gguf", but {folder} is a folder; name the GGUF file itself.')
    if config.load_format == "safetensors" and is_gguf(folder):
        raise InvalidOptionError(f'load_format is "safetensors", but {folder} is a GGUF file; use "auto" or "gguf".')
    if is_gguf(folder) and config.load_format != "dummy":
        gguf_package()


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
