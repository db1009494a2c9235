"""Embeddings handed in place of pictures give the answer that the pictures give, in every form that is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fovea.core.errors import EmbeddingsError
from tests.oracle.checkpoints import CASES, Case
from tests.oracle.reference import Floats, image_features, pixels
from tests.parity.support import (
    EVERY_FAMILY,
    GRIDDED,
    Checkpoints,
    Engines,
    answer,
    ask,
    ask_all,
    case_name,
    question,
    tokens,
)

UNTOLD = ("idefics3", "smolvlm")  # most fields of tiles can't be told from their number of rows
PICTURES = [
    (variant, case) for variant in EVERY_FAMILY if variant not in UNTOLD for case in CASES[variant] if case.sizes
]


def embeddings(checkpoints: Checkpoints, variant: str, case: Case) -> object:
    """The oracle's features of the case's pictures in the form that the family takes."""
    folder, images = checkpoints.folder(variant), case.images()
    rows = image_features(folder, images)
    if variant == "mistral3":
        grids = [[1, height // 14, width // 14] for height, width in pixels(folder, images)["image_sizes"]]
        return {"image_embeds": np.concatenate(rows), "image_grid_thw": np.array(grids)}
    if variant in GRIDDED:
        return {"image_embeds": np.concatenate(rows), "image_grid_thw": pixels(folder, images)["image_grid_thw"]}
    return rows


@pytest.mark.parametrize(("variant", "case"), PICTURES, ids=case_name)
def test_embeddings_answer_as_pixels_do(checkpoints: Checkpoints, engines: Engines, variant: str, case: Case) -> None:
    given = embeddings(checkpoints, variant, case)
    output = ask(engines.get(variant), {"prompt": case.prompt, "multi_modal_data": {"image": given}})
    want = answer(checkpoints.folder(variant), case)
    if variant == "ovis2":  # which field the tiles were of isn't known: other tokens may stand for the same rows
        assert len(output.prompt_token_ids) == len(want.token_ids)
    else:
        assert list(output.prompt_token_ids) == want.token_ids
    assert tokens(output) == want.greedy
    assert [(r.original_width_px, r.width_px) for r in output.media] == [(0, 0)] * len(case.sizes)


@pytest.mark.parametrize("variant", UNTOLD)
def test_embeddings_of_a_field_are_taken_where_it_is_known(
    checkpoints: Checkpoints, engines: Engines, variant: str
) -> None:
    case = Case("square", CASES[variant][0].prompt, ((90, 90, 4),))
    given = image_features(checkpoints.folder(variant), case.images())
    output = ask(engines.get(variant), {"prompt": case.prompt, "multi_modal_data": {"image": given}})
    want = answer(checkpoints.folder(variant), case)
    assert (list(output.prompt_token_ids), tokens(output)) == (want.token_ids, want.greedy)
    with pytest.raises(EmbeddingsError, match="takes 4 or 68, since"):
        ask(engines.get(variant), {"prompt": case.prompt, "multi_modal_data": {"image": [given[0][:-4]]}})


def _tensor(rows: list[Floats]) -> object:
    return torch.from_numpy(np.stack(rows))


FORMS: dict[str, Callable[[list[Floats]], object]] = {
    "tensor [pictures, tokens, hidden]": _tensor,
    "tensor [tokens, hidden]": lambda rows: torch.from_numpy(rows[0]),
    "array [pictures, tokens, hidden]": np.stack,
    "list of arrays": list,
    "list of tensors": lambda rows: [torch.from_numpy(r) for r in rows],
    "list of tensors [1, tokens, hidden]": lambda rows: [torch.from_numpy(r[None]) for r in rows],
    "float64": lambda rows: np.stack(rows).astype(np.float64),
    "a tensor that requires gradients": lambda rows: torch.from_numpy(np.stack(rows)).requires_grad_(),
    "not contiguous": lambda rows: np.asfortranarray(np.stack(rows)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_embeddings_means_the_same(checkpoints: Checkpoints, engines: Engines, form: str) -> None:
    case = CASES["llava"][0]
    given = FORMS[form](image_features(checkpoints.folder("llava"), case.images()))
    output = ask(engines.get("llava"), {"prompt": case.prompt, "multi_modal_data": {"image": given}})
    assert tokens(output) == answer(checkpoints.folder("llava"), case).greedy


def test_half_precision_embeddings_are_taken(checkpoints: Checkpoints, engines: Engines) -> None:
    case = CASES["llava"][0]
    (rows,) = image_features(checkpoints.folder("llava"), case.images())
    for dtype in (torch.float16, torch.bfloat16):
        given = torch.from_numpy(rows).to(dtype)
        exact = given.float().numpy()
        outputs = ask_all(
            engines.get("llava"),
            [{"prompt": case.prompt, "multi_modal_data": {"image": value}} for value in (given, exact)],
        )
        assert tokens(outputs[0]) == tokens(outputs[1])


@pytest.mark.parametrize("form", ["arrays", "tensors", "rows with a leading 1", "lists"])
def test_qwen_takes_its_dict_in_every_form(checkpoints: Checkpoints, engines: Engines, form: str) -> None:
    case = CASES["qwen2_vl"][0]
    given: Any = embeddings(checkpoints, "qwen2_vl", case)
    rows, grid = given["image_embeds"], given["image_grid_thw"]
    changed = {
        "arrays": (rows, grid),
        "tensors": (torch.from_numpy(rows), torch.from_numpy(grid)),
        "rows with a leading 1": (rows[None], grid),
        "lists": (rows, grid.tolist()),
    }[form]
    image = dict(zip(("image_embeds", "image_grid_thw"), changed, strict=True))
    output = ask(engines.get("qwen2_vl"), {"prompt": case.prompt, "multi_modal_data": {"image": image}})
    assert tokens(output) == answer(checkpoints.folder("qwen2_vl"), case).greedy


def test_pictures_and_embeddings_stand_side_by_side_in_a_prompt(checkpoints: Checkpoints, engines: Engines) -> None:
    case = CASES["llava"][1]
    images: list[object] = list(case.images())
    images[1] = image_features(checkpoints.folder("llava"), case.images())[1]
    output = ask(engines.get("llava"), {"prompt": case.prompt, "multi_modal_data": {"image": images}})
    assert tokens(output) == answer(checkpoints.folder("llava"), case).greedy
    assert [r.original_width_px for r in output.media] == [40, 0, 56]


def test_embeddings_run_beside_pictures_in_one_batch(checkpoints: Checkpoints, engines: Engines) -> None:
    prompts: list[object] = []
    for case in CASES["llava"]:
        prompts.append(question(case))
        if case.sizes:
            given = image_features(checkpoints.folder("llava"), case.images())
            prompts.append({"prompt": case.prompt, "multi_modal_data": {"image": given}})
    got = [tokens(output) for output in ask_all(engines.get("llava"), prompts)]
    greedy = [answer(checkpoints.folder("llava"), case).greedy for case in CASES["llava"]]
    assert got == [greedy[0], greedy[0], greedy[1], greedy[1], greedy[2]]


def test_the_caller_may_change_embeddings_after_the_call(checkpoints: Checkpoints, engines: Engines) -> None:
    case = CASES["llava"][0]
    (rows,) = image_features(checkpoints.folder("llava"), case.images())
    rows = rows.copy()
    prompt = {"prompt": case.prompt, "multi_modal_data": {"image": rows}}
    first = ask(engines.get("llava"), prompt)
    rows[:] = 0.0
    second = ask(engines.get("llava"), prompt)
    assert tokens(first) == answer(checkpoints.folder("llava"), case).greedy
    assert tokens(second) != tokens(first), "other numbers in the same array are another picture"
