"""What the model must be able to do, on held-out data, whatever engine runs it.

`held_out` makes examples, a backend answers them, `score` judges. A backend is any function from examples to answers;
here are Fovea's and transformers'. `python -m tiny.evaluate --count 200` prints the table with both controls.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from tiny import tasks
from tiny.batches import FRAMES, GRIDS, MAKERS, MOTION_GRIDS, PAIR_GRIDS
from tiny.scenes import COLOURS, SHAPES, Shape
from tiny.scoring import CHARACTER_TASKS, character_error, is_right, plain
from tiny.splits import HELD_OUT_FONT
from tiny.tasks import Sample

FOLDER = Path(__file__).parents[1] / "src" / "fovea" / "assets" / "fovea-tiny"


@dataclass(frozen=True)
class Example:
    """One question about some pictures (or none), and the right answer."""

    task: str
    pictures: tuple[Image.Image, ...]
    question: str
    answer: str
    truth: tuple[Shape, ...] = ()


@dataclass(frozen=True)
class Score:
    """The share of right answers; for reading also the character error, which is what its bar is about."""

    task: str
    count: int
    right: float
    character_error: float | None = None

    @property
    def passed(self) -> bool:
        bar = BARS[self.task]
        return self.right >= bar if self.character_error is None else self.character_error <= bar


# At least this share right; for reading, at most this character error. Never to be moved.
BARS = {
    "scene": 0.95,
    "easy-vqa": 0.95,
    "text": 0.05,
    "text-held-out-font": 0.05,
    "digits": 0.90,
    "pair": 0.90,
    "motion": 0.95,
    "describe": 0.95,
}
Backend = Callable[[list[Example]], list[str]]
MAX_ANSWER_TOKENS = 48


def held_out(task: str, count: int, seed: int = 0) -> list[Example]:
    """Examples that share no string, scene, digit or easy-vqa picture with the training data; sizes are arbitrary."""
    rng = Random(f"held-out/{task}/{seed}")
    return [_example(task, _sample(task, rng)) for _ in range(count)]


def _sample(task: str, rng: Random) -> Sample:
    if task == "motion":
        return tasks.motion_sample(rng, _size(rng, MOTION_GRIDS), True, rng.choice((*FRAMES, 7)))
    if task == "pair":
        return tasks.pair_sample(rng, _size(rng, PAIR_GRIDS), True)
    if task == "text-held-out-font":
        return tasks.text_sample(rng, _size(rng, GRIDS), True, HELD_OUT_FONT)
    flat = task in ("text", "digits")
    return MAKERS[task](rng, _size(rng, GRIDS if flat else {g: w for g, w in GRIDS.items() if g[0] > 2}), True)


def _size(rng: Random, grids: dict[tuple[int, int], float]) -> tuple[int, int]:
    """Of a trained grid, but seldom a multiple of 28: the processor must resize."""
    rows, columns = rng.choices(list(grids), list(grids.values()))[0]
    return columns * 28 + rng.randint(-9, 9), rows * 28 + rng.randint(-9, 9)


def _example(task: str, sample: Sample) -> Example:
    question, answer = sample.turns[0]
    return Example(task, tuple(sample.pictures), question, answer, sample.truth)


def blank(examples: list[Example]) -> list[Example]:
    """The same questions about empty pictures: what can be right without seeing."""
    return [replace(e, pictures=tuple(Image.new("RGB", p.size, (128, 128, 128)) for p in e.pictures)) for e in examples]


def swapped(examples: list[Example]) -> list[Example]:
    """The same questions about the next example's pictures."""
    return [replace(e, pictures=n.pictures) for e, n in zip(examples, examples[1:] + examples[:1])]


def score(task: str, examples: list[Example], answers: list[str]) -> Score:
    right = [is_right(task, a, e.answer, e.truth) for a, e in zip(answers, examples, strict=True)]
    error = character_error(answers, [e.answer for e in examples]) if task in CHARACTER_TASKS else None
    return Score(task, len(examples), sum(right) / len(right), error)


def chance(examples: list[Example]) -> float:
    """The share right for one who knows the questions and the usual answers, but sees nothing."""
    groups: dict[str, Counter[str]] = {}
    for example in examples:
        groups.setdefault(_kind_of(example.answer), Counter())[plain(example.answer)] += 1
    return sum(max(group.values()) for group in groups.values()) / len(examples)


def _kind_of(answer: str) -> str:
    text = plain(answer)
    kinds = {"yes": "yes-no", "no": "yes-no", **dict.fromkeys(COLOURS, "colour"), **dict.fromkeys(SHAPES, "shape")}
    kinds |= dict.fromkeys(("left", "right", "above", "below", "up", "down"), "side")
    kinds |= dict.fromkeys(("the first picture", "the second picture"), "which")
    return kinds.get(text, "number" if text.isdigit() and len(text) == 1 else "other")


def messages(example: Example) -> list[dict[str, Any]]:
    """The chat messages: pictures first, then the question, no system message."""
    content: list[dict[str, Any]] = [{"type": "image", "image": p} for p in example.pictures]
    return [{"role": "user", "content": [*content, {"type": "text", "text": example.question}]}]


def fovea_backend(folder: Path = FOLDER) -> Backend:
    """Fovea's engine, all examples in one batch, in float32."""
    from fovea import LLM, SamplingParams

    llm = LLM(str(folder), device="cpu", dtype="float32", use_tqdm=False)
    params = SamplingParams(temperature=0.0, max_tokens=MAX_ANSWER_TOKENS)

    def answer(examples: list[Example]) -> list[str]:
        outputs = llm.chat([messages(example) for example in examples], params, use_tqdm=False)
        return [output.outputs[0].text for output in outputs]

    return answer


def transformers_backend(folder: Path = FOLDER) -> Backend:
    """transformers' own model, processor and greedy generation, one example at a time, in float32."""
    import torch
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    def answer(examples: list[Example]) -> list[str]:
        out = []
        for example in examples:
            prompt = processor.apply_chat_template(messages(example), tokenize=False, add_generation_prompt=True)
            inputs = processor(text=[prompt], images=list(example.pictures) or None, return_tensors="pt")
            with torch.no_grad():
                ids = model.generate(**inputs, max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False)
            out.append(processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        return out

    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--control-count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="*", default=list(BARS))
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--engine", choices=("fovea", "transformers"), default="fovea")
    parser.add_argument("--wrong", type=int, default=5, help="wrong answers to show for each task")
    args = parser.parse_args()
    backend = {"fovea": fovea_backend, "transformers": transformers_backend}[args.engine](args.folder)
    for task in args.tasks:
        start = time.monotonic()
        examples = held_out(task, args.count, args.seed)
        answers = backend(examples)
        few = examples[: args.control_count]
        line = {
            **asdict(score(task, examples, answers)),
            "bar": BARS[task],
            "chance": round(chance(few), 3),
            "blank": asdict(score(task, few, backend(blank(few)))),
            "swapped": asdict(score(task, few, backend(swapped(few)))),
            "seconds": round(time.monotonic() - start),
        }
        sys.stdout.write(json.dumps(line) + "\n")
        wrong = [(e, a) for e, a in zip(examples, answers) if not is_right(task, a, e.answer, e.truth)]
        for example, given in wrong[: args.wrong]:
            sys.stdout.write(f"    {example.question!r} expected {example.answer!r} got {given!r}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
