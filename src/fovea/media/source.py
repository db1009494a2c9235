"""What a user hands in as a picture, turned into one typed source.

Contract: nothing is decoded or read here, layouts are explicit and never guessed, and every refusal is a
MediaSourceError (MediaLimitError for a data URL that is too long). The only I/O is the resolving of file:// paths,
because a path can't be judged by its text. Error texts never repeat an address or data, only the scheme.

    source        from                                  layout
    PilSource     PIL.Image.Image                       its own mode; the frame it stands at
    ArraySource   numpy uint8                           [height, width] or [height, width, 1 | 3 | 4]
                  torch uint8                           [1 | 3 | 4, height, width], as torchvision has it
    BytesSource   bytes, bytearray, memoryview, data:   an encoded picture
    FileSource    pathlib.Path, file://                 a file that holds an encoded picture
    UrlSource     http://, https://                     an address that answers with an encoded picture
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fovea.core.errors import MediaLimitError, MediaSourceError

_CHANNELS = (1, 3, 4)
_MAX_DATA_HEADER_CHARS = 256
_MAX_FILE_URL_CHARS = 8192
_MAX_ECHO_CHARS = 20
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_TOKEN = r"[A-Za-z0-9!#$&^_.+-]+"
_DATA_HEADER = re.compile(rf"image/{_TOKEN}(;{_TOKEN}=[^;,]*)*;base64", re.IGNORECASE)
_VIDEO_HEADER = re.compile(rf"(video/{_TOKEN}|image/(gif|webp))(;{_TOKEN}=[^;,]*)*;base64", re.IGNORECASE)
_NO_LOCAL_FILE = (
    "This file:// address is not a picture file below the folder of the option allowed_local_media_path. "
    "Use file:///<absolute path> of a file in that folder, or send the picture as a data URL."
)


@dataclass(frozen=True, slots=True, eq=False)
class PilSource:
    image: Image.Image


@dataclass(frozen=True, slots=True, eq=False)
class ArraySource:
    """uint8, [height, width] or [height, width, 1 | 3 | 4]."""

    array: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class BytesSource:
    data: bytes


@dataclass(frozen=True, slots=True)
class FileSource:
    """`root`: the folder the file must lie in when it is opened; None for a path that the program itself named."""

    path: Path
    root: Path | None = None


@dataclass(frozen=True, slots=True)
class UrlSource:
    """Nothing of the address is judged yet; media.load does that before anything is fetched."""

    url: str


ImageSource = PilSource | ArraySource | BytesSource | FileSource | UrlSource
MemorySource = PilSource | ArraySource | BytesSource


def parse_image(value: object) -> ImageSource:
    """Take a picture that a program hands in."""
    if isinstance(value, ImageSource):
        return value
    if isinstance(value, Image.Image):
        return PilSource(value)
    if isinstance(value, np.ndarray):
        return ArraySource(_checked_array(value))
    if _is_torch_tensor(value):
        return ArraySource(_array_from_tensor(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return BytesSource(bytes(value))
    if isinstance(value, Path):
        return FileSource(value)
    if isinstance(value, str):
        raise _wrong_kind(
            "A picture can't be given as text. Pass pathlib.Path(...) for a local file, a PIL picture, an array or the "
            "bytes of a picture; addresses go into an image_url part of a chat message."
        )
    raise _wrong_kind(
        f"A picture can't be made from {type(value).__name__[:40]}. Pass a PIL picture, a uint8 numpy array "
        "[height, width, 3], a uint8 torch tensor [3, height, width], bytes, or pathlib.Path."
    )


def parse_url(url: str, *, allowed_local_media_path: str, max_bytes: int) -> ImageSource:
    """Take the address of an `image_url` part: data:, http(s):// and, below the allowed folder, file://."""
    if not isinstance(url, str):
        raise _wrong_kind(f"The url of an image_url part must be text, not {type(url).__name__[:40]}.")
    match = _SCHEME.match(url)
    scheme = match[1].lower() if match else ""
    if scheme == "data":
        return _parse_data_url(url, max_bytes)
    if scheme == "file":
        return _parse_file_url(url, allowed_local_media_path)
    if scheme in ("http", "https"):
        return UrlSource(url)
    found = f"the scheme {scheme[:_MAX_ECHO_CHARS]!r} is not" if scheme else "an address without a scheme is not"
    raise MediaSourceError(
        f"The picture was refused: {found} supported. Use an http or https address, or a data URL "
        "(data:image/png;base64,...)."
    )


def parse_video_url(url: str, *, allowed_local_media_path: str, max_bytes: int) -> BytesSource | FileSource | UrlSource:
    """The same for the address of a `video_url` part."""
    match = _SCHEME.match(url)
    scheme = match[1].lower() if match else ""
    if scheme == "data":
        return _parse_data_url(url, max_bytes, is_video=True)
    if scheme == "file":
        return _parse_file_url(url, allowed_local_media_path)
    if scheme in ("http", "https"):
        return UrlSource(url)
    found = f"the scheme {scheme[:_MAX_ECHO_CHARS]!r} is not" if scheme else "an address without a scheme is not"
    raise MediaSourceError(
        f"The video was refused: {found} supported. Use an http or https address, or a data URL "
        "(data:video/mp4;base64,...)."
    )


