"""Picture files of the corpus: good ones, odd ones and hostile ones, all made in code.

`tests/media/corpus.py` has the building blocks; here are whole files by name. Hostile files are small on the wire and
made when they are first asked for.
"""

from __future__ import annotations

import base64
import io
import struct
import zipfile
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from tests.media.corpus import encode, exif, noise, over_white, png, png_chunk

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
MIB = 1024**2


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


@cache
def smooth(width_px: int = 84, height_px: int = 56, seed: int = 0) -> Image.Image:
    """A picture without hard edges, so that lossy formats stay near it."""
    y, x = np.mgrid[0:height_px, 0:width_px]
    red = (x * 255 // max(width_px - 1, 1) + seed * 37) % 256
    green = (y * 255 // max(height_px - 1, 1) + seed * 11) % 256
    pixels = np.stack([red, green, (x + y + seed) % 256], axis=2).astype(np.uint8)
    return Image.fromarray(pixels)


@cache
def good_png(width_px: int = 84, height_px: int = 56, seed: int = 0) -> bytes:
    return encode(smooth(width_px, height_px, seed), "PNG")


def plain_png(image: Image.Image) -> bytes:
    """The picture as opaque RGB: what an odd file must look like to the model."""
    return encode(image.convert("RGB"), "PNG")


@cache
def flat_png(width_px: int, height_px: int, level: int = 7) -> bytes:
    """A grey PNG of one value; packs to almost nothing. Written row by row, so that making it costs no memory."""
    packer = zlib.compressobj(9)
    row = b"\0" + bytes([level]) * width_px
    data = b"".join(packer.compress(row) for _ in range(height_px)) + packer.flush()
    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 0, 0, 0, 0)
    return PNG_MAGIC + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND")


def header_png(width_px: int, height_px: int) -> bytes:
    """Claims a size; holds a row of nothing."""
    return png((width_px, height_px), [b"\0"])


def header_webp(width_px: int, height_px: int) -> bytes:
    size = (width_px - 1).to_bytes(3, "little") + (height_px - 1).to_bytes(3, "little")
    vp8x = b"VP8X" + struct.pack("<I", 10) + bytes(4) + size
    return b"RIFF" + struct.pack("<I", 4 + len(vp8x)) + b"WEBP" + vp8x


@cache
def flat_webp(side_px: int = 16_383) -> bytes:
    """A real, complete picture of one colour: VP8L, lossless. Its header is all a server should need."""
    small = encode(Image.new("RGB", (64, 64), (9, 99, 199)), "WEBP", lossless=True)
    at = small.index(b"VP8L") + 9
    (bits,) = struct.unpack_from("<I", small, at)
    bits = (bits & ~0x0FFF_FFFF) | (side_px - 1) | (side_px - 1) << 14
    return small[:at] + struct.pack("<I", bits) + small[at + 4 :]


def with_chunks(*chunks: bytes) -> bytes:
    """The good PNG with chunks before its pixels."""
    whole = good_png()
    at = whole.index(b"IDAT") - 4
    return whole[:at] + b"".join(chunks) + whole[at:]


@cache
def text_bomb(name: bytes = b"zTXt", num_bytes: int = 50_000_000) -> bytes:
    packed = zlib.compress(bytes(num_bytes), 9)
    head = {b"zTXt": b"key\0\0", b"iCCP": b"profile\0\0", b"iTXt": b"key\0\1\0\0\0"}[name]
    return with_chunks(png_chunk(name, head + packed))


@cache
def many_chunks(count: int = 100_000) -> bytes:
    return with_chunks(png_chunk(b"tEXt", b"k\0v") * count)


@cache
def oriented(kind: str, orientation: int) -> bytes:
    options: dict[str, Any] = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    return encode(smooth(), kind, exif=exif(orientation), **options)


def upright_png(kind: str, orientation: int) -> bytes:
    """What a viewer shows of `oriented`."""
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    stored = decoded(oriented(kind, 1))
    return encode(stored.transpose(turns[orientation]) if orientation > 1 else stored, "PNG")


def decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


@cache
def transparent_pairs() -> dict[str, tuple[bytes, bytes]]:
    """name: a file with transparency, and what it looks like over white."""
    rgb = np.asarray(smooth()).copy()
    rgb[:20, :30] = (0, 0, 0)
    opaque = rgb.copy()
    opaque[:20, :30] = 255
    rgba = noise(84, 56, 4, seed=3)
    grey = np.asarray(smooth().convert("L")).copy()
    grey[grey == 9] = 10
    grey[:20, :30] = 9
    grey_seen = grey.copy()
    grey_seen[:20, :30] = 255
    palette = smooth().quantize(16)
    indices = np.asarray(palette)
    colours = np.asarray(palette.getpalette(), np.uint8).reshape(-1, 3)
    hidden = colours[indices].copy()
    hidden[indices == 3] = 255
    return {
        "rgb-colour-key": (encode(Image.fromarray(rgb), "PNG", transparency=(0, 0, 0)), _png(opaque)),
        "grey-colour-key": (encode(Image.fromarray(grey), "PNG", transparency=9), _png(grey_seen)),
        "palette-entry": (encode(palette, "PNG", transparency=3), _png(hidden)),
        "rgba-png": (encode(Image.fromarray(rgba), "PNG"), _png(over_white(rgba))),
        "rgba-webp": (encode(Image.fromarray(rgba), "WEBP", lossless=True, exact=True), _png(over_white(rgba))),
        "gif-entry": (encode(palette, "GIF", transparency=3), _png(hidden)),
    }


def _png(pixels: Any) -> bytes:
    return plain_png(Image.fromarray(pixels))


@cache
def odd_pairs() -> dict[str, tuple[bytes, bytes]]:
    """name: a file in an unusual form, and the same picture as a plain PNG."""
    grey16 = np.random.default_rng(4).integers(0, 65536, (56, 84), np.uint16)
    grey16_rows = [row.astype(">u2").tobytes() for row in grey16]
    rgb16 = np.random.default_rng(5).integers(0, 65536, (56, 84, 3), np.uint16)
    rgb16_rows = [row.astype(">u2").tobytes() for row in rgb16]
    scaled = ((grey16.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)
    one_bit, palette = smooth().convert("1"), smooth().quantize(17)
    jpeg = encode(smooth(), "JPEG", quality=95)
    progressive = encode(smooth(), "JPEG", quality=95, progressive=True)
    cmyk = encode(smooth().convert("CMYK"), "JPEG", quality=95)
    return {
        "grey-16-bit": (png((84, 56), grey16_rows, depth=16, colour=0), _png(scaled)),
        "rgb-16-bit": (png((84, 56), rgb16_rows, depth=16, colour=2), _png((rgb16 >> 8).astype(np.uint8))),
        "one-bit": (encode(one_bit, "PNG"), plain_png(one_bit)),
        "palette-png": (encode(palette, "PNG"), plain_png(palette)),
        "palette-out-of-range": (_palette_out_of_range(), _palette_out_of_range_seen()),
        "gif-one-frame": (encode(palette, "GIF"), plain_png(palette)),
        "jpeg": (jpeg, plain_png(decoded(jpeg))),
        "jpeg-progressive": (progressive, plain_png(decoded(progressive))),
        "jpeg-cmyk": (cmyk, plain_png(decoded(cmyk))),
        "webp-lossless": (encode(smooth(), "WEBP", lossless=True), good_png()),
        "interlaced": (_interlaced(), plain_png(decoded(_interlaced()))),
    }


def _palette_out_of_range() -> bytes:
    """Two colours, indices 0 to 3."""
    rows = [bytes((x + y) % 4 for x in range(16)) for y in range(16)]
    return png((16, 16), rows, colour=3, before=png_chunk(b"PLTE", b"\xff\0\0\0\xff\0"))


def _palette_out_of_range_seen() -> bytes:
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 0), (0, 0, 0)], np.uint8)
    y, x = np.mgrid[0:16, 0:16]
    return _png(colours[(x + y) % 4])


