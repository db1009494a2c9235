"""Pictures become upright RGB: one function, whatever they were before.

Contract: decode gives contiguous, read-only uint8 [height, width, 3], or raises MediaDecodeError with a text of our
own. Limits are probe's business and come first.

    turned by Exif       turned upright
    transparency         over white: alpha channel, palette alpha, and the single transparent colour of PNG and GIF
    16-bit grey, mode I  scaled from 0..65535 to 0..255 with rounding; values outside are refused
    mode F               refused: floats have no known range
    other modes          Pillow's conversion (grey, palette, 1 bit, CMYK as Adobe stores it, YCbCr, LAB, HSV)
    animation            the first frame (a server refuses it: probe); of a PIL picture the frame it stands at
    colour profiles      ignored
    incomplete files     refused, never filled up
"""

from __future__ import annotations

import io
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray
from PIL import GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from fovea.core.errors import FoveaError, MediaDecodeError, MediaLimitError
from fovea.core.turns import outside_turn
from fovea.core.types import Picture
from fovea.media.digest import picture_digest
from fovea.media.headers import Format, read_header
from fovea.media.pil import lock_of, read_orientation
from fovea.media.source import ArraySource, BytesSource, MemorySource, PilSource

_WHITE = (255, 255, 255)
_ALPHA_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa")
_DEEP_GREY_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_SHALLOW_GREY_LEVELS = {"L;2": 3, "L;4": 15}
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(source: MemorySource, helpers: Executor | None = None) -> Picture:
    """The upright RGB picture. Safe in threads, also for one PIL object in several of them.

    helpers: see picture_digest.
    """
    match source:
        case BytesSource(data):
            pixels = _decode_bytes(data)
        case ArraySource(array):
            pixels = _decode_array(array)
        case PilSource(image):
            pixels = _decode_pil(image)
    if pixels.size == 0:
        raise MediaDecodeError("The picture has no pixels.")
    pixels.setflags(write=False)
    with outside_turn():
        return Picture(pixels, picture_digest(pixels, helpers))


def _decode_bytes(data: bytes) -> NDArray[np.uint8]:
    header = read_header(data)
    try:
        with _open(header.format, io.BytesIO(data)) as image:
            if image.size != (header.width_px, header.height_px):
                raise MediaDecodeError("The file contradicts itself about the size of the picture.")
            _correct_colour_key(image)
            with outside_turn():
                image.load()
                upright = _upright(image, header.orientation)
            return np.asarray(upright)
    except Image.DecompressionBombError:
        raise MediaLimitError(
            "The picture has too many pixels for the decoder. Scale it down.", code="image_too_many_pixels"
        ) from None
    except FoveaError:
        raise
    except Exception:  # the border to Pillow: hostile bytes may raise anything
        raise MediaDecodeError("The picture can't be decoded: the file is incomplete or broken.") from None


def _decode_pil(image: Image.Image) -> NDArray[np.uint8]:
    try:
        with outside_turn(), lock_of(image):
            image.load()
            upright = _upright(image, read_orientation(image))
        with lock_of(image):
            return np.asarray(upright)
    except FoveaError:
        raise
    except Exception:  # the border to Pillow: the user's file may be closed or broken
        raise MediaDecodeError("The PIL picture can't be loaded. Is its file complete and still open?") from None


def _decode_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy always, so that the digest stays true when the user writes into the array."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] == 4 and array.size:
        return np.array(_over_white(Image.fromarray(np.ascontiguousarray(array))))
    return np.array(np.broadcast_to(array[:, :, :3], (*array.shape[:2], 3)), order="C")


def _open(kind: Format, file: io.BytesIO) -> ImageFile.ImageFile:
    """The plugin itself rather than Image.open: no sniffing of formats and no pixel guard that warns or interferes."""
    match kind:
        case "png":
            return PngImagePlugin.PngImageFile(file)
        case "jpeg":
            return JpegImagePlugin.JpegImageFile(file)
        case "webp":
            return WebPImagePlugin.WebPImageFile(file)
        case "gif":
            return GifImagePlugin.GifImageFile(file)


def _correct_colour_key(image: ImageFile.ImageFile) -> None:
    """Pillow scales 2- and 4-bit grey up and 16-bit colours down, but not the transparent colour in their units."""
    key = image.info.get("transparency")
    if image.format != "PNG" or not image.tile:
        return
    raw_mode = image.tile[0].args
    if isinstance(key, int) and isinstance(raw_mode, str) and raw_mode in _SHALLOW_GREY_LEVELS:
        levels = _SHALLOW_GREY_LEVELS[raw_mode]
        image.info["transparency"] = (key & levels) * 255 // levels
    elif isinstance(key, tuple) and raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """A loaded picture in RGB. `image` itself is not changed, and may be what is returned."""
    rgb = _to_rgb(image)
    return rgb.transpose(_TURN[orientation]) if orientation in _TURN else rgb


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP_GREY_MODES:
        return _deep_grey_to_rgb(image)
    if image.mode == "F":
        raise MediaDecodeError(
            'A PIL picture of mode "F" has floats without a known range. Scale them to 0..255 and convert to mode "L".'
        )
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in _ALPHA_MODES and image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_white(rgba: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", rgba.size, _WHITE)
    canvas.paste(rgba, mask=rgba)
    return canvas


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int32)
    if image.mode == "I" and values.size and (values.min() < 0 or values.max() > 65535):
        raise MediaDecodeError(
            'A PIL picture of mode "I" is read as 16-bit grey, and this one has values outside 0..65535. '
            'Scale them to 0..255 and convert to mode "L".'
        )
    grey = ((values + 128) // 257).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return Image.fromarray(grey).convert("RGB")