def _parse_data_url(url: str, max_bytes: int, *, is_video: bool = False) -> BytesSource:
    comma = url.find(",", 0, _MAX_DATA_HEADER_CHARS)
    if comma < 0 or not (_VIDEO_HEADER if is_video else _DATA_HEADER).fullmatch(url, len("data:"), comma):
        kind = "video" if is_video else "image"
        raise _bad_data_url(f"The data URL must begin with data:{kind}/<type>;base64, and hold base64 text.")
    num_chars = len(url) - comma - 1
    num_bytes = num_chars * 3 // 4 - url.count("=", max(comma, len(url) - 2))
    if num_bytes > max_bytes:
        raise MediaLimitError(
            f"The {'video' if is_video else 'picture'} in the data URL has {num_bytes:,} bytes; the option "
            f"{'max_video_bytes' if is_video else 'max_image_bytes'} permits {max_bytes:,}. "
            "Send a smaller file, or raise the option."
        )
    try:
        data = binascii.a2b_base64(url[comma + 1 :], strict_mode=True)
    except ValueError:
        raise _bad_data_url(
            "The data URL does not hold valid base64: only A-Z a-z 0-9 + / and padding with = are permitted, without "
            "blanks or line breaks."
        ) from None
    if not data:
        raise _bad_data_url("The data URL holds no data.")
    return BytesSource(data)


def _parse_file_url(url: str, allowed: str) -> FileSource:
    if not allowed:
        raise MediaSourceError(
            "file:// pictures are switched off. Set the option allowed_local_media_path to the folder they may be read "
            "from, or send the picture as a data URL."
        )
    try:
        root = Path(allowed).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        raise MediaSourceError("The folder of the option allowed_local_media_path can't be found.") from None
    try:
        path = Path(_path_of_file_url(url)).resolve(strict=True)
        below = path.is_relative_to(root) and path.is_file()
    except (OSError, ValueError, RuntimeError):
        below = False
    if not below:
        # One text for missing, outside and not a file: an answer must not tell what exists elsewhere.
        raise MediaSourceError(_NO_LOCAL_FILE)
    return FileSource(path, root)


def _path_of_file_url(url: str) -> str:
    """The absolute path, or ValueError."""
    if len(url) > _MAX_FILE_URL_CHARS or not url.isprintable():
        raise ValueError
    parts = urlsplit(url)
    path = unquote(parts.path, errors="strict")
    plain = not parts.query and not parts.fragment and "?" not in url and "#" not in url
    if not plain or parts.netloc.lower() not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise ValueError
    return path


def _checked_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise _wrong_kind(_array_message("array", array.dtype.name, array.shape, "uint8 [height, width, 3]"))
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _CHANNELS):
        return np.asarray(array)
    message = _array_message("array", "uint8", array.shape, "[height, width] or [height, width, 1, 3 or 4 channels]")
    if array.ndim == 3 and array.shape[0] in _CHANNELS:
        message += " For channels first, pass array.transpose(1, 2, 0)."
    raise _wrong_kind(message)


def _is_torch_tensor(value: object) -> bool:
    return any(c.__name__ == "Tensor" and c.__module__.split(".")[0] == "torch" for c in type(value).__mro__)


def _array_from_tensor(tensor: Any) -> NDArray[np.uint8]:
    shape = tuple(int(n) for n in tensor.shape)
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype != "uint8":
        raise _wrong_kind(_array_message("tensor", dtype, shape, "uint8 [3, height, width]"))
    if len(shape) != 3 or shape[0] not in _CHANNELS:
        message = _array_message("tensor", dtype, shape, "[1, 3 or 4 channels, height, width], as torchvision has it")
        if len(shape) == 3 and shape[2] in _CHANNELS:
            message += " For channels last, pass tensor.permute(2, 0, 1), or tensor.numpy()."
        raise _wrong_kind(message)
    try:
        array: NDArray[np.uint8] = tensor.detach().cpu().numpy()
    except Exception:  # foreign code: sparse, meta and other tensors without plain data end here
        raise _wrong_kind("The tensor has no plain data. Pass a dense uint8 tensor on cpu or cuda.") from None
    return array.transpose(1, 2, 0)


def _wrong_kind(message: str) -> MediaSourceError:
    return MediaSourceError(message, code="invalid_type")


def _bad_data_url(message: str) -> MediaSourceError:
    return MediaSourceError(message, code="invalid_data_url")


def _array_message(kind: str, dtype: str, shape: tuple[int, ...], expected: str) -> str:
    message = f"The picture is a {dtype[:_MAX_ECHO_CHARS]} {kind} of shape {str(shape)[:60]}; expected is {expected}."
    if dtype.startswith(("float", "bfloat")):
        message += " Scale floats to 0..255, round, and convert to uint8."
    return message
