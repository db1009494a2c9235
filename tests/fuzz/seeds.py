"""The files that pictures are mutated from: twenty in each of four formats, small, in every form that is read."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
from PIL import Image

from tests.corpus import files
from tests.corpus.routes import good_body, image, text
from tests.media.corpus import encode, exif, noise, png, png_chunk

SIZES = ((1, 1), (3, 4), (16, 16), (33, 17), (64, 48))


@functools.cache
def pictures() -> dict[str, tuple[bytes, ...]]:
    """By format, the same number of each."""
    return {"PNG": tuple(_png()), "JPEG": tuple(_jpeg()), "WEBP": tuple(_webp()), "GIF": tuple(_gif())}


def all_pictures() -> tuple[bytes, ...]:
    """In turn, so that mutants of all formats alternate."""
    return tuple(data for group in zip(*pictures().values(), strict=True) for data in group)


def _noisy(width_px: int, height_px: int, channels: int = 3, seed: int = 1) -> Image.Image:
    pixels = noise(width_px, height_px, channels, seed)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def _deep(channels: int, colour: int) -> bytes:
    """16 bits for each channel."""
    values = np.random.default_rng(colour).integers(0, 65536, (12, 20, channels), np.uint16)
    return png((20, 12), [row.astype(">u2").tobytes() for row in values], depth=16, colour=colour)


def _png() -> list[bytes]:
    odd, clear = files.odd_pairs(), files.transparent_pairs()
    made = [encode(_noisy(*size), "PNG") for size in SIZES]
    made += [_deep(1, 0), _deep(3, 2), _deep(2, 4), _deep(4, 6)]
    made += [odd[name][0] for name in ("one-bit", "palette-png", "palette-out-of-range", "interlaced")]
    made += [clear[name][0] for name in ("rgb-colour-key", "grey-colour-key", "palette-entry")]
    made += [encode(_noisy(20, 12, 4), "PNG"), files.oriented("PNG", 6), files.animated("PNG")]
    made.append(
        files.with_chunks(
            png_chunk(b"tEXt", b"a\0b"), png_chunk(b"gAMA", b"\0\0\xb1\x8f"), png_chunk(b"zTXt", b"k\0\0x")
        )
    )
    return made


def _jpeg() -> list[bytes]:
    made = [encode(_noisy(*size), "JPEG", quality=quality) for size in SIZES for quality in (30, 95)]
    for options in ({"progressive": True}, {"optimize": True}, {"subsampling": 0}, {"restart_marker_blocks": 1}):
        made.append(encode(_noisy(33, 17), "JPEG", **options))
    made += [encode(_noisy(33, 17, 1), "JPEG"), encode(_noisy(33, 17).convert("CMYK"), "JPEG")]
    made += [files.oriented("JPEG", 6), encode(_noisy(33, 17), "JPEG", progressive=True, exif=exif(5, ">"))]
    made += [encode(_noisy(33, 17), "JPEG", comment=b"x" * 50), encode(_noisy(33, 17), "JPEG", icc_profile=bytes(200))]
    return made


def _webp() -> list[bytes]:
    made = []
    for size in SIZES:
        options: list[dict[str, Any]] = [{"quality": 50}, {"lossless": True}]
        made += [encode(_noisy(*size), "WEBP", **option) for option in options]
    made += [encode(_noisy(20, 12, 4), "WEBP"), encode(_noisy(20, 12, 4), "WEBP", lossless=True, exact=True)]
    made += [files.oriented("WEBP", 6), encode(_noisy(20, 12), "WEBP", exif=exif(3)), files.animated("WEBP")]
    made += [encode(_noisy(20, 12), "WEBP", icc_profile=bytes(200)), encode(_noisy(20, 12), "WEBP", xmp=b"<x/>")]
    made += [files.webp_canvas(84, 56), files.webp_canvas(20, 20), encode(files.smooth(), "WEBP", lossless=True)]
    return made


def _gif() -> list[bytes]:
    made = [encode(_noisy(*size).quantize(colours), "GIF") for size in SIZES for colours in (2, 64)]
    made += [files.transparent_pairs()["gif-entry"][0], files.animated("GIF"), encode(_noisy(33, 17, 1), "GIF")]
    made += [encode(_noisy(33, 17).quantize(8), "GIF", interlace=interlace) for interlace in (0, 1)]
    made += [encode(_noisy(33, 17).quantize(8), "GIF", comment=b"hello"), files.gif_comments(20)]
    made += [
        files.gif_frame((4, 4), (0, 0, 4, 4)),
        files.gif_frame((20, 20), (10, 10, 4, 4)),
        files.gif_frame((2, 2), (1, 1, 4, 4)),
    ]
    return made


@functools.cache
def bodies() -> tuple[tuple[str, bytes], ...]:
    """(path, a good body with much in it)."""
    chat = {
        **good_body("chat"),
        "messages": [
            {"role": "system", "content": "Be short."},
            {
                "role": "user",
                "content": [image(files.data_url(files.good_png(8, 8)), detail="low"), text("What is it?")],
            },
            {"role": "assistant", "content": "A box."},
            {"role": "user", "content": "Are you sure? é \u4e2d \U0001f600"},
        ],
        "stop": ["\n", "x"],
        "logit_bias": {"5": 1.5},
        "logprobs": True,
        "top_logprobs": 2,
        "n": 2,
        "seed": 3,
        "top_p": 0.9,
        "stream_options": None,
        "user": "u",
        "cache_salt": "s",
        "fovea": {"media": True},
        "chat_template_kwargs": {"a": [1, {"b": None}]},
    }
    completion = {
        **good_body("completions"),
        "prompt": [32, 577],
        "echo": False,
        "logprobs": 1,
        "bad_words": ["a"],
        "min_tokens": 1,
    }
    several = [
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", good_body("chat_stream")),
        ("/v1/completions", completion),
        ("/v1/completions", good_body("completions_stream")),
        ("/tokenize", good_body("tokenize_chat")),
        ("/tokenize", good_body("tokenize_text")),
        ("/detokenize", good_body("detokenize")),
    ]
    return tuple((path, json.dumps(body, ensure_ascii=False).encode()) for path, body in several)
