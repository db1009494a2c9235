"""The demo pictures of the package, with questions that the model answers: `python -m tiny.pictures`."""

import json
from pathlib import Path

from PIL import Image, ImageDraw

from tiny.scenes import Scene, Shape, draw
from tiny.texts import font

FOLDER = Path(__file__).parents[1] / "src" / "fovea" / "assets" / "pictures"
CREAM, WHITE, NIGHT = (250, 248, 240), (255, 255, 255), (40, 44, 60)

SHAPES = Scene(
    (
        Shape("circle", "red", 0.2, 0.42, 0.42),
        Shape("star", "yellow", 0.52, 0.3, 0.4),
        Shape("square", "blue", 0.8, 0.66, 0.4),
    ),
    NIGHT,
)
TWO_A = Scene((Shape("heart", "pink", 0.3, 0.5, 0.4), Shape("triangle", "green", 0.72, 0.5, 0.4)), CREAM)
TWO_B = Scene((Shape("heart", "pink", 0.3, 0.5, 0.4), Shape("triangle", "orange", 0.72, 0.5, 0.4)), CREAM)

# Picture names (joined with +), question, answer.
QUESTIONS = [
    ("shapes.png", "What is in this picture?", "A red circle, a yellow star and a blue square."),
    ("shapes.png", "How many shapes are there?", "3"),
    ("shapes.png", "What colour is the star?", "Yellow"),
    ("shapes.png", "Where is the circle relative to the square?", "Left"),
    ("sign.png", "What does the sign say?", "Fresh Bread"),
    ("sign.png", "How many words are there?", "2"),
    ("label.png", "Read the text.", "Total $12.50"),
    ("two_a.png+two_b.png", "Are the two pictures the same?", "No"),
    ("two_a.png+two_b.png", "Which picture shows an orange triangle?", "The second picture"),
]


def smooth(scene: Scene, size: tuple[int, int]) -> Image.Image:
    """Drawn large and reduced, for soft edges."""
    return draw(scene, (size[0] * 4, size[1] * 4)).resize(size, Image.Resampling.LANCZOS)


def sign(lines: list[str], name: str, points: int, colours: tuple[str, str], size: tuple[int, int]) -> Image.Image:
    """Centred lines on a board with a thin border, of the kind seen in training."""
    picture = Image.new("RGB", size, colours[0])
    pen = ImageDraw.Draw(picture)
    pen.rectangle((3, 3, size[0] - 4, size[1] - 4), outline=colours[1], width=2)
    for row, line in enumerate(lines):
        y = size[1] / 2 + (row - (len(lines) - 1) / 2) * points * 1.25
        pen.text((size[0] / 2, y), line, fill=colours[1], font=font(name, points), anchor="mm")
    return picture


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = {
        "shapes.png": smooth(SHAPES, (420, 300)),
        "sign.png": sign(["Fresh", "Bread"], "RobotoSlab-Bold", 56, ("#14532d", "#fef3c7"), (280, 200)),
        "label.png": sign(["Total $12.50"], "Arimo-Regular", 40, ("#ffffff", "#1f2937"), (336, 112)),
        "two_a.png": smooth(TWO_A, (280, 210)),
        "two_b.png": smooth(TWO_B, (280, 210)),
    }
    for name, picture in made.items():
        picture.quantize(64).save(FOLDER / name, optimize=True)
    entries = [{"pictures": names.split("+"), "question": q, "answer": a} for names, q, a in QUESTIONS]
    (FOLDER / "questions.json").write_text(json.dumps(entries, indent=2) + "\n")


if __name__ == "__main__":
    main()
