"""Text to be read: strings, and pictures of them."""

from functools import cache
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFont

from tiny.splits import HELD_OUT_FONT, is_held_out

FONT_FOLDER = Path(__file__).parent / "fonts"
FONTS = sorted(p.stem for p in FONT_FOLDER.glob("*.ttf") if p.stem != HELD_OUT_FONT)

_ONSETS_TEXT = (
    "b c d f g h j k l m n p qu r s t v w x y z bl br ch cl cr dr fl fr gl gr ph pl pr sc sh sk sl sm sn sp st "
    "str sw th tr tw wh"
)
_ONSETS = _ONSETS_TEXT.split()
_NUCLEI_TEXT = "a e i o u a e i o ai ea ee ou oo y io"
_NUCLEI = _NUCLEI_TEXT.split()
_CODAS_TEXT = "b d f g k l m n p r s t x ck ft ld ll lt mp nd ng nk nt rd rk rm rn rt sh sk ss st th"
_CODAS = _CODAS_TEXT.split()
_WORDS_TEXT = (
    "the and for you are with this that have from open close stop exit enter push pull sale free new hot cold "
    "water coffee tea bread milk school street road park hotel station train bus taxi bank shop store market "
    "museum city house home door window table garden river lake ocean island mountain summer winter spring autumn "
    "monday friday sunday today tomorrow morning evening night light dark green blue red yellow black white "
    "orange one two three four five six seven eight nine ten hello world welcome please thanks danger caution "
    "warning keep out no smoking parking entrance private public office room floor level price total invoice "
    "number date name address phone email cash paid order ticket gate flight seat time music book paper pen "
    "letter picture camera phone computer fovea model vision language engine small fast slow big happy quiet "
    "fresh juice apple banana lemon cherry fish bird cat dog horse lion tiger bear wolf fox left right above "
    "below first second jazz quiz box fix max wave zero zoo yes"
)
_WORDS = _WORDS_TEXT.split()
_CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"  # without those that look like others
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def random_string(rng: Random, held_out: bool, easy: float = 0.25) -> str:
    """1 to 3 words or numbers; each of them is of the wanted side of the split."""
    count = 1 if rng.random() < easy else rng.choice((1, 1, 2, 2, 3))
    case = rng.choice(("lower", "lower", "title", "title", "upper"))
    return " ".join(_token(rng, case, held_out) for _ in range(count))


def _token(rng: Random, case: str, held_out: bool) -> str:
    while True:
        token = _candidate(rng, case)
        if is_held_out("text:" + token) == held_out:
            return token


def _candidate(rng: Random, case: str) -> str:
    kind = rng.random()
    if kind < 0.52:
        word = "".join(rng.choice(_ONSETS) + rng.choice(_NUCLEI) for _ in range(rng.choice((0, 1, 1, 2))))
        return _cased(word + rng.choice(_ONSETS + _NUCLEI) + rng.choice(_NUCLEI) + rng.choice(_CODAS), case)
    if kind < 0.68:
        return _cased(rng.choice(_WORDS), case)
    if kind < 0.76:
        return "".join(rng.choice(_CODE_LETTERS) for _ in range(rng.randint(2, 6)))
    return _number(rng)


def _cased(word: str, case: str) -> str:
    return {"lower": word, "title": word.capitalize(), "upper": word.upper()}[case]


def _number(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.55:
        return str(rng.randrange(10 ** rng.randint(1, 6)))
    if kind < 0.7:
        return f"${rng.randrange(1000)}.{rng.randrange(100):02d}"
    if kind < 0.8:
        return f"{rng.randrange(24)}:{rng.randrange(60):02d}"
    if kind < 0.88:
        return f"{rng.randrange(100)}%"
    if kind < 0.94:
        return f"{rng.choice(_MONTHS)}-{rng.randint(1, 31)}"
    return f"{rng.randrange(1000)}.{rng.randrange(10)}"


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONT_FOLDER / f"{name}.ttf"), size, layout_engine=ImageFont.Layout.BASIC)


