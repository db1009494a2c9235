"""The generated data: determinism, what is held out, true answers."""

from collections import Counter
from random import Random

import pytest

from tiny import asks, batches, evaluate, phrases, talk, tasks, texts
from tiny.scenes import Scene, Shape, random_scene
from tiny.splits import HELD_OUT_FONT, is_held_out, is_held_out_index

GENERATED = ("scene", "text", "pair", "motion", "describe")


def _pixels(example: evaluate.Example) -> list[bytes]:
    return [p.tobytes() for p in example.pictures]


@pytest.mark.parametrize("task", GENERATED)
def test_same_seed_same_examples(task: str) -> None:
    first, second, other = (evaluate.held_out(task, 4, seed) for seed in (1, 1, 2))
    assert [(e.question, e.answer, _pixels(e)) for e in first] == [(e.question, e.answer, _pixels(e)) for e in second]
    assert [_pixels(e) for e in first] != [_pixels(e) for e in other]


def test_a_string_is_either_trained_or_held_out() -> None:
    rng = Random(3)
    trained = {t for _ in range(3000) for t in texts.random_string(rng, False).split()}
    kept = {t for _ in range(300) for t in texts.random_string(rng, True).split()}
    assert len(kept) > 150
    assert not trained & kept


def test_a_scene_is_either_trained_or_held_out() -> None:
    rng = Random(4)
    for held_out in (False, True):
        for _ in range(40):
            sample = tasks.scene_sample(rng, (112, 112), held_out)
            assert is_held_out("scene:" + sample.key) == held_out


def test_the_held_out_font_is_never_trained() -> None:
    assert HELD_OUT_FONT not in texts.FONTS
    assert (texts.FONT_FOLDER / f"{HELD_OUT_FONT}.ttf").exists()


@pytest.mark.usefixtures("data_packages")
def test_digits_and_easy_vqa_are_split_by_index() -> None:
    from tiny import sources

    data = sources.load()
    trained, kept = (set(data.digit_indices(h)) for h in (False, True))
    assert len(trained) == 4000
    assert len(kept) == 1000
    assert not trained & kept
    assert all(is_held_out_index(i) for i in kept)
    assert Counter(data.labels[sorted(kept)].tolist()) == dict.fromkeys(range(10), 100)
    assert len(data.questions["test"]) == 9673


def _scene(*shapes: Shape) -> Scene:
    return Scene(shapes, (255, 255, 255))


LEFT, RIGHT = Shape("circle", "red", 0.2, 0.5, 0.2), Shape("star", "orange", 0.8, 0.5, 0.2)


def test_descriptions_are_true_and_checked() -> None:
    scene = _scene(LEFT, RIGHT)
    assert asks.describe(scene, (100, 100)) == "A red circle to the left of an orange star."
    assert asks.is_true_description("a red circle and an orange star", scene.shapes)
    for wrong in (
        "A red circle.",
        "An orange star to the left of a red circle.",
        "A red star and an orange circle.",
        "A red circle, a red circle and an orange star.",
        "A red circle and an orange star and more.",
        "",
    ):
        assert not asks.is_true_description(wrong, scene.shapes), wrong


def test_every_generated_description_is_true() -> None:
    rng = Random(5)
    for count in (1, 2, 2, 2, 3, 4) * 20:
        scene = random_scene(rng, count, 1.3)
        assert asks.is_true_description(asks.describe(scene, (130, 100)), scene.shapes)


def test_neither_yes_nor_no_is_the_usual_answer() -> None:
    rng = Random(6)
    answers = Counter(tasks.scene_sample(rng, (112, 112), True).turns[0][1] for _ in range(1500))
    assert 0.5 < answers["Yes"] / answers["No"] < 2


def test_every_question_has_many_wordings() -> None:
    lists = [v for k, v in vars(phrases).items() if k.isupper() and isinstance(v, list)]
    assert min(map(len, lists)) >= 5
    assert sum(map(len, lists)) > 180
    assert all(isinstance(part, str) for part in talk.small_talk(Random(0)))


def test_training_prompts_are_what_the_template_gives() -> None:
    rng = Random(7)
    bucket = batches.Bucket("scene", 1, (4, 5))
    mix = {"scene": {"scene": 1.0}}
    batch = batches.collate(rng, [batches.make_sample(rng, bucket, mix) for _ in range(3)], bucket)
    assert batch["pictures"].shape == (3, 112, 140, 3)
    assert len(batch["places"]) == 3 * 20
    # Each answer ends with its end mark, and the target is the token after the place that predicts it.
    flat = batch["ids"].flatten()
    assert (flat[batch["where"] + 1] == batch["target"]).all()
