"""Drawn scenes: coloured shapes on a plain ground. Everything follows from the `random.Random` given."""

import math
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "green": (30, 150, 50),
    "blue": (35, 75, 225),
    "yellow": (250, 220, 30),
    "orange": (250, 135, 20),
    "purple": (130, 45, 180),
    "pink": (250, 130, 190),
    "brown": (130, 75, 35),
    "black": (15, 15, 15),
    "gray": (130, 130, 130),
    "teal": (15, 135, 135),
    "white": (252, 252, 252),
}
SHAPES = ("circle", "square", "triangle", "rectangle", "star", "diamond", "cross", "ring", "heart")
GROUNDS = (
    (255, 255, 255),
    (250, 248, 240),
    (235, 240, 250),
    (225, 225, 225),
    (240, 230, 215),
    (40, 44, 60),
    (70, 75, 85),
)
# Squared distance below which a colour can't be told from the ground.
_CONTRAST = 9000


@dataclass(frozen=True)
class Shape:
    """One shape; position and size are fractions of the picture's width (x), height (y) and smaller side (size)."""

    kind: str
    colour: str
    x: float
    y: float
    size: float
    angle: float = 0.0
    stretch: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    shapes: tuple[Shape, ...]
    ground: tuple[int, int, int]

    @property
    def key(self) -> str:
        """The content, coarsely: what the held-out rule looks at."""
        return ";".join(sorted(f"{s.name}@{int(s.x * 4)},{int(s.y * 4)}" for s in self.shapes))


def colours_for(ground: tuple[int, int, int]) -> list[str]:
    """The colours that can be seen on that ground."""
    return [n for n, c in COLOURS.items() if sum((a - b) ** 2 for a, b in zip(c, ground)) > _CONTRAST]


def random_scene(rng: Random, count: int, aspect: float = 1.0, ground: tuple[int, int, int] | None = None) -> Scene:
    """`count` shapes that do not touch, on a picture of width / height = aspect."""
    ground = ground or rng.choice(GROUNDS[:1] * 4 + GROUNDS)
    names = colours_for(ground)
    # Few colours and kinds in a picture make counting and comparing worth asking about.
    if count > 1 and rng.random() < 0.4:
        names = rng.sample(names, 2)
    kinds = list(SHAPES) if count == 1 or rng.random() < 0.6 else rng.sample(SHAPES, 2)
    shapes: list[Shape] = []
    size = rng.uniform(0.16, 0.34) if count > 1 else rng.uniform(0.16, 0.6)
    while len(shapes) < count:
        placed = _place(rng, shapes, size, aspect, rng.choice(names), rng.choice(kinds))
        if placed is None:
            # No room: start again with smaller shapes.
            shapes, size = [], max(0.12, size * 0.8)
        else:
            shapes.append(placed)
    return Scene(tuple(shapes), ground)


def _place(rng: Random, others: list[Shape], size: float, aspect: float, colour: str, kind: str) -> Shape | None:
    size *= rng.uniform(0.5, 1.15) if rng.random() < 0.25 else rng.uniform(0.85, 1.1)
    half_w, half_h = size / 2 * min(1, 1 / aspect), size / 2 * min(1, aspect)
    angle = rng.uniform(-12, 12) if rng.random() < 0.3 else 0.0
    stretch = rng.uniform(1.55, 2.2) * rng.choice((1, -1)) if kind == "rectangle" else 1.0
    for _ in range(25):
        x, y = rng.uniform(half_w, 1 - half_w), rng.uniform(half_h, 1 - half_h)
        far = 1.12 * size
        if all(_distance(x - o.x, y - o.y, aspect) > far / 2 + 0.56 * o.size for o in others):
            return Shape(kind, colour, x, y, size, angle, stretch)
    return None


def _distance(dx: float, dy: float, aspect: float) -> float:
    """In units of the smaller side."""
    return math.hypot(dx * max(1, aspect), dy * max(1, 1 / aspect))


def draw(scene: Scene, size: tuple[int, int]) -> Image.Image:
    picture = Image.new("RGB", size, scene.ground)
    pen = ImageDraw.Draw(picture)
    for shape in scene.shapes:
        _draw_shape(pen, shape, size, scene.ground)
    return picture


def _draw_shape(pen: ImageDraw.ImageDraw, shape: Shape, size: tuple[int, int], ground: tuple[int, int, int]) -> None:
    r = shape.size * min(size) / 2
    x, y, fill = shape.x * size[0], shape.y * size[1], COLOURS[shape.colour]
    if shape.kind == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape.kind == "ring":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        pen.ellipse((x - r * 0.55, y - r * 0.55, x + r * 0.55, y + r * 0.55), fill=ground)
    else:
        pen.polygon(_turned(_outline(shape), shape.angle, x, y, r), fill=fill)


def _outline(shape: Shape) -> list[tuple[float, float]]:
    """Corners in a box from -1 to 1."""
    if shape.kind == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape.kind == "rectangle":
        short = 1 / abs(shape.stretch)
        a, b = (1.0, short) if shape.stretch > 0 else (short, 1.0)
        return [(-a, -b), (a, -b), (a, b), (-a, b)]
    if shape.kind == "triangle":
        return [(0, -0.95), (0.95, 0.8), (-0.95, 0.8)]
    if shape.kind == "diamond":
        return [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)]
    if shape.kind == "cross":
        t = 0.32
        corners = [(-t, -1), (t, -1), (t, -t), (1, -t), (1, t), (t, t), (t, 1), (-t, 1), (-t, t), (-1, t), (-1, -t)]
        return [*corners, (-t, -t)]
    if shape.kind == "heart":
        turns = [2 * math.pi * i / 28 for i in range(28)]
        return [
            (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
            for t in turns
        ]
    points = []
    for i in range(10):
        radius = 1.0 if i % 2 == 0 else 0.42
        points.append((radius * math.sin(math.pi * i / 5), -radius * math.cos(math.pi * i / 5)))
    return points


def _turned(points: list[tuple[float, float]], angle: float, x: float, y: float, r: float) -> list[tuple[float, float]]:
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return [(x + r * (px * c - py * s), y + r * (px * s + py * c)) for px, py in points]


def render(rng: Random, scene: Scene, size: tuple[int, int]) -> Image.Image:
    """Draw at the given size, or at another one and resize as a processor would."""
    if rng.random() < 0.5:
        return draw(scene, size)
    factor = rng.choice((0.6, 0.8, 1.3, 1.7, 2.0, 2.5))
    other = (max(28, round(size[0] * factor)), max(28, round(size[1] * factor)))
    return draw(scene, other).resize(size, Image.Resampling.BICUBIC)