def render_text(rng: Random, text: str, size: tuple[int, int], font_name: str | None = None) -> Image.Image:
    """The text, in one line or in one line for each word, somewhere on a plain, tinted or two-coloured ground."""
    ground, ink = _pair(rng)
    name = font_name or rng.choice(FONTS)
    words = text.split(" ")
    scale = rng.choice((1.0, 1.0, 0.75, 1.5, 2.0)) if rng.random() < 0.5 else 1.0
    canvas = (round(size[0] * scale), round(size[1] * scale))
    lines = _best_lines(rng, words, name, canvas)
    picture = Image.new("RGB", canvas, ground)
    block = _block(rng, lines, name, canvas, size[0] / canvas[0])
    if block is None:
        # Too long for this font: the narrow one, and then smaller than wanted rather than not at all.
        name = "RobotoCondensed-Regular"
        block = _block(rng, lines, name, canvas, size[0] / canvas[0], smallest=7)
    if block is None:
        raise ValueError(f"{text!r} does not fit on {size}")
    mask, room_x, room_y = block
    at = (rng.randint(0, room_x), rng.randint(0, room_y))
    if rng.random() < 0.15:
        _frame(rng, picture, ink, canvas)
    picture.paste(ink, at, mask)
    return picture if canvas == size else picture.resize(size, Image.Resampling.BICUBIC)


def _pair(rng: Random) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Ground and ink with enough contrast."""
    if rng.random() < 0.4:
        light, dark = (255, 255, 255), (0, 0, 0)
    else:
        light = (rng.randint(190, 255), rng.randint(190, 255), rng.randint(190, 255))
        dark = (rng.randint(0, 110), rng.randint(0, 90), rng.randint(0, 110))
    return (dark, light) if rng.random() < 0.25 else (light, dark)


def _best_lines(rng: Random, words: list[str], name: str, canvas: tuple[int, int]) -> list[str]:
    """The layout in which the text can be largest, or sometimes another one."""
    options = [[" ".join(words)]]
    if len(words) > 1:
        options.append(list(words))
    if len(words) == 3:
        options += [[" ".join(words[:2]), words[2]], [words[0], " ".join(words[1:])]]
    probe = font(name, 24)

    def fit(lines: list[str]) -> float:
        width = max(probe.getlength(line) for line in lines)
        return min(canvas[0] / width, canvas[1] / (len(lines) * 29))

    ranked = sorted(options, key=fit, reverse=True)
    return (
        ranked[1] if len(ranked) > 1 and rng.random() < 0.15 and fit(ranked[1]) > 0.62 * fit(ranked[0]) else ranked[0]
    )


# The smallest size a letter may have in the picture the model sees, in font pixels.
_SMALLEST = 13


def _block(
    rng: Random, lines: list[str], name: str, canvas: tuple[int, int], to_final: float, smallest: float = _SMALLEST
) -> tuple[Image.Image, int, int] | None:
    """A mask with the lines on it, and the room it leaves; None if the text can't be large enough to be read."""
    probe = font(name, 24)
    width = max(probe.getlength(line) for line in lines) / 24
    gap = rng.uniform(1.15, 1.45)
    largest = min((canvas[0] - 8) / width, (canvas[1] - 6) / (gap * len(lines)), 64 / to_final)
    smallest /= to_final
    if largest < smallest:
        return None
    points = max(6, int(rng.triangular(smallest, largest, largest)))
    face = font(name, points)
    box = (min(canvas[0], round(width * points) + 6), min(canvas[1], round(gap * points * len(lines)) + 4))
    mask = Image.new("L", box, 0)
    pen = ImageDraw.Draw(mask)
    align = rng.choice((0.0, 0.5, 0.5))
    for row, line in enumerate(lines):
        slack = max(0.0, box[0] - 6 - face.getlength(line))
        pen.text((3 + slack * align, 1 + row * gap * points), line, fill=255, font=face)
    if rng.random() < 0.3:
        mask = mask.rotate(rng.uniform(-5, 5), Image.Resampling.BILINEAR, expand=True)
        if mask.width > canvas[0] or mask.height > canvas[1]:
            mask = mask.resize((min(mask.width, canvas[0]), min(mask.height, canvas[1])), Image.Resampling.BILINEAR)
    return mask, canvas[0] - mask.width, canvas[1] - mask.height


def _frame(rng: Random, picture: Image.Image, ink: tuple[int, int, int], canvas: tuple[int, int]) -> None:
    inset = rng.randint(0, 3)
    ImageDraw.Draw(picture).rectangle(
        (inset, inset, canvas[0] - 1 - inset, canvas[1] - 1 - inset), outline=ink, width=rng.randint(1, 2)
    )