def _interlaced() -> bytes:
    """Adam7, 8 x 8, grey: seven passes written by hand."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    values = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    data = b"".join(b"\0" + row.tobytes() for x, y, dx, dy in passes for row in values[y::dy, x::dx] if row.size)
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)
    return PNG_MAGIC + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(data)) + png_chunk(b"IEND")


@cache
def animated(kind: str) -> bytes:
    frames = [smooth(seed=seed) for seed in (0, 5)]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)


@cache
def jpeg_of_scans(count: int = 1000) -> bytes:
    """A progressive JPEG whose last scan stands there `count` times."""
    data = encode(smooth(512, 512), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    scan = data[start:-2]
    return data[:start] + scan * count + b"\xff\xd9"


@cache
def gif_comments(count: int = 100_000) -> bytes:
    whole = encode(smooth().quantize(16), "GIF")
    at = 13 + (3 << ((whole[10] & 7) + 1))
    return whole[:at] + b"!\xfe\x01x\0" * count + whole[at:]


def gif_frame(size: tuple[int, int], frame: tuple[int, int, int, int]) -> bytes:
    """Canvas and frame (left, top, width, height) as told, pixels of a small picture."""
    whole = bytearray(encode(Image.new("P", (4, 4), 1), "GIF"))
    struct.pack_into("<HH", whole, 6, *size)
    at = whole.index(b",", 13)
    struct.pack_into("<HHHH", whole, at + 1, *frame)
    return bytes(whole)


@cache
def apng_claiming(num_frames: int) -> bytes:
    return with_chunks(png_chunk(b"acTL", struct.pack(">II", num_frames, 0)))


def webp_canvas(width_px: int, height_px: int) -> bytes:
    """An extended WebP whose canvas is not the size of its frame."""
    plain = encode(smooth(), "WEBP", lossless=True)
    size = (width_px - 1).to_bytes(3, "little") + (height_px - 1).to_bytes(3, "little")
    chunks = b"VP8X" + struct.pack("<I", 10) + bytes(4) + size + plain[12:]
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


@cache
def polyglots() -> dict[str, bytes]:
    """Good pictures with something else behind them."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("run.sh", "echo pwned")
    return {
        "png-zip": good_png() + archive.getvalue(),
        "gif-js": encode(smooth().quantize(16), "GIF") + b"=1;alert(1);//",
        "jpeg-tail": encode(smooth(), "JPEG", quality=95) + bytes(19 * MIB),
    }


