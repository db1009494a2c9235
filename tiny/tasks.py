"""Samples: pictures with questions and answers. One maker for each kind; all are pure functions of the `Random`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from random import Random

from PIL import Image, ImageFilter

from tiny import phrases, sources, talk
from tiny.asks import Size, Turn, article, describe, scene_question
from tiny.digits import draw_digits
from tiny.phrases import ask
from tiny.scenes import COLOURS, GROUNDS, SHAPES, Scene, Shape, colours_for, random_scene, render
from tiny.splits import is_held_out
from tiny.texts import random_string, render_text


@dataclass(frozen=True)
class Sample:
    """Pictures and a conversation about them; `truth` is what a description is checked against."""

    pictures: list[Image.Image]
    turns: list[Turn]
    key: str
    truth: tuple[Shape, ...] = ()


def _split_scene(
    rng: Random, size: Size, held_out: bool, count: int, ground: tuple[int, int, int] | None = None
) -> Scene:
    while True:
        scene = random_scene(rng, count, size[0] / size[1], ground)
        if is_held_out("scene:" + scene.key) == held_out:
            return scene


def scene_sample(rng: Random, size: Size, held_out: bool) -> Sample:
    count = rng.choice((1, 2, 2, 3, 3, 4)) if held_out else rng.choice((1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 6))
    scene = _split_scene(rng, size, held_out, count)
    turns = [scene_question(rng, scene, size) for _ in range(1 if held_out else rng.choice((3, 4, 4)))]
    if not held_out and len(turns) < 4 and rng.random() < 0.5:
        turns.insert(rng.randrange(len(turns) + 1), (ask(rng, phrases.DESCRIBE), describe(scene, size)))
    if not held_out and rng.random() < 0.02:
        turns.append(talk.off_topic(rng))
    return Sample([render(rng, scene, size)], turns, scene.key, scene.shapes)


def describe_sample(rng: Random, size: Size, held_out: bool) -> Sample:
    scene = _split_scene(rng, size, held_out, rng.choice((1, 2, 2, 3, 4)))
    return Sample(
        [render(rng, scene, size)], [(ask(rng, phrases.DESCRIBE), describe(scene, size))], scene.key, scene.shapes
    )


def blank_sample(rng: Random, size: Size, _held_out: bool) -> Sample:
    """Nothing to see: saying so is right."""
    picture = Image.new("RGB", size, rng.choice((*GROUNDS, *COLOURS.values())))
    turn = rng.choice(((phrases.DESCRIBE, "Nothing: the picture is empty."), (phrases.COUNT_ALL, "0")))
    return Sample([picture], [(ask(rng, turn[0]), turn[1])], "blank")


def text_sample(rng: Random, size: Size, held_out: bool, font: str | None = None) -> Sample:
    text = random_string(rng, held_out)
    # Letters need some 7 pixels each, lines some 20.
    while max(map(len, text.split())) > size[0] / 8 or len(text) > size[0] * (size[1] // 24) / 8:
        text = random_string(rng, held_out)
    words = text.split()
    turns = [(ask(rng, phrases.READ), text)]
    if not held_out:
        chance = rng.random()
        if chance < 0.1 and len(words) > 1:
            n = rng.randrange(len(words))
            turns.append((ask(rng, phrases.READ_NTH, nth=("first", "second", "third")[n]), words[n]))
        elif chance < 0.15:
            turns.insert(0, (ask(rng, phrases.COUNT_WORDS), str(len(words))))
        elif chance < 0.22:
            turns[0] = (ask(rng, phrases.DESCRIBE), f'The text "{text}".')
        rng.shuffle(turns)
    return Sample([render_text(rng, text, size, font)], turns, text)


def digits_sample(rng: Random, size: Size, held_out: bool) -> Sample:
    data = sources.load()
    indices = data.digit_indices(held_out)
    most = max(1, min(5, size[0] // 26))
    chosen = [rng.choice(indices) for _ in range(rng.randint(1, most))]
    picture = draw_digits(rng, [data.digits[i] for i in chosen], size, distort=not held_out)
    number = "".join(str(data.labels[i]) for i in chosen)
    turns = [(ask(rng, phrases.READ_DIGITS), number)]
    if not held_out and rng.random() < 0.15:
        extra = rng.choice(
            ((phrases.COUNT_DIGITS, str(len(number))), (phrases.DESCRIBE, f"The handwritten number {number}."))
        )
        turns.insert(rng.randrange(2), (ask(rng, extra[0]), extra[1]))
    return Sample([picture], turns, f"digits:{chosen}")


def easy_vqa_sample(rng: Random, size: Size, held_out: bool) -> Sample:
    data = sources.load()
    split = "test" if held_out else "train"
    question, answer, index = rng.choice(data.questions[split])
    turns = [(question, answer.capitalize())]
    picture = Image.fromarray(data.pictures[split][index])
    if held_out:
        return Sample([picture], turns, f"{split}:{index}")
    turns += [(q, a.capitalize()) for q, a in _more_questions(rng, question, index)]
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return Sample([picture.resize(size, Image.Resampling.BICUBIC)], turns, f"{split}:{index}")


def _more_questions(rng: Random, first: str, index: int) -> list[tuple[str, str]]:
    entries = sources.load().questions["train"]
    # Questions about one picture stand together in the file, some ten each.
    near = [(q, a) for q, a, i in entries[max(0, index * 9) : index * 11 + 40] if i == index and q != first]
    return rng.sample(near, min(len(near), 3))


def pair_sample(rng: Random, size: Size, held_out: bool) -> Sample:
    """Two pictures to compare; in training with more than one question."""
    if rng.random() < 0.22:
        return _text_pair(rng, size, held_out)
    a = _split_scene(rng, size, held_out, rng.randint(1, 3))
    b = _second_scene(rng, a, size, held_out)
    turns: list[Turn] = []
    while not turns:
        forms = [_ask_which, _ask_which, _ask_same, _ask_same, _ask_more]
        rng.shuffle(forms)
        # No form twice: the second answer would be known from the first.
        found = [turn for form in dict.fromkeys(forms) if (turn := form(rng, (a, b), size)) is not None]
        turns = found[:1] if held_out else [*found, _ask_nth(rng, (a, b), size)]
    return Sample([render(rng, s, size) for s in (a, b)], turns, f"{a.key}|{b.key}")


def _second_scene(rng: Random, a: Scene, size: Size, held_out: bool) -> Scene:
    """The same, nearly the same, or another one."""
    chance = rng.random()
    if chance < 0.3:
        return a
    return _changed(rng, a, size) if chance < 0.6 else _split_scene(rng, size, held_out, rng.randint(1, 4))


def _answer_which(first: bool) -> str:
    return "The first picture" if first else "The second picture"


def _ask_which(rng: Random, scenes: tuple[Scene, Scene], _size: Size) -> Turn | None:
    n = rng.randrange(2)
    target, other = rng.choice(scenes[n].shapes), scenes[1 - n]
    name = rng.choice((target.name, target.name, target.kind, f"{target.colour} shape"))
    if any(name in (s.name, s.kind, f"{s.colour} shape") for s in other.shapes):
        return None
    return ask(rng, phrases.WHICH_PICTURE, name=name), _answer_which(n == 0)


def _ask_more(rng: Random, scenes: tuple[Scene, Scene], _size: Size) -> Turn | None:
    counts = [len(s.shapes) for s in scenes]
    return None if counts[0] == counts[1] else (ask(rng, phrases.WHICH_MORE), _answer_which(counts[0] > counts[1]))


def _ask_same(rng: Random, scenes: tuple[Scene, Scene], _size: Size) -> Turn | None:
    same = scenes[0] == scenes[1]
    # Keeps yes and no about equally frequent.
    return None if not same and rng.random() < 0.55 else (ask(rng, phrases.SAME), "Yes" if same else "No")


def _ask_nth(rng: Random, scenes: tuple[Scene, Scene], size: Size) -> Turn:
    n = rng.randrange(2)
    return ask(rng, phrases.NTH_PICTURE, nth=("first", "second")[n], n=str(n + 1)), describe(scenes[n], size)


def _text_pair(rng: Random, size: Size, held_out: bool) -> Sample:
    texts = [""] * 2
    while texts[0] == texts[1] or max(map(len, texts)) > size[0] / 9:
        texts = [random_string(rng, held_out, easy=0.8) for _ in range(2)]
    n = rng.randrange(2)
    if rng.random() < 0.55:
        turn = (ask(rng, phrases.WHICH_SAYS, text=texts[n]), _answer_which(n == 0))
        return Sample([render_text(rng, t, size) for t in texts], [turn], "|".join(texts))
    first = render_text(rng, texts[0], size)
    second = first.copy() if n == 0 else render_text(rng, texts[1], size)
    return Sample([first, second], [(ask(rng, phrases.SAME), "Yes" if n == 0 else "No")], "|".join(texts))


def _changed(rng: Random, scene: Scene, size: Size) -> Scene:
    """The same scene with one difference, or sometimes another scene."""
    kind = rng.random()
    if kind < 0.25:
        return random_scene(rng, rng.randint(1, 3), size[0] / size[1])
    n = rng.randrange(len(scene.shapes))
    shape = scene.shapes[n]
    if kind < 0.6:
        changed = replace(shape, colour=rng.choice([c for c in colours_for(scene.ground) if c != shape.colour]))
    else:
        changed = replace(
            shape, kind=rng.choice([k for k in SHAPES if k not in (shape.kind, "rectangle")]), stretch=1.0
        )
    return replace(scene, shapes=(*scene.shapes[:n], changed, *scene.shapes[n + 1 :]))


DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def motion_sample(rng: Random, size: Size, held_out: bool, frames: int) -> Sample:
    while True:
        mover, ground = _mover(rng, size), rng.choice(GROUNDS[:1] * 3 + GROUNDS)
        direction = rng.choice(list(DIRECTIONS))
        key = f"{mover.name} {direction} {frames} {int(mover.x * 4)},{int(mover.y * 4)}"
        if mover.colour in colours_for(ground) and is_held_out("motion:" + key) == held_out:
            break
    still = not held_out and rng.random() < 0.07
    span = 0.0 if still else rng.uniform(0.3, 0.62)
    dx, dy = DIRECTIONS[direction]
    pictures = []
    for i in range(frames):
        t = (i / (frames - 1) - 0.5) * span
        at = replace(
            mover,
            x=mover.x * (1 - abs(dx)) + abs(dx) * 0.5 + dx * t,
            y=mover.y * (1 - abs(dy)) + abs(dy) * 0.5 + dy * t,
        )
        pictures.append(render(rng, Scene((at,), ground), size))
    turns = [_motion_turn(rng, mover, direction, still, form=0.0 if held_out else rng.random())]
    if not held_out and rng.random() < 0.5:
        turns.append(_motion_turn(rng, mover, direction, still, form=rng.random()))
    return Sample(pictures, turns, key, (mover,))


def _mover(rng: Random, size: Size) -> Shape:
    stretch = rng.uniform(1.55, 2.2) * rng.choice((1, -1))
    return Shape(
        rng.choice(SHAPES),
        rng.choice(list(COLOURS)),
        rng.uniform(0.2, 0.8),
        rng.uniform(0.2, 0.8),
        rng.uniform(0.18, 0.36),
        stretch=stretch,
    )


def _motion_turn(rng: Random, mover: Shape, direction: str, still: bool, form: float) -> Turn:
    what = rng.choice(("shape", "object", mover.kind, mover.name))
    if form < 0.65:
        return ask(rng, phrases.DIRECTION, what=what), "It does not move" if still else direction.capitalize()
    if form < 0.85:
        said = direction if rng.random() < 0.5 else rng.choice(list(DIRECTIONS))
        words = said if said in ("up", "down") else rng.choice((f"to the {said}", said))
        true = said == direction and not still
        return ask(rng, phrases.MOVES_YES_NO, what=what, direction=words), "Yes" if true else "No"
    where = direction if direction in ("up", "down") else f"to the {direction}"
    name = article(mover.name).capitalize()
    return ask(rng, phrases.HAPPENS), f"{name} does not move." if still else f"{name} moves {where}."


def talk_sample(rng: Random, _size: Size, _held_out: bool) -> Sample:
    return Sample([], [talk.small_talk(rng) for _ in range(rng.choice((1, 1, 2)))], "talk")


Maker = Callable[[Random, Size, bool], Sample]


def worn(rng: Random, picture: Image.Image) -> Image.Image:
    """Now and then JPEG or a slight blur, as real pictures have."""
    chance = rng.random()
    if chance < 0.06:
        buffer = BytesIO()
        picture.save(buffer, "JPEG", quality=rng.randint(40, 90))
        return Image.open(buffer).convert("RGB")
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9))) if chance < 0.1 else picture
