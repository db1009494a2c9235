"""Bytes in, upright RGB uint8 pictures out. Never imports torch."""

from fovea.media.decode import decode
from fovea.media.digest import array_digest, media_key, picture_digest
from fovea.media.fetch import FetchPolicy, fetch_bytes
from fovea.media.load import Fetched, load_picture, probe_size
from fovea.media.probe import MediaLimits, Probe, probe
from fovea.media.source import (
    ArraySource,
    BytesSource,
    FileSource,
    ImageSource,
    MemorySource,
    PilSource,
    UrlSource,
    parse_image,
    parse_url,
)
from fovea.media.transform import apply_plan

__all__ = [
    "ArraySource",
    "BytesSource",
    "FetchPolicy",
    "Fetched",
    "FileSource",
    "ImageSource",
    "MediaLimits",
    "MemorySource",
    "PilSource",
    "Probe",
    "UrlSource",
    "apply_plan",
    "array_digest",
    "decode",
    "fetch_bytes",
    "load_picture",
    "media_key",
    "parse_image",
    "parse_url",
    "picture_digest",
    "probe",
    "probe_size",
]
