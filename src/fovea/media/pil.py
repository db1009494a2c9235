"""PIL pictures that belong to the user: shared between requests and threads, and often not loaded yet.

Contract: the object is only read. Reading still makes Pillow load the file behind it once, and two threads doing that
at once would read the same file handle; so every access happens under the picture's lock. The locks are striped by
identity because Pillow's objects have no place for one, and one lock for all would decode a list of opened files one by
one.
"""

from __future__ import annotations

import threading

from PIL import Image, PngImagePlugin

from fovea.media.headers import exif_orientation

_LOCKS = tuple(threading.Lock() for _ in range(256))
_POINTER_ALIGNMENT_BITS = 4


def lock_of(image: Image.Image) -> threading.Lock:
    """The lock to hold while reading `image`. Never hold two."""
    return _LOCKS[(id(image) >> _POINTER_ALIGNMENT_BITS) % len(_LOCKS)]


def read_orientation(image: Image.Image) -> int:
    """The Exif orientation, 1 to 8; hold the lock. May load a PNG, whose Exif block can come after the pixels."""
    if isinstance(image, PngImagePlugin.PngImageFile) and "exif" not in image.info:
        image.load()
    exif = image.info.get("exif")
    return exif_orientation(exif) if isinstance(exif, bytes) else 1
