"""Questions about one drawn scene, each with its true answer, and the sentence that describes a scene."""

import re
from collections import Counter
from collections.abc import Callable
from itertools import permutations
from random import Random

from tiny import phrases
from tiny.phrases import ask
from tiny.scenes import COLOURS, SHAPES, Scene, Shape

Turn = tuple[str, str]
Size = tuple[int, int]
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_RELATION_WORDS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


def article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def plural(kind: str) -> str:
    return kind + "es" if kind.endswith("s") else kind + "s"


def offset(a: Shape, b: Shape, size: Size) -> tuple[float, float]:
    """From b to a, in units of the picture's smaller side."""
    side = min(size)
    return (a.x - b.x) * size[0] / side, (a.y - b.y) * size[1] / side


def side_of(a: Shape, b: Shape, size: Size) -> str | None:
    """Where a is, seen from b, if one direction clearly dominates."""
    dx, dy = offset(a, b, size)
    if abs(dx) > 1.6 * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) > 1.6 * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def _unique(scene: Scene, by: Callable[[Shape], str]) -> list[Shape]:
    seen = Counter(by(s) for s in scene.shapes)
    return [s for s in scene.shapes if seen[by(s)] == 1]


def _colour(rng: Random, scene: Scene, _size: Size) -> Turn | None:
    if len(scene.shapes) == 1 and rng.random() < 0.6:
        return ask(rng, phrases.COLOUR_ONLY), scene.shapes[0].colour.capitalize()
    found = _unique(scene, lambda s: s.kind)
    if not found:
        return None
    shape = rng.choice(found)
    return ask(rng, phrases.COLOUR_OF, kind=shape.kind), shape.colour.capitalize()


def _shape(rng: Random, scene: Scene, _size: Size) -> Turn | None:
    if len(scene.shapes) == 1 and rng.random() < 0.6:
        return ask(rng, phrases.SHAPE_ONLY), scene.shapes[0].kind.capitalize()
    found = _unique(scene, lambda s: s.colour)
    if not found:
        return None
    shape = rng.choice(found)
    return ask(rng, phrases.SHAPE_OF, colour=shape.colour), shape.kind.capitalize()


def _count(rng: Random, scene: Scene, _size: Size) -> Turn | None:
    kind = rng.random()
    some = rng.choice(scene.shapes)
    if kind < 0.45:
        return ask(rng, phrases.COUNT_ALL), str(len(scene.shapes))
    if kind < 0.7:
        colour = some.colour if rng.random() < 0.85 else rng.choice(list(COLOURS))
        number = sum(s.colour == colour for s in scene.shapes)
        return ask(rng, phrases.COUNT_SOME, what=f"{colour} shapes"), str(number)
    wanted = some.kind if rng.random() < 0.85 else rng.choice(SHAPES)
    return ask(rng, phrases.COUNT_SOME, what=plural(wanted)), str(sum(s.kind == wanted for s in scene.shapes))


def _exists(rng: Random, scene: Scene, _size: Size) -> Turn | None:
    some = rng.choice(scene.shapes)
    if rng.random() < 0.5:
        name = rng.choice((some.name, some.name, some.kind, f"{some.colour} shape"))
        return ask(rng, phrases.EXISTS, name=name), "Yes"
    colour, kind = rng.choice(list(COLOURS)), rng.choice(SHAPES)
    # Near misses: half right is wrong.
    name = rng.choice((f"{colour} {some.kind}", f"{some.colour} {kind}", kind, f"{colour} shape"))
    return ask(rng, phrases.EXISTS, name=name), "Yes" if _has(scene, name) else "No"


def _has(scene: Scene, name: str) -> bool:
    return any(name in (s.name, s.kind, f"{s.colour} shape") for s in scene.shapes)