def svg_with_entities() -> bytes:
    laughs = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    text = f'<!DOCTYPE svg [<!ENTITY a0 "ha"><!ENTITY x SYSTEM "file:///etc/passwd">{laughs}]>'
    return f'<?xml version="1.0"?>{text}<svg xmlns="http://www.w3.org/2000/svg">&x;&a9;</svg>'.encode()


@cache
def other_formats() -> dict[str, bytes]:
    """Real pictures in formats that are not offered, and heads of others."""
    made = {kind.lower(): encode(smooth(), kind) for kind in ("BMP", "ICO", "PCX", "TGA", "DDS", "TIFF", "PPM", "PDF")}
    made["mpo"] = b""  # see below
    made |= {
        "xbm": encode(smooth().convert("1"), "XBM"),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run showpage\n",
        "psd": b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, 16, 16, 8, 3) + bytes(40),
        "fits": (b"SIMPLE  =                    T".ljust(80) + b"END".ljust(80)).ljust(2880),
        "gd": b"\xff\xfe\0\x10\0\x10\1\xff\xff\xff\xff" + bytes(1024),
        "jpeg2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
        "j2k-stream": b"\xff\x4f\xff\x51" + bytes(60),
        "mpeg": b"\0\0\1\xb3\x10\0\x10\x13" + bytes(40),
        "wmf": b"\xd7\xcd\xc6\x9a\0\0" + bytes(60),
        "svg": svg_with_entities(),
        "heic": b"\0\0\0\x20ftypheic" + bytes(60),
        "avif": b"\0\0\0\x20ftypavif" + bytes(60),
        "jxl": b"\xff\x0a" + bytes(60),
        "blp": b"BLP2" + bytes(200),
        "im": b"Image type: L image\r\nImage size (x*y): 16*16\r\n".ljust(511, b"\0") + b"\x1a" + bytes(256),
    }
    del made["mpo"]
    return made


def no_pictures() -> dict[str, bytes]:
    return {
        "html": b"<!doctype html><html><body>404</body></html>",
        "json": b'{"error": "not found"}',
        "executable": b"MZ\x90\0\x03\0\0\0" + bytes(200),
        "text": b"hello, this is no picture",
        "zeros": bytes(5000),
        "pickle": b"\x80\x04\x95\x0f\0\0\0\0\0\0\0\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
    }


def zero_side(kind: str, side: str) -> bytes:
    """A good file whose header says 0 for its width or height."""
    wide = side == "width"
    if kind == "png":
        return header_png(0, 56) if wide else header_png(84, 0)
    if kind == "jpeg":
        data = bytearray(encode(smooth(), "JPEG"))
        at = data.index(b"\xff\xc0") + 5
        struct.pack_into(">H", data, at + 2 if wide else at, 0)
        return bytes(data)
    return gif_frame((0, 0), (0, 0, 0, 4) if wide else (0, 0, 4, 0))
