"""I: the bytes of pictures. Refused by their header before any cost, never half decoded, and shown as they look.

Refusals that need only a header hold on /tokenize too; what only a decoder sees is tried where something is decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from PIL import Image

from tests.corpus import files
from tests.corpus.case import DECODED, PICTURES, Case, Expect, Parts, answered, case, either, refused
from tests.corpus.routes import image, text
from tests.corpus.scene import Scene
from tests.media.corpus import encode, exif, noise

PLACE = "messages.0.content.0"
BROKEN = refused("invalid_image", param=PLACE)
ANIMATED = refused("animated_image_not_supported", param=PLACE)
PIXELS = refused("image_too_many_pixels", param=PLACE, says="64,000,000")
Make = Callable[[Scene], Parts]


def shown(*pictures: Callable[[], bytes], kind: str = "image/png") -> Make:
    """A message with these pictures; made when it is sent."""
    return lambda _: Parts([*(image(files.data_url(picture(), kind)) for picture in pictures), text()])


def fixed(data: bytes, kind: str = "image/png") -> Make:
    return shown(lambda: data, kind=kind)


def bombs() -> list[Case]:
    """Refused by what the header says."""
    rows: list[tuple[str, Callable[[], bytes], str]] = [
        ("I01-png-13000-squared", lambda: files.flat_png(13_000, 13_000), "quick memory"),
        ("I02-png-8001-squared", lambda: files.flat_png(8_001, 8_001), "quick memory"),
        ("I03-png-2e31-squared", lambda: files.header_png(2**31 - 1, 2**31 - 1), ""),
        ("I03-png-2e32-squared", lambda: files.header_png(2**32 - 1, 2**32 - 1), ""),
        ("I04-webp-flat", files.flat_webp, "memory"),
        ("I04-webp-canvas", lambda: files.header_webp(16_383, 16_383), ""),
        ("I05-gif-canvas", lambda: files.gif_frame((65_535, 65_535), (0, 0, 4, 4)), "memory"),
        ("I42-gif-frame-larger", lambda: files.gif_frame((4, 4), (0, 0, 60_000, 60_000)), ""),
        ("I43-webp-canvas-larger", lambda: files.webp_canvas(9_000, 9_000), ""),
    ]
    cases = [case(id, shown(make), PIXELS, routes=PICTURES, flags=flags) for id, make, flags in rows]
    aspect = refused("above_max_value", param=PLACE, says="200")
    for name, width, height in (("I07", 52_800, 44), ("I08", 44, 52_800)):
        make = shown(partial(files.flat_png, width, height))
        flags = "quick" if name == "I08" else ""
        cases.append(case(f"{name}-{width}x{height}", make, aspect, routes=PICTURES, flags=flags))
    together = refused("image_too_many_pixels", says="64,000,000")
    three = shown(*[lambda: files.flat_png(5_477, 5_477)] * 3)
    cases.append(case("I09-3-of-30-megapixels", three, together, routes=PICTURES, flags="memory"))
    return cases


def metadata() -> list[Case]:
    """Chunks that unpack to far more than they are."""
    small = either("invalid_image", "animated_image_not_supported", within_s=0.5)
    rows: list[tuple[str, Callable[[], bytes]]] = [
        ("I06-zTXt", lambda: files.text_bomb(b"zTXt")),
        ("I06-iTXt", lambda: files.text_bomb(b"iTXt")),
        ("I06-iCCP", lambda: files.text_bomb(b"iCCP")),
        ("I06-many-chunks", files.many_chunks),
        ("I40-1000-scans", files.jpeg_of_scans),
        ("I45-gif-comments", files.gif_comments),
        ("I45-apng-2e31-frames", lambda: files.apng_claiming(2**31 - 1)),
    ]
    cases = [case(id, shown(make), small, routes=PICTURES, flags="memory") for id, make in rows]
    for length in (14, 20):  # the decoder warns of these; a warning is no line of a log
        broken = encode(files.smooth(), "JPEG", exif=exif(6)[:length])
        cases.append(case(f"I32-exif-cut-{length}", fixed(broken), small, routes=DECODED))
    return cases


def no_pictures() -> list[Case]:
    cases = [case("I12-" + n, fixed(d), _no_picture(), routes=PICTURES) for n, d in files.no_pictures().items()]
    cases += [
        case(
            f"I17-{name}", fixed(data), _no_picture(), routes=PICTURES, flags="quick" if name in ("eps", "svg") else ""
        )
        for name, data in files.other_formats().items()
    ]
    return cases


def _no_picture() -> Expect:
    """What is no picture and what is one of another format look alike to who does not read other formats."""
    return refused("unsupported_image_format", "invalid_image", param=PLACE, says="PNG")


def cut_off() -> list[Case]:
    """Never a grey-filled picture."""
    cases = []
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        rough = Image.fromarray(noise(84, 56))
        whole = encode(rough.quantize(64) if kind == "GIF" else rough, kind)
        for percent in (10, 50, 90, 99):
            cut = whole[: len(whole) * percent // 100]
            expect = either("invalid_image") if percent == 99 else BROKEN
            flags = "quick" if percent == 50 else ""
            cases.append(case(f"I13-{kind}-{percent}", fixed(cut), expect, routes=DECODED, flags=flags))
    rows: list[tuple[str, bytes]] = [
        ("I15-png-width", files.zero_side("png", "width")),
        ("I15-png-height", files.zero_side("png", "height")),
        ("I15-jpeg-width", files.zero_side("jpeg", "width")),
        ("I15-jpeg-height", files.zero_side("jpeg", "height")),
        ("I15-gif-width", files.zero_side("gif", "width")),
        ("I16-signature", files.PNG_MAGIC),
        ("I16-jpeg-signature", b"\xff\xd8\xff"),
        ("I16-gif-signature", b"GIF89a"),
        ("I16-webp-signature", b"RIFF\0\0\0\0WEBP"),
    ]
    small = refused("invalid_image", "image_too_small", param=PLACE)
    cases += [case(id, fixed(d), small, routes=PICTURES, flags="quick" if "16-sig" in id else "") for id, d in rows]
    only_header = files.good_png()[:33]
    cases.append(case("I16-ihdr-only", fixed(only_header), BROKEN, routes=DECODED, flags="quick"))
    cases.append(case("I43-webp-canvas-differs", fixed(files.webp_canvas(20, 20)), BROKEN, routes=DECODED))
    return cases


def tiny() -> list[Case]:
    """One pixel is a picture; three by four pixels are not channels first."""
    sizes = ((1, 1), (1, 3), (3, 1), (3, 3), (3, 4), (4, 3), (4, 4), (2, 2), (28, 28), (27, 29))
    cases = []
    for width, height in sizes:
        data = files.plain_png(files.smooth(width, height))
        as_webp = encode(files.smooth(width, height), "WEBP", lossless=True, exact=True)
        id = f"I23-{width}x{height}"
        flags = "quick" if (width, height) in ((1, 1), (3, 4)) else ""
        cases.append(case(id, fixed(as_webp), answered(same_as=fixed(data)), routes=PICTURES, flags=flags))
    return cases


def odd() -> list[Case]:
    """Shown to the model as they look to a person: the same picture as a plain PNG of what a viewer shows."""
    cases = []
    for name, (data, plain) in {**files.odd_pairs(), **files.transparent_pairs()}.items():
        row = "I33" if name in files.transparent_pairs() else "I36"
        flags = "quick" if name in ("rgb-colour-key", "grey-16-bit") else ""
        cases.append(case(f"{row}-{name}", fixed(data), answered(same_as=fixed(plain)), routes=PICTURES, flags=flags))
    for kind in ("JPEG", "PNG", "WEBP"):
        for orientation in range(1, 9):
            same = answered(same_as=fixed(files.upright_png(kind, orientation)))
            flags = "quick" if orientation == 6 else ""
            make = fixed(files.oriented(kind, orientation))
            cases.append(case(f"I31-{kind}-{orientation}", make, same, routes=PICTURES, flags=flags))
    for kind in ("GIF", "PNG", "WEBP"):
        make = fixed(files.animated(kind))
        cases.append(case(f"I34-{kind}", make, ANIMATED, routes=PICTURES, flags="quick"))
    good = answered(same_as=fixed(files.good_png()))
    cases.append(case("I27-png-as-jpeg", fixed(files.good_png(), "image/jpeg"), good, routes=PICTURES, flags="quick"))
    cases.append(case("I28-png-zip", fixed(files.polyglots()["png-zip"]), good, routes=PICTURES))
    like_gif = answered(same_as=fixed(files.plain_png(files.smooth().quantize(16))))
    cases.append(case("I28-gif-js", fixed(files.polyglots()["gif-js"]), like_gif, routes=PICTURES))
    jpeg = files.decoded(encode(files.smooth(), "JPEG", quality=95))
    like_jpeg = answered(same_as=fixed(files.plain_png(jpeg)))
    make = shown(partial(_polyglot, "jpeg-tail"))
    return [*cases, case("I28-jpeg-tail", make, like_jpeg, routes=PICTURES, flags="alone")]


def _polyglot(name: str) -> bytes:
    return files.polyglots()[name]


def profiles() -> list[Case]:
    """Colour profiles change nothing (docs: they are ignored)."""
    wide = b"\0\0\2\x0c" + b"none" + bytes(504)
    cases = []
    for name, profile in (("wide", wide), ("broken", b"\0\1\2"), ("5-mb", bytes(5_000_000))):
        data = encode(files.smooth(), "PNG", icc_profile=profile)
        same = answered(same_as=fixed(files.good_png()))
        cases.append(
            case(f"I39-{name}", fixed(data), either("invalid_image") if name == "5-mb" else same, routes=PICTURES)
        )
    off = files.gif_frame((200, 200), (190, 190, 4, 4))
    same = answered(same_as=fixed(files.plain_png(files.decoded(off))))
    cases.append(case("I42-gif-frame-inside", fixed(off), same, routes=PICTURES))
    return cases


def bytes_limit() -> list[Case]:
    """I29: bytes over the cap of one picture, with a header that is fine; 33 MiB of picture need a larger body."""
    too_large = refused("media_too_large", param=PLACE, within_s=1.0)
    over = shown(lambda: files.good_png() + bytes(70_000))
    exact = shown(lambda: files.good_png().ljust(65_536, b"\0"))
    one_more = shown(lambda: files.good_png().ljust(65_537, b"\0"))
    return [
        case("I29-over-cap", over, too_large, routes=PICTURES, profile="small"),
        case("I29-at-cap", exact, answered(), routes=PICTURES, profile="small"),
        case("I29-cap-and-one", one_more, too_large, routes=PICTURES, profile="small"),
    ]


CASES: tuple[Case, ...] = (
    *bombs(),
    *metadata(),
    *no_pictures(),
    *cut_off(),
    *tiny(),
    *odd(),
    *profiles(),
    *bytes_limit(),
    case(
        "I10-empty",
        fixed(b""),
        refused("invalid_data_url", "invalid_image", param=PLACE),
        routes=PICTURES,
        flags="quick",
    ),
)
