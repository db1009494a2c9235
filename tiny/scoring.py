"""How an answer is judged. Whether it is right never depends on case, spaces or the final mark."""

from tiny.asks import is_true_description
from tiny.scenes import Shape

CHARACTER_TASKS = ("text", "text-held-out-font")


def plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .!")


def distance(a: str, b: str) -> int:
    """Levenshtein."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def is_right(task: str, answer: str, expected: str, truth: tuple[Shape, ...] = ()) -> bool:
    if task == "describe":
        return is_true_description(answer, truth)
    if task in CHARACTER_TASKS:
        return " ".join(answer.split()) == expected
    return plain(answer) == plain(expected)


def character_error(answers: list[str], expected: list[str]) -> float:
    """Edits over all expected characters, case counted; an answer can't cost more than twice its length."""
    edits = sum(min(distance(" ".join(a.split()), e), 2 * len(e)) for a, e in zip(answers, expected))
    return edits / max(1, sum(map(len, expected)))