def _relation(rng: Random, scene: Scene, size: Size) -> Turn | None:
    found = _unique(scene, lambda s: s.name)
    if len(found) < 2:
        return None
    a, b = rng.sample(found, 2)
    side = side_of(a, b, size)
    if side is None:
        return None
    form = rng.random()
    names = _short_names(rng, scene, a, b)
    if form < 0.4:
        said = side if rng.random() < 0.5 else rng.choice((_OPPOSITE[side], _OPPOSITE[side], *_OPPOSITE))
        words = rng.choice(_RELATION_WORDS[said])
        turn = ask(rng, phrases.RELATION_YES_NO, a=names[0], b=names[1], relation=words)
        return (turn, "Yes" if said == side else "No") if said in (side, _OPPOSITE[side]) else None
    if form < 0.75 or len(scene.shapes) != 2:
        return ask(rng, phrases.RELATION_WHERE, a=names[0], b=names[1]), side.capitalize()
    words = rng.choice(_RELATION_WORDS[side])
    return ask(rng, phrases.RELATION_WHAT, b=names[1], relation=words), f"The {a.name}"


def _short_names(rng: Random, scene: Scene, a: Shape, b: Shape) -> tuple[str, str]:
    """Sometimes 'circle' instead of 'red circle', where that is enough."""
    kinds = Counter(s.kind for s in scene.shapes)
    if rng.random() < 0.4 and kinds[a.kind] == kinds[b.kind] == 1:
        return a.kind, b.kind
    return a.name, b.name


def _extreme(rng: Random, scene: Scene, size: Size) -> Turn | None:
    if len(scene.shapes) < 2:
        return None
    side = rng.choice(("left", "right", "top", "bottom"))

    def axis(shape: Shape) -> float:
        return shape.x * size[0] if side in ("left", "right") else shape.y * size[1]

    ranked = sorted(scene.shapes, key=axis, reverse=side in ("right", "bottom"))
    if abs(axis(ranked[0]) - axis(ranked[1])) < 0.15 * min(size):
        return None
    return ask(rng, phrases.EXTREME, side=side), f"The {ranked[0].name}"


def _size_rank(rng: Random, scene: Scene, _size: Size) -> Turn | None:
    ranked = sorted(scene.shapes, key=lambda s: s.size)
    if len(ranked) > 1 and ranked[-1].size > 1.4 * ranked[-2].size:
        return ask(rng, phrases.BIGGEST), f"The {ranked[-1].name}"
    if len(ranked) > 1 and ranked[1].size > 1.4 * ranked[0].size:
        return ask(rng, phrases.SMALLEST), f"The {ranked[0].name}"
    return None


QUESTIONS = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "exists": _exists,
    "relation": _relation,
    "extreme": _extreme,
    "size": _size_rank,
}


def scene_question(rng: Random, scene: Scene, size: Size, kinds: tuple[str, ...] = tuple(QUESTIONS)) -> Turn:
    """One question about the scene; kinds that the scene does not allow are passed over."""
    while True:
        turn = QUESTIONS[rng.choice(kinds)](rng, scene, size)
        if turn is not None:
            return turn


def describe(scene: Scene, size: Size) -> str:
    """A true sentence; shapes in order from left to right."""
    shapes = sorted(scene.shapes, key=lambda s: s.x)
    names = [article(s.name) for s in shapes]
    if len(shapes) == 1:
        return f"{names[0].capitalize()}."
    if len(shapes) == 2 and names[0] != names[1]:
        side = side_of(shapes[0], shapes[1], size)
        if side == "left":
            return f"{names[0].capitalize()} to the left of {names[1]}."
        if side in ("above", "below"):
            upper = 0 if side == "above" else 1
            return f"{names[upper].capitalize()} above {names[1 - upper]}."
    return f"{', '.join(names[:-1]).capitalize()} and {names[-1]}."


def is_true_description(sentence: str, shapes: tuple[Shape, ...]) -> bool:
    """Whether the sentence names each shape, no other, and a relation only where it holds."""
    text = sentence.lower().strip().rstrip(".")
    pattern = rf"an? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    named = [f"{colour} {kind}" for colour, kind in re.findall(pattern, text)]
    rest = re.sub(r"\s+", " ", re.sub(pattern, "_", text))
    known = re.fullmatch(r"_|(_, )*_ (and|above|to the left of) _", rest)
    if Counter(named) != Counter(s.name for s in shapes) or not known:
        return False
    if known[2] in (None, "and"):
        return True
    # Two shapes may have one name: some pair of the named ones must stand so.
    pairs = [(a, b) for a, b in permutations(shapes, 2) if [a.name, b.name] == named]
    return any(a.y < b.y if known[2] == "above" else a.x < b.x for a, b in pairs)
