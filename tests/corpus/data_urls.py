"""D: data URLs. Judged by their length before they are decoded, then decoded strictly."""

from __future__ import annotations

import base64

import numpy as np
from PIL import Image

from tests.corpus import files
from tests.corpus.case import PICTURES, Case, Parts, answered, case, refused
from tests.corpus.routes import image, text
from tests.corpus.scene import Scene
from tests.media.corpus import encode

PLACE = "messages.0.content.0"
BAD = refused("invalid_data_url", param=PLACE)
GOOD_TEXT = base64.b64encode(files.good_png()).decode("ascii")


def _with(url: str) -> Parts:
    return Parts([image(url), text()])


def _fixed(id: str, url: str, *, good: bool = False, flags: str = "") -> Case:
    expect = answered(same_as=lambda _: _with(files.data_url(files.good_png()))) if good else BAD
    return case(id, lambda _: _with(url), expect, routes=PICTURES, flags=flags)


def malformed() -> list[Case]:
    middle = len(GOOD_TEXT) // 2
    rows: dict[str, str] = {
        "D01-scheme-only": "data:",
        "D01-comma": "data:,",
        "D01-no-data": "data:image/png;base64,",
        "D01-no-comma": "data:image/png;base64",
        "D02-text-type": f"data:text/html;base64,{GOOD_TEXT}",
        "D02-no-type": f"data:;base64,{GOOD_TEXT}",
        "D03-percent-encoded": "data:image/png,%89PNG%0D%0A%1A%0A",
        "D03-no-base64": f"data:image/png,{GOOD_TEXT}",
        "D04-junk-inside": f"data:image/png;base64,{GOOD_TEXT[:middle]}@@@@{GOOD_TEXT[middle:]}",
        "D04-junk-behind": f"data:image/png;base64,{GOOD_TEXT}@@@@",
        "D05-one-character": "data:image/png;base64,A",
        "D05-no-padding": "data:image/png;base64,"
        + base64.b64encode(files.good_png() + b"x").decode().rstrip("=")
        + "A",
        "D05-padding-inside": f"data:image/png;base64,{GOOD_TEXT[:40]}=={GOOD_TEXT[40:]}",
        "D05-only-padding": "data:image/png;base64,====",
        "D06-blanks": f"data:image/png;base64,{GOOD_TEXT[:middle]} {GOOD_TEXT[middle:]}",
        "D06-newlines": f"data:image/png;base64,{GOOD_TEXT[:76]}\r\n{GOOD_TEXT[76:]}",
        "D06-percent": f"data:image/png;base64,{GOOD_TEXT[:40]}%0A{GOOD_TEXT[40:]}",
        "D07-url-safe": f"data:image/png;base64,{base64.urlsafe_b64encode(bytes(range(240, 256)) * 30).decode()}",
        "D09-nothing": "data:image/png;base64,=",
        "D12-base64-twice": f"data:image/png;base64;base64,{GOOD_TEXT}",
        "D14-not-ascii": f"data:image/png;base64,{GOOD_TEXT[:40]}é{GOOD_TEXT[40:]}",
        "D14-full-width": f"data:image/png;base64,{'Ａ' * 40}",
        "D15-long-type": f"data:image/{'x' * 10_000};base64,{GOOD_TEXT}",
        "D15-long-parameters": f"data:image/png{';a=b' * 3000};base64,{GOOD_TEXT}",
    }
    return [_fixed(id, url, flags="quick" if id.startswith("D04") else "") for id, url in rows.items()]


def unusual() -> list[Case]:
    rows = {
        "D12-charset": f"data:image/png;charset=utf-8;base64,{GOOD_TEXT}",
        "D12-name": f"data:image/png;name=../../x;base64,{GOOD_TEXT}",
        "D13-upper-case": f"DATA:IMAGE/PNG;BASE64,{GOOD_TEXT}",
        "D13-jpeg-type": f"data:image/jpeg;base64,{GOOD_TEXT}",
        "D13-odd-type": f"data:image/x-nothing+zip;base64,{GOOD_TEXT}",
    }
    return [_fixed(id, url, good=True) for id, url in rows.items()]


def large() -> list[Case]:
    """D10: the default cap is 32 MiB for the picture and for the body, so a data URL meets the body's cap first; the
    picture's own cap is tried on a server with small ones. D16: one picture many times."""

    def over_body(_: Scene) -> Parts:
        return _with("data:image/png;base64," + "A" * (33 * files.MIB))

    def over_picture(_: Scene) -> Parts:
        return _with("data:image/png;base64," + "A" * (65_540 * 4 // 3))

    def same_16(_: Scene) -> Parts:
        return Parts([*[image(files.data_url(_noise()))] * 16, text()])

    body = refused("content_too_large", status=413, within_s=1.0)
    picture = refused("media_too_large", param=PLACE)
    return [
        case("D10-over-body", over_body, body, routes=PICTURES, flags="quick memory"),
        case("D10-over-picture", over_picture, picture, routes=PICTURES, flags="quick", profile="small"),
        case("D16-same-16", same_16, answered(within_s=30), routes=PICTURES, flags="alone"),
    ]


def _noise() -> bytes:
    """About 1.4 MB that doesn't pack."""
    pixels = np.random.default_rng(7).integers(0, 256, (680, 680, 3), np.uint8)
    return encode(Image.fromarray(pixels), "PNG")


CASES: tuple[Case, ...] = (*malformed(), *unusual(), *large())
